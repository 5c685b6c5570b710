"""Replanning in virtual time: switches that pay, no more than one per dwell, losses answered at once."""

from dataclasses import replace
from functools import cache
from itertools import pairwise

import msgspec
import numpy as np
import pytest

from edgewise.core.errors import InputError, PlanInfeasible
from edgewise.core.ids import Tier
from edgewise.planning.choose import find_best, make_search
from edgewise.planning.costs.predict import repriced
from edgewise.planning.policy import Policy
from edgewise.planning.replan.plan_map import plan_map
from edgewise.planning.replan.replan import (
    Estimate,
    LinkObserved,
    Settings,
    StageObserved,
    TierLost,
    TierReturned,
    estimated_table,
    gain_sigma,
    start,
    step,
)
from tests.planning.scenario import FAST, WAN, evidence, graph, profiles

PRIVATE = Policy(raw_may_reach=Tier.DEVICE)


@cache
def search():
    return make_search(graph(), profiles(), (FAST, WAN), PRIVATE, evidence(), codecs=("none", "int8"))


@cache
def the_map():
    return plan_map(search())


def at_rate(bytes_per_s):
    links = (msgspec.structs.replace(FAST, bytes_per_s=bytes_per_s), WAN)
    return replace(search(), table=replace(search().table, links=links))


def begun(settings=None):
    return start(search(), find_best(search()), the_map().plans, settings, time_s=0.0)


def run(state, observations):
    actions = []
    for observation in observations:
        state, new = step(state, observation)
        actions += [(observation.time_s, a) for a in new]
    return state, actions


def rates(values, gap_s=0.1, start_s=10.0):
    return [LinkObserved(start_s + n * gap_s, 0, bytes_per_s=float(v)) for n, v in enumerate(values)]


def test_the_plan_map_is_what_solving_at_each_bandwidth_gives():
    for rate in np.geomspace(2e3, 5e8, 25):
        direct = find_best(at_rate(rate)).predicted.latency_mean_s
        looked_up = repriced(at_rate(rate).table, the_map().at(rate)).predicted.latency_mean_s
        assert looked_up == pytest.approx(direct, rel=1e-9)


def test_the_plan_map_covers_every_bandwidth_once():
    ranges = [p.valid_bytes_per_s for p in the_map().plans]
    assert len(ranges) >= 2
    assert ranges[0][0] == 0.0
    assert ranges[-1][1] == float("inf")
    assert all(a[1] == b[0] for a, b in pairwise(ranges))
    assert not the_map().plans[0].collaborates


def test_a_plan_map_needs_a_policy_it_can_be_true_for():
    limited = replace(search(), policy=Policy(max_latency_s=1.0))
    with pytest.raises(InputError, match=r"needs objective 'latency' and no max_latency_s, found 'latency' and 1.0"):
        plan_map(limited)
    impossible = replace(search(), policy=Policy(allowed_tiers=()))
    with pytest.raises(PlanInfeasible, match=r"at any bandwidth of this link"):
        plan_map(impossible)


def test_repricing_under_the_same_costs_changes_nothing():
    for plan in (find_best(search()), *(find_best(at_rate(r)) for r in (1e3, 1e5))):
        table = at_rate(1e5).table
        assert repriced(table, repriced(search().table, plan)) == repriced(table, plan)


def test_a_link_that_drops_changes_the_plan_once():
    state, actions = run(begun(), rates([8e3] * 20))
    assert [a.plan.tiers for _, a in actions] == [(Tier.DEVICE,)]
    assert actions[0][0] <= 10.2
    assert "better than split" in actions[0][1].reason
    assert state.current.tiers == (Tier.DEVICE,)


def test_one_outlier_does_not_change_the_plan():
    _, actions = run(begun(), rates([2.5e6] * 5 + [8e3] + [2.5e6] * 20))
    assert actions == []


