"""Change: whether requests look unlike the held-out ones, without labels. Pure; read `shift_kind.py` next.

    state = change_monitor([Seen({0: DriftAnswer(0.9, 3)}, covariates(x)), ...], rng=rng)
    state, alarm = step(state, seen, now, rng)

Each request is looked at in several views: how sure each exit was, which class it named, both together, and covariates of the
input, which every plan has. In a view it falls into a bin between ranks of the held-out requests. While requests stay
exchangeable with those, the law of the bins is known exactly, whatever the model or its calibration; what fits another law
better, from some request on, is evidence.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite, log
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgewise.core.errors import InputError
from edgewise.lifecycle.covariates import COVARIATES
from edgewise.lifecycle.unknown_start import start_weight

ALPHA = 0.01
"""Probability that requests which are as ever ever give an alarm."""
BLOCK = 8
"""Requests weighed at once."""
PER_BIN = 4
"""Held-out requests a bin has at least; with few of them there are fewer bins."""
NUM_STARTS = 32
"""Blocks at which a change may have begun that are told apart, finely in the near past and coarsely in the far."""
MIN_REFERENCE = 50
OF_EXITS = {"confidence": 10, "class": 10, "class and confidence": 40}
"""Views of an exit with their bins: a fall or rise shows in a few; with many a class is told from its neighbours."""
OF_INPUTS = 10


class DriftAnswer(NamedTuple):
    """What detection knows of an answer at one exit.

    Attributes:
        confidence: Top-1 softmax, in [0, 1].
        predicted: The class with the highest score; None where it is not known.
    """

    confidence: float
    predicted: int | None = None


class Seen(NamedTuple):
    """A request, as far as it is looked at.

    Attributes:
        answers: By index of the exit, of the exits it reached.
        covariates: Of its input, as `COVARIATES`; () where they are not known.
    """

    answers: Mapping[int, DriftAnswer]
    covariates: tuple[float, ...] = ()


class View(NamedTuple):
    """One way of sorting requests.

    Attributes:
        by: A key of `OF_EXITS`, or a covariate.
        exit: Whose answers; None for the input's covariates.
    """

    by: str
    exit: int | None = None

    @property
    def num_bins(self) -> int:
        """Into how many bins."""
        return OF_INPUTS if self.exit is None else OF_EXITS[self.by]

    def __str__(self) -> str:
        return self.by if self.exit is None else f"{self.by} at exit {self.exit}"


class Start(NamedTuple):
    """A block before which a change may have begun.

    Attributes:
        num_before: Requests before it.
        time: Of its first request.
    """

    num_before: int
    time: float


@dataclass(frozen=True, slots=True)
class ChangeDetected:
    """Requests no longer look like the held-out ones.

    Attributes:
        statistic: Evidence, an e-process.
        threshold: What it passed, 1/α.
        since: Time of the first request of the change, estimated.
        num_since: Requests from there to the alarm.
        num_armed: Requests the monitor had seen since it was armed.
        views: Which views say so, the strongest first.
    """

    statistic: float
    threshold: float
    since: float
    num_since: int
    num_armed: int
    views: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class ChangeState:
    """Everything the monitor remembers; its size does not grow with the stream. Arrays are never written to.

    Attributes:
        threshold: 1/α.
        views: What is looked at; the first axis of the arrays below.
        edges: By view, keys of held-out requests between two bins, ascending.
        num_bins: float64[views], bins in use.
        reference: float64[views, bins], gaps between ranks of the held-out requests in each bin.
        usual: float64[views, bins], those and the requests since the monitor was armed.
        starts: Where a change may have begun, oldest first.
        since: float64[views, starts, bins], requests from each start on.
        evidence: float64[views, starts], logarithm of the start's weight times its likelihood ratio.
        unspent: Weight of starts to come.
        pending: Bins of the requests of the block that is not full, −1 where a view has none, and the block's first time.
        num_blocks: Weighed since armed.
        num_armed: Requests since armed.
        num_seen: Requests in all.
        num_alarms: Alarms so far.
        detected: The last alarm.
    """

    threshold: float
    views: tuple[View, ...]
    edges: tuple[tuple[Any, ...], ...]
    num_bins: NDArray[np.float64]
    reference: NDArray[np.float64]
    usual: NDArray[np.float64]
    since: NDArray[np.float64]
    evidence: NDArray[np.float64]
    starts: tuple[Start, ...] = ()
    unspent: float = 1.0
    pending: tuple[tuple[int, ...], ...] = ()
    pending_since: float = 0.0
    num_blocks: int = 0
    num_armed: int = 0
    num_seen: int = 0
    num_alarms: int = 0
    detected: ChangeDetected | None = None

    @property
    def by_view(self) -> NDArray[np.float64]:
        """float64[views], the evidence of each view; 1 on average while nothing changes."""
        with np.errstate(over="ignore"):
            return np.asarray(np.exp(self.evidence).sum(axis=1) + self.unspent)

    @property
    def statistic(self) -> float:
        """What is compared with the threshold: the strongest view's evidence over the number of views."""
        return min(float(self.by_view.max()) / len(self.views), 1e300)


