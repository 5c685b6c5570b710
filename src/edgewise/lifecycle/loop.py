"""The closed loop: serve, notice drift, collect, label, retrain, gate, roll out, watch. One pure `step`.

    serving ─▶ collecting ─▶ labelling ─▶ retraining ─▶ gating ─▶ rolling out ─▶ watching ─▶ serving (done)
       ▲                                      │ failed     │ refused    │ rolled back
       └──────────────────────────────────────┴────────────┴────────────┘  old version serves, drift is found again

Every turn ends in one outcome with a cause, and everything that happened is in the timeline, in words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TypeAlias

from edgewise.core.ids import NodeId
from edgewise.lifecycle import drift, rollout
from edgewise.lifecycle.drift import ConfidenceObserved, DriftState
from edgewise.lifecycle.health import HealthLimits, HealthObserved
from edgewise.lifecycle.rollout import EndRollout, RollbackRequested, RolloutAction, RolloutState

MAX_NOTES = 1000
"""Notes and outcomes a loop remembers; older ones go first. A turn makes about ten."""


class LoopPhase(StrEnum):
    """Where the loop stands."""

    SERVING = "serving"
    COLLECTING = "collecting"
    LABELLING = "labelling"
    RETRAINING = "retraining"
    GATING = "gating"
    ROLLING_OUT = "rolling out"
    WATCHING = "watching"
    ROLLING_BACK = "rolling back"


@dataclass(frozen=True, slots=True)
class LoopSettings:
    """How the loop acts.

    Attributes:
        stages: Nodes by rollout stage.
        limits: Health of a stage.
        min_examples: Hard examples in the fleet before labels are asked for.
        min_labels: Labelled examples before a training run starts.
        num_watched: Requests under the new version before the turn is done; their confidences become the detector's
            reference, so at least 50.
        max_attempts: Turns that may fail one after the other; then the loop only serves and says so.
    """

    stages: tuple[tuple[NodeId, ...], ...]
    limits: HealthLimits = HealthLimits()
    min_examples: int = 60
    min_labels: int = 40
    num_watched: int = 60
    max_attempts: int = 3


@dataclass(frozen=True, slots=True)
class TimelineNote:
    """One thing that happened, in words."""

    time: float
    phase: str
    text: str


@dataclass(frozen=True, slots=True)
class ExamplesHeld:
    """The devices together hold this many hard examples."""

    num: int
    time: float


@dataclass(frozen=True, slots=True)
class LabelsReady:
    """The devices together hold this many labelled examples; `agreement` with the truth where known."""

    num: int
    source: str
    time: float
    agreement: float | None = None


@dataclass(frozen=True, slots=True)
class TrainingFinished:
    """A federated run ended with a candidate version."""

    version: int
    time: float


@dataclass(frozen=True, slots=True)
class TrainingFailed:
    """A federated run ended without one."""

    cause: str
    time: float


@dataclass(frozen=True, slots=True)
class GateJudged:
    """The gate's answer about a candidate."""

    version: int
    passed: bool
    reason: str
    time: float


LoopEvent: TypeAlias = (
    ConfidenceObserved
    | ExamplesHeld
    | LabelsReady
    | TrainingFinished
    | TrainingFailed
    | GateJudged
    | rollout.RolloutEvent
)


@dataclass(frozen=True, slots=True)
class CollectExamples:
    """Tell every device to keep hard examples from now on."""

    since: float


@dataclass(frozen=True, slots=True)
class LabelExamples:
    """Ask the label sources about what the devices hold."""

    num: int


@dataclass(frozen=True, slots=True)
class StartTraining:
    """Begin a federated run from this version."""

    parent: int


@dataclass(frozen=True, slots=True)
class JudgeVersion:
    """Compare the candidate with the serving version at the gate."""

    candidate: int
    reference: int


@dataclass(frozen=True, slots=True)
class EndTurn:
    """A turn of the loop is over: `done`, `refused`, `failed` or `rolled_back`, and why."""

    outcome: str
    cause: str
    version: int


LoopAction: TypeAlias = CollectExamples | LabelExamples | StartTraining | JudgeVersion | EndTurn | RolloutAction


