"""The algorithms against the formulas of their papers."""

from __future__ import annotations

import numpy as np
import pytest

from edgewise.codecs import error_feedback, top_k
from edgewise.core.ids import ClientId, RoundNumber
from edgewise.training.algorithm import BiasedUplink
from edgewise.training.algorithms import fed_adam, fed_avg, fed_avg_m, fed_prox
from edgewise.training.local_work import sgd
from edgewise.training.protocols.driver import MemoryDriver
from edgewise.training.select import all_clients, uniform
from edgewise.training.server import adam, momentum, step

SIZE = 8
TRUTH = np.linspace(-1, 1, SIZE, dtype=np.float32)


def steps_on(truths, work, num_steps, weight=10):
    """Local work on ½‖w − truth‖², written out."""

    def train(client, number, model, seeds):
        weights = model.copy()
        for _ in range(num_steps):
            weights = weights - np.float32(work.learning_rate) * work.direction(
                weights - truths[client], weights, model
            )
        return weights - model, weight, {}

    return train


def run(algorithm, truths, num_steps=1, num_rounds=1, model=None):
    driver = MemoryDriver(algorithm, steps_on(truths, algorithm.local, num_steps))
    start = np.zeros(SIZE, np.float32) if model is None else model
    return driver.run(driver.config("r", truths, start, num_rounds=num_rounds))


def test_fed_avg_with_one_client_and_one_step_is_sgd():
    found = run(fed_avg(local=sgd(0.3)), {"a": TRUTH}, num_rounds=10)
    weights = np.zeros(SIZE, np.float32)
    for _ in range(10):
        weights = weights - np.float32(0.3) * (weights - TRUTH)
    # Each round forms (w − ηg) − w and adds it again: at most one rounding of float32 a round.
    np.testing.assert_allclose(found, weights, rtol=0, atol=10 * 2.0**-24)


def test_fed_avg_with_one_step_is_sgd_on_the_mean_loss():
    truths = {f"c{i}": TRUTH * i for i in range(4)}
    found = run(fed_avg(local=sgd(0.5)), truths, num_rounds=60)
    np.testing.assert_allclose(found, TRUTH * 1.5, atol=1e-6)


def test_fed_prox_stops_where_its_formula_says():
    # Many local steps minimise ½(w − t)² + μ/2 (w − w₀)²: w = (t + μ w₀) / (1 + μ).
    start = np.full(SIZE, 3, np.float32)
    found = run(fed_prox(mu=0.5, local=sgd(0.2)), {"a": TRUTH}, num_steps=200, model=start)
    np.testing.assert_allclose(found, (TRUTH + 0.5 * start) / 1.5, rtol=1e-5, atol=1e-6)


def test_fed_prox_without_mu_is_fed_avg():
    truths = {"a": TRUTH, "b": -2 * TRUTH}
    proximal, plain = (run(a, truths, 5, 3) for a in (fed_prox(mu=0, local=sgd(0.1)), fed_avg(local=sgd(0.1))))
    np.testing.assert_array_equal(proximal, plain)


def test_server_momentum_follows_its_recursion():
    server, model, mean = momentum(0.5, 0.9), np.zeros(3, np.float32), np.ones(3, np.float32)
    state, expected, velocity = server.init(model), 0.0, 0.0
    for _ in range(5):
        model, state = server.step(model, mean, state)
        velocity = 0.9 * velocity + 1
        expected += 0.5 * velocity
    np.testing.assert_allclose(model, expected, rtol=1e-6)


def test_server_adam_follows_algorithm_2_of_reddi_et_al():
    server, rng = adam(0.1, 0.9, 0.99, 1e-3), np.random.default_rng(0)
    model, first, second, expected = np.zeros(4, np.float32), np.zeros(4), np.full(4, 1e-6), np.zeros(4)
    state = server.init(model)
    for _ in range(20):
        mean = rng.normal(size=4).astype(np.float32)
        model, state = server.step(model, mean, state)
        first = 0.9 * first + 0.1 * mean
        second = 0.99 * second + 0.01 * mean.astype(np.float64) ** 2
        expected += 0.1 * first / (np.sqrt(second) + 1e-3)
    np.testing.assert_allclose(model, expected, rtol=1e-4, atol=1e-6)


def test_a_server_step_of_one_adds_the_mean():
    model, mean = np.float32([1, 2]), np.float32([0.5, -0.25])
    np.testing.assert_array_equal(step().step(model, mean, {})[0], [1.5, 1.75])


@pytest.mark.parametrize("make", [fed_avg_m, fed_adam])
def test_server_state_lives_from_round_to_round(make):
    algorithm = make(server_learning_rate=0.05)
    found = run(algorithm, {"a": TRUTH}, num_rounds=3)
    model, state = np.zeros(SIZE, np.float32), algorithm.server.init(np.zeros(SIZE, np.float32))
    for _ in range(3):
        update = (model - np.float32(0.1) * (model - TRUTH)) - model
        model, state = algorithm.server.step(model, update, state)
    np.testing.assert_array_equal(found, model)


def opposed(uplink):
    """Two clients disagree wildly on entry 0 and agree mildly on entry 1: the mean optimum is (0, 1)."""
    truths = {"a": np.float32([5, 1]), "b": np.float32([-5, 1])}
    algorithm = fed_avg(local=sgd(0.01), uplink=uplink)
    driver = MemoryDriver(algorithm, steps_on(truths, algorithm.local, 1))
    return driver.run(driver.config("r", truths, np.zeros(2, np.float32), num_rounds=600))


def test_error_feedback_converges_where_top_k_alone_stalls():
    with pytest.warns(BiasedUplink):
        stalled = opposed(top_k(0.5))
    assert stalled.tolist() == [0, 0]
    # Entry 1 is sent once its residual beats entry 0's 5η: it ends within 5η = 0.05 of 1, plus (1 − η)⁶⁰⁰ = 0.002.
    found = opposed(error_feedback(top_k(0.5)))
    assert abs(found[1] - 1) < 0.052
    assert abs(found[0]) < 0.052


def test_uniform_draws_every_client_equally_often():
    clients, counts = [ClientId(f"c{i}") for i in range(10)], dict.fromkeys(range(10), 0)
    rng = np.random.default_rng(0)
    for number in range(5000):
        for client in uniform(3).choose(clients, RoundNumber(number), rng):
            counts[int(client[1:])] += 1
    # Hypergeometric: mean 1,500, standard deviation √(5000 · 0.3 · 0.7) = 32.4; four sigma.
    assert max(abs(n - 1500) for n in counts.values()) < 130


def test_a_cohort_is_in_the_order_of_clients_and_never_larger_than_they_are():
    clients = [ClientId(c) for c in "dcba"]
    chosen = uniform(3).choose(clients, RoundNumber(1), np.random.default_rng(0))
    assert [clients.index(c) for c in chosen] == sorted(clients.index(c) for c in chosen)
    assert uniform(9).choose(clients, RoundNumber(1), np.random.default_rng(0)) == tuple(clients)
    assert all_clients().choose(clients, RoundNumber(1), np.random.default_rng(0)) == tuple(clients)
    assert uniform(2).choose([], RoundNumber(1), np.random.default_rng(0)) == ()
