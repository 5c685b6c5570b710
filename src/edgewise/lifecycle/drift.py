"""Drift of unlabelled serving, seen in how sure answers are and which classes they name. Pure; read `loop.py` next.

Each answer falls into a bin between ranks of the calibration answers. While the inputs stay exchangeable with the
calibration set, the law of these bins is known exactly, whatever the model or its calibration; what fits another law
better, from some request on, is evidence of drift. That evidence is kept for every request at which a drift may have
begun, against what came before it: a drift that was missed for long never becomes what is normal.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgewise.core.errors import InputError
from edgewise.core.ids import NodeId


class Scale(NamedTuple):
    """One way of sorting answers into bins.

    Attributes:
        order: By confidence; or by class, and by confidence within a class.
        num_bins: Into how many bins.
    """

    order: Literal["confidence", "class"]
    num_bins: int


SCALES = (Scale("confidence", 10), Scale("class", 10), Scale("class", 40))
"""A fall or rise shows in a few bins; with many a class is told from its neighbours, with fewer its law is soon learned."""
PER_BIN = 4
"""Calibration answers a bin has at least; with few of them there are fewer bins."""
NUM_STARTS = 32
"""Requests at which a drift may have begun that are told apart, finely in the near past and coarsely in the far."""


class DriftAnswer(NamedTuple):
    """What detection knows of an answer at one exit.

    Attributes:
        confidence: Top-1 softmax, in [0, 1].
        predicted: The class with the highest score; None where it is not known.
    """

    confidence: float
    predicted: int | None = None


@dataclass(frozen=True, slots=True)
class AnswerObserved:
    """One answered request.

    Attributes:
        node: Who answered.
        confidence: Top-1 softmax of classifier `exit`, in [0, 1].
        exit: Which classifier of the model it is; one that every request reaches, such as the plan's first exit.
        time: Seconds on the fleet's clock.
        predicted: The class with the highest score there; None where it is not known.
    """

    node: NodeId
    confidence: float
    exit: int
    time: float
    predicted: int | None = None


@dataclass(frozen=True, slots=True)
class DriftDetected:
    """The answers no longer look like those of the calibration set.

    Attributes:
        statistic: Evidence.
        threshold: What it passed.
        since: Time of the first request of the drift, estimated.
        num_since: Requests from there to the alarm.
    """

    statistic: float
    threshold: float
    since: float
    num_since: int


class Start(NamedTuple):
    """A request at which a drift may have begun.

    Attributes:
        num_before: Requests ranked before it.
        time: Of the request.
    """

    num_before: int
    time: float


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """The answers of one exit on one scale. Arrays are never written to.

    Attributes:
        edges: Keys of the calibration answers between two bins, ascending.
        usual: float64[bins], ranks of the calibration set in each bin and answers of the stream.
        starts: Where a drift may have begun, oldest first.
        since: float64[starts, bins], answers from each start on.
        evidence: float64[starts], likelihood of the answers from each start on: of a law of their own, over the usual one.
    """

    edges: tuple[Any, ...]
    usual: NDArray[np.float64]
    starts: tuple[Start, ...] = ()
    since: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 1)))
    evidence: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))

    @property
    def statistic(self) -> float:
        """Shiryaev-Roberts statistic; without drift it grows by one a request on average."""
        return float(self.evidence.sum())


Views: TypeAlias = Mapping[tuple[int, Scale], View]


@dataclass(frozen=True, slots=True)
class DriftState:
    """Everything the detector remembers; its size does not grow with the stream.

    Attributes:
        threshold: Mean number of undrifted requests before a false alarm is at least this.
        views: By exit and scale.
        num_seen: Requests ranked.
        num_unranked: Requests whose exit has no reference; they are left out.
        detected: The alarm given; there is none after it.
    """

    threshold: float
    views: Views
    num_seen: int = 0
    num_unranked: int = 0
    detected: DriftDetected | None = None

    @property
    def statistic(self) -> float:
        """What is compared with the threshold: the strongest view's evidence, less what looking at all scales costs."""
        return max((view.statistic for view in self.views.values()), default=0.0) / (2 * len(SCALES))

    def knows(self, exit_index: int) -> bool:
        """Whether answers of an exit are ranked."""
        return any(known == exit_index for known, _ in self.views)