@dataclass(frozen=True, slots=True)
class LoopState:
    """The loop.

    Attributes:
        settings: How it acts.
        version: What serves.
        drift: The detector.
        reference: Confidences the detector started from, per exit.
        former: The same of the version before, for a rollback after the turn was done.
        phase: Where it stands.
        candidate: Version in the making; 0 if none.
        rollout: The rollout of this turn, or of the last one, which can still be rolled back.
        watched: Confidences seen under the new version, per exit.
        num_failed: Turns that failed one after the other.
        outcomes: Of every turn, in order; the last `MAX_NOTES`.
        timeline: What happened; the last `MAX_NOTES`.
    """

    settings: LoopSettings
    version: int
    drift: DriftState
    reference: Mapping[int, Sequence[float]]
    former: Mapping[int, Sequence[float]] | None = None
    phase: LoopPhase = LoopPhase.SERVING
    candidate: int = 0
    rollout: RolloutState | None = None
    watched: Mapping[int, tuple[float, ...]] = field(default_factory=dict)
    num_failed: int = 0
    outcomes: tuple[str, ...] = ()
    timeline: tuple[TimelineNote, ...] = ()


Outcome: TypeAlias = tuple[LoopState, tuple[LoopAction, ...]]


def start(
    settings: LoopSettings,
    version: int,
    reference: Mapping[int, Sequence[float]],
    *,
    threshold: float = 10_000.0,
    time: float = 0.0,
) -> LoopState:
    """A loop whose version has just begun to serve.

    Args:
        settings: How it acts.
        version: What serves.
        reference: Per exit the version's confidences on the calibration set.
        threshold: Of the drift detector.
        time: Seconds on the fleet's clock.

    Returns:
        The first state of `step`.
    """
    state = LoopState(settings, version, drift.drift_detector(reference, threshold=threshold), reference)
    return _note(state, time, f"version {version} serves")


def step(state: LoopState, event: LoopEvent) -> Outcome:
    """Takes one event; one that does not belong to the phase changes nothing.

    Args:
        state: From `start` or the last step.
        event: What happened.

    Returns:
        The next state, and what to do.
    """
    phase = state.phase
    match event:
        case ConfidenceObserved():
            return _on_confidence(state, event)
        case ExamplesHeld() if phase is LoopPhase.COLLECTING and event.num >= state.settings.min_examples:
            state = _enter(state, LoopPhase.LABELLING, event.time, f"{event.num} hard examples are kept on the devices")
            return state, (LabelExamples(event.num),)
        case LabelsReady() if phase is LoopPhase.LABELLING and event.num >= state.settings.min_labels:
            agrees = "" if event.agreement is None else f", {event.agreement:.0%} agree with the truth"
            text = (
                f"{event.num} examples labelled by {event.source}{agrees}; training starts from version {state.version}"
            )
            return _enter(state, LoopPhase.RETRAINING, event.time, text), (StartTraining(state.version),)
        case TrainingFinished() if phase is LoopPhase.RETRAINING:
            state = replace(state, candidate=event.version)
            state = _enter(state, LoopPhase.GATING, event.time, f"version {event.version} is trained")
            return state, (JudgeVersion(event.version, state.version),)
        case TrainingFailed() if phase is LoopPhase.RETRAINING:
            return _end_unchanged(state, "failed", event.cause, event.time)
        case GateJudged() if phase is LoopPhase.GATING and event.version == state.candidate:
            return _on_gate(state, event)
        case (
            rollout.NodeUpdated()
            | rollout.NodeUnhealthy()
            | HealthObserved()
            | rollout.NodeLost()
            | rollout.NodeReturned()
            | RollbackRequested()
            | rollout.TimePassed()
        ) if state.rollout is not None:
            return _on_rollout(state, state.rollout, event)
    return state, ()


def _on_confidence(state: LoopState, event: ConfidenceObserved) -> Outcome:
    if state.phase is LoopPhase.WATCHING:
        watched = {**state.watched, event.exit: (*state.watched.get(event.exit, ()), event.confidence)}
        state = replace(state, watched=watched)
        enough = {e: values for e, values in watched.items() if len(values) >= max(50, state.settings.num_watched)}
        return _done(state, enough, event.time) if enough else (state, ())
    if state.phase is not LoopPhase.SERVING or state.num_failed >= state.settings.max_attempts:
        return state, ()
    detector, alarms = drift.step(state.drift, event)
    state = replace(state, drift=detector)
    if not alarms:
        return state, ()
    alarm = alarms[0]
    text = f"drift: confidence has fallen since {alarm.since:.1f} s, {alarm.num_since} requests ago"
    return _enter(state, LoopPhase.COLLECTING, event.time, text), (CollectExamples(alarm.since),)


