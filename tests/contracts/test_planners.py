"""Every placement solver on the same random problems, never better than the oracle; every planner's plans run."""

from itertools import combinations

import msgspec
import numpy as np
import pytest

from edgewise.core import spec
from edgewise.core.errors import InputError
from edgewise.core.ids import Tier
from edgewise.inference.evidence import run_graph
from edgewise.inference.stages import check_plan
from edgewise.planning.choose import plan as plan_chain
from edgewise.planning.costs.cost import CostTable
from edgewise.planning.costs.predict import repriced
from edgewise.planning.moves.filters import FilterEvidence, filters
from edgewise.planning.placement import PLACEMENT_SOLVERS
from edgewise.planning.placement.exhaustive import exhaustive
from edgewise.planning.placement.min_cut import min_cut
from edgewise.planning.placement.problem import Flow, Problem, cost_of
from edgewise.planning.plan import ENTRY, Plan, Site
from edgewise.planning.planner import Evidence, Planner, Sites
from edgewise.planning.planners import PLANNERS, best_of, candidates
from edgewise.planning.planners.pipeline import _Laid
from edgewise.planning.policy import Policy
from tests.planning.scenario import FAST, evidence, graph, profile

PRIVATE = Policy(raw_may_reach=Tier.DEVICE)


def random_problem(rng: np.random.Generator, tiers: int, groups: int) -> Problem:
    """A DAG with shared tensors, an early exit, forbidden crossings, round trips and pins."""
    price = tuple(tuple(float(s) for s in rng.exponential(1.0, tiers) * rng.choice([0.2, 1, 5])) for _ in range(groups))
    stage = np.sort(rng.integers(0, 3, groups))
    levels = [1.0, *np.sort(rng.uniform(0.0, 1.0, 2))[::-1]]
    flows = []
    for producer in range(-1, groups - 1):
        later = np.arange(producer + 1, groups)
        readers = rng.choice(later, size=min(len(later), int(rng.integers(1, 4))), replace=False)
        crossing = rng.exponential(1.5, tiers - 1)
        crossing[rng.random(tiers - 1) < 0.15] = np.inf
        flows.append(Flow(producer, tuple(sorted(int(r) for r in readers)), tuple(float(c) for c in crossing)))
    order = ((0, groups - 1),) if rng.random() < 0.3 else ()
    pinned = ((int(rng.integers(groups)), int(rng.integers(tiers))),) if rng.random() < 0.2 else ()
    fixed = tuple(float(f) for f in rng.exponential(1.0, tiers - 1))
    return Problem(
        price, tuple(levels[s] for s in stage), tuple(flows), fixed, float(rng.exponential(0.3)), order, pinned
    )


@pytest.mark.parametrize(("tiers", "groups", "count"), [(2, 8, 1200), (3, 6, 1000), (4, 4, 200)])
def test_min_cut_equals_exhaustive_on_random_dags(tiers, groups, count):
    rng = np.random.default_rng(tiers)
    infeasible = 0
    for _ in range(count):
        problem = random_problem(rng, tiers, groups)
        best, found = exhaustive(problem), min_cut(problem)
        infeasible += not best.is_feasible
        assert found.is_feasible == best.is_feasible
        assert not best.is_feasible or found.cost == pytest.approx(best.cost, rel=1e-9)
    assert infeasible < count / 2


@pytest.mark.parametrize("name", PLACEMENT_SOLVERS)
def test_no_planner_beats_the_oracle_and_each_states_its_true_cost(name):
    rng = np.random.default_rng(7)
    for _ in range(40):
        problem = random_problem(rng, 3, 5)
        found = PLACEMENT_SOLVERS[name](problem)
        assert found.cost >= exhaustive(problem).cost * (1 - 1e-9)
        assert not found.is_feasible or found.cost == cost_of(problem, found.tiers)


