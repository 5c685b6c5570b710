"""The closed loop in virtual time: every turn ends in one outcome, and the timeline tells it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest

from edgewise.core.clock import VirtualClock
from edgewise.lifecycle import loop
from edgewise.lifecycle.loop import (
    MAX_NOTES,
    CountExamples,
    DriftNoticed,
    EndTurn,
    EvaluateVersion,
    ExamplesCounted,
    FormerTried,
    GateEvaluated,
    LoopAction,
    LoopEvent,
    LoopPhase,
    LoopSettings,
    LoopState,
    RollOut,
    RolloutEnded,
    StartTraining,
    TimelineNote,
    TrainingFailed,
    TrainingFinished,
    TryFormer,
)

SETTINGS = LoopSettings(min_labels=40)


class Fleet:
    """A fleet in virtual time that does what the loop says, a second later; its devices collect ten labels a second."""

    def __init__(
        self, *, gate_passes: bool = True, training_fails: bool = False, rollout_holds: bool = True, former: int = 0
    ) -> None:
        self.clock = VirtualClock()
        self.state = loop.start(SETTINGS, 1)
        self.gate_passes, self.training_fails, self.rollout_holds = gate_passes, training_fails, rollout_holds
        self.former = former
        self.actions: list[LoopAction] = []
        self.counted: list[int] = []
        self.next_version = 2

    def tell(self, event: LoopEvent) -> None:
        self.state, actions = loop.step(self.state, replace(event, time=self.clock.now()))
        self.actions.extend(actions)
        if self.state.phase is LoopPhase.COLLECTING:
            self.clock.call_at(self.clock.now() + 1.0, self.count)
        for action in actions:
            for answer in self.answers(action):
                self.clock.call_at(self.clock.now() + 1.0, lambda answer=answer: self.tell(answer))

    def count(self) -> None:
        labelled = int(10 * self.clock.now())
        self.counted.append(labelled)
        self.tell(ExamplesCounted(2 * labelled, labelled, 0))

    def answers(self, action: LoopAction) -> Iterable[LoopEvent]:
        match action:
            case TryFormer(besides):
                is_better = self.former and self.former not in besides
                yield FormerTried(self.former, "gains 9", 0) if is_better else FormerTried(0, "", 0)
            case StartTraining():
                if self.training_fails:
                    yield TrainingFailed("no quorum", 0)
                else:
                    yield TrainingFinished(self.next_version, 0)
                    self.next_version += 1
            case EvaluateVersion(candidate, _):
                yield GateEvaluated(candidate, self.gate_passes, "passed: x" if self.gate_passes else "refused: x", 0)
            case RollOut(version, _):
                yield RolloutEnded(
                    version, self.rollout_holds, "all have it" if self.rollout_holds else "p95 tripled", 0
                )
            case EndTurn(outcome, _, _) if outcome != "done":
                yield DriftNoticed("drift: still there", 0)


def turned(**how: int) -> Fleet:
    fleet = Fleet(**how)
    fleet.tell(DriftNoticed("drift: for 80 requests", 0))
    fleet.clock.run()
    return fleet


def ends(fleet: Fleet) -> list[EndTurn]:
    return [a for a in fleet.actions if isinstance(a, EndTurn)]


def test_without_drift_nothing_happens() -> None:
    state = loop.start(SETTINGS, 1)
    assert loop.step(state, ExamplesCounted(500, 500, 1.0)) == (state, ())


def test_a_whole_turn_goes_through_every_phase_and_is_done() -> None:
    fleet = turned()
    state = fleet.state
    assert (state.outcomes, state.version, state.phase, state.candidate) == (("done",), 2, LoopPhase.SERVING, 0)
    assert [type(a) for a in fleet.actions] == [
        CountExamples, TryFormer, StartTraining, EvaluateVersion, RollOut, EndTurn,
    ]  # fmt: skip
    told = list(dict.fromkeys(note.phase for note in state.timeline))
    assert told == [
        str(phase) for phase in LoopPhase if phase is not LoopPhase.TRYING
    ]  # nothing to try: nothing to tell


def test_an_old_version_that_is_better_comes_back_without_training() -> None:
    fleet = turned(former=7)
    assert (fleet.state.outcomes, fleet.state.version, fleet.state.unfit) == (("done",), 7, ())
    assert [type(a) for a in fleet.actions] == [CountExamples, TryFormer, EvaluateVersion, RollOut, EndTurn]
    assert RollOut(7, "tried old version v7 first: drift returned") in fleet.actions
    texts = [note.text for note in fleet.state.timeline]
    assert "40 of 80 hard examples have labels; version 7, made earlier, is tried first: gains 9" in texts


def test_an_old_version_that_the_gate_refuses_leads_to_training() -> None:
    fleet = turned(former=7, gate_passes=False)
    kinds = [type(a) for a in fleet.actions]
    assert kinds[1:5] == [TryFormer, EvaluateVersion, StartTraining, EvaluateVersion]
    assert fleet.state.outcomes == ("refused",) * 3  # of three candidates that were trained; it is not tried again
    assert kinds.count(StartTraining) == 3
    assert TryFormer((7,)) in fleet.actions
    assert any("version 7 does not come back: refused: x" in note.text for note in fleet.state.timeline)


def test_an_old_version_that_is_taken_back_is_not_tried_again() -> None:
    fleet = turned(former=7, rollout_holds=False)
    assert fleet.state.outcomes == ("rolled_back",) * 3
    assert [a.besides for a in fleet.actions if isinstance(a, TryFormer)] == [(), (7,), (7,)]


def test_the_timeline_is_in_order_and_tells_numbers() -> None:
    timeline = turned().state.timeline
    assert [n.time for n in timeline] == sorted(n.time for n in timeline)
    texts = " | ".join(n.text for n in timeline)
    assert "drift: for 80 requests | 40 of 80 hard examples have labels; training starts from version 1" in texts
    assert "version 2 passed: x | done: version 2 serves; all have it" in texts


def test_it_trains_when_enough_labels_are_there() -> None:
    assert turned().counted == [10, 20, 30, 40]


@pytest.mark.parametrize(
    ("how", "outcome", "cause"),
    [
        ({"training_fails": True}, "failed", "no quorum"),
        ({"gate_passes": False}, "refused", "refused: x"),
        ({"rollout_holds": False}, "rolled_back", "p95 tripled"),
    ],
)
def test_a_turn_that_fails_leaves_the_version_and_three_end_the_loop(
    how: dict[str, bool], outcome: str, cause: str
) -> None:
    fleet = turned(**how)
    assert ends(fleet) == [EndTurn(outcome, cause, 1)] * 3
    assert (fleet.state.version, fleet.state.is_given_up, fleet.state.phase) == (1, True, LoopPhase.SERVING)
    assert "turn 3 without success; version 1 serves until somebody looks" in fleet.state.timeline[-1].text
    assert any(isinstance(a, RollOut) for a in fleet.actions) == (outcome == "rolled_back")


def test_what_did_not_help_once_is_tried_again_with_more_labels_only() -> None:
    state = turned(gate_passes=False).state
    assert state.needed_labels == 4 * SETTINGS.min_labels
    starts = [note.text for note in state.timeline if note.text.endswith("training starts from version 1")]
    held = [int(text.split()[0]) for text in starts]
    assert [number // SETTINGS.min_labels for number in held] == [1, 2, 3]


def test_success_forgets_failures() -> None:
    state = replace(loop.start(SETTINGS, 1), num_failed=2, phase=LoopPhase.ROLLING_OUT, candidate=5)
    state, _ = loop.step(state, RolloutEnded(5, True, "all have it", 1.0))
    assert (state.num_failed, state.version) == (0, 5)


def test_events_of_another_phase_or_version_change_nothing() -> None:
    state = loop.start(SETTINGS, 1)
    for event in (
        ExamplesCounted(500, 500, 1.0),
        TrainingFinished(2, 1.0),
        TrainingFailed("x", 1.0),
        GateEvaluated(2, True, "x", 1.0),
        RolloutEnded(2, True, "x", 1.0),
    ):
        assert loop.step(state, event) == (state, ())
    gating: LoopState = replace(state, phase=LoopPhase.GATING, candidate=3)
    for event in (GateEvaluated(2, True, "x", 1.0), DriftNoticed("x", 1.0)):
        assert loop.step(gating, event) == (gating, ())


def test_the_timeline_is_bounded() -> None:
    state = replace(loop.start(SETTINGS, 1), timeline=(TimelineNote(0.0, "serving", "old"),) * MAX_NOTES)
    state, _ = loop.step(replace(state, phase=LoopPhase.RETRAINING), TrainingFailed("no quorum", 1.0))
    assert (len(state.timeline), state.timeline[-1].text) == (MAX_NOTES, "failed: no quorum")
