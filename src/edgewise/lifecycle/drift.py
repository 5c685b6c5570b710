"""Drift of unlabelled serving, seen in the confidences of the answers. Pure; read `loop.py` next.

Each confidence is ranked among the calibration confidences and all stream confidences so far. While the inputs stay
exchangeable with the calibration set these ranks are independent and uniform, whatever the model or its
calibration; low ranks in a row are evidence of drift.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import log

from edgewise.core.errors import InputError
from edgewise.core.ids import NodeId

BETS = (0.15, 0.3, 0.5, 0.7)
"""ε of the power bets ε·p^(ε−1); a smaller ε bets on a stronger drift."""


@dataclass(frozen=True, slots=True)
class ConfidenceObserved:
    """One answered request.

    Attributes:
        node: Who answered.
        confidence: Top-1 softmax of classifier `exit`, in [0, 1].
        exit: Which classifier of the model it is; feed the device's first exit for every request where it is known.
        time: Seconds on the fleet's clock.
    """

    node: NodeId
    confidence: float
    exit: int
    time: float


@dataclass(frozen=True, slots=True)
class DriftDetected:
    """The confidences no longer look like those of the calibration set.

    Attributes:
        statistic: Evidence; under no drift it grows by one per request on average.
        threshold: What it passed.
        since: Time of the first request of the drift, estimated.
        num_since: Requests from there to the alarm.
    """

    statistic: float
    threshold: float
    since: float
    num_since: int


@dataclass(frozen=True, slots=True)
class DriftState:
    """Everything the detector remembers; bounded by `max_reference`.

    Attributes:
        threshold: Mean number of undrifted requests before a false alarm is at least this.
        max_reference: Confidences kept per exit; above it the reference no longer grows.
        references: Per exit the sorted confidences ranked against.
        evidence: Shiryaev-Roberts statistic of each bet.
        climbs: CUSUM of each bet, in nats; only used to date the change.
        starts: When each bet's climb began: (time, requests seen before).
        num_seen: Requests ranked.
        num_unranked: Requests whose exit has no reference; they are left out.
        detected: The alarm given; there is none after it.
    """

    threshold: float
    max_reference: int
    references: Mapping[int, tuple[float, ...]]
    evidence: tuple[float, ...] = (0.0,) * len(BETS)
    climbs: tuple[float, ...] = (0.0,) * len(BETS)
    starts: tuple[tuple[float, int], ...] = ((0.0, 0),) * len(BETS)
    num_seen: int = 0
    num_unranked: int = 0
    detected: DriftDetected | None = None

    @property
    def statistic(self) -> float:
        """Mean of the bets' evidence: what is compared with the threshold."""
        return sum(self.evidence) / len(self.evidence)


def drift_detector(
    reference: Mapping[int, Sequence[float]], *, threshold: float = 10_000.0, max_reference: int = 4096
) -> DriftState:
    """A detector of falling confidence that has seen nothing yet.

    The false alarm is bounded without any assumption on the confidences: among n undrifted requests its probability
    is at most n / threshold (1.5 % for 150 requests at the default). A drift is found after about
    ln(threshold · number of bets) / KL(ranks after the change ‖ uniform) requests. In simulation (100 seeds, ranks
    Beta(a, 1), default threshold): median rank 1/8, 14 requests (10th to 90th percentile 7-23); median rank 1/4, 35
    (16-66). There is no window to choose: evidence restarts by itself. A request costs O(max_reference). The bound is
    exact until a reference has grown to `max_reference`; from there on ranks are against a fixed sample.

    Args:
        reference: Per exit the confidences of the calibration set under the serving version.
        threshold: Evidence needed; the mean time between false alarms, in requests, is at least this.
        max_reference: Bound on confidences kept per exit.

    Returns:
        The first state of `step`.

    Raises:
        InputError: If a reference is too small to give the ranks meaning, or the threshold is not above 1.

    Reference:
        Shin, Ramdas & Rinaldo, "E-detectors: a nonparametric framework for sequential change detection", 2022
        (Shiryaev-Roberts e-detector, average run length), on the conformal p-values and power bets of Vovk, Nouretdinov
        & Gammerman, "Testing exchangeability on-line", ICML 2003.
        Differs: one-sided (falling confidence); ties count as high ranks, which only makes alarms rarer.
    """
    if threshold <= 1:
        raise InputError(f"drift threshold {threshold!r} must be above 1. Take about 50 times the requests of a run.")
    for exit_index, values in reference.items():
        if len(values) < 50:
            raise InputError(
                f"exit {exit_index} has {len(values)} calibration confidences, needed are at least 50 to rank against. "
                "Give the detector the whole calibration set."
            )
    kept = {exit_index: tuple(sorted(float(v) for v in values)) for exit_index, values in reference.items()}
    return DriftState(float(threshold), max(max_reference, *(len(v) for v in kept.values()), 0), kept)


def step(state: DriftState, event: ConfidenceObserved) -> tuple[DriftState, tuple[DriftDetected, ...]]:
    """Weighs one more confidence.

    Args:
        state: From `drift_detector` or the last step.
        event: The request's confidence.

    Returns:
        The next state, and the alarm if this request completes the evidence.
    """
    if state.detected is not None:
        return state, ()
    reference = state.references.get(event.exit)
    if reference is None:
        return replace(state, num_unranked=state.num_unranked + 1), ()
    place = bisect_right(reference, event.confidence)
    rank = (place + 1) / (len(reference) + 1)
    state = replace(_bet(state, rank, event.time), references=_grown(state, event, place), num_seen=state.num_seen + 1)
    if state.statistic < state.threshold:
        return state, ()
    leader = max(range(len(BETS)), key=lambda i: state.evidence[i])
    since, before = state.starts[leader]
    alarm = DriftDetected(state.statistic, state.threshold, since, state.num_seen - before)
    return replace(state, detected=alarm), (alarm,)


def with_references(state: DriftState, other: DriftState) -> DriftState:
    """The same evidence, ranked from now on among the references of another detector, which knows one more exit."""
    return replace(state, references=other.references)


def _bet(state: DriftState, rank: float, time: float) -> DriftState:
    gains = tuple(epsilon * rank ** (epsilon - 1.0) for epsilon in BETS)
    evidence = tuple((1.0 + before) * gain for before, gain in zip(state.evidence, gains, strict=True))
    starts = tuple(
        start if climb > 0 else (time, state.num_seen) for start, climb in zip(state.starts, state.climbs, strict=True)
    )
    climbs = tuple(max(0.0, climb + log(gain)) for climb, gain in zip(state.climbs, gains, strict=True))
    return replace(state, evidence=evidence, climbs=climbs, starts=starts)


def _grown(state: DriftState, event: ConfidenceObserved, place: int) -> Mapping[int, tuple[float, ...]]:
    reference = state.references[event.exit]
    if len(reference) >= state.max_reference:
        return state.references
    grown = (*reference[:place], event.confidence, *reference[place:])
    return {**state.references, event.exit: grown}
