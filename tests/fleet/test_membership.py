from __future__ import annotations

import pytest

from edgewise.core.ids import Generation, NodeId, Tier
from edgewise.fleet.membership.membership import (
    MOST_CLAIMS,
    STALL_GAPS,
    STALL_OBSERVATIONS,
    Action,
    AskInfo,
    Event,
    Membership,
    NodeAppeared,
    NodeDescribed,
    NodeLost,
    NodeReady,
    NodeState,
    NodeUnanswered,
    NodeVanished,
    ProgressObserved,
    TellDisplaced,
    step,
)
from edgewise.fleet.messages import Capability, NodeInfo, Progress

NODE = NodeId("device-1")
HUGE = 2**60


def info(generation: int = 1) -> NodeInfo:
    return NodeInfo(
        NODE, Tier.DEVICE, Generation(generation), "", NodeId("edge-1"), Capability(1, 1, 1.0, 1.0, 1.0, "")
    )


def appeared(generation: int = 1) -> Event:
    return NodeAppeared(NODE, Tier.DEVICE, Generation(generation))


def vanished(generation: int = 1) -> Event:
    return NodeVanished(NODE, Tier.DEVICE, Generation(generation))


def moved(counter: int, *, busy: bool = True) -> Event:
    return ProgressObserved(NODE, Progress(counter, busy, "train run-1 round 3"))


def folded(*events: Event) -> tuple[Membership, list[Action]]:
    """All events in order; the actions of the last."""
    state = Membership()
    actions: tuple[Action, ...] = ()
    for event in events:
        state, actions = step(state, event)
    return state, list(actions)


def state_after(*events: Event) -> NodeState:
    return folded(*events)[0].members[NODE].state


HERE = (appeared(), NodeDescribed(info()))


def test_a_token_is_asked_who_it_is_and_ready_when_it_told() -> None:
    assert folded(appeared())[1] == [AskInfo(NODE)]
    assert folded(*HERE)[1] == [NodeReady(info())]
    assert [m.node for m in folded(*HERE)[0].alive()] == [NODE]
    assert folded(*HERE)[0].alive(Tier.EDGE) == ()
    assert folded(appeared())[0].alive() == ()


def test_a_token_told_twice_is_one_node() -> None:
    assert folded(*HERE, appeared())[1] == []


def test_a_vanished_token_is_a_lost_node_once() -> None:
    state, actions = folded(*HERE, vanished())
    assert isinstance(actions[0], NodeLost)
    assert "device-1 is unreachable: its liveliness token is gone" in state.members[NODE].cause
    assert folded(*HERE, vanished(), vanished())[1] == []
    assert not state.has(NODE, Generation(1))


def test_the_end_of_an_older_incarnation_is_not_the_end_of_the_node() -> None:
    assert state_after(*HERE, appeared(2), NodeDescribed(info(2)), vanished(1)) is NodeState.ALIVE
    assert folded(vanished())[1] == []


@pytest.mark.parametrize(("generation", "after"), [(1, "it was frozen or cut off"), (2, "it was started again")])
def test_the_incarnation_tells_a_frozen_node_from_one_that_had_ended(generation: int, after: str) -> None:
    _, actions = folded(*HERE, vanished(), appeared(generation), NodeDescribed(info(generation)))
    assert actions == [NodeReady(info(generation), after)]


def test_a_node_that_comes_back_stays_in_view_as_it_was_until_it_has_told_again() -> None:
    state, actions = folded(*HERE, vanished(), appeared(2))
    assert actions == [AskInfo(NODE)]
    assert (state.members[NODE].state, state.members[NODE].info) == (NodeState.JOINING, info(1))
    assert state.alive() == ()
    assert state_after(*HERE, vanished(), appeared(2), moved(6)) is NodeState.JOINING
    assert state_after(*HERE, vanished(), appeared(2), NodeDescribed(info(2))) is NodeState.ALIVE


def test_what_left_while_it_was_asked_is_not_ready_and_what_never_proved_itself_is_forgotten() -> None:
    assert folded(appeared(), vanished(), NodeDescribed(info())) == (Membership(), [])
    assert folded(NodeDescribed(info()))[1] == []


def test_a_token_alone_displaces_nobody() -> None:
    """However large an incarnation it claims, and however it comes and goes: the node stays, and is heard when it starts anew."""
    state, actions = folded(*HERE, appeared(HUGE))
    assert (state.members[NODE].state, state.members[NODE].generation) == (NodeState.ALIVE, 1)
    assert actions == [AskInfo(NODE)]
    assert state.is_open(NODE)
    after, actions = folded(*HERE, appeared(HUGE), NodeDescribed(info(1)), vanished(HUGE))
    assert (after.members[NODE].state, actions, after.is_open(NODE)) == (NodeState.ALIVE, [], False)
    again = (vanished(1), appeared(2), NodeDescribed(info(2)))
    assert folded(*HERE, appeared(HUGE), *again)[1] == [NodeReady(info(2), "it was started again")]
    assert folded(*HERE, appeared(HUGE), vanished(HUGE), *again)[1] == [NodeReady(info(2), "it was started again")]


