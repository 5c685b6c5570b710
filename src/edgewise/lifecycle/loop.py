"""The closed loop: serve, notice drift, collect labels, try old versions, retrain, gate, roll out. One pure `step`.

                                     ┌─────── an old version is better ───────┐
    serving ─▶ collecting ─▶ trying old versions ─▶ retraining ─▶ gating ─▶ rolling out ─▶ serving (done)
       ▲                                                 │ failed    │ refused    │ rolled back
       └─────────────────────────────────────────────────┴───────────┴────────────┘
    what served goes on serving, and a drift that is still there is found again; an old version that is refused leads to retraining

Detection (`drift.py`), the gate and the rollout have steps of their own; here is what follows from what. Every turn ends in
one outcome with a cause, and everything that happened is in the timeline, in words. `fleet/operator/retraining.py` drives it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TypeAlias

MAX_NOTES = 1000
"""Notes and outcomes a loop remembers; older ones go first. A turn makes about six."""


class LoopPhase(StrEnum):
    """Where the loop stands."""

    SERVING = "serving"
    COLLECTING = "collecting"
    TRYING = "trying old versions"
    RETRAINING = "retraining"
    GATING = "gating"
    ROLLING_OUT = "rolling out"


@dataclass(frozen=True, slots=True)
class LoopSettings:
    """How the loop acts.

    Attributes:
        min_labels: Labelled hard examples on the devices before a training run starts; after a turn that failed as many
            more, for what did not help once is not tried again.
        max_attempts: Turns that may fail one after the other; then the loop only serves and says so.
    """

    min_labels: int = 40
    max_attempts: int = 3


@dataclass(frozen=True, slots=True)
class TimelineNote:
    """One thing that happened, in words."""

    time: float
    phase: str
    text: str


@dataclass(frozen=True, slots=True)
class DriftNoticed:
    """Answers of the version that serves have become worse, or may have; a sentence says since when."""

    text: str
    time: float


@dataclass(frozen=True, slots=True)
class DriftWaited:
    """Something was found of the inputs that does not call for training; a sentence says what, and what is waited for."""

    text: str
    time: float


@dataclass(frozen=True, slots=True)
class ExamplesCounted:
    """The devices together hold this many hard examples, and so many of them have a label, or will get one from a teacher."""

    num: int
    num_labelled: int
    time: float


@dataclass(frozen=True, slots=True)
class FormerTried:
    """Former versions were compared with the one in force; the one that is surely better, 0 for none, and a sentence."""

    version: int
    reason: str
    time: float


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
class GateEvaluated:
    """The gate's answer about a candidate."""

    version: int
    passed: bool
    reason: str
    time: float


@dataclass(frozen=True, slots=True)
class RolloutEnded:
    """A candidate serves on every device, or was taken back from all of them, and why."""

    version: int
    completed: bool
    cause: str
    time: float


LoopEvent: TypeAlias = (
    DriftNoticed
    | DriftWaited
    | ExamplesCounted
    | FormerTried
    | TrainingFinished
    | TrainingFailed
    | GateEvaluated
    | RolloutEnded
)


@dataclass(frozen=True, slots=True)
class CountExamples:
    """Ask the devices now and then what they hold."""


@dataclass(frozen=True, slots=True)
class TryFormer:
    """Compare former versions, but these, with the one in force on the examples held."""

    besides: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class StartTraining:
    """Begin a federated run from this version."""

    parent: int


@dataclass(frozen=True, slots=True)
class EvaluateVersion:
    """Compare the candidate with the serving version at the gate."""

    candidate: int
    reference: int


@dataclass(frozen=True, slots=True)
class RollOut:
    """Plan the candidate and bring it to the devices, stage by stage; `why` is for the history, "" where it was trained."""

    version: int
    why: str = ""


@dataclass(frozen=True, slots=True)
class EndTurn:
    """A turn of the loop is over: `done`, `refused`, `failed` or `rolled_back`, and why."""

    outcome: str
    cause: str
    version: int


LoopAction: TypeAlias = CountExamples | TryFormer | StartTraining | EvaluateVersion | RollOut | EndTurn


@dataclass(frozen=True, slots=True)
class LoopState:
    """The loop.

    Attributes:
        settings: How it acts.
        version: What serves.
        phase: Where it stands.
        candidate: Version in the making; 0 if none.
        is_former: Whether it served before.
        held: How many examples a turn begins with, in words.
        unfit: Former versions that the gate or a rollout refused since a candidate came through.
        num_failed: Turns that failed one after the other.
        outcomes: Of every turn, in order; the last `MAX_NOTES`.
        timeline: What happened; the last `MAX_NOTES`.
    """

    settings: LoopSettings
    version: int
    phase: LoopPhase = LoopPhase.SERVING
    candidate: int = 0
    is_former: bool = False
    held: str = ""
    unfit: tuple[int, ...] = ()
    num_failed: int = 0
    outcomes: tuple[str, ...] = ()
    timeline: tuple[TimelineNote, ...] = ()

    @property
    def is_given_up(self) -> bool:
        """Whether too many turns failed: drifts are not acted on until somebody has looked."""
        return self.num_failed >= self.settings.max_attempts

    @property
    def needed_labels(self) -> int:
        """Labelled examples that the next training run waits for."""
        return self.settings.min_labels * (1 + self.num_failed)


