"""Harm: whether answers have become wrong more often, from true labels, also few and late. Pure; read `change.py` next.

    state = harm_monitor([(label, is_wrong), ...])             # held-out examples under the version and plan that serve
    state = unlabelled(state, 1 - confidence)                  # a request whose label does not come any more
    state, alarm = labelled(state, LabelArrived(3, True, now, request), rng)

What a label costs a fleet is more than what it costs this: a tenth of a millisecond, and no memory that grows.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from math import ceil, isfinite, log, sqrt

import numpy as np
from numpy.typing import NDArray

from edgewise.core.errors import InputError
from edgewise.lifecycle.unknown_start import start_weight, weight_left

ALPHA = 0.01
"""Probability that answers which are as good as ever ever give an alarm."""
BETS = np.array(
    [
        *((0.03, times) for times in (1.5, 3.0, 10.0)),
        *((0.06, times) for times in (1.5, 2.5, 7.0)),
        *((0.12, times) for times in (1.5, 2.2, 4.0)),
        *((0.24, times) for times in (1.4, 2.0, 3.0)),
    ]
)
"""Each bets that p-values below a share come so many times as often; the shares are those of wrong answers that models have."""
_SHARES = np.unique(BETS[:, 0])
_ODDS = np.array([
    np.where(BETS[:, 0] > below, BETS[:, 1], (1 - BETS.prod(axis=1)) / (1 - BETS[:, 0])) for below in (0.0, *_SHARES)
])  # fmt: skip
"""By how many of the shares are at most the p-value."""
HINTED = 0.25
"""Share of the unit that bets only where the model's own confidences hint at a change; the rest bets from every start."""
BY_CLASS = 0.3
"""Of the rest, the share that bets on one class alone each, for a fall that one class has; what is left bets on all."""
NUM_STARTS = 40
"""Requests before which answers may have become worse that are told apart, the last ones; older starts bet on every label."""
LATEST = 400
"""Requests by which a label may be late and still not count for a start after its request; starts lie evenly over them."""
MOST_EVIDENCE = 4000
"""Starts times classes; with many classes there are fewer starts."""
HINT_WINDOW = 100
"""Last unlabelled requests whose confidences are held against all before them."""
HINT_DEVIATIONS = 4.0
"""Standard errors by which they must differ."""
MIN_REFERENCE = 50


@dataclass(frozen=True, slots=True)
class LabelArrived:
    """A true label came back for a request.

    Attributes:
        label: The true class.
        is_wrong: Whether the answer was another.
        time: Seconds on the caller's clock.
        request: How many requests were answered before it, so that what comes late is known to be old; None where labels
            come in the order of their requests.
    """

    label: int
    is_wrong: bool
    time: float = 0.0
    request: int | None = None


@dataclass(frozen=True, slots=True)
class HarmDetected:
    """Answers of some classes are wrong more often than those of the reference were.

    Attributes:
        statistic: Evidence, an e-process.
        threshold: What it passed, 1/α.
        num_since: Labels from the estimated beginning to the alarm.
        since: When the label before them came; the first label's time if there is none.
        risk_before: Share of wrong answers before, with the reference's.
        risk_since: Share of wrong answers since.
    """

    statistic: float
    threshold: float
    num_since: int
    since: float
    risk_before: float
    risk_since: float


@dataclass(frozen=True, slots=True)
class Hint:
    """Confidences of requests without a label: whether the last ones are unlike those before. Holds no label's request.

    Attributes:
        recent: 1 − confidence, the last `HINT_WINDOW`.
        num: Of those before.
        total: Their sum.
        squares: Sum of their squares.
    """

    recent: tuple[float, ...] = ()
    num: int = 0
    total: float = 0.0
    squares: float = 0.0

    @property
    def is_given(self) -> bool:
        """Whether the means differ by `HINT_DEVIATIONS` standard errors, either way."""
        if len(self.recent) < HINT_WINDOW or self.num < HINT_WINDOW:
            return False
        before, now = self.total / self.num, sum(self.recent) / len(self.recent)
        variance = max(self.squares / self.num - before * before, 1e-12)
        return abs(now - before) > HINT_DEVIATIONS * sqrt(variance * (1 / self.num + 1 / len(self.recent)))


