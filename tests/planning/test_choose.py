"""Plans: closed-form predictions, limits, and what must never happen."""

from itertools import product

import msgspec
import numpy as np
import pytest

from edgewise.core.errors import InputError, PlanInfeasible
from edgewise.core.ids import Tier
from edgewise.models.graph.graph import Graph
from edgewise.planning.choose import make_search, plan, violations
from edgewise.planning.explain import explain
from edgewise.planning.placement import exhaustive
from edgewise.planning.placement.problem import costs
from edgewise.planning.policy import Policy
from edgewise.planning.profile import LinkState, SegmentCost
from edgewise.planning.search import Prices
from tests.models.toys import inception, residual
from tests.planning.scenario import FAST, SLOW, WAN, evidence, graph, profile, profiles

PRIVATE = Policy(raw_may_reach=Tier.DEVICE)


def a_plan(policy=PRIVATE, links=(FAST, WAN), codecs=("none", "int8"), rows=None, tiers=None, **settings):
    return plan(
        graph(), tiers or profiles(), links, policy, evidence() if rows is None else rows, codecs=codecs, **settings
    )


def test_privacy_and_a_fast_link_give_a_split_with_an_early_exit():
    found = a_plan()
    assert found.collaborates
    assert found.tiers[0] is Tier.DEVICE
    assert not any(cut.carries_raw for cut in found.handovers)
    assert found.exits[0].end_fraction == 0.6


def test_without_a_policy_a_small_input_is_sent_raw():
    found = a_plan(Policy(), tiers=profiles(device=300.0))
    assert Tier.DEVICE not in found.tiers
    assert found.handovers[0].carries_raw
    assert found.handovers[0].tensors == ("input",)


def test_a_link_of_64_kbit_per_s_gives_do_not_collaborate():
    found = a_plan(links=(SLOW, WAN))
    assert found.tiers == (Tier.DEVICE,)
    assert found.handovers == ()


def test_the_waterfall_sums_to_the_path_and_the_mean_to_the_shares():
    predicted = a_plan().predicted
    for path in predicted.paths:
        assert sum(s for _, s in path.waterfall) == pytest.approx(path.p50_s)
    assert sum(p.fraction for p in predicted.paths) == pytest.approx(1.0)
    assert predicted.latency_mean_s == pytest.approx(sum(p.fraction * p.p50_s for p in predicted.paths))


def test_all_in_cloud_costs_what_the_closed_form_says():
    found = plan(graph(), profiles(), [FAST, WAN], Policy(allowed_tiers=(Tier.CLOUD,)), codecs=("none",))
    # msgpack writes ("input", [1, 1, 8, 8]) in 12 bytes, ("input/values", "float32", [1, 1, 8, 8], []) in 28.
    sent = 256 + 12 + 28 + 400
    # Each output comes back as it is, with ("head.3", "float32", [1, 10], []) or the like: 13 bytes and its name.
    answered = sum(t.size_bytes + len(t.name) + 14 for t in graph().outputs) + 300
    transfer = (sent + answered) / 2.5e6 + (sent + answered) / 6.25e6
    assert found.predicted.latency_mean_s == pytest.approx(1e-3 * 3 + 0.025 + transfer + 1e-3)
    assert found.predicted.egress_bytes == found.predicted.wan_bytes == sent
    assert found.predicted.device_energy_j == pytest.approx(sent * 1e-7)


def test_segments_and_cuts_fit_together():
    found = a_plan()
    available = {"input"}
    for segment in found.stages:
        cut = next((c for c in found.handovers if c.target == segment.name), None)
        available = available if cut is None else set(cut.tensors)
        assert set(segment.inputs) <= available
        available |= set(segment.outputs)
    assert {t for gate in found.exits for t in gate.tensors} <= {o for s in found.stages for o in s.outputs}


def test_measured_segments_replace_sums():
    last = len(graph().condensed.groups) - 1
    whole = SegmentCost(0, last, 0.5, 0.6, 0.0, 9)
    tiers = {Tier.DEVICE: profile(Tier.DEVICE, 30.0, segments=(whole,))}
    found = plan(graph(), tiers, [], Policy())
    assert found.predicted.latency_mean_s == pytest.approx(0.5 + 0.001)


