"""DANE against theory: a ridge problem whose clients are alike takes rounds that do not depend on its condition."""

from __future__ import annotations

import numpy as np
import pytest

from edgewise.codecs import cast
from edgewise.core.spec import Spec
from edgewise.models.task import Examples
from edgewise.testing.quadratics import LeastSquaresEngine, least_squares_optimum, run_rounds
from edgewise.training.algorithms import dane, fed_avg, make_algorithm
from edgewise.training.local import sgd

SIZE, CLIENTS, CONDITION, RIDGE = 10, 10, 110.0, 1e-3


@pytest.fixture(scope="module")
def ridge():
    """Ten clients that draw from one distribution, 20 d examples each; its condition is a bit above 100."""
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(SIZE, SIZE)))[0]
    root = basis * np.geomspace(1, CONDITION, SIZE) ** -0.5
    truth = rng.normal(size=SIZE)
    clients = {}
    for index in range(CLIENTS):
        inputs = rng.normal(size=(20 * SIZE, SIZE)) @ root.T
        targets = inputs @ truth + 0.1 * rng.normal(size=len(inputs))
        clients[f"c{index}"] = Examples.of(inputs[:, None], targets[:, None])
    engine = LeastSquaresEngine(SIZE, RIDGE)
    assert np.linalg.cond(hessian(clients)) >= 100
    optimum = least_squares_optimum(list(clients.values()), [1] * CLIENTS, RIDGE)
    return engine, clients, optimum


def hessian(clients):
    rows = np.concatenate([np.asarray(held.inputs)[:, 0] for held in clients.values()])
    return rows.T @ rows / len(rows) + RIDGE * np.eye(SIZE)


def gaps(algorithm, ridge, num_rounds):
    """(F − F*) / (F₀ − F*) after each round, F in float64."""
    engine, clients, optimum = ridge
    held, models = list(clients.values()), run_rounds(algorithm, engine, clients, num_rounds=num_rounds).models
    best, first = engine.loss_of(optimum, held), engine.loss_of(np.zeros(SIZE), held)
    return [(engine.loss_of(model, held) - best) / (first - best) for model in models]


def test_dane_is_there_in_15_rounds_where_gradient_descent_needs_more_than_200(ridge):
    assert gaps(dane(local=sgd(0.6, batch_size=0, epochs=250)), ridge, 15)[-1] <= 1e-8
    curvatures = np.linalg.eigvalsh(hessian(ridge[1]))
    best_rate = 2 / (curvatures[0] + curvatures[-1])
    assert gaps(fed_avg(local=sgd(best_rate, batch_size=0, epochs=1)), ridge, 200)[-1] > 1e-8


def test_a_proximal_term_slows_it_down_and_changes_no_fixed_point(ridge):
    plain, pulled = (gaps(dane(mu=mu, local=sgd(0.6, batch_size=0, epochs=100)), ridge, 10)[-1] for mu in (0, 0.01))
    assert plain < pulled < 1e-3


def test_a_coded_gradient_is_still_a_direction(ridge):
    codecs = {"gradient": cast("float16")}
    assert gaps(dane(local=sgd(0.6, batch_size=0, epochs=100), uplink=codecs), ridge, 8)[-1] < 1e-4


def test_one_client_solves_its_own_problem(ridge):
    engine, clients, _ = ridge
    alone = {"c0": clients["c0"]}
    optimum = least_squares_optimum(list(alone.values()), [1], RIDGE)
    model = run_rounds(dane(local=sgd(0.6, batch_size=0, epochs=2000)), engine, alone).model
    np.testing.assert_allclose(model, optimum, atol=1e-4)


def test_its_words_build_it():
    made = dane(mu=0.1, uplink={"model": cast("float16")})
    for words in (
        made.spec.to_dict(),
        Spec.parse(str(made.spec)),
        {"name": "dane", "mu": 0.1, "uplink": {"model": "cast"}},
    ):
        assert make_algorithm(words).spec == made.spec