@dataclass(frozen=True, slots=True, eq=False)
class HarmState:
    """Everything the monitor remembers. Arrays are never written to.

    Attributes:
        threshold: 1/α.
        reference: float64[2, classes], wrong answers and examples of the held-out data, by true class.
        bag: float64[2, classes], the same with the labels since the last alarm.
        starts: int64[starts], the request from which on each start bets; the first stands for all older ones.
        evidence: float64[starts, 1 + classes, bets], of each bet on all labels, and on those of one held-out class alone.
        unspent: Weight of starts still to come.
        newest: The last request with a label.
        from_hints: float64[bets], evidence of each bet made while there was a hint.
        hint: What unlabelled requests say.
        is_hinted: Whether the last label was bet on by hint.
        num_armed: Labels since the monitor was armed, or armed again.
        num_labels: Labels so far.
        num_wrong: Of them wrong.
        runs: float64[bets, 4], each bet's evidence since its own likeliest start; labels and wrong answers before that
            start, and its time.
        detected: The last alarm.
        num_alarms: Alarms so far.
    """

    threshold: float
    reference: NDArray[np.float64]
    bag: NDArray[np.float64]
    starts: NDArray[np.int64] = field(default_factory=lambda: np.full(1, -LATEST))
    evidence: NDArray[np.float64] = field(default_factory=lambda: np.zeros((1, 2, len(BETS))))
    unspent: float = 1.0
    newest: int = -1
    from_hints: NDArray[np.float64] = field(default_factory=lambda: np.zeros(len(BETS)))
    unhinted: float = 1.0
    hint: Hint = Hint()
    is_hinted: bool = False
    num_armed: int = 0
    num_labels: int = 0
    num_wrong: int = 0
    runs: NDArray[np.float64] = field(default_factory=lambda: np.zeros((len(BETS), 4)))
    detected: HarmDetected | None = None
    num_alarms: int = 0

    @property
    def statistic(self) -> float:
        """Evidence: about 1 or less while all is well, an alarm at the threshold."""
        on_all, *on_classes = self.evidence.sum(axis=(0, 2)).tolist()
        by_class = BY_CLASS * sum(on_classes) / len(on_classes)
        starts = float((1.0 - BY_CLASS) * on_all + by_class) / len(BETS) + self.unspent
        return (1.0 - HINTED) * starts + HINTED * (float(self.from_hints.mean()) + self.unhinted)

    @property
    def risk_reference(self) -> float:
        """Share of wrong answers among the held-out examples."""
        return float(self.reference[0].sum() / self.reference[1].sum())

    @property
    def risk(self) -> float | None:
        """Share of wrong answers among all labels so far; None without any."""
        return self.num_wrong / self.num_labels if self.num_labels else None


def harm_monitor(reference: Iterable[tuple[int, bool]], *, alpha: float = ALPHA) -> HarmState:
    """A monitor of risk that has seen no label yet.

    *Error.* Let the answers be as good as ever: given their true classes, whether answers are wrong is exchangeable between
    reference and stream, class by class. Then an alarm *ever* comes with probability at most α. Proof. Each label gets a
    p-value from how many answers of its class were wrong so far, reference included, ties broken at random: smoothed
    conformal p-values, which are independent and uniform on [0, 1] (Vovk et al.). Each bet multiplies its evidence by a
    density on [0, 1] that is fixed, or chosen from requests that get no label; a start does not bet on labels of requests
    before it, which is known before the label is. Given the past the mean is 1. A mixture of such products over bets, starts
    and classes, with weights that sum to 1, is a test martingale, and it passes 1/α with probability at most α (Ville). The mean of two such mixtures under one filtration is one as well. Nothing is assumed of the model,
    of how confident it is, of the order of the classes, of when labels come, or of how many. What is assumed: whether a
    request gets a label, and when, does not depend on whether its answer was wrong. Users who complain about
    wrong answers only are not a sample; near copies of one example, as the frames of a film, are not exchangeable.

    *What it sees.* A class that is answered worse than before. A mix that moves to harder classes is no harm here: no class is
    answered worse, and training would not help. Evidence after a missed harm does not fall: every start has its own.

    *Price.* `labels_needed` gives it for a fall. The reference bounds what can be proved with few labels:
    with N held-out examples a rise from r to s cannot be proved beyond N · KL(r, s) nats, whatever method is used.

    Args:
        reference: Of held-out examples the true class, and whether the version's answer along its plan is wrong.
        alpha: Probability that a false alarm ever comes.

    Returns:
        The first state of `labelled` and `unlabelled`.

    Raises:
        InputError: If there are too few held-out examples, or α is no probability.

    Reference:
        Podkopaev & Ramdas, "Tracking the risk of a deployed machine learning model", ICLR 2022 (what is asked); Timans et
        al., UAI 2025 (betting); Vovk, Nouretdinov & Gammerman, "Testing exchangeability on-line", ICML 2003 (p-values).
        Differs: ranks of losses by class instead of a bound on the source's risk, so that no tolerance is needed and a change of
        the class mix is no harm. Predictions help by choosing when to bet, not as a control variate, so they may be wrong.
    """
    if not 0.0 < alpha < 1.0:
        raise InputError(f"alpha = {alpha!r} is no probability of a false alarm, needed is one in (0, 1), e.g. 0.01.")
    pairs = list(reference)
    if len(pairs) < MIN_REFERENCE:
        raise InputError(
            f"{len(pairs)} held-out answers cannot say how often this version is wrong, needed are {MIN_REFERENCE}. Give the "
            "coordinator more held-out data (--holdout)."
        )
    labels, wrong = np.array([label for label, _ in pairs]), np.array([is_wrong for _, is_wrong in pairs])
    num_classes = int(labels.max()) + 1
    of_class = [np.bincount(which, minlength=num_classes) for which in (labels[wrong], labels)]
    counts = np.array(of_class, np.float64)
    return _armed(1.0 / alpha, counts)