def drift_detector(
    reference: Mapping[int, Sequence[DriftAnswer]], *, rng: np.random.Generator, threshold: float = 1_000_000.0
) -> DriftState:
    """A detector of changed confidences and classes that has seen nothing yet.

    *Bound.* If the reference and the stream of each exit are exchangeable, then among n requests a false alarm has
    probability at most n / (2 · threshold), and the mean number of requests before one is at least the threshold. Nothing
    is assumed of the model. With ties broken at random, the probabilities of the N + 1 gaps between N reference answers
    are Dirichlet(1, …, 1); so the next answer falls into a bin with probability (its gaps + earlier answers in it) /
    (N + 1 + all earlier answers), exactly and given all earlier bins. Each start's evidence, a likelihood ratio over
    these, is a martingale of mean one, and a view's statistic less its number of requests one of mean zero: it reaches c
    within n requests with probability at most n / c. A request is seen by three views, and the alarm is at c = 6 ·
    threshold. The mean follows from summing 1 − n / (2 · threshold). The bound is over the draw of the reference, too;
    requests that depend on each other, as the frames of a film do, are outside of it.

    *Delay.* About ln(6 · threshold) / KL requests, and as many as learning the new law costs. In simulation (100 seeds, 320
    reference answers, 150 undrifted requests, default threshold; median, and 10th to 90th percentile): ranks of
    confidences Beta(1/4, 1) 30 requests (20-44), Beta(1/2, 1) 128 (70-260); one class of ten at 40 % in place of 10 %,
    confidences as before, 76 (46-153). N answers of reference and of undrifted stream cannot prove a difference of less
    than about ln(6 · threshold) / N in KL, however long it lasts: a class at 20 % in place of 10 % is not found there.
    A request costs some tenth of a millisecond and no more memory.

    Args:
        reference: Per exit the answers of the calibration set under the serving version; without classes, confidences
            alone are watched.
        rng: Breaks ties of the reference.
        threshold: Evidence needed; the mean time between false alarms, in requests, is at least this.

    Returns:
        The first state of `step`.

    Raises:
        InputError: If a reference is too small to give the ranks meaning, or the threshold is not above 1.

    Reference:
        Shin, Ramdas & Rinaldo, "E-detectors: a nonparametric framework for sequential change detection", 2022
        (Shiryaev-Roberts e-detector, average run length). Ranks: Vovk, Nouretdinov & Gammerman, "Testing exchangeability
        on-line", ICML 2003; gaps: Wilks, "Mathematical Statistics", 1962, 8.7. New law: Laplace's rule, each start's own.
        Differs: bins of ranks, not p-values; old starts are merged, which keeps the bound and costs a little delay.
    """
    if threshold <= 1:
        raise InputError(f"drift threshold {threshold!r} must be above 1. Take about 50 times the requests of a run.")
    views: dict[tuple[int, Scale], View] = {}
    for exit_index, answers in reference.items():
        if len(answers) < 50:
            raise InputError(
                f"exit {exit_index} has {len(answers)} calibration confidences, needed are at least 50 to rank against. "
                "Give the detector the whole calibration set."
            )
        ties = rng.random(len(answers)).tolist()
        for scale in SCALES:
            keys = [_key(scale, answer, tie) for answer, tie in zip(answers, ties, strict=True)]
            if None not in keys:
                views[exit_index, scale] = _view(sorted(keys), scale.num_bins)
    return DriftState(float(threshold), views)


