"""Seven levels, baselines, and 'do not collaborate' as an ordinary answer."""

import msgspec
import numpy as np
import pytest

from edgewise.core.ids import TIERS, Tier
from edgewise.planning.baselines import baselines, png_bytes
from edgewise.planning.choose import make_search
from edgewise.planning.explain import LEVEL_COLUMNS, level_cells
from edgewise.planning.levels import DOMAINS, level_of, margin_fraction, plan_levels, recommend, single_node_plans
from edgewise.planning.policy import Policy
from tests.planning.scenario import FAST, SLOW, WAN, evidence, graph, profiles

FREE = Policy()
EVIDENCE = {"cloud": evidence(0.98), "federated": evidence(0.97), "edge": evidence(0.96), "device": evidence(0.95)}


def search(policy=FREE, links=(FAST, WAN), tiers=None):
    return make_search(graph(), tiers or profiles(), links, policy, evidence(), codecs=("none", "int8"))


def test_every_level_runs_where_it_says_with_the_model_of_its_domain():
    rows = plan_levels(search(), EVIDENCE)
    assert [r.level for r in rows] == list(range(7))
    assert all(r.feasible for r in rows)
    for row in rows:
        assert level_of(row.plan) == row.level
        assert row.training_domain == row.plan.training_domain == DOMAINS[row.level]
    running = [set(r.tiers) for r in rows]
    assert running[0] == {Tier.CLOUD}
    assert running[3] == running[6] == {Tier.DEVICE}
    assert all(Tier.CLOUD in running[n] and len(running[n]) > 1 for n in (1, 4))
    assert all(Tier.EDGE in running[n] and Tier.CLOUD not in running[n] for n in (2, 5))


def test_levels_differ_in_accuracy_by_their_model():
    rows = plan_levels(search(), EVIDENCE)
    assert rows[3].accuracy > rows[6].accuracy


def test_levels_that_send_raw_inputs_are_printed_with_the_reason():
    rows = plan_levels(search(Policy(raw_may_reach=Tier.DEVICE)), EVIDENCE)
    assert not rows[0].feasible
    assert "raw_may_reach = device is binding" in rows[0].reason
    assert np.isnan(rows[0].predicted_p50_ms)
    assert rows[1].feasible


def test_a_missing_tier_a_forbidden_tier_and_a_missing_model_are_reasons():
    two = {t: p for t, p in profiles().items() if t is not Tier.CLOUD}
    assert plan_levels(search(tiers=two), EVIDENCE)[0].reason == "needs tier 'cloud', which is not there"
    inner = Policy(allowed_tiers=(Tier.DEVICE, Tier.EDGE))
    assert plan_levels(search(inner), EVIDENCE)[4].reason == "needs tier 'cloud', which is not allowed by the policy"
    reason = plan_levels(search(), {"cloud": evidence()})[6].reason
    assert reason == "there is no model trained in domain 'device'"


def test_a_private_fast_link_recommends_a_split_with_its_margin():
    private = search(Policy(raw_may_reach=Tier.DEVICE))
    found = recommend(private)
    assert found.collaborate
    alone = min(p.predicted.latency_p50_s for p in single_node_plans(private))
    assert found.margin_fraction == pytest.approx(1 - found.plan.predicted.latency_p50_s / alone)
    assert found.margin_fraction > 0.1


def test_a_slow_link_recommends_not_to_collaborate():
    found = recommend(search(Policy(raw_may_reach=Tier.DEVICE), links=(SLOW, WAN)))
    assert not found.collaborate
    assert "do not collaborate" in found.reason
    assert found.level == 6


def test_a_gain_under_the_margin_is_not_worth_a_second_node():
    private = search(Policy(raw_may_reach=Tier.DEVICE))
    found = recommend(private, min_margin_fraction=0.99)
    assert found.plan.tiers == (Tier.DEVICE,)
    assert "under the margin of 99%" in found.reason


def test_where_no_single_node_is_allowed_the_split_is_recommended():
    limit = 0.5 * single_node_plans(search(Policy(raw_may_reach=Tier.DEVICE)))[0].predicted.device_energy_j
    found = recommend(search(Policy(raw_may_reach=Tier.DEVICE, max_device_energy_j=limit)))
    assert found.collaborate
    assert "no single node meets the policy" in found.reason


def test_the_margin_over_itself_is_nothing():
    alone = single_node_plans(search())
    best = min(alone, key=lambda p: p.predicted.latency_p50_s)
    assert margin_fraction(best, alone) == 0.0
    assert margin_fraction(best, []) == 1.0


def test_pinning_any_tiers_gives_only_legal_placements():
    for size in range(1, 8):
        tiers = tuple(t for n, t in enumerate(TIERS) if size >> n & 1)
        for plan in single_node_plans(search().pinned_to(tiers)):
            assert set(plan.tiers) <= set(tiers)