def labelled(
    state: HarmState, event: LabelArrived, rng: np.random.Generator
) -> tuple[HarmState, tuple[HarmDetected, ...]]:
    """Weighs one label; labels may come in any order, and a start that is told their requests bets on none from before it.

    Args:
        state: From `harm_monitor` or the last step.
        event: The label.
        rng: Breaks ties; one draw.

    Returns:
        The next state, and the alarm if this label completes the evidence; then evidence begins anew.
    """
    bag = _grown(state.bag, event.label)
    num_wrong, num = bag[:, event.label]
    rank = float(rng.random())
    p_value = rank * (num_wrong + 1) if event.is_wrong else num_wrong + rank * (num - num_wrong + 1)
    odds = _odds(p_value / (num + 1))
    bag[:, event.label] += event.is_wrong, 1.0
    starts, evidence, unspent = _started(state, event)
    request = state.newest + 1 if event.request is None else event.request
    bets = starts <= request
    evidence[bets, 0] *= odds
    if event.label + 1 < evidence.shape[1]:
        evidence[bets, event.label + 1] *= odds
    hinted, from_hints, unhinted = state.hint.is_given, state.from_hints, state.unhinted
    if hinted and not state.is_hinted:  # half of what is left begins to bet
        from_hints, unhinted = from_hints + unhinted / 2, unhinted / 2
    state = replace(
        state,
        bag=bag,
        starts=starts,
        evidence=evidence,
        unspent=unspent,
        newest=max(state.newest, request),
        from_hints=from_hints * odds if hinted else from_hints,
        unhinted=unhinted,
        is_hinted=hinted,
        runs=_runs(state, odds, event.time),
        num_armed=state.num_armed + 1,
        num_labels=state.num_labels + 1,
        num_wrong=state.num_wrong + int(event.is_wrong),
    )
    if state.statistic < state.threshold:
        return state, ()
    alarm = _alarm(state)
    return _rearmed(state, alarm), (alarm,)


def unlabelled(state: HarmState, unsure: float) -> HarmState:
    """Takes note of a request that is answered and gets no label any more.

    A label that comes for it later must not be given to `labelled`: hints are free of the requests that are bet on.

    Args:
        state: From `harm_monitor` or the last step.
        unsure: 1 − confidence, in [0, 1].

    Returns:
        The next state.
    """
    unsure, hint = unsure if isfinite(unsure) else 1.0, state.hint
    if len(hint.recent) < HINT_WINDOW:
        return replace(state, hint=replace(hint, recent=(*hint.recent, unsure)))
    if hint.is_given:  # what is unlike the usual does not join it
        return replace(state, hint=replace(hint, recent=(*hint.recent[1:], unsure)))
    oldest = hint.recent[0]
    hint = Hint((*hint.recent[1:], unsure), hint.num + 1, hint.total + oldest, hint.squares + oldest * oldest)
    return replace(state, hint=hint)