def _done(state: LoopState, reference: Mapping[int, tuple[float, ...]], time: float) -> Outcome:
    num = sum(len(values) for values in state.watched.values())
    cause = f"version {state.version} serves, {num} requests watched"
    state = replace(
        state,
        drift=drift.rebased(state.drift, reference),
        reference=reference,
        former=state.reference,
        watched={},
        num_failed=0,
        outcomes=(*state.outcomes, "done")[-MAX_NOTES:],
    )
    return _enter(state, LoopPhase.SERVING, time, f"done: {cause}"), (EndTurn("done", cause, state.version),)


def _on_gate(state: LoopState, event: GateJudged) -> Outcome:
    if not event.passed:
        return _end_unchanged(state, "refused", event.reason, event.time)
    settings = state.settings
    away = state.rollout.away if state.rollout is not None else frozenset()
    rolling, actions = rollout.start(
        event.version, state.version, settings.stages, limits=settings.limits, away=away, time=event.time
    )
    state = replace(state, rollout=rolling, former=None)
    return _enter(state, LoopPhase.ROLLING_OUT, event.time, f"version {event.version} {event.reason}"), actions


def _on_rollout(state: LoopState, rolling: RolloutState, event: rollout.RolloutEvent) -> Outcome:
    before = rolling
    rolling, actions = rollout.step(rolling, event)
    state = replace(state, rollout=rolling)
    if rolling.stage > before.stage and rolling.phase is rollout.Phase.INSTALLING:
        state = _note(state, event.time, f"stage {before.stage + 1} of {len(rolling.stages)} is healthy")
    if rolling.phase is rollout.Phase.REVERTING and before.phase is not rollout.Phase.REVERTING:
        text = f"going back to version {rolling.previous}: {rolling.cause}"
        state = _enter(state, LoopPhase.ROLLING_BACK, event.time, text)
    orders: tuple[LoopAction, ...] = actions
    for end in (a for a in actions if isinstance(a, EndRollout)):
        state, more = _on_rollout_end(state, rolling, end, event.time)
        orders = (*orders, *more)
    return state, orders


def _on_rollout_end(state: LoopState, rolling: RolloutState, end: EndRollout, time: float) -> Outcome:
    if end.outcome == "completed":
        state = replace(state, version=rolling.version, candidate=0, watched={})
        return _enter(state, LoopPhase.WATCHING, time, f"version {rolling.version} is rolled out: {end.cause}"), ()
    reference = state.reference if state.former is None else state.former
    state = replace(state, version=rolling.previous, reference=reference, former=None)
    return _end_unchanged(state, "rolled_back", end.cause, time)


def _end_unchanged(state: LoopState, outcome: str, cause: str, time: float) -> Outcome:
    """The old version goes on serving; the detector starts afresh and finds a drift that is still there again."""
    num_failed = state.num_failed + 1
    state = replace(
        state,
        drift=drift.rebased(state.drift, state.reference),
        candidate=0,
        watched={},
        num_failed=num_failed,
        outcomes=(*state.outcomes, outcome)[-MAX_NOTES:],
    )
    text = f"{outcome.replace('_', ' ')}: {cause.removeprefix('refused: ')}"
    if num_failed >= state.settings.max_attempts:
        text += f" That was turn {num_failed} without success; version {state.version} serves until somebody looks"
    return _enter(state, LoopPhase.SERVING, time, text), (EndTurn(outcome, cause, state.version),)


def _enter(state: LoopState, phase: LoopPhase, time: float, text: str) -> LoopState:
    return _note(replace(state, phase=phase), time, text)


def _note(state: LoopState, time: float, text: str) -> LoopState:
    return replace(state, timeline=(*state.timeline, TimelineNote(time, str(state.phase), text))[-MAX_NOTES:])
