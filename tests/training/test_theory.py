"""The algorithms against the formulas of their papers."""

from __future__ import annotations

import numpy as np
import pytest

from edgewise.codecs import error_feedback, top_k
from edgewise.core.ids import RoundNumber
from edgewise.testing.quadratics import LeastSquaresEngine, quadratic, run_rounds
from edgewise.training.algorithm import BiasedUplink, Candidate, Closed
from edgewise.training.algorithms import fed_adam, fed_avg, fed_avg_m, fed_prox
from edgewise.training.local import sgd
from edgewise.training.select import all_clients, uniform
from edgewise.training.server import adam, momentum, step

SIZE = 8
TRUTH = np.linspace(-1, 1, SIZE, dtype=np.float32)
CLOSED = Closed(RoundNumber(1), 1, 1, np.random.default_rng(0))


def run(algorithm, truths, num_rounds=1, model=None):
    """Rounds on ½‖w − truth‖² of each client."""
    size = len(next(iter(truths.values())))
    held = {client: quadratic(np.eye(size), truth.astype(np.float64)) for client, truth in truths.items()}
    return run_rounds(algorithm, LeastSquaresEngine(size), held, model, num_rounds).model


def steps(rate, num_steps=1):
    return sgd(rate, num_steps, 0)


def stepped(server, model, means):
    state = {"model": model, **server.init(model)}
    for mean in means:
        state |= server.step(state, {"model": mean}, CLOSED)
    return state["model"]


def test_fed_avg_with_one_client_and_one_step_is_sgd():
    found = run(fed_avg(local=steps(0.3)), {"a": TRUTH}, num_rounds=10)
    weights = np.zeros(SIZE, np.float32)
    for _ in range(10):
        weights = weights - np.float32(0.3) * (weights - TRUTH)
    # Each round forms (w − ηg) − w and adds it again: at most one rounding of float32 a round.
    np.testing.assert_allclose(found, weights, rtol=0, atol=10 * 2.0**-24)


def test_fed_avg_with_one_step_is_sgd_on_the_mean_loss():
    truths = {f"c{i}": TRUTH * i for i in range(4)}
    found = run(fed_avg(local=steps(0.5)), truths, num_rounds=60)
    np.testing.assert_allclose(found, TRUTH * 1.5, atol=1e-6)


def test_fed_prox_stops_where_its_formula_says():
    # Many local steps minimise ½(w − t)² + μ/2 (w − w₀)²: w = (t + μ w₀) / (1 + μ).
    start = np.full(SIZE, 3, np.float32)
    found = run(fed_prox(mu=0.5, local=steps(0.2, 200)), {"a": TRUTH}, model=start)
    np.testing.assert_allclose(found, (TRUTH + 0.5 * start) / 1.5, rtol=1e-5, atol=1e-6)


def test_fed_prox_without_mu_is_fed_avg():
    truths = {"a": TRUTH, "b": -2 * TRUTH}
    proximal, plain = (run(a(local=steps(0.1, 5)), truths, 3) for a in (lambda **s: fed_prox(mu=0, **s), fed_avg))
    np.testing.assert_array_equal(proximal, plain)


def test_server_momentum_follows_its_recursion():
    expected, velocity = 0.0, 0.0
    for _ in range(5):
        velocity = 0.9 * velocity + 1
        expected += 0.5 * velocity
    found = stepped(momentum(0.5, 0.9), np.zeros(3, np.float32), [np.ones(3, np.float32)] * 5)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_server_adam_follows_algorithm_2_of_reddi_et_al():
    rng = np.random.default_rng(0)
    means = [rng.normal(size=4).astype(np.float32) for _ in range(20)]
    first, second, expected = np.zeros(4), np.full(4, 1e-6), np.zeros(4)
    for mean in means:
        first = 0.9 * first + 0.1 * mean
        second = 0.99 * second + 0.01 * mean.astype(np.float64) ** 2
        expected += 0.1 * first / (np.sqrt(second) + 1e-3)
    found = stepped(adam(0.1, 0.9, 0.99, 1e-3), np.zeros(4, np.float32), means)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_a_server_step_of_one_adds_the_mean():
    np.testing.assert_array_equal(stepped(step(), np.float32([1, 2]), [np.float32([0.5, -0.25])]), [1.5, 1.75])


@pytest.mark.parametrize("make", [fed_avg_m, fed_adam])
def test_server_state_lives_from_round_to_round(make):
    algorithm, model = make(server_learning_rate=0.05, local=steps(0.1)), np.zeros(SIZE, np.float32)
    server = algorithm.exchanges[0].server
    state = {"model": model, **server.init(model)}
    for _ in range(3):
        update = (state["model"] - np.float32(0.1) * (state["model"] - TRUTH)) - state["model"]
        state |= server.step(state, {"model": update}, CLOSED)
    np.testing.assert_allclose(run(algorithm, {"a": TRUTH}, 3), state["model"], rtol=1e-5)


def opposed(uplink):
    """Two clients disagree wildly on entry 0 and agree mildly on entry 1: the mean optimum is (0, 1)."""
    truths = {"a": np.float32([5, 1]), "b": np.float32([-5, 1])}
    return run(fed_avg(local=steps(0.01), uplink=uplink), truths, 600)


def test_error_feedback_converges_where_top_k_alone_stalls():
    with pytest.warns(BiasedUplink):
        stalled = opposed(top_k(0.5))
    assert stalled.tolist() == [0, 0]
    # Entry 1 is sent once its residual beats entry 0's 5η: it ends within 5η = 0.05 of 1, plus (1 − η)⁶⁰⁰ = 0.002.
    found = opposed(error_feedback(top_k(0.5)))
    assert abs(found[1] - 1) < 0.052
    assert abs(found[0]) < 0.052


def test_uniform_draws_every_client_equally_often():
    clients, counts = [Candidate(f"c{i}") for i in range(10)], dict.fromkeys(range(10), 0)
    rng = np.random.default_rng(0)
    for number in range(5000):
        for client in uniform(3).choose(clients, RoundNumber(number), rng):
            counts[int(client[1:])] += 1
    # Hypergeometric: mean 1,500, standard deviation √(5000 · 0.3 · 0.7) = 32.4; four sigma.
    assert max(abs(n - 1500) for n in counts.values()) < 130


def test_a_cohort_is_in_the_order_of_clients_and_never_larger_than_they_are():
    clients, names = [Candidate(c) for c in "dcba"], tuple("dcba")
    chosen = uniform(3).choose(clients, RoundNumber(1), np.random.default_rng(0))
    assert [names.index(c) for c in chosen] == sorted(names.index(c) for c in chosen)
    assert uniform(9).choose(clients, RoundNumber(1), np.random.default_rng(0)) == names
    assert all_clients().choose(clients, RoundNumber(1), np.random.default_rng(0)) == names
    assert uniform(2).choose([], RoundNumber(1), np.random.default_rng(0)) == ()