def labels_needed(state: HarmState, fall: float) -> int | None:
    """Labels after which a fall of accuracy that begins now is proved, about half of the time.

    Args:
        state: The monitor.
        fall: In (0, 1), e.g. 0.1 for ten points.

    Returns:
        The number, to first order ln(what is needed) / KL; None if the reference is too small to prove such a fall.
    """
    num_wrong, seen = (float(number) for number in state.bag.sum(axis=1))
    before = max(num_wrong, 0.5) / seen
    after = min(before + fall, 0.999)
    nats = log(state.threshold / (1.0 - HINTED)) - log(start_weight(state.num_armed)) + log(len(BETS) / 3)
    num = nats / _divergence(after, before)
    for _ in range(50):  # the reference is a sample itself: both samples against their common rate
        pooled = (num * after + seen * before) / (num + seen)
        if num * _divergence(after, pooled) + seen * _divergence(before, pooled) >= nats:
            return ceil(num)
        num *= 1.1
    return None


def _started(state: HarmState, event: LabelArrived) -> tuple[NDArray[np.int64], NDArray[np.float64], float]:
    """Starts, a copy of their evidence, and the weight left, with the start that is due before this label."""
    starts, evidence, begins = state.starts, state.evidence.copy(), state.newest + 1
    left = weight_left(state.num_armed + 1)
    if event.request is None:  # in order: a start bets on all that comes
        evidence[0] += state.unspent - left
        return starts, evidence, left
    num_starts = max(4, min(NUM_STARTS, MOST_EVIDENCE // evidence.shape[1]))
    if begins - starts[-1] < LATEST // num_starts:
        return starts, evidence, state.unspent
    fresh = np.full((1, *evidence.shape[1:]), state.unspent - left)
    starts, evidence = np.append(starts, begins), np.concatenate((evidence, fresh))
    if len(starts) > num_starts:
        evidence[0] += evidence[1]
        starts, evidence = np.delete(starts, 1), np.delete(evidence, 1, axis=0)
    return starts, evidence, left


def _odds(p_value: float) -> NDArray[np.float64]:
    return np.asarray(_ODDS[np.searchsorted(_SHARES, p_value, "right")])


def _runs(state: HarmState, odds: NDArray[np.float64], time: float) -> NDArray[np.float64]:
    """Each bet since the start that is likeliest by it; a bet that has lost its stake starts again."""
    begins = state.runs[:, :1] <= 1.0
    runs = np.where(begins, (1.0, state.num_labels, state.num_wrong, time), state.runs)
    runs[:, 0] *= odds
    return runs


def _alarm(state: HarmState) -> HarmDetected:
    found = state.evidence.sum(axis=0)
    best = int((found[0] + state.from_hints + found[1:].mean(axis=0)).argmax())
    _, before, wrong_before, since = state.runs[best]
    num_since, wrong_since = state.num_labels - int(before), state.num_wrong - int(wrong_before)
    rest = state.bag.sum(axis=1) - (wrong_since, num_since)
    return HarmDetected(
        state.statistic, state.threshold, num_since, float(since), float(rest[0] / rest[1]), wrong_since / num_since
    )


def _rearmed(state: HarmState, alarm: HarmDetected) -> HarmState:
    """Evidence begins anew, against the held-out data alone: what was harmful is never what is usual."""
    fresh = _armed(state.threshold, state.reference)
    return replace(
        fresh,
        hint=state.hint,
        newest=state.newest,
        num_labels=state.num_labels,
        num_wrong=state.num_wrong,
        detected=alarm,
        num_alarms=state.num_alarms + 1,
    )


def _armed(threshold: float, reference: NDArray[np.float64]) -> HarmState:
    return HarmState(threshold, reference, reference, evidence=np.zeros((1, 1 + reference.shape[1], len(BETS))))


def _grown(counts: NDArray[np.float64], index: int) -> NDArray[np.float64]:
    missing = index + 1 - counts.shape[1]
    return counts.copy() if missing <= 0 else np.pad(counts, ((0, 0), (0, missing)))


def _divergence(of: float, to: float) -> float:
    return of * log(of / to) + (1 - of) * log((1 - of) / (1 - to)) if 0 < to < 1 else float("inf")