def step(
    state: DriftState, event: AnswerObserved, rng: np.random.Generator
) -> tuple[DriftState, tuple[DriftDetected, ...]]:
    """Weighs one more answer.

    Args:
        state: From `drift_detector` or the last step.
        event: The request's answer.
        rng: Breaks ties; one draw.

    Returns:
        The next state, and the alarm if this request completes the evidence.
    """
    if state.detected is not None:
        return state, ()
    answer, tie = DriftAnswer(event.confidence, event.predicted), float(rng.random())
    keys = {scale: _key(scale, answer, tie) for scale in SCALES if (event.exit, scale) in state.views}
    if not keys:
        return replace(state, num_unranked=state.num_unranked + 1), ()
    start = Start(state.num_seen, event.time)
    weighed = {
        (event.exit, scale): _weighed(state.views[event.exit, scale], key, start)
        for scale, key in keys.items()
        if key is not None
    }
    state = replace(state, views={**state.views, **weighed}, num_seen=state.num_seen + 1)
    if state.statistic < state.threshold:
        return state, ()
    alarm = _alarm(state)
    return replace(state, detected=alarm), (alarm,)


def with_references(state: DriftState, other: DriftState) -> DriftState:
    """The same evidence, and from now on also the exits that only another detector, which has seen nothing, knows."""
    return replace(state, views={**other.views, **state.views})


def _key(scale: Scale, answer: DriftAnswer, tie: float) -> tuple[float, ...] | None:
    sure = answer.confidence if isfinite(answer.confidence) else 0.0
    if scale.order == "confidence":
        return sure, tie
    return None if answer.predicted is None else (answer.predicted, sure, tie)


def _view(keys: Sequence[Any], num_bins: int) -> View:
    gaps = len(keys) + 1
    num_bins = min(num_bins, gaps // PER_BIN)
    ranks = [round(index * gaps / num_bins) for index in range(num_bins + 1)]
    # The bin between ranks a and b has b − a of the gaps. Chosen by rank alone: edges chosen by value would break the law.
    return View(
        tuple(keys[rank - 1] for rank in ranks[1:-1]), np.diff(ranks).astype(np.float64), since=np.zeros((0, num_bins))
    )


def _weighed(view: View, key: Any, start: Start) -> View:
    """One answer: a new start before it, then for every start its probability now over its probability as usual."""
    found, num_bins = bisect_left(view.edges, key), len(view.usual)
    since = np.vstack((view.since, np.zeros((1, num_bins))))
    new = (since[:, found] + 1.0) / (since.sum(axis=1) + num_bins)
    evidence = np.append(view.evidence, 1.0) * new * (view.usual.sum() / view.usual[found])
    since[:, found] += 1.0
    usual = view.usual.copy()
    usual[found] += 1.0
    view = replace(view, usual=usual, starts=(*view.starts, start), since=since, evidence=evidence)
    return view if len(view.starts) <= NUM_STARTS else _merged(view)


def _merged(view: View) -> View:
    """Gives one start's evidence to its neighbour: the pair that is closest for its age; the stronger of the two stays."""
    before = np.array([start.num_before for start in view.starts], np.float64)
    ages = before[-1] + 1.0 - before
    first = int(np.argmin((ages[:-1] - ages[1:]) / ages[:-1]))
    stays, goes = sorted((first, first + 1), key=lambda index: -view.evidence[index])
    evidence = view.evidence.copy()
    evidence[stays] += evidence[goes]
    return replace(
        view,
        starts=(*view.starts[:goes], *view.starts[goes + 1 :]),
        since=np.delete(view.since, goes, axis=0),
        evidence=np.delete(evidence, goes),
    )


def _alarm(state: DriftState) -> DriftDetected:
    view = max(state.views.values(), key=lambda view: view.statistic)
    start = view.starts[int(view.evidence.argmax())]
    return DriftDetected(state.statistic, state.threshold, start.time, state.num_seen - start.num_before)