def change_monitor(reference: Sequence[Seen], *, rng: np.random.Generator, alpha: float = ALPHA) -> ChangeState:
    """A monitor of what requests and answers look like that has seen none yet.

    *Error.* If the requests are exchangeable with the held-out ones in each view, a false alarm *ever* comes with probability at
    most α. Proof. With ties broken at random the probabilities of the N + 1 gaps between N held-out requests are
    Dirichlet(1, …, 1), so a block falls into the bins with the Dirichlet-multinomial probability of (gaps + earlier requests
    in them), exactly and given all earlier bins of the view. For each start the probability of the blocks since then under
    a law learned from them alone (Laplace's rule), over that, is a test martingale; so is their mixture with weights that sum
    to 1 (`start_weight`). With V views an alarm needs V/α in one of them, which one view reaches with probability at
    most α/V (Ville), all of them together at most α (Bonferroni: views rank the same requests, and a mean of their
    martingales would be one under no common filtration). Nothing is assumed of the model. The bound is over the draw of the held-out
    data, too. Requests that depend on each other, as the frames of a film do, or come ordered by class, are outside
    of it: they *are* a change of what comes.

    *Never normal.* What comes after a start is never what that start is compared with, so evidence of a missed change does not
    fall; after an alarm the monitor is armed again against the held-out requests alone.

    *Price.* No labels. About ln(V / (α · weight)) / KL requests, 14 to 20 nats over the divergence of the view that moves
    most, and as many as learning the new law costs. N held-out requests cannot prove a difference of less than
    about ln(V / α) / N in KL, however long it lasts. A change that moves no view is seen by no monitor without labels.

    Args:
        reference: Held-out requests as the version that serves sees them along its plan.
        rng: Breaks ties of the reference.
        alpha: Probability that a false alarm ever comes.

    Returns:
        The first state of `step`.

    Raises:
        InputError: If there are too few held-out requests, or α is no probability.

    Reference:
        Shin, Ramdas & Rinaldo, "E-detectors: a nonparametric framework for sequential change detection", 2022. Ranks: Vovk,
        Nouretdinov & Gammerman, "Testing exchangeability on-line", ICML 2003; gaps: Wilks, "Mathematical Statistics", 1962,
        8.7. Differs: bins of ranks, not p-values; blocks of eight; old starts are merged, which keeps the bound.
    """
    if not 0.0 < alpha < 1.0:
        raise InputError(f"alpha = {alpha!r} is no probability of a false alarm, needed is one in (0, 1), e.g. 0.01.")
    if len(reference) < MIN_REFERENCE:
        raise InputError(
            f"{len(reference)} held-out requests are too few to rank against, needed are at least {MIN_REFERENCE}. Give the "
            "monitor the whole calibration set."
        )
    ties, found = rng.random(len(reference)).tolist(), {}
    for view in _views(reference):
        keys = [key for seen, tie in zip(reference, ties, strict=True) if (key := _key(view, seen, tie)) is not None]
        if len(keys) >= MIN_REFERENCE:
            found[view] = _binned(sorted(keys), view.num_bins)
    most = max(len(gaps) for _, gaps in found.values())
    gaps = np.array([np.pad(gaps, (0, most - len(gaps))) for _, gaps in found.values()])
    return ChangeState(
        1.0 / alpha,
        tuple(found),
        tuple(edges for edges, _ in found.values()),
        np.array([float(len(gaps)) for _, gaps in found.values()]),
        gaps,
        gaps,
        np.zeros((len(found), 0, most)),
        np.zeros((len(found), 0)),
    )


def step(
    state: ChangeState, seen: Seen, time: float, rng: np.random.Generator
) -> tuple[ChangeState, tuple[ChangeDetected, ...]]:
    """Takes one more request; every eighth is weighed with those before it.

    Args:
        state: From `change_monitor` or the last step.
        seen: The request.
        time: Seconds on the caller's clock.
        rng: Breaks ties; one draw.

    Returns:
        The next state, and the alarm if this request completes the evidence; then the monitor is armed anew.
    """
    state = replace(
        state,
        pending=(*state.pending, bins_of(state, seen, float(rng.random()))),
        pending_since=state.pending_since if state.pending else time,
        num_seen=state.num_seen + 1,
        num_armed=state.num_armed + 1,
    )
    if len(state.pending) < BLOCK:
        return state, ()
    state = _weighed(state)
    if state.statistic < state.threshold:
        return state, ()
    alarm = _alarm(state)
    return _rearmed(state, alarm), (alarm,)


def bins_of(state: ChangeState, seen: Seen, tie: float) -> tuple[int, ...]:
    """By view, the bin a request falls into; −1 where it has nothing to look at.

    Args:
        state: Knows the edges.
        seen: The request.
        tie: In [0, 1), drawn at random: among equals it decides.

    Returns:
        One per view.
    """
    keys = (_key(view, seen, tie) for view in state.views)
    return tuple(-1 if key is None else bisect_left(edges, key) for key, edges in zip(keys, state.edges, strict=True))