def test_noise_around_a_breakpoint_does_not_flap():
    edge = the_map().plans[0].valid_bytes_per_s[1]
    noise = np.random.default_rng(0).lognormal(np.log(edge), 0.3, 300)
    _, actions = run(begun(Settings(dwell_s=2.0)), rates(noise))
    assert len(actions) <= 2


def test_at_most_one_switch_per_dwell():
    square = np.where(np.arange(240) // 10 % 2, 8e3, 2.5e6)
    _, actions = run(begun(Settings(dwell_s=3.0)), rates(square))
    gaps = np.diff([t for t, _ in actions])
    assert len(actions) > 2
    assert (gaps >= 3.0).all()


def test_a_switch_must_pay_its_cost_within_the_dwell():
    dear = Settings(switch_cost_s=1e3, dwell_s=2.0, requests_per_s=1.0)
    assert run(begun(dear), rates([8e3] * 20))[1] == []
    busy = msgspec.structs.replace(dear, requests_per_s=1e5)
    assert len(run(begun(busy), rates([8e3] * 20))[1]) == 1


def test_a_lost_tier_is_left_at_once_and_used_again_after_the_dwell():
    quick = Settings(dwell_s=2.0)
    state, actions = run(begun(quick), [LinkObserved(0.5, 0, rtt_s=0.005), TierLost(1.0, Tier.EDGE)])
    assert [(t, a.plan.tiers, a.gain_s) for t, a in actions] == [(1.0, (Tier.DEVICE,), float("inf"))]
    assert "cannot run without edge" in actions[0][1].reason
    state, actions = run(state, [TierReturned(1.5, Tier.EDGE), *rates([2.5e6] * 5, start_s=2.0, gap_s=0.3)])
    assert [t for t, _ in actions] == [pytest.approx(3.2)]
    assert state.current.collaborates


def test_a_node_that_slows_down_changes_the_plan():
    seen = [StageObserved(10.0 + n, Tier.EDGE, 2.0, 0.001) for n in range(5)]
    _, actions = run(begun(), seen)
    assert Tier.EDGE not in actions[0][1].plan.tiers


def test_estimates_follow_ratios_and_start_anew_after_two_surprises():
    steady = Estimate(np.log(100.0)).seen(110.0, 0.5)
    assert steady.value == pytest.approx((100 * 110) ** 0.5)
    assert steady.seen(1e4, 0.5).value == steady.value
    assert steady.seen(0.0, 0.5) == steady.seen(float("nan"), 0.5) == steady
    assert steady.seen(1e4, 0.5).seen(1e4, 0.5).value == pytest.approx(1e4)


def test_the_gain_is_as_uncertain_as_its_estimates():
    state = begun()
    assert gain_sigma(state, state.candidates[-1]) == 0.0
    state, _ = run(state, rates([2.4e6, 2.0e6, 3.0e6]))
    other = next(p for p in state.candidates if p != state.current and not p.collaborates)
    low, high = (
        repriced(estimated_table(msgspec.structs.replace(state, rates=(shifted, state.rates[1]))), state.current)
        for shifted in (
            Estimate(state.rates[0].log_mean - state.rates[0].sigma),
            Estimate(state.rates[0].log_mean + state.rates[0].sigma),
        )
    )
    expected = 0.5 * abs(low.predicted.latency_mean_s - high.predicted.latency_mean_s)
    assert gain_sigma(state, other) == pytest.approx(expected)


def test_on_a_trace_the_regret_against_a_clairvoyant_is_small():
    rng = np.random.default_rng(3)
    levels = np.repeat(rng.choice([8e3, 1e5, 2.5e6], 8), 40)
    trace = levels * rng.lognormal(0, 0.1, len(levels))
    state, ours, best = begun(Settings(dwell_s=1.0)), 0.0, 0.0
    for observation, rate in zip(rates(trace), levels, strict=True):
        table = at_rate(rate).table
        ours += repriced(table, state.current).predicted.latency_mean_s
        best += min(repriced(table, p).predicted.latency_mean_s for p in the_map().plans)
        state, _ = step(state, observation)
    assert ours <= 1.10 * best