def test_a_range_with_a_gap_costs_at_most_the_measured_range_around_it():
    last = len(graph().condensed.groups) - 1
    pieces = (SegmentCost(0, last, 0.010, 0.011, 0.0, 9), SegmentCost(0, 0, 0.012, 0.013, 0.0, 9))
    tiers = {Tier.DEVICE: profile(Tier.DEVICE, 30.0, segments=pieces)}
    table = make_search(graph(), tiers, [], Policy()).table
    assert table.segment_seconds(Tier.DEVICE, [0, last]) == (0.010, 0.011)
    assert table.segment_seconds(Tier.DEVICE, [0]) == (0.012, 0.013)
    assert table.segment_seconds(Tier.DEVICE, []) == (0.0, 0.0)


def test_a_segment_that_was_not_measured_costs_its_groups_and_one_call():
    last = len(graph().condensed.groups) - 1
    whole = SegmentCost(0, last, 0.030, 0.031, 0.0, 9)
    table = make_search(
        graph(), {Tier.DEVICE: profile(Tier.DEVICE, 20.0, segments=(whole,), call_s=0.004)}, [], Policy()
    ).table
    groups = [g.seconds for g in table.profiles[Tier.DEVICE].groups]
    assert table.segment_seconds(Tier.DEVICE, [0])[0] == pytest.approx(0.004 + groups[0])
    assert table.segment_seconds(Tier.DEVICE, [0, 1])[0] == pytest.approx(0.004 + groups[0] + groups[1])
    assert table.segment_seconds(Tier.DEVICE, range(last + 1))[0] == 0.030
    assert table.segment_seconds(Tier.DEVICE, []) == (0.0, 0.0)


@pytest.mark.parametrize("call_s", [0.0, 0.004])
def test_the_problem_costs_exactly_what_the_prediction_says(call_s: float):
    tiers = {t: profile(t, s, call_s=call_s) for t, s in ((Tier.DEVICE, 30.0), (Tier.EDGE, 2.0), (Tier.CLOUD, 1.0))}
    search = make_search(graph(), tiers, [FAST, WAN], PRIVATE, evidence(), codecs=("none", "int8"))
    checked = 0
    for choice in search.choices():
        found = search.solve(choice, Prices())
        if found is None:
            continue
        problem, groups = search.problem(choice, Prices())
        between = graph().condensed.between
        tier_of = {index: s.site.tier for s in found.stages for index in between(s.inputs, s.outputs)}
        row = np.array([[choice.route.index(tier_of[index]) for index in groups]], np.int8)
        door = search.table.overhead_s(Tier.DEVICE)
        assert costs(problem, row)[0] + door == pytest.approx(found.predicted.latency_mean_s)
        checked += 1
    assert checked > 10


@pytest.mark.parametrize("toy", [residual, inception])
def test_graphs_with_shared_tensors_are_planned_as_the_oracle_plans_them(toy):
    shared = Graph.load(toy())
    tiers = {t: profile(t, s, of=shared) for t, s in ((Tier.DEVICE, 20.0), (Tier.EDGE, 2.0), (Tier.CLOUD, 1.0))}
    for rate, policy in product((1e5, 1e6, 1e8), (Policy(), PRIVATE)):
        links = [LinkState(rate, 0.002), LinkState(rate * 2, 0.01)]
        search = make_search(shared, tiers, links, policy, solver="exhaustive")
        best = min(exhaustive(search.problem(c, Prices())[0]).cost for c in search.choices())
        found = plan(shared, tiers, links, policy)
        assert found.predicted.latency_mean_s == pytest.approx(best + 0.001)


def test_slower_outer_nodes_never_worsen_the_plan():
    alone = {Tier.DEVICE: profiles()[Tier.DEVICE]}
    before = plan(graph(), alone, [], PRIVATE, evidence()).predicted.latency_mean_s
    more = profiles(device=30.0, edge=500.0, cloud=900.0)
    assert a_plan(tiers=more).predicted.latency_mean_s <= before + 1e-12