def _views(reference: Iterable[Seen]) -> list[View]:
    exits = sorted({index for seen in reference for index in seen.answers})
    has_covariates = any(seen.covariates for seen in reference)
    views = [View(by, index) for index in exits for by in OF_EXITS]
    return views + [View(name) for name in COVARIATES if has_covariates]


def _key(view: View, seen: Seen, tie: float) -> tuple[float, ...] | None:
    if view.exit is None:
        return (seen.covariates[COVARIATES.index(view.by)], tie) if seen.covariates else None
    answer = seen.answers.get(view.exit)
    if answer is None:
        return None
    sure = answer.confidence if isfinite(answer.confidence) else 0.0
    if view.by == "confidence":
        return sure, tie
    return None if answer.predicted is None else (answer.predicted, sure, tie)


def _binned(keys: Sequence[Any], num_bins: int) -> tuple[tuple[Any, ...], NDArray[np.float64]]:
    gaps = len(keys) + 1
    num_bins = min(num_bins, gaps // PER_BIN)
    ranks = [round(index * gaps / num_bins) for index in range(num_bins + 1)]
    # The bin between ranks a and b has b − a of the gaps. Chosen by rank alone: edges chosen by value would break the law.
    return tuple(keys[rank - 1] for rank in ranks[1:-1]), np.diff(ranks).astype(np.float64)


def _weighed(state: ChangeState) -> ChangeState:
    """One block: a new start before it, then for every start the block's probability now over its probability as usual."""
    counts = np.zeros_like(state.usual)
    rows = np.array(state.pending)
    row, view = np.nonzero(rows >= 0)
    np.add.at(counts, (view, rows[row, view]), 1.0)
    weight = start_weight(state.num_blocks)
    start = Start(state.num_armed - len(rows), state.pending_since)
    since = np.concatenate((state.since, np.zeros_like(counts)[:, None]), 1)
    evidence = np.concatenate((state.evidence, np.full((len(counts), 1), log(weight))), 1)
    view, found = np.nonzero(counts)
    number, total = counts[view, found], counts.sum(axis=1)
    as_usual = np.zeros(len(counts))
    np.add.at(as_usual, view, _rising(state.usual[view, found], number))
    as_usual -= _rising(state.usual.sum(axis=1), total)
    now = np.zeros_like(evidence)
    np.add.at(now, view, _rising(since[view, :, found] + 1.0, number[:, None]))
    now -= _rising(since.sum(axis=2) + state.num_bins[:, None], total[:, None])
    state = replace(
        state,
        usual=state.usual + counts,
        since=since + counts[:, None],
        evidence=evidence + now - as_usual[:, None],
        starts=(*state.starts, start),
        unspent=state.unspent - weight,
        pending=(),
        num_blocks=state.num_blocks + 1,
    )
    return state if len(state.starts) <= NUM_STARTS else _merged(state)


def _rising(start: NDArray[np.float64], number: NDArray[np.float64]) -> NDArray[np.float64]:
    """Logarithm of start · (start + 1) · … with `number` factors; at most `BLOCK`."""
    steps = np.arange(BLOCK)
    factors = np.where(steps < number[..., None], start[..., None] + steps, 1.0)
    return np.asarray(np.log(factors.prod(axis=-1)))


def _merged(state: ChangeState) -> ChangeState:
    """Gives one start's evidence to its neighbour, the pair that is closest for its age; each view keeps the stronger."""
    before = np.array([start.num_before for start in state.starts], np.float64)
    ages = before[-1] + 1.0 - before
    first = int(np.argmin((ages[:-1] - ages[1:]) / ages[:-1]))
    older, younger = state.evidence[:, first], state.evidence[:, first + 1]
    since, evidence = np.delete(state.since, first + 1, axis=1), np.delete(state.evidence, first + 1, axis=1)
    evidence[:, first] = np.logaddexp(older, younger)
    since[:, first] = np.where((older >= younger)[:, None], since[:, first], state.since[:, first + 1])
    return replace(
        state, since=since, evidence=evidence, starts=(*state.starts[: first + 1], *state.starts[first + 2 :])
    )


def _alarm(state: ChangeState) -> ChangeDetected:
    by_view = state.by_view
    order = np.argsort(-by_view)
    start = state.starts[int(state.evidence[order[0]].argmax())]
    telling = [str(state.views[index]) for index in order if by_view[index] >= len(state.views) / 2 * state.threshold]
    return ChangeDetected(
        state.statistic,
        state.threshold,
        start.time,
        state.num_armed - start.num_before,
        state.num_armed,
        tuple(telling or [str(state.views[order[0]])]),
    )


def _rearmed(state: ChangeState, alarm: ChangeDetected) -> ChangeState:
    return replace(
        state,
        usual=state.reference,
        since=state.since[:, :0],
        evidence=state.evidence[:, :0],
        starts=(),
        unspent=1.0,
        num_blocks=0,
        num_armed=0,
        num_alarms=state.num_alarms + 1,
        detected=alarm,
    )
