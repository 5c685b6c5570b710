"""What every algorithm keeps. A new one is tested by one line of EXAMPLES."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from edgewise.codecs import error_feedback, int8, top_k
from edgewise.core.errors import InputError
from edgewise.training.algorithm import FederatedAlgorithm
from edgewise.training.algorithms import ALGORITHMS, fed_adam, fed_avg, fed_avg_m, fed_prox, make_algorithm
from edgewise.training.local_work import sgd
from edgewise.training.protocols.driver import MemoryDriver
from edgewise.training.select import uniform

EXAMPLES = {
    "fed_avg": fed_avg(),
    "federated": fed_avg(select=uniform(3), local=sgd(0.05, 2, 8), uplink=error_feedback(top_k(0.5))),
    "fed_prox": fed_prox(mu=0.1),
    "fed_avg_m": fed_avg_m(momentum=0.5),
    "fed_adam": fed_adam(uplink=int8("stochastic")),
}
each = pytest.mark.parametrize("algorithm", EXAMPLES.values(), ids=EXAMPLES)
CLIENTS = ("a", "b", "c", "d")
SIZE = 12


def descended(algorithm):
    """Local work on ½‖w − truth‖² of each client, by the algorithm's own rule."""

    def train(client, number, model, seeds):
        truth = np.linspace(0, 1, SIZE, dtype=np.float32) + 0.1 * CLIENTS.index(client)
        weights, work = model.copy(), algorithm.local
        for _ in range(2 * work.epochs):
            weights = weights - np.float32(work.learning_rate) * work.direction(weights - truth, weights, model)
        return weights - model, 10, {"loss": float(((model - truth) ** 2).sum() / 2)}

    return train


def trained(algorithm, num_rounds=40, seed=0):
    driver = MemoryDriver(algorithm, descended(algorithm))
    driver.run(driver.config("r", CLIENTS, np.zeros(SIZE, np.float32), num_rounds=num_rounds, quorum=3, seed=seed))
    return driver


def test_every_registered_algorithm_has_an_example():
    assert set(EXAMPLES) == set(ALGORITHMS)


@each
def test_words_build_the_same_algorithm_through_the_wire(algorithm):
    words = msgspec.msgpack.decode(msgspec.msgpack.encode(algorithm.spec.to_dict()))
    rebuilt = make_algorithm(words)
    assert rebuilt.spec == algorithm.spec
    assert rebuilt.spec.digest == algorithm.spec.digest
    assert trained(rebuilt, 3).state.model == trained(algorithm, 3).state.model


@each
def test_it_brings_the_loss_down(algorithm):
    losses = [summary.metrics["loss"] for summary in trained(algorithm).state.rounds]
    assert losses[-1] < 0.2 * losses[0]


@each
def test_a_seed_decides_the_model(algorithm):
    assert trained(algorithm, 5).state.model == trained(algorithm, 5).state.model


@each
def test_its_parts_keep_no_state_between_runs(algorithm):
    first = trained(algorithm, 4).state.model
    trained(algorithm, 7, seed=9)
    assert trained(algorithm, 4).state.model == first


@each
def test_the_rule_of_a_step_broadcasts_over_a_cohort(algorithm):
    rng = np.random.default_rng(0)
    gradient, weights, received = (rng.normal(size=(3, SIZE)).astype(np.float32) for _ in range(3))
    cohort = algorithm.local.direction(gradient, weights, received)
    for i in range(3):
        np.testing.assert_array_equal(cohort[i], algorithm.local.direction(gradient[i], weights[i], received[i]))
    assert cohort.dtype == np.float32


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("fed_avgg", "Did you mean 'fed_avg"),
        ({"name": "fed_prox", "nu": 1}, "fed_prox takes no 'nu'. Did you mean 'mu'"),
        ({"name": "fed_avg", "uplnk": "int8"}, "Did you mean 'uplink'"),
        ({"name": "fed_avg", "uplink": "int9"}, "uplink: codecs has no 'int9'"),
        ({"name": "fed_avg", "local": {"name": "sgd", "learning_rat": 1}}, "local: sgd takes no 'learning_rat'"),
        ({"name": "fed_avg", "local": "gradient"}, "local: gradient does not build a LocalWork"),
        ({"name": "fed_avg", "local": {"name": "sgd", "learning_rate": 0}}, "learning_rate > 0, found 0"),
        ({"name": "fed_avg", "local": {"name": "sgd", "epochs": 0}}, "epochs >= 1, found 0"),
        ({"name": "fed_avg", "select": {"name": "uniform", "cohort_size": 0}}, "at least 1 client"),
        ({"name": "fed_prox", "mu": -1}, "mu >= 0, found -1"),
        ({"name": "fed_adam", "server": "step"}, "fed_adam takes no 'server'"),
        (3, "written as a name or as a table"),
    ],
)
def test_words_that_build_nothing_are_refused(words, text):
    with pytest.raises(InputError, match=text):
        make_algorithm(words)


def test_a_job_may_write_the_words_by_hand():
    job = {"name": "fed_prox", "mu": 0.5, "uplink": "int8", "local": {"name": "sgd", "learning_rate": 0.2, "epochs": 3}}
    algorithm = make_algorithm(job)
    assert isinstance(algorithm, FederatedAlgorithm)
    assert (algorithm.local.epochs, algorithm.local.learning_rate) == (3, 0.2)
    assert str(algorithm.local.spec.params["direction"]) == "proximal(mu=0.5)"
    assert make_algorithm(algorithm) is algorithm
