"""Rollouts in virtual time: stage by stage, back at the first bad sign, nobody forgotten."""

from __future__ import annotations

import pytest

from edgewise.core.errors import InputError
from edgewise.core.ids import NodeId
from edgewise.lifecycle.health import HealthLimits, HealthObserved
from edgewise.lifecycle.rollout import (
    CompleteRollout,
    EndRollout,
    InstalledNodeLost,
    InstallVersion,
    NodeReturned,
    NodeUnhealthy,
    NodeUpdated,
    Outcome,
    RevertVersion,
    RollbackRequested,
    RolloutAction,
    RolloutEvent,
    RolloutPhase,
    RolloutState,
    TimePassed,
    WakeAt,
    stages_by_fraction,
    start,
    step,
)

A, B, C = NodeId("device-a"), NodeId("device-b"), NodeId("device-c")
LIMITS = HealthLimits(baseline_p95_s=0.04, baseline_confidence=0.9, baseline_accuracy=0.9, patience_s=10.0)


def begun(*away: NodeId) -> Outcome:
    return start(2, 1, [[A], [B], [C]], limits=LIMITS, away=frozenset(away))


def healthy(node: NodeId, **changes: float) -> HealthObserved:
    fields = {"num_requests": 5, "num_errors": 0, "time": 1.0, "p95_latency_s": 0.04, "confidence": 0.9} | changes
    return HealthObserved(node, 2, **fields)  # type: ignore[arg-type]


def play(outcome: Outcome, *events: RolloutEvent) -> tuple[RolloutState, list[RolloutAction]]:
    """Feeds events; gives the orders of all steps without the wake-ups."""
    state, actions = outcome
    seen = list(actions)
    for event in events:
        state, actions = step(state, event)
        seen.extend(actions)
    return state, [a for a in seen if not isinstance(a, WakeAt)]


def test_nodes_are_updated_one_stage_after_the_other() -> None:
    state, actions = play(begun())
    assert actions == [InstallVersion(A, 2)]
    state, actions = play(begun(), NodeUpdated(A, 2, 1.0))
    assert (state.phase, actions) == (RolloutPhase.WATCHING, [InstallVersion(A, 2)])
    _, actions = play(begun(), NodeUpdated(A, 2, 1.0), healthy(A))
    assert actions == [InstallVersion(A, 2), InstallVersion(B, 2)]


def test_a_healthy_rollout_completes_once() -> None:
    events = [e for n in (A, B, C) for e in (NodeUpdated(n, 2, 1.0), healthy(n))]
    state, actions = play(begun(), *events, healthy(C), NodeUpdated(C, 2, 2.0))
    assert state.phase is RolloutPhase.COMPLETED
    assert actions[-2:] == [CompleteRollout(2), EndRollout("completed", "3 of 3 stages healthy")]
    assert len(actions) == 5


def test_too_few_requests_are_not_evaluated() -> None:
    _, actions = play(begun(), NodeUpdated(A, 2, 1.0), healthy(A, num_requests=4))
    assert actions == [InstallVersion(A, 2)]


@pytest.mark.parametrize(
    ("report", "cause"),
    [
        (healthy(A, num_errors=1), "1 of 5 requests without an answer in time, allowed is 2.0%"),
        (healthy(A, p95_latency_s=0.081), "p95 latency 81.0 ms, allowed is 2 x 40.0 ms"),
        (healthy(A, confidence=0.6), "mean confidence 0.600 over 5 requests, needed is 0.700"),
        (healthy(A, num_labelled=5, num_right=3), "accuracy 0.600 over 5 labelled requests, needed is 0.800"),
    ],
)
def test_a_bad_stage_is_rolled_back_with_its_cause(report: HealthObserved, cause: str) -> None:
    state, actions = play(begun(), NodeUpdated(A, 2, 1.0), report)
    assert (state.phase, actions[-1]) == (RolloutPhase.REVERTING, RevertVersion(A, 1))
    state, actions = step(state, NodeUpdated(A, 1, 3.0))
    assert (state.phase, actions) == (RolloutPhase.ROLLED_BACK, (EndRollout("rolled_back", f"stage 1 of 3: {cause}"),))


def test_a_later_bad_stage_takes_the_earlier_ones_back_too() -> None:
    events = (NodeUpdated(A, 2, 1.0), healthy(A), NodeUpdated(B, 2, 2.0), healthy(B, num_errors=5))
    _, actions = play(begun(), *events)
    assert actions[-2:] == [RevertVersion(A, 1), RevertVersion(B, 1)]


def test_a_node_that_calls_itself_unhealthy_ends_the_rollout() -> None:
    state, actions = play(begun(), NodeUnhealthy(A, "the graph does not load", 1.0), NodeUpdated(A, 1, 2.0))
    assert actions[-1] == EndRollout("rolled_back", "device-a is unhealthy: the graph does not load")
    assert state.phase is RolloutPhase.ROLLED_BACK


def test_unhealth_of_a_node_not_yet_reached_is_no_concern_of_the_rollout() -> None:
    assert play(begun(), NodeUnhealthy(C, "hot", 1.0))[0].phase is RolloutPhase.INSTALLING