def test_an_input_larger_than_every_feature_stays_when_the_link_is_narrow():
    wide = Graph.load(residual())
    tiers = {t: profile(t, s, of=wide) for t, s in ((Tier.DEVICE, 5.0), (Tier.EDGE, 1.0))}
    found = plan(wide, tiers, [LinkState(1e4, 0.001)], Policy())
    assert not found.handovers or not found.handovers[0].carries_raw


def test_an_energy_budget_moves_work_off_the_device():
    narrow = (LinkState(2e4, 0.005, 400, 1e-7), WAN)
    free = a_plan(links=narrow)
    budget = 0.5 * free.predicted.device_energy_j
    found = a_plan(Policy(raw_may_reach=Tier.DEVICE, max_device_energy_j=budget), links=narrow)
    assert found.predicted.device_energy_j <= budget
    assert found.predicted.latency_mean_s >= free.predicted.latency_mean_s


def test_the_energy_objective_is_never_above_the_latency_plan():
    policy = msgspec.structs.replace(PRIVATE, objective="device_energy")
    assert a_plan(policy).predicted.device_energy_j <= a_plan().predicted.device_energy_j


@pytest.mark.parametrize(
    ("limit", "value"),
    [("max_latency_s", 1e-4), ("min_accuracy", 0.999), ("max_device_energy_j", 1e-9), ("max_egress_bytes", -1.0)],
)
def test_an_impossible_limit_is_named_with_its_nearest_feasible_value(limit, value):
    policy = msgspec.structs.replace(PRIVATE, **{limit: value})
    with pytest.raises(PlanInfeasible, match=rf"{limit} = .* is binding, the nearest feasible is .*") as caught:
        a_plan(policy)
    nearest = caught.value.fields["nearest"]
    slack = -1e-9 if limit == "min_accuracy" else 1e-9
    relaxed = a_plan(msgspec.structs.replace(PRIVATE, **{limit: nearest + slack}))
    assert violations(relaxed, policy)[0].name == limit


def test_a_rule_on_raw_data_is_named_when_it_is_in_the_way():
    policy = Policy(raw_may_reach=Tier.DEVICE, allowed_tiers=(Tier.EDGE, Tier.CLOUD))
    with pytest.raises(
        PlanInfeasible, match=r"raw_may_reach = device is binding, the nearest feasible is (edge|cloud)"
    ):
        a_plan(policy)


def test_no_tiers_at_all_is_said():
    with pytest.raises(
        PlanInfeasible, match=r"no single limit is in the way: tiers there are: device, edge, cloud; allowed: none"
    ):
        a_plan(Policy(allowed_tiers=()))


def test_without_evidence_there_is_no_accuracy_to_promise():
    assert np.isnan(a_plan(rows=(), codecs=("none",)).predicted.accuracy)
    with pytest.raises(PlanInfeasible, match=r"min_accuracy = 0.5 is binding, the nearest feasible is nan"):
        a_plan(msgspec.structs.replace(PRIVATE, min_accuracy=0.5), rows=())


def test_a_profile_of_another_graph_is_refused():
    with pytest.raises(
        InputError, match=r"profile of device node 'device-1' was measured on graph .* Profile it again"
    ):
        plan(Graph.load(residual()), profiles(), [FAST], Policy())
    part = msgspec.structs.replace(profiles()[Tier.DEVICE], groups=profiles()[Tier.DEVICE].groups[:-2])
    with pytest.raises(InputError, match=r"lacks group .* and 1 more of this graph"):
        plan(graph(), {Tier.DEVICE: part}, [], Policy())


def test_unknown_words_are_refused():
    with pytest.raises(InputError, match=r"no placement solver 'min-cut'. Did you mean 'min_cut'"):
        a_plan(solver="min-cut")
    with pytest.raises(InputError, match=r"no objective 'latencyp95'. Did you mean 'latency_p95'"):
        a_plan(Policy(objective="latencyp95"))


def test_explaining_names_every_term():
    lines = "\n".join(explain(a_plan()))
    for word in ("device compute", "device→edge transfer", "round trip", "edge compute", "exit 0 on device"):
        assert word in lines