def shared(crossing: float) -> Problem:
    """A cheap stem on tier 0 whose one output three dear branches read."""
    stem, branch = (0.1, 5.0), (3.0, 0.1)
    flows = (Flow(-1, (0,), (9.0,)), Flow(0, (1, 2, 3), (crossing,)))
    return Problem((stem, branch, branch, branch), (1.0,) * 4, flows, (0.5,))


@pytest.mark.parametrize("name", PLACEMENT_SOLVERS)
def test_a_shared_tensor_is_paid_for_once(name):
    found = PLACEMENT_SOLVERS[name](shared(4.0))
    assert found.tiers == (0, 1, 1, 1)
    assert found.cost == pytest.approx(0.1 + 4.0 + 0.5 + 3 * 0.1)


@pytest.mark.parametrize("name", PLACEMENT_SOLVERS)
def test_a_forbidden_tensor_keeps_its_readers_inside(name):
    assert PLACEMENT_SOLVERS[name](shared(float("inf"))).tiers == (0, 0, 0, 0)


@pytest.mark.parametrize("name", PLACEMENT_SOLVERS)
def test_an_early_exit_discounts_what_comes_after_it(name):
    flows = (Flow(-1, (0,), (9.0,)), Flow(0, (1, 2), (2.0,)))
    problem = Problem(((1.0, 9.0), (0.5, 9.0), (6.0, 1.0)), (1.0, 1.0, 0.25), flows, (1.0,))
    found = PLACEMENT_SOLVERS[name](problem)
    assert found.tiers == (0, 0, 1)
    assert found.cost == pytest.approx(1.0 + 0.5 + 0.25 * (1.0 + 2.0 + 1.0))


@pytest.mark.parametrize("name", PLACEMENT_SOLVERS)
def test_where_nothing_is_allowed_the_solution_is_infeasible(name):
    found = PLACEMENT_SOLVERS[name](Problem(((float("inf"), float("inf")),), (1.0,), (), (1.0,)))
    assert not found.is_feasible
    assert found.tiers == ()


def test_exhaustive_refuses_what_it_cannot_try():
    problem = Problem(((1.0, 1.0, 1.0),) * 40, (1.0,) * 40, (), (1.0, 1.0))
    with pytest.raises(InputError, match=r"40 groups on 3 tiers have .* Use the solver 'min_cut'"):
        exhaustive(problem)
    assert min_cut(problem).cost == pytest.approx(40.0)


SITES = Sites(
    {
        ENTRY: profile(Tier.DEVICE, 30.0),
        Site(Tier.EDGE): profile(Tier.EDGE, 2.0),
        Site(Tier.EDGE, 1): profile(Tier.EDGE, 2.0),
    },
    {(ENTRY, Site(Tier.EDGE)): FAST, (Site(Tier.EDGE), Site(Tier.EDGE, 1)): FAST},
)


def all_plans(name: str, policy: Policy = PRIVATE) -> list[Plan]:
    return list(candidates(name, graph(), SITES, policy, Evidence(evidence())))


@pytest.mark.parametrize("name", PLANNERS)
def test_every_plan_of_a_planner_runs_stage_by_stage_and_answers_what_the_whole_model_does(name):
    x = np.random.default_rng(0).normal(size=graph().inputs[0].shape).astype(np.float32)
    whole = dict(zip([t.name for t in graph().outputs], run_graph(graph().whole, {"input": x}), strict=True))
    plans = all_plans(name)
    assert plans
    for plan in plans:
        check_plan(graph(), plan)
        at = {ENTRY: {"input": x}}
        for stage in plan.stages:
            for handover in plan.handovers:
                if handover.target == stage.name:
                    source = at[plan.site_of(handover.source)]
                    at.setdefault(stage.site, {}).update({n: source[n] for n in handover.tensors})
            here = at.setdefault(stage.site, {})
            made = run_graph(
                graph().extract(stage.inputs, stage.outputs), {n: here[n] for n in stage.inputs}, stage.outputs
            )
            here |= dict(zip(stage.outputs, made, strict=True))
        for gate in plan.exits:
            here = at[plan.site_of(gate.at)]
            assert all(here[n].tobytes() == whole[n].tobytes() for n in gate.tensors), plan.name