Outcome: TypeAlias = tuple[LoopState, tuple[LoopAction, ...]]


def start(settings: LoopSettings, version: int, *, time: float = 0.0) -> LoopState:
    """A loop whose version serves.

    Args:
        settings: How it acts.
        version: What serves.
        time: Seconds on the clock of the events.

    Returns:
        The first state of `step`.
    """
    return _note(LoopState(settings, version), time, f"version {version} serves")


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
        case DriftNoticed() if phase is LoopPhase.SERVING and not state.is_given_up:
            return _enter(state, LoopPhase.COLLECTING, event.time, event.text), (CountExamples(),)
        case DriftWaited() if phase is LoopPhase.SERVING:
            return _note(state, event.time, event.text), ()
        case ExamplesCounted() if phase is LoopPhase.COLLECTING and event.num_labelled >= state.needed_labels:
            held = f"{event.num_labelled} of {event.num} hard examples have labels"
            return replace(state, phase=LoopPhase.TRYING, held=held), (TryFormer(state.unfit),)
        case FormerTried() if phase is LoopPhase.TRYING:
            if not event.version:
                return _train(state, event.time, f"{state.held}; {event.reason and f'{event.reason}; '}")
            state = replace(state, candidate=event.version, is_former=True)
            text = f"{state.held}; version {event.version}, made earlier, is tried first: {event.reason}"
            return _enter(state, LoopPhase.GATING, event.time, text), (EvaluateVersion(event.version, state.version),)
        case TrainingFinished() if phase is LoopPhase.RETRAINING:
            state = replace(state, candidate=event.version)
            state = _enter(state, LoopPhase.GATING, event.time, f"version {event.version} is trained")
            return state, (EvaluateVersion(event.version, state.version),)
        case TrainingFailed() if phase is LoopPhase.RETRAINING:
            return _end_unchanged(state, "failed", event.cause, event.time)
        case GateEvaluated() if phase is LoopPhase.GATING and event.version == state.candidate:
            if not event.passed and state.is_former:
                return _train(state, event.time, f"version {event.version} does not come back: {event.reason} ")
            if not event.passed:
                return _end_unchanged(state, "refused", event.reason, event.time)
            text = f"version {event.version} {event.reason}"
            return _enter(state, LoopPhase.ROLLING_OUT, event.time, text), (RollOut(event.version, _why(state)),)
        case RolloutEnded() if phase is LoopPhase.ROLLING_OUT and event.version == state.candidate:
            if not event.completed:
                return _end_unchanged(state, "rolled_back", event.cause, event.time)
            return _done(state, event)
    return state, ()


def _why(state: LoopState) -> str:
    return f"tried old version v{state.candidate} first: drift returned" if state.is_former else ""


def _train(state: LoopState, time: float, cause: str) -> Outcome:
    state = _enter(_without(state), LoopPhase.RETRAINING, time, f"{cause}training starts from version {state.version}")
    return state, (StartTraining(state.version),)


def _without(state: LoopState) -> LoopState:
    """Gives up the candidate; a former version is not tried again until another comes through."""
    unfit = (*state.unfit, state.candidate) if state.is_former else state.unfit
    return replace(state, candidate=0, is_former=False, unfit=unfit)


def _done(state: LoopState, event: RolloutEnded) -> Outcome:
    state = replace(
        LoopState(state.settings, event.version, timeline=state.timeline),
        outcomes=(*state.outcomes, "done")[-MAX_NOTES:],
    )
    state = _enter(state, LoopPhase.SERVING, event.time, f"done: version {event.version} serves; {event.cause}")
    return state, (EndTurn("done", event.cause, event.version),)


def _end_unchanged(state: LoopState, outcome: str, cause: str, time: float) -> Outcome:
    """The old version goes on serving; a drift that is still there is acted on again."""
    num_failed = state.num_failed + 1
    outcomes = (*state.outcomes, outcome)[-MAX_NOTES:]
    state = replace(_without(state), num_failed=num_failed, outcomes=outcomes)
    text = f"{outcome.replace('_', ' ')}: {cause.removeprefix('refused: ')}"
    if state.is_given_up:
        text += f" That was turn {num_failed} without success; version {state.version} serves until somebody looks"
    return _enter(state, LoopPhase.SERVING, time, text), (EndTurn(outcome, cause, state.version),)


def _enter(state: LoopState, phase: LoopPhase, time: float, text: str) -> LoopState:
    return _note(replace(state, phase=phase), time, text)


def _note(state: LoopState, time: float, text: str) -> LoopState:
    return replace(state, timeline=(*state.timeline, TimelineNote(time, str(state.phase), text))[-MAX_NOTES:])
