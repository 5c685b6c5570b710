from __future__ import annotations

import msgspec
import pytest

from edgewise.core.errors import InputError, PlanInfeasible
from edgewise.core.ids import NodeId, Tier
from edgewise.inference import profiler
from edgewise.inference.profiler import _call_seconds, check_fingerprint, measure_memory, profile_graph
from edgewise.planning.profile import Profile, SegmentCost
from tests.inference.tiny import two_exit_graph

GRAPH = two_exit_graph()


def taken(**options: float) -> Profile:
    return profile_graph(GRAPH, NodeId("d"), Tier.DEVICE, budget_s=0.3, measures_memory=False, **options)  # type: ignore[arg-type]


def test_group_costs_sum_to_the_whole_and_none_is_negative() -> None:
    profile = taken()
    whole = next(s for s in profile.segments if (s.first, s.last) == (0, len(GRAPH.condensed.groups) - 1))
    assert sum(g.seconds for g in profile.groups) + profile.call_s == pytest.approx(whole.seconds)
    assert [g.group for g in profile.groups] == [g.name for g in GRAPH.condensed.groups]
    assert min(g.seconds for g in profile.groups) >= 0


def test_heads_and_tails_at_cuts_are_measured_as_often_as_the_whole() -> None:
    profile = taken()
    pieces = {(s.first, s.last) for s in profile.segments}
    last = len(GRAPH.condensed.groups) - 1
    cuts = {first for first, _ in pieces if first > 0}
    assert cuts
    assert all((0, cut - 1) in pieces and (cut, last) in pieces for cut in cuts)
    runs = [s.num_runs for s in profile.segments]
    assert min(runs) >= 7
    assert max(runs) - min(runs) <= 1


def test_a_large_graph_is_measured_at_as_many_cuts_as_memory_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = two_exit_graph()

    def segments(num: float) -> int:
        monkeypatch.setattr(profiler, "_CUTS_BYTES", int(num * len(graph.model_bytes)))
        found = profile_graph(graph, NodeId("a"), Tier.EDGE, budget_s=0.3, measures_memory=False)
        return len(found.segments)

    assert [segments(num) for num in (0.5, 2)] == [3, 5]  # the whole, and two for each cut


def test_a_call_is_what_cutting_in_two_adds() -> None:
    last = 5
    costs = [
        SegmentCost(0, last, 0.010, 0.011, 0.0, 9),
        SegmentCost(0, 1, 0.005, 0.006, 0.0, 9), SegmentCost(2, last, 0.008, 0.009, 0.0, 9),
        SegmentCost(0, 3, 0.007, 0.008, 0.0, 9), SegmentCost(4, last, 0.0055, 0.006, 0.0, 9),
    ]  # fmt: skip
    assert _call_seconds(costs) == pytest.approx(0.00275)
    assert _call_seconds(costs[:1]) == 0.0
    assert _call_seconds([costs[0], *(msgspec.structs.replace(c, seconds=0.001) for c in costs[1:])]) == 0.0
    tiny = [costs[0], SegmentCost(0, 0, 0.002, 0.002, 0.0, 9), SegmentCost(1, last, 0.0115, 0.012, 0.0, 9)]
    assert _call_seconds(tiny) == pytest.approx(0.0018)


def test_dilation_multiplies_every_compute_cost() -> None:
    plain, slow = taken(), taken(dilation=100.0)
    # One thread of a shared machine: within a factor of 4 of 100 is enough to see that it is there.
    assert 25 < slow.segments[0].seconds / plain.segments[0].seconds < 400
    assert slow.overhead_s < 20 * plain.overhead_s


def test_codecs_and_overhead_are_measured() -> None:
    profile = taken()
    assert set(profile.codecs) == {"none", "int8"}
    assert profile.codecs["int8"] > 0
    assert 0 < profile.overhead_s < 0.1


def test_a_profile_of_another_graph_node_or_dilation_is_refused() -> None:
    profile = taken()
    check_fingerprint(profile, GRAPH, dilation=1.0)
    with pytest.raises(PlanInfeasible, match=r"was measured with dilation 1\.0, here it is 2\.0"):
        check_fingerprint(profile, GRAPH, dilation=2.0)
    with pytest.raises(PlanInfeasible, match="was measured with graph"):
        check_fingerprint(profile, two_exit_graph(seed=5), dilation=1.0)
    other = msgspec.structs.replace(profile.fingerprint, machine="abacus")
    with pytest.raises(PlanInfeasible, match="was measured with machine 'abacus'"):
        check_fingerprint(msgspec.structs.replace(profile, fingerprint=other), GRAPH, dilation=1.0)


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(InputError, match=r"budget 0 s, cadence 0\.0 s, dilation 1\.0 cannot be profiled with"):
        profile_graph(GRAPH, NodeId("d"), Tier.DEVICE, budget_s=0)


@pytest.mark.live
def test_memory_is_measured_in_a_child_process() -> None:
    assert 1e5 < measure_memory(GRAPH) < 1e9