def test_baselines_are_in_the_table_with_what_the_policy_says():
    rows = {r.name: r for r in baselines(search(Policy(raw_may_reach=Tier.EDGE)))}
    assert list(rows) == ["raw to edge", "raw to cloud", "PNG to cloud", "device only", "int8 on device"]
    assert rows["raw to edge"].allowed
    assert rows["raw to edge"].plan.handovers[0].payload_bytes == 64
    assert rows["raw to cloud"].reason == "raw inputs may reach 'edge' only"
    assert rows["device only"].plan.predicted.accuracy == pytest.approx(0.97)
    assert rows["int8 on device"].reason == "there is no quantised model"
    slower = rows["PNG to cloud"].predicted_p50_ms
    assert slower > rows["raw to cloud"].predicted_p50_ms


def test_a_baseline_without_its_tier_or_over_a_limit_says_so():
    two = {t: p for t, p in profiles().items() if t is not Tier.CLOUD}
    assert {r.name: r for r in baselines(search(tiers=two))}["raw to cloud"].reason == "there is no cloud"
    limited = {r.name: r for r in baselines(search(Policy(max_latency_s=1e-3)))}
    assert limited["device only"].reason.startswith("max_latency_s would be")
    inner = {r.name: r for r in baselines(search(Policy(allowed_tiers=(Tier.DEVICE,))))}
    assert inner["raw to edge"].reason == "tier 'edge' is not allowed by the policy"


def test_png_size_is_that_of_a_real_file():
    flat = np.zeros((8, 8), np.uint8)
    assert 57 + 8 < png_bytes(flat) < 90
    noise = np.random.default_rng(0).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    assert png_bytes(noise) > 8 * 8 * 3


def test_level_cells_fill_every_column():
    rows = plan_levels(search(Policy(raw_may_reach=Tier.DEVICE)), EVIDENCE)
    assert all(len(cells) == len(LEVEL_COLUMNS) for cells in level_cells(rows))


def test_levels_read_off_plans_that_no_row_lists():
    plan = plan_levels(search(), EVIDENCE)[3].plan
    assert level_of(msgspec.structs.replace(plan, training_domain="hierarchical")) == 6
    assert level_of(msgspec.structs.replace(plan, training_domain="elsewhere", stages=())) == 6


def variant(name, speed=1.0, end=0.97, **settings):
    """Another graph in the model's place: so many times as fast everywhere, its end so accurate."""
    tiers = profiles(30.0 / speed, 2.0 / speed, 1.0 / speed)
    rows = [
        msgspec.structs.replace(e, accuracy=e.accuracy + end - 0.97, accuracy_all=e.accuracy_all + end - 0.97)
        for e in evidence()
    ]
    return make_search(graph(), tiers, (FAST, WAN), FREE, rows, variant=name, **settings)


def test_a_variant_is_a_candidate_alone_and_shared():
    private = search(Policy(raw_may_reach=Tier.DEVICE))
    quick = recommend(private, [variant("int8", speed=100.0)])
    assert (quick.plan.variant, quick.plan.tiers, quick.collaborate) == ("int8", (Tier.DEVICE,), False)
    assert quick.plan.name.startswith("int8 model all on device")
    shared = recommend(private, [variant("int8", speed=2.0, codecs=("none", "int8"))])
    assert (shared.plan.variant, shared.collaborate) == ("int8", True)
    assert shared.alone.variant == "int8", "the best plan on one node is the faster model's too"
    gain = 1 - shared.plan.predicted.latency_mean_s / shared.alone.predicted.latency_mean_s
    assert shared.gain_fraction == pytest.approx(gain)
    assert {(p.variant, p.collaborates) for p in shared.others} == {
        ("float32", True),
        ("float32", False),
        ("int8", False),
    }


def test_a_variant_is_held_to_the_models_accuracy_and_policy():
    private = search(Policy(raw_may_reach=Tier.DEVICE))
    found = recommend(private, [variant("narrow", speed=100.0, end=0.80)])
    assert found == recommend(private)
    rows = {r.name: r for r in baselines(private, [variant("narrow", speed=100.0, end=0.80)])}
    assert rows["narrow on device"].reason == "accuracy would be 0.800, at least 0.950 are wanted"
    assert not rows["narrow on device"].allowed
    assert rows["int8 on device"].reason == "there is no quantised model"


def test_what_jitters_on_the_way_widens_the_95th_percentile_alone():
    calm = recommend(search(Policy(raw_may_reach=Tier.DEVICE))).plan
    jittery = msgspec.structs.replace(FAST, rtt_p95_s=FAST.rtt_s + 0.004)
    devices = {t: msgspec.structs.replace(p, overhead_p95_s=p.overhead_s + 0.003) for t, p in profiles().items()}
    shaken = recommend(search(Policy(raw_may_reach=Tier.DEVICE), (jittery, WAN), devices)).plan
    assert shaken.predicted.latency_mean_s == pytest.approx(calm.predicted.latency_mean_s)
    assert shaken.predicted.latency_p95_s > calm.predicted.latency_p95_s + 0.002


def test_a_domain_is_named_alike_whichever_protocol_and_under_its_former_word():
    old = plan_levels(search(), {"hierarchical": evidence(0.97)})[4]
    assert (old.feasible, old.training_domain) == (True, "federated")
    plan = msgspec.structs.replace(old.plan, training_domain="hierarchical")
    assert level_of(plan) == 4