def test_an_away_node_is_passed_over_and_gets_the_version_when_it_returns() -> None:
    events = [e for n in (A, C) for e in (NodeUpdated(n, 2, 1.0), healthy(n))]
    state, actions = play(begun(B), *events)
    assert actions == [
        InstallVersion(A, 2),
        InstallVersion(C, 2),
        CompleteRollout(2),
        EndRollout("completed", "2 of 3 stages healthy; away, to be updated when they return: device-b"),
    ]
    _, actions = play((state, ()), NodeReturned(B, 1, 9.0))
    assert actions == [InstallVersion(B, 2)]


def test_a_node_lost_while_installing_is_ordered_again_when_its_turn_comes() -> None:
    events = (InstalledNodeLost(A, 1.0), NodeUpdated(B, 2, 2.0), healthy(B), NodeReturned(A, 1, 3.0))
    state, actions = play(begun(), *events, NodeUpdated(C, 2, 4.0), healthy(C))
    assert actions == [InstallVersion(A, 2), InstallVersion(B, 2), InstallVersion(C, 2), InstallVersion(A, 2)]
    assert state.stage == 2


def test_a_node_that_died_after_installing_does_not_get_it_twice() -> None:
    events = (NodeUpdated(A, 2, 1.0), InstalledNodeLost(A, 1.5), NodeReturned(A, 2, 2.0))
    state, actions = play(start(2, 1, [[A, B]], limits=LIMITS), *events)
    assert actions == [InstallVersion(A, 2), InstallVersion(B, 2)]
    assert A in state.updated


def test_if_everybody_is_away_the_rollout_waits() -> None:
    state, actions = play(begun(A, B, C), TimePassed(10.0), TimePassed(20.0))
    assert (state.phase, actions) == (RolloutPhase.INSTALLING, [])
    _, actions = play((state, ()), NodeReturned(A, 1, 30.0))
    assert actions == [InstallVersion(A, 2)]


def test_an_away_node_is_taken_back_when_it_returns_after_a_rollback() -> None:
    events = (NodeUpdated(A, 2, 1.0), healthy(A), InstalledNodeLost(A, 2.0), RollbackRequested("operator", 3.0))
    state, actions = play(begun(), *events, NodeUpdated(B, 1, 4.0))
    assert actions[-2:] == [RevertVersion(B, 1), EndRollout("rolled_back", "operator")]
    assert play((state, ()), NodeReturned(A, 2, 5.0))[1] == [RevertVersion(A, 1)]
    assert play((state, ()), NodeReturned(A, 1, 5.0))[1] == []


def test_a_completed_rollout_can_be_rolled_back() -> None:
    events = [e for n in (A, B, C) for e in (NodeUpdated(n, 2, 1.0), healthy(n))]
    back = [NodeUpdated(n, 1, 9.0) for n in (A, B, C)]
    state, actions = play(begun(), *events, RollbackRequested("operator asked", 8.0), *back)
    assert actions[-4:] == [*(RevertVersion(n, 1) for n in (A, B, C)), EndRollout("rolled_back", "operator asked")]
    assert state.updated == frozenset()


def test_a_second_rollback_request_changes_nothing() -> None:
    state, _ = play(begun(), RollbackRequested("once", 1.0))
    assert step(state, RollbackRequested("twice", 2.0)) == (state, ())


def test_a_node_that_does_not_install_in_time_ends_the_rollout() -> None:
    state, actions = begun()
    assert WakeAt(10.0) in actions
    _, actions = play((state, ()), TimePassed(9.0))
    assert actions == []
    state, actions = play((state, ()), TimePassed(10.0))
    assert state.cause == "device-a did not install it within 10 s"


def test_a_quiet_stage_is_evaluated_by_what_it_has_when_its_time_is_up() -> None:
    state, _ = play(begun(), NodeUpdated(A, 2, 1.0), healthy(A, num_requests=2))
    _, actions = play((state, ()), TimePassed(11.0))
    assert actions == [InstallVersion(B, 2)]


def test_a_stage_without_a_single_request_does_not_pass() -> None:
    state, _ = play(begun(), NodeUpdated(A, 2, 1.0))
    state, actions = step(state, TimePassed(11.0))
    assert (state.phase, actions) == (RolloutPhase.WATCHING, (WakeAt(21.0),))


def test_health_of_another_version_does_not_count() -> None:
    late = HealthObserved(A, 1, 100, 100, 1.0)
    assert play(begun(), NodeUpdated(A, 2, 1.0), late)[0].health == {}


def test_stages_by_fraction_names_every_node_once() -> None:
    nodes = [NodeId(f"n{i}") for i in range(10)]
    assert [len(s) for s in stages_by_fraction(nodes)] == [1, 4, 5]
    assert [len(s) for s in stages_by_fraction(nodes[:2])] == [1, 1]
    assert [n for s in stages_by_fraction(nodes) for n in s] == nodes


@pytest.mark.parametrize("fractions", [(), (0.5,), (0.5, 0.5, 1.0), (0.0, 1.0)])
def test_fractions_that_do_not_rise_to_one_are_refused(fractions: tuple[float, ...]) -> None:
    with pytest.raises(InputError, match="must rise from above 0 to 1"):
        stages_by_fraction([A], fractions)


@pytest.mark.parametrize("stages", [[], [[A], []], [[A], [A]]])
def test_stages_that_do_not_name_every_node_once_are_refused(stages: list[list[NodeId]]) -> None:
    with pytest.raises(InputError, match="must name every node once and none be empty"):
        start(2, 1, stages)
