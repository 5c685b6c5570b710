"""The request's step function in virtual time: whatever happens, one answer, by the deadline."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import pytest

from edgewise.core.clock import VirtualClock
from edgewise.inference.session import (
    AnswerSource,
    Event,
    Offload,
    RemoteAnswered,
    RemoteFailed,
    RequestArrived,
    RunLocalTail,
    RunStages,
    Session,
    SessionAnswer,
    StagesDone,
    StagesFailed,
    StartTimer,
    TailDone,
    TailFailed,
    TimerExpired,
    step,
)

DEADLINE, MARGIN, TAIL = 1.0, 0.1, 0.3
NEVER = float("inf")


@dataclass
class World:
    """What the device and the network do with a request; times in seconds, NEVER for silence."""

    head_s: float = 0.05
    leaves: bool = False
    own_exit: bool = True
    remote: tuple[tuple[str, float], ...] = (("answers", 0.1),)
    tail: str = "works"
    targets: tuple[str, ...] = ("home",)
    has_head: bool = True
    clock: VirtualClock = field(default_factory=VirtualClock)
    state: Session = field(default_factory=Session)
    answers: list[tuple[float, SessionAnswer]] = field(default_factory=list)
    offloads: list[Offload] = field(default_factory=list)
    tails: int = 0

    def run(self) -> tuple[float, SessionAnswer]:
        tail_s = None if self.own_exit or self.tail == "none" else TAIL
        arrived = RequestArrived(0.0, DEADLINE, MARGIN, self.targets, "home", False, self.has_head, tail_s, 0.1)
        self.on(arrived)
        self.clock.run()
        assert len(self.answers) == 1
        return self.answers[0]

    def later(self, seconds: float, make: object, *args: object) -> None:
        if seconds < NEVER:
            self.clock.call_at(self.clock.now() + seconds, lambda: self.on(make(self.clock.now(), *args)))  # type: ignore[operator]

    def on(self, event: Event) -> None:
        self.state, actions = step(self.state, event)
        for action in actions:
            if isinstance(action, SessionAnswer):
                self.answers.append((self.clock.now(), action))
            elif isinstance(action, RunStages):
                self.later(self.head_s, StagesDone, 0 if self.own_exit else None, self.leaves)
            elif isinstance(action, RunLocalTail):
                self.tails += 1
                works = self.tail == "works"
                self.later(TAIL if works else 0.01, TailDone if works else TailFailed, *([1] if works else ["broken"]))
            elif isinstance(action, StartTimer):
                self.later(max(0.0, action.at_s - self.clock.now()), TimerExpired, action.timer)
            elif isinstance(action, Offload):
                self.offloads.append(action)
                kind, seconds = self.remote[min(len(self.offloads), len(self.remote)) - 1]
                self.later(
                    seconds,
                    *(
                        (RemoteAnswered, action.target, 1)
                        if kind == "answers"
                        else (RemoteFailed, action.target, "lost")
                    ),
                )


REMOTES = [("answers", 0.1), ("answers", 5.0), ("fails", 0.01), ("fails", 0.5), ("fails", 0.95), ("silent", NEVER)]


@pytest.mark.parametrize("own_exit", [True, False])
@pytest.mark.parametrize("has_head", [True, False])
def test_every_request_ends_once_by_its_deadline_with_what_the_device_has(own_exit: bool, has_head: bool) -> None:
    """All 6 x 6 remotes, head times, tails and target lists: 1,296 worlds for each pair of parameters."""
    worlds = itertools.product(
        itertools.product(REMOTES, REMOTES),
        (0.01, 0.5, 0.95, 2.0),
        ("works", "fails", "none"),
        ((), ("home",), ("home", "other")),
    )
    for remote, head_s, tail, targets in worlds:
        world = World(head_s, False, own_exit and has_head, remote, tail, targets, has_head)
        at_s, answer = world.run()
        assert at_s <= DEADLINE
        assert (answer.exit_index is None) == (answer.source is AnswerSource.NONE)
        assert answer.source is AnswerSource.PLAN or answer.cause
        has_own = own_exit and has_head and head_s < DEADLINE
        # The hedge falls at 1 − 0.1 − 0.3 = 0.6 s, after any head that is done by 0.5 s.
        has_tail = not (own_exit and has_head) and tail == "works" and (not has_head or head_s < DEADLINE - MARGIN)
        if has_own or has_tail:
            assert answer.source is not AnswerSource.NONE, (remote, head_s, tail, targets)


def test_a_confident_request_leaves_at_once() -> None:
    world = World(leaves=True)
    assert world.run() == (0.05, SessionAnswer(AnswerSource.PLAN, 0))
    assert not world.offloads


def test_an_answer_from_home_is_the_plans() -> None:
    assert World().run() == (pytest.approx(0.15), SessionAnswer(AnswerSource.PLAN, 1))


def test_a_fast_failure_goes_to_the_other_edge() -> None:
    world = World(remote=(("fails", 0.01), ("answers", 0.1)), targets=("home", "other"))
    at_s, answer = world.run()
    assert (at_s, answer.source, answer.cause) == (pytest.approx(0.16), AnswerSource.OTHER_EDGE, "home: lost")
    assert world.offloads[1].timeout_s == pytest.approx(DEADLINE - 0.06)


def test_a_late_failure_does_not_go_to_the_other_edge() -> None:
    world = World(remote=(("fails", 0.8), ("answers", 0.1)), targets=("home", "other"))
    at_s, answer = world.run()
    assert (at_s, answer.source, len(world.offloads)) == (pytest.approx(0.85), AnswerSource.DEVICE_EXIT, 1)


def test_home_that_is_away_is_named_as_the_cause() -> None:
    _, answer = World(targets=("other",)).run()
    assert answer == SessionAnswer(AnswerSource.OTHER_EDGE, 1, "home: is unreachable or on trial")


def test_silence_is_answered_by_the_own_exit_at_the_last_call() -> None:
    at_s, answer = World(remote=(("silent", NEVER),)).run()
    assert (at_s, answer.source) == (pytest.approx(DEADLINE - MARGIN), AnswerSource.DEVICE_EXIT)
    assert answer.cause == "home had not answered at the last call"


def test_a_segment_that_is_done_after_the_last_call_is_still_an_answer() -> None:
    at_s, answer = World(head_s=0.95).run()
    assert (at_s, answer.source) == (pytest.approx(0.95), AnswerSource.DEVICE_EXIT)
    assert answer.cause == "the device's own stages were not done at the last call; the device is overloaded"


def test_an_answer_from_home_after_the_last_call_is_the_plans_where_the_device_has_none() -> None:
    at_s, answer = World(remote=(("answers", 0.9),), own_exit=False, tail="none").run()
    assert (at_s, answer.source) == (pytest.approx(0.95), AnswerSource.PLAN)


def test_without_an_own_exit_the_local_tail_starts_so_that_it_is_done_in_time() -> None:
    world = World(remote=(("silent", NEVER),), own_exit=False)
    at_s, answer = world.run()
    assert (at_s, answer) == (
        pytest.approx(DEADLINE - MARGIN),
        SessionAnswer(AnswerSource.LOCAL_TAIL, 1, "home had not answered when the local tail was done"),
    )


def test_a_remote_answer_during_the_local_tail_wins() -> None:
    world = World(remote=(("answers", 0.7),), own_exit=False)
    at_s, answer = world.run()
    assert (at_s, answer.source, world.tails) == (pytest.approx(0.75), AnswerSource.PLAN, 1)


def test_an_outer_nodes_own_exit_is_named_with_its_cause() -> None:
    state, _ = step(Session(), RequestArrived(0.0, 1.0, targets=("home",), home="home"))
    state, _ = step(state, StagesDone(0.1))
    state, actions = step(state, RemoteAnswered(0.2, "home", 0, "cloud lost"))
    assert actions == (SessionAnswer(AnswerSource.EDGE_EXIT, 0, "cloud lost"),)


def test_a_failing_device_says_so() -> None:
    state, _ = step(Session(), RequestArrived(0.0, 1.0, targets=("home",), home="home"))
    state, actions = step(state, StagesFailed(0.1, "no memory"))
    assert actions == (SessionAnswer(AnswerSource.NONE, None, "the device's stages failed: no memory"),)


def test_an_ended_request_ignores_every_event() -> None:
    state, _ = step(Session(), RequestArrived(0.0, 1.0, is_local=True))
    state, _ = step(state, StagesDone(0.1, 1))
    for event in (StagesDone(0.2), RemoteAnswered(0.2, "home", 1), TailDone(0.2, 1), RemoteFailed(0.2, "home", "x")):
        assert step(state, event) == (state, ())
