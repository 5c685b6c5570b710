"""SCAFFOLD on quadratics with different optima: where FedAvg stops for good, it converges."""

from __future__ import annotations

import numpy as np
import pytest

from edgewise.core.errors import MisfitError
from edgewise.testing.quadratics import LeastSquaresEngine, least_squares_optimum, quadratic, run_rounds
from edgewise.training.algorithms import fed_avg, scaffold
from edgewise.training.local import proximal, sgd
from edgewise.training.select import uniform

SIZE = 6
TEN_STEPS = sgd(0.1, epochs=10, batch_size=0)


def clients(num_clients, seed):
    rng = np.random.default_rng(seed)
    return {f"c{i}": quadratic(np.diag(rng.uniform(0.3, 2, SIZE)), rng.normal(size=SIZE)) for i in range(num_clients)}


def distance(ran, held):
    optimum = least_squares_optimum(list(held.values()), [1] * len(held))
    return np.linalg.norm(ran.model - optimum) / np.linalg.norm(optimum)


def test_with_full_participation_it_reaches_the_optimum_where_fed_avg_stays_away():
    held, engine = clients(5, seed=0), LeastSquaresEngine(SIZE)
    assert distance(run_rounds(scaffold(local=TEN_STEPS), engine, held, num_rounds=150), held) <= 1e-6
    assert distance(run_rounds(fed_avg(local=TEN_STEPS), engine, held, num_rounds=150), held) > 1e-2


def test_with_two_of_ten_sampled_it_converges_and_the_controls_agree():
    held, engine = clients(10, seed=1), LeastSquaresEngine(SIZE)
    ran = run_rounds(scaffold(select=uniform(2), local=TEN_STEPS), engine, held, num_rounds=250)
    assert distance(ran, held) <= 1e-6
    own = np.mean([kept["control"] for kept in ran.kept.values()], axis=0)
    np.testing.assert_allclose(ran.state["control"], own, atol=1e-6)


def test_the_servers_control_is_the_mean_over_all_clients_also_before_all_took_part():
    held, engine = clients(10, seed=1), LeastSquaresEngine(SIZE)
    ran = run_rounds(scaffold(select=uniform(3), local=TEN_STEPS), engine, held, num_rounds=1)
    own = np.sum([kept["control"] for kept in ran.kept.values() if kept], axis=0) / 10
    np.testing.assert_allclose(ran.state["control"], own, atol=1e-7)


def test_the_first_control_is_the_mean_gradient_along_the_way():
    held, engine = clients(1, seed=2), LeastSquaresEngine(SIZE)
    x, y = (np.asarray(a[0], np.float64) for a in (held["c0"].inputs, held["c0"].targets))
    weights, gradients = np.zeros(SIZE), []
    for _ in range(10):
        gradients.append(x.T @ (x @ weights - y))
        weights -= 0.1 * gradients[-1]
    ran = run_rounds(scaffold(local=TEN_STEPS), engine, held)
    np.testing.assert_allclose(ran.kept["c0"]["control"], np.mean(gradients, axis=0), rtol=1e-5)


def test_local_work_with_a_rule_of_its_own_is_refused():
    with pytest.raises(MisfitError, match=r"brings its own rule, and sgd\(.*proximal.* has one too"):
        scaffold(local=sgd(direction=proximal(0.1)))