@pytest.mark.parametrize("name", PLANNERS)
def test_a_planner_predicts_what_its_plans_cost_and_says_where_the_time_goes(name):
    for plan in all_plans(name):
        predicted = plan.predicted
        assert sum(path.fraction for path in predicted.paths) == pytest.approx(1.0)
        assert predicted.latency_mean_s == pytest.approx(sum(p.fraction * p.p50_s for p in predicted.paths))
        assert all(p.p50_s == pytest.approx(sum(s for _, s in p.waterfall)) for p in predicted.paths)
        assert sum(gate.end_fraction for gate in plan.gates) == pytest.approx(1.0)


@pytest.mark.parametrize("name", PLANNERS)
def test_a_planner_keeps_raw_data_where_the_policy_says(name):
    assert not any(handover.carries_raw for plan in all_plans(name) for handover in plan.handovers)
    nowhere = Policy(raw_may_reach=Tier.DEVICE, features_may_reach=Tier.DEVICE)
    assert all(plan.sites == (ENTRY,) for plan in all_plans(name, nowhere))


def test_the_chain_planner_finds_what_the_search_finds():
    tiers, links = {Tier.DEVICE: profile(Tier.DEVICE, 30.0), Tier.EDGE: profile(Tier.EDGE, 2.0)}, [FAST]
    found = list(candidates("chain", graph(), Sites.chain(tiers, links), PRIVATE, Evidence(evidence())))
    assert best_of(found, PRIVATE) == found[0] == plan_chain(graph(), tiers, links, PRIVATE, evidence())


def test_a_pipeline_is_the_fastest_of_all_ways_to_part_the_graph_and_its_slowest_part_the_least():
    fast, steady = all_plans("pipeline")
    every = [
        _Laid(
            graph(),
            SITES,
            Evidence(),
            "none",
            [ENTRY, *sorted(s for s in SITES.profiles if s != ENTRY)],
            (*at, len(graph().condensed.groups)),
        )
        for at in combinations([c.position for c in graph().condensed.cuts() if c.position], 2)
    ]
    assert fast.predicted.latency_mean_s == pytest.approx(min(laid.latency_s() for laid in every))
    assert steady.predicted.latency_mean_s >= fast.predicted.latency_mean_s
    assert fast.sites == (ENTRY, Site(Tier.EDGE), Site(Tier.EDGE, 1))
    assert repriced(CostTable(graph(), {}, ()), fast) == fast


def test_moves_are_asked_for_every_plan_and_the_best_keeps_the_limits():
    rows = (FilterEvidence("frame_difference(every=30)", 0.1, 0.8, 1.0, 100),)
    plans = list(candidates("chain", graph(), SITES, PRIVATE, Evidence(evidence()), [filters(rows, graph())]))
    before = [plan for plan in plans if not plan.filters]
    assert len(plans) == 2 * len(before)
    best = best_of(plans, PRIVATE)
    assert best is not None
    assert best.filters[0].end_fraction == 0.8
    assert best.predicted.latency_mean_s == pytest.approx(0.2 * before[0].predicted.latency_mean_s)
    assert best_of(plans, msgspec.structs.replace(PRIVATE, max_latency_s=1e-9)) is None


def test_a_planner_may_come_from_elsewhere(monkeypatch: pytest.MonkeyPatch):
    def mine() -> Planner:
        return lambda graph, sites, policy, evidence: [Plan("mine", graph.digest, ())]

    monkeypatch.setattr(spec, "_plugins", lambda kind: {"mine": mine} if kind == "planners" else {})
    assert [plan.name for plan in candidates("mine", graph(), SITES, PRIVATE, Evidence())] == ["mine"]
    with pytest.raises(InputError, match=r"planners has no 'chian'\. Did you mean 'chain'"):
        list(candidates("chian", graph(), SITES, PRIVATE, Evidence()))
