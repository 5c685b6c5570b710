"""The closed loop in virtual time: every turn ends in one outcome, and the timeline tells it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from edgewise.core.clock import VirtualClock
from edgewise.core.ids import NodeId
from edgewise.lifecycle import loop
from edgewise.lifecycle.drift import ConfidenceObserved
from edgewise.lifecycle.health import HealthLimits, HealthObserved
from edgewise.lifecycle.loop import (
    MAX_NOTES,
    CollectExamples,
    EndTurn,
    ExamplesHeld,
    GateJudged,
    JudgeVersion,
    LabelExamples,
    LabelsReady,
    LoopAction,
    LoopEvent,
    LoopPhase,
    LoopSettings,
    LoopState,
    StartTraining,
    TimelineNote,
    TrainingFailed,
    TrainingFinished,
)
from edgewise.lifecycle.rollout import (
    CompleteRollout,
    InstallVersion,
    NodeUpdated,
    RevertVersion,
    RollbackRequested,
    TimePassed,
    WakeAt,
)

NODES = (NodeId("device-1"), NodeId("device-2"))
SETTINGS = LoopSettings(stages=((NODES[0],), (NODES[1],)), limits=HealthLimits(baseline_confidence=0.7))
REFERENCE = {0: tuple(np.linspace(0.7, 1.0, 200))}


class Fleet:
    """A fleet in virtual time: it serves ten requests a second and does what the loop says, a second later."""

    def __init__(self, *, gate_passes: bool = True, training_fails: bool = False, new_confidence: float = 0.9) -> None:
        self.clock = VirtualClock()
        self.state = loop.start(SETTINGS, 1, REFERENCE)
        self.versions = dict.fromkeys(NODES, 1)
        self.drifted = False
        self.gate_passes, self.training_fails, self.new_confidence = gate_passes, training_fails, new_confidence
        self.actions: list[LoopAction] = []
        self.rng = np.random.default_rng(1)

    def tell(self, event: LoopEvent) -> None:
        self.state, actions = loop.step(self.state, replace(event, time=self.clock.now()))
        self.actions.extend(actions)
        for action in actions:
            at = action.time if isinstance(action, WakeAt) else self.clock.now() + 1.0
            for answer in self.answers(action):
                self.clock.call_at(at, lambda answer=answer: self.tell(answer))

    def answers(self, action: LoopAction) -> Iterable[LoopEvent]:
        match action:
            case CollectExamples():
                yield from (ExamplesHeld(30, 0), ExamplesHeld(80, 0))
            case LabelExamples(num):
                yield LabelsReady(num, "feedback", 0, 1.0)
            case StartTraining():
                yield TrainingFailed("no quorum", 0) if self.training_fails else TrainingFinished(2, 0)
            case JudgeVersion(candidate, _):
                yield GateJudged(candidate, self.gate_passes, "passed: x" if self.gate_passes else "refused: x", 0)
            case InstallVersion(node, version) | RevertVersion(node, version):
                self.versions[node] = version
                yield NodeUpdated(node, version, 0)
            case WakeAt():
                yield TimePassed(0)

    def serve(self, num: int) -> None:
        for index in range(num):
            node = NODES[index % 2]
            old = float(self.rng.uniform(0.3, 0.6) if self.drifted else self.rng.uniform(0.7, 1.0))
            confidence = old if self.versions[node] == 1 else self.new_confidence
            self.tell(ConfidenceObserved(node, confidence, 0, 0))
            self.tell(HealthObserved(node, self.versions[node], 1, 0, 0, confidence=confidence))
            self.clock.run(until_s=self.clock.now() + 0.1)
            self.clock.call_at(self.clock.now() + 0.1, lambda: None)
            self.clock.run(until_s=self.clock.now() + 0.1)


def turned(fleet: Fleet, num: int = 200) -> LoopState:
    fleet.serve(100)
    fleet.drifted = True
    fleet.serve(num)
    return fleet.state


def ends(fleet: Fleet) -> list[EndTurn]:
    return [a for a in fleet.actions if isinstance(a, EndTurn)]


def test_without_drift_nothing_happens() -> None:
    fleet = Fleet()
    fleet.serve(300)
    assert (fleet.actions, fleet.state.phase) == ([], LoopPhase.SERVING)


def test_a_whole_turn_goes_through_every_phase_and_is_done() -> None:
    fleet = Fleet()
    state = turned(fleet, 250)
    assert (state.outcomes, state.version, state.phase) == (("done",), 2, LoopPhase.SERVING)
    assert fleet.versions == dict.fromkeys(NODES, 2)
    assert [type(a) for a in fleet.actions if not isinstance(a, WakeAt)][:6] == [
        CollectExamples, LabelExamples, StartTraining, JudgeVersion, InstallVersion, InstallVersion
    ]  # fmt: skip
    assert CompleteRollout(2) in fleet.actions
    phases = list(dict.fromkeys(note.phase for note in state.timeline))
    assert phases == [str(p) for p in LoopPhase if p is not LoopPhase.ROLLING_BACK]


def test_the_timeline_is_in_order_and_tells_numbers() -> None:
    timeline = turned(Fleet(), 250).timeline
    assert [n.time for n in timeline] == sorted(n.time for n in timeline)
    texts = " | ".join(n.text for n in timeline)
    assert "80 examples labelled by feedback, 100% agree with the truth; training starts from version 1" in texts
    assert "done: version 2 serves, 60 requests watched" in texts


def test_the_detector_starts_from_what_was_watched() -> None:
    fleet = Fleet()
    state = turned(fleet, 400)
    assert state.outcomes == ("done",)  # the new version's confidence on drifted inputs is no drift any more
    assert len(state.reference[0]) == 60


def test_a_refused_version_never_reaches_a_node() -> None:
    fleet = Fleet(gate_passes=False)
    state = turned(fleet, 60)
    assert state.outcomes[0] == "refused"
    assert state.version == 1
    assert not [a for a in fleet.actions if isinstance(a, InstallVersion)]


def test_a_drift_that_stays_is_found_again_until_the_attempts_are_used_up() -> None:
    fleet = Fleet(gate_passes=False)
    state = turned(fleet, 400)
    assert state.outcomes == ("refused",) * 3
    assert "turn 3 without success; version 1 serves until somebody looks" in state.timeline[-1].text


def test_a_failed_training_run_ends_the_turn_with_its_cause() -> None:
    fleet = Fleet(training_fails=True)
    turned(fleet, 60)
    assert ends(fleet)[0] == EndTurn("failed", "no quorum", 1)


def test_a_version_that_serves_badly_is_taken_back() -> None:
    fleet = Fleet(new_confidence=0.2)
    state = turned(fleet, 120)
    assert state.outcomes[0] == "rolled_back"
    assert "mean confidence 0.200" in ends(fleet)[0].cause
    assert fleet.versions[NODES[1]] == 1


def test_a_rollback_after_the_turn_restores_version_and_reference() -> None:
    fleet = Fleet()
    turned(fleet, 250)
    fleet.tell(RollbackRequested("operator asked", 0))
    assert fleet.state.phase is LoopPhase.ROLLING_BACK
    fleet.clock.run(until_s=fleet.clock.now() + 2)
    assert fleet.versions == dict.fromkeys(NODES, 1)
    assert ends(fleet)[-1] == EndTurn("rolled_back", "operator asked", 1)
    assert fleet.state.reference == REFERENCE


def test_events_of_another_phase_change_nothing() -> None:
    state = loop.start(SETTINGS, 1, REFERENCE)
    for event in (
        ExamplesHeld(500, 1.0),
        LabelsReady(500, "feedback", 1.0),
        TrainingFinished(2, 1.0),
        TrainingFailed("x", 1.0),
        GateJudged(2, True, "x", 1.0),
        NodeUpdated(NODES[0], 2, 1.0),
        RollbackRequested("x", 1.0),
    ):
        assert loop.step(state, event) == (state, ())


def test_the_timeline_is_bounded() -> None:
    state = replace(loop.start(SETTINGS, 1, REFERENCE), timeline=(TimelineNote(0.0, "serving", "old"),) * MAX_NOTES)
    state, _ = loop.step(replace(state, phase=LoopPhase.RETRAINING), TrainingFailed("no quorum", 1.0))
    assert (len(state.timeline), state.timeline[-1].text) == (MAX_NOTES, "failed: no quorum")
