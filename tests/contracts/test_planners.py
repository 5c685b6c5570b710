"""Every placement solver on the same random problems: never better than the oracle, `min_cut` equal to it."""

import numpy as np
import pytest

from edgewise.core.errors import InputError
from edgewise.planning.placement import PLACEMENT_SOLVERS
from edgewise.planning.placement.exhaustive import exhaustive
from edgewise.planning.placement.min_cut import min_cut
from edgewise.planning.placement.problem import Flow, Problem, cost_of


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
