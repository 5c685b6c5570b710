"""What every algorithm keeps. A new one is tested by one line of EXAMPLES."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from torch import nn
from torch.nn import functional

from edgewise.codecs import error_feedback, int8, top_k
from edgewise.core.errors import InputError, MisfitError
from edgewise.core.layout import Layout
from edgewise.core.provenance import origins_of
from edgewise.core.seeds import Seeds
from edgewise.core.spec import Spec
from edgewise.models.flat import initial_vector
from edgewise.models.personal_version import personal_vector
from edgewise.models.task import Examples, Task
from edgewise.models.zoo.dense_stack import mlp
from edgewise.testing.quadratics import LeastSquaresEngine, quadratic, run_rounds
from edgewise.training.algorithm import FederatedAlgorithm
from edgewise.training.algorithms import (
    ALGORITHMS,
    dane,
    ditto,
    fed_adam,
    fed_avg,
    fed_avg_m,
    fed_bn,
    fed_nova,
    fed_per,
    fed_prox,
    make_algorithm,
    scaffold,
    zeroth_order,
)
from edgewise.training.local import clipped, make_engine, own_patterns, sgd
from edgewise.training.select import uniform

LOCAL = sgd(0.1, 2, 4)
EXAMPLES = {
    "fed_avg": fed_avg(local=LOCAL),
    "federated": fed_avg(select=uniform(3), local=sgd(0.05, 2, 8), uplink=error_feedback(top_k(0.5)), downlink=int8()),
    "fed_prox": fed_prox(mu=0.1, local=LOCAL),
    "fed_avg_m": fed_avg_m(momentum=0.5, local=LOCAL),
    "fed_adam": fed_adam(uplink=int8("stochastic"), local=LOCAL),
    "fed_nova": fed_nova(local=LOCAL),
    "fed_per": fed_per(own=("*.bias",), local=LOCAL),
    "fed_bn": fed_bn(local=sgd(0.1, 2, 4, clipped(5.0))),
    "ditto": ditto(pull=0.5, local=LOCAL),
    "dane": dane(local=sgd(0.1, 10, 0)),
    "zeroth_order": zeroth_order(learning_rate=0.05, mu=0.05),
    "scaffold": scaffold(local=LOCAL, uplink={"model": int8(), "control": int8()}),
}
each = pytest.mark.parametrize("algorithm", EXAMPLES.values(), ids=EXAMPLES)
CLIENTS = ("a", "b", "c", "d")
SIZE = 12
ENGINE = LeastSquaresEngine(Layout.of([("0.weight", (8,)), ("1.bias", (2,)), ("1.running_mean", (2,))]))


def held(client):
    truth = np.linspace(0, 1, SIZE) + 0.1 * CLIENTS.index(client)
    return quadratic(np.diag(np.linspace(0.5, 1.5, SIZE)), truth, copies=6 + CLIENTS.index(client))


def trained(algorithm, num_rounds=40, seed=0):
    return run_rounds(algorithm, ENGINE, {c: held(c) for c in CLIENTS}, num_rounds=num_rounds, seed=seed)


def used(ran, algorithm, client):
    """The model that a client would use."""
    own = own_patterns(algorithm.exchanges[-1].local)
    return personal_vector(ran.model, ran.kept[client], ENGINE.layout, own)


def test_every_registered_algorithm_has_an_example():
    assert set(EXAMPLES) == set(ALGORITHMS)


@each
def test_words_build_the_same_algorithm_through_the_wire(algorithm):
    words = msgspec.msgpack.decode(msgspec.msgpack.encode(algorithm.spec.to_dict()))
    for rebuilt in (make_algorithm(words), make_algorithm(Spec.parse(str(algorithm.spec)))):
        assert rebuilt.spec == algorithm.spec
        assert rebuilt.spec.digest == algorithm.spec.digest
    np.testing.assert_array_equal(trained(rebuilt, 3).model, trained(algorithm, 3).model)


@each
def test_it_brings_the_loss_down(algorithm):
    num_rounds = 300 if algorithm is EXAMPLES["zeroth_order"] else 40
    ran, clients = trained(algorithm, num_rounds), [held(c) for c in CLIENTS]
    best = min(ENGINE.loss_of(t, clients) for t in np.linspace(0, 1, SIZE) + np.linspace(0, 0.3, 31)[:, None])
    found = np.mean([ENGINE.loss_of(used(ran, algorithm, c), [held(c)]) for c in CLIENTS])
    assert found - best < 0.2 * (ENGINE.loss_of(np.zeros(SIZE), clients) - best)


@each
def test_its_parts_keep_no_state_between_runs(algorithm):
    first = trained(algorithm, 4).model
    trained(algorithm, 7, seed=9)
    np.testing.assert_array_equal(trained(algorithm, 4).model, first)


class SmallTask(Task):
    name = "small"
    input_shape = (6,)
    num_classes = 3
    objective = "cross_entropy"

    def model(self):
        return mlp((6, 5, 3))

    def loss(self, outputs, targets):
        return functional.cross_entropy(outputs, targets)

    def clients(self):
        return list(CLIENTS)

    def data(self, client):
        rng = np.random.default_rng(CLIENTS.index(client))
        size = 6 + 6 * CLIENTS.index(client)
        return Examples.of(rng.standard_normal((size, 6), np.float32), rng.integers(0, 3, size))


class NormedTask(SmallTask):
    def model(self):
        return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))


def received_at_first(exchange, model):
    """What a client gets; vectors beside the model are drawn, so that they matter."""
    rng, state = np.random.default_rng(5), {"model": model, **exchange.server.init(model)}
    drawn = {name: rng.normal(0, 0.01, model.size).astype(np.float32) for name in exchange.local.receives}
    letter = exchange.server.letters(state, CLIENTS[0], None) if exchange.server.letters else {}
    return {**drawn, **{n: a for n, a in state.items() if a.shape != model.shape}, "model": model, **letter}


def work_twice(engine, exchange, task, together):
    """Two rounds of local work of all clients, at once or one by one: (sent, kept) of each."""
    received = received_at_first(exchange, initial_vector(task, Seeds(0)))
    examples, seeds = [task.data(c) for c in CLIENTS], [Seeds(1).at(c) for c in CLIENTS]
    kept = [{} for _ in CLIENTS]
    for _ in range(2):
        if together:
            done = engine.work_cohort(exchange.local, received, kept, examples, seeds)
        else:
            rows = zip(kept, examples, seeds, strict=True)
            done = [engine.work_one(exchange.local, received, k, e, s) for k, e, s in rows]
        kept = [result.kept for result in done]
    return done


@each
@pytest.mark.parametrize("name", ["sequential", "stacked", "dense"])
def test_a_cohort_gives_what_its_clients_give_alone_on_every_engine_that_offers_it(algorithm, name):
    is_normed = "batch_norm" in own_patterns(algorithm.exchanges[-1].local)
    task = NormedTask() if is_normed else SmallTask()
    if is_normed and name != "sequential":
        pytest.skip(f"{name} does not serve batch norm")
    engine, reference = make_engine(name, task), make_engine("sequential", task)
    for exchange in algorithm.exchanges:
        if not exchange.local.needs <= engine.offers:
            pytest.skip(f"{name} does not answer {exchange.local.needs}")
        alone = work_twice(reference, exchange, task, together=False)
        for result, expected in zip(work_twice(engine, exchange, task, together=True), alone, strict=True):
            assert list(result.sent) == [section.name for section in exchange.local.sends]
            assert set(result.kept) == set(exchange.local.keeps)
            sections = {s.name: s for s in exchange.local.sections(engine.layout.size)}
            for name_, array in {**result.sent, **result.kept}.items():
                np.testing.assert_allclose(array, {**expected.sent, **expected.kept}[name_], atol=2e-5)
                assert not origins_of(array)
            assert {n: a.shape for n, a in result.sent.items()} == {n: s.shape for n, s in sections.items()}
            assert {str(a.dtype) for a in result.sent.values()} <= {s.dtype for s in sections.values()}


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("fed_avgg", "Did you mean 'fed_avg"),
        ({"name": "fed_prox", "nu": 1}, "fed_prox takes no 'nu'. Did you mean 'mu'"),
        ({"name": "fed_avg", "uplnk": "int8"}, "Did you mean 'uplink'"),
        ({"name": "fed_avg", "uplink": "int9"}, "uplink: codecs has no 'int9'"),
        ({"name": "fed_avg", "downlink": {"model": "int9"}}, "downlink: codecs has no 'int9'"),
        ({"name": "fed_avg", "local": {"name": "sgd", "learning_rat": 1}}, "local: sgd takes no 'learning_rat'"),
        ({"name": "fed_avg", "local": "gradient"}, "local: gradient does not build a LocalWork"),
        ({"name": "fed_avg", "local": {"name": "sgd", "learning_rate": 0}}, "learning_rate > 0, found 0"),
        ({"name": "fed_avg", "local": {"name": "sgd", "epochs": 0}}, "epochs >= 1, found 0"),
        ({"name": "fed_avg", "select": {"name": "uniform", "cohort_size": 0}}, "at least 1 client"),
        ({"name": "fed_prox", "mu": -1}, "mu >= 0, found -1"),
        ({"name": "fed_adam", "server": "step"}, "fed_adam takes no 'server'"),
        ("fed_per", r"fed_per needs \['own'\], they are not given"),
        ({"name": "scaffold", "aggregate": "weighted_mean"}, "scaffold takes no 'aggregate'"),
        (3, "written as a name or as a table"),
    ],
)
def test_words_that_build_nothing_are_refused(words, text):
    with pytest.raises(InputError, match=text):
        make_algorithm(words)


def test_sections_that_nobody_sends_are_refused():
    with pytest.raises(MisfitError, match=r"sections \['control'\] are sent and not folded, or folded and not sent"):
        make_algorithm({"name": "fed_avg", "aggregate": {"control": "weighted_mean"}})


def test_a_job_may_write_the_words_by_hand():
    job = {
        "name": "fed_prox",
        "mu": 0.5,
        "uplink": "int8",
        "downlink": {"model": "int8"},
        "local": {"name": "sgd", "learning_rate": 0.2, "epochs": 3},
    }
    algorithm = make_algorithm(job)
    assert isinstance(algorithm, FederatedAlgorithm)
    (exchange,) = algorithm.exchanges
    assert exchange.local.loop.epochs == 3
    assert exchange.local.spec.params["direction"] == Spec("proximal", {"mu": 0.5})
    assert str(exchange.uplink) == str(exchange.downlink) == "{'model': int8(rounding='nearest')}"
    assert make_algorithm(algorithm) is algorithm