def test_tokens_of_another_tier_or_many_of_them_do_not_hide_the_proved_one() -> None:
    many = [NodeAppeared(NODE, tier, Generation(g)) for g in range(2, 200) for tier in (Tier.DEVICE, Tier.EDGE)]
    state, _ = folded(*HERE, NodeAppeared(NODE, Tier.EDGE, Generation(1)), *many)
    assert len(state.members[NODE].tokens) == 1 + MOST_CLAIMS
    assert state_after(*HERE, *many, NodeVanished(NODE, Tier.EDGE, Generation(1))) is NodeState.ALIVE
    assert state_after(*HERE, *many, vanished(1)) is NodeState.GONE


def test_a_newer_incarnation_that_proves_itself_displaces_the_one_that_is_still_there() -> None:
    _, actions = folded(*HERE, appeared(2), NodeDescribed(info(2)))
    assert actions == [TellDisplaced(NODE, Generation(2)), NodeReady(info(2), "it was started again")]
    late = folded(appeared(2), NodeDescribed(info(2)), appeared(1))[1]
    assert late == [TellDisplaced(NODE, Generation(2))]
    assert folded(*HERE, appeared(2), NodeDescribed(info(2)), vanished(1))[1] == []


def test_a_token_that_outlives_its_node_is_no_presence_and_the_node_returns_when_it_answers() -> None:
    state, actions = folded(*HERE, NodeUnanswered(NODE, Generation(1)))
    assert isinstance(actions[0], NodeLost)
    assert "its liveliness token is there, nobody answers for it" in actions[0].cause
    assert state.is_open(NODE)
    assert folded(*HERE, NodeUnanswered(NODE, Generation(1)), NodeDescribed(info()))[1] == [
        NodeReady(info(), "it was frozen or cut off")
    ]
    assert folded(*HERE, NodeUnanswered(NODE, Generation(7)))[1] == []


def test_a_busy_worker_that_stands_still_is_suspected_with_its_work() -> None:
    standing = [moved(5)] * (STALL_OBSERVATIONS + 1)
    assert state_after(*HERE, *standing[:-1]) is NodeState.ALIVE
    state, actions = folded(*HERE, *standing)
    assert state.members[NODE].state is NodeState.SUSPECTED
    assert isinstance(actions[0], NodeLost)
    assert "counter 5 did not move over 10 answers while it was to train run-1 round 3" in actions[0].cause
    assert state.has(NODE, Generation(1))
    assert folded(*HERE, *standing, moved(5))[1] == []


def test_a_suspect_that_moves_is_ready_again() -> None:
    standing = [moved(5)] * (STALL_OBSERVATIONS + 1)
    state, actions = folded(*HERE, *standing, moved(6))
    assert actions == [NodeReady(info(), "its worker hung")]
    assert state.members[NODE].cause == ""


def test_an_idle_worker_is_not_hung() -> None:
    assert state_after(*HERE, *[moved(5, busy=False)] * 50) is NodeState.ALIVE


def test_a_slow_worker_is_not_hung_within_twenty_of_its_own_gaps() -> None:
    gap = STALL_OBSERVATIONS - 1
    slow = [*[moved(5)] * (gap + 1), moved(6)]
    patient = [moved(6)] * (STALL_GAPS * gap - 1)
    assert state_after(*HERE, *slow, *patient) is NodeState.ALIVE
    assert state_after(*HERE, *slow, *patient, moved(6)) is NodeState.SUSPECTED


def test_progress_of_a_node_that_is_gone_or_unknown_changes_nothing() -> None:
    assert folded(moved(1))[0] == Membership()
    assert state_after(*HERE, vanished(), moved(6)) is NodeState.GONE


def preparing(counter: int) -> Event:
    return ProgressObserved(NODE, Progress(counter, True, "train run-1 round 1", patience=5 * STALL_OBSERVATIONS))


def test_a_worker_that_imports_torch_is_not_a_hung_one() -> None:
    standing = [preparing(0)] * (5 * STALL_OBSERVATIONS)
    assert state_after(*HERE, *standing) is NodeState.ALIVE
    assert state_after(*HERE, *standing, preparing(0)) is NodeState.SUSPECTED  # but not for ever
    assert state_after(*HERE, *standing, *[moved(0)] * STALL_OBSERVATIONS) is NodeState.SUSPECTED
