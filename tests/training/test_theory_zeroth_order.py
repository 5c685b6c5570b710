"""Zeroth order against theory: how fast it comes, and how little travels."""

from __future__ import annotations

import numpy as np
import pytest

from edgewise.codecs.bundle import bundle_to_bytes
from edgewise.core.errors import MisfitError
from edgewise.core.ids import ClientId, RoundNumber
from edgewise.core.spec import Spec
from edgewise.testing.quadratics import LeastSquaresEngine, least_squares_optimum, quadratic, run_rounds
from edgewise.training.algorithm import ClientRecord
from edgewise.training.algorithms import make_algorithm, zeroth_order
from edgewise.training.client_update import client_seeds, client_update
from edgewise.training.select import uniform

SIZE, CLIENTS = 6, 5


def problem():
    """Five clients with optima of their own and curvatures from 0.3 to 2."""
    rng = np.random.default_rng(0)
    clients = {f"c{i}": quadratic(np.diag(rng.uniform(0.3, 2, SIZE)), rng.normal(size=SIZE)) for i in range(CLIENTS)}
    return LeastSquaresEngine(SIZE), clients, least_squares_optimum(list(clients.values()), [1] * CLIENTS)


def test_it_comes_to_the_joint_optimum():
    engine, clients, optimum = problem()
    ran = run_rounds(zeroth_order(learning_rate=0.1), engine, clients, num_rounds=500)
    # A round contracts the expected square distance by about 1 − 2ηλ + η²λ²(d + 2); the slowest λ is above 0.6 here.
    assert np.linalg.norm(ran.model - optimum) / np.linalg.norm(optimum) < 1e-3


def test_the_slope_is_the_derivative_along_the_shared_direction():
    engine, clients, _ = problem()
    exchange = zeroth_order().exchanges[0]
    model = np.ones(SIZE, np.float32)
    received = {"model": model, "slopes": np.array([3], np.float32)}
    place = client_seeds(0, RoundNumber(3), ClientId("c0"))
    found = client_update(exchange, engine, received, {}, clients["c0"], place).coded.arrays["slope/plain"]
    state = {"model": np.zeros(SIZE, np.float32), "slopes": np.zeros(3, np.float32)}
    moved = exchange.server.step(state, {"slope": np.ones(1, np.float32)}, None)["model"]
    direction = moved / -np.float32(0.01)
    x, y = np.asarray(clients["c0"].inputs)[0], np.asarray(clients["c0"].targets)[0]
    np.testing.assert_allclose(found, [(x.T @ (x @ model - y)) @ direction], rtol=1e-4)


@pytest.mark.parametrize("select", [None, uniform(2)], ids=["all", "two of five"])
def test_a_devices_model_is_the_servers_to_the_last_bit(select):
    engine, clients, _ = problem()
    ran = run_rounds(zeroth_order(learning_rate=0.1, select=select), engine, clients, num_rounds=40)
    models = [array.tobytes() for array in (np.zeros(SIZE, np.float32), *ran.models)]
    # What a client keeps from the round in which it last counted is the model that round began with.
    kept = [bundle["model"].tobytes() for bundle in ran.kept.values()]
    assert all(model in models for model in kept)
    assert models[-2] in kept


def test_little_travels_once_a_device_holds_the_model():
    engine, clients, _ = problem()
    exchange = zeroth_order().exchanges[0]
    state = {"model": np.ones(SIZE, np.float32), "slopes": np.zeros(9, np.float32)}
    held = ClientRecord(RoundNumber(8), 3)
    down = exchange.server.letters(state, ClientId("c0"), held)
    assert {name: array.nbytes for name, array in down.items()} == {"slopes": 8}
    kept = {"model": np.ones(SIZE, np.float32)}
    made = client_update(exchange, engine, down, kept, clients["c0"], client_seeds(0, RoundNumber(9), ClientId("c0")))
    assert made.coded.size_bytes == 4
    assert len(bundle_to_bytes(made.coded)) <= 64


@pytest.mark.parametrize(
    ("record", "sections"),
    [
        (None, {"model": 4 * SIZE, "slopes": 4}),
        (ClientRecord(), {"model": 4 * SIZE, "slopes": 4}),
        (ClientRecord(RoundNumber(5), 1), {"slopes": 4 + 4 * 4}),
        (ClientRecord(RoundNumber(1), 1), {"model": 4 * SIZE, "slopes": 4}),
    ],
    ids=["never seen", "never counted", "four rounds behind", "more rounds behind than the model has entries"],
)
def test_who_comes_late_replays_the_slopes_or_gets_the_model(record, sections):
    state = {"model": np.ones(SIZE, np.float32), "slopes": np.zeros(9, np.float32)}
    found = zeroth_order().exchanges[0].server.letters(state, ClientId("late"), record)
    assert {name: array.nbytes for name, array in found.items()} == sections


def test_a_model_with_running_statistics_is_refused():
    class WithBuffers:
        trained = np.ones(SIZE, np.float32)

    with pytest.raises(MisfitError, match="keeps running statistics"):
        zeroth_order().exchanges[0].local.rules[0].init({"slopes": np.ones(1)}, {}, WithBuffers())


def test_its_words_build_it():
    made = zeroth_order(learning_rate=0.5, seed=4, select=uniform(2))
    for words in (
        made.spec.to_dict(),
        Spec.parse(str(made.spec)),
        {"name": "zeroth_order", "learning_rate": 0.5, "seed": 4, "select": {"name": "uniform", "cohort_size": 2}},
    ):
        assert make_algorithm(words).spec == made.spec
