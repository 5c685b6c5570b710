"""What is a client's own: it never leaves, it is kept and joined, and it fits its client better than what all share."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from torch import nn
from torch.nn import functional

from edgewise.codecs import chain, error_feedback, int8, top_k, zstd
from edgewise.codecs.bundle import bundle_from_bytes, bundle_to_bytes, decode_bundle
from edgewise.core.errors import InputError
from edgewise.core.layout import Layout
from edgewise.core.seeds import Seeds
from edgewise.models.flat import initial_vector
from edgewise.models.personal_version import personal_vector
from edgewise.models.task import Examples, Task
from edgewise.testing.quadratics import LeastSquaresEngine, least_squares_optimum, quadratic, run_rounds
from edgewise.training.algorithms import ditto, fed_avg, fed_bn, fed_per, scaffold
from edgewise.training.client_update import client_update
from edgewise.training.local import descent, local_work, make_engine, only, personal, sgd, with_each
from edgewise.training.local.evaluate import evaluate

CANARY = np.float32(123.4567)
LAYOUT = Layout.of([("body.weight", (4,)), ("head.weight", (2,))])
HEAD = np.array([False] * 4 + [True] * 2)
STEPS = sgd(0.1, 20, 0)


class Sensors(Task):
    """Two clients whose sensors have other scales and offsets; the label is the larger of two signals."""

    name = "sensors"
    input_shape = (2,)
    num_classes = 2

    def model(self):
        return nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2))

    def loss(self, outputs, targets):
        return functional.cross_entropy(outputs, targets)

    def clients(self):
        return ["a", "b"]

    def data(self, client):
        rng = np.random.default_rng(self.clients().index(client))
        signals = rng.standard_normal((64, 2), np.float32)
        scale, offset = {"a": (1, 0), "b": (30, 200)}[client]
        return Examples.of(signals * np.float32(scale) + np.float32(offset), signals.argmax(1))


def quadratics(seed=0, num_clients=5):
    rng = np.random.default_rng(seed)
    return {f"c{i}": quadratic(np.diag(rng.uniform(0.5, 2, 6)), rng.normal(size=6)) for i in range(num_clients)}


UPLINKS = {"plain": None, "int8": int8("stochastic"), "sparse": error_feedback(chain(top_k(0.5), zstd()))}


@pytest.mark.parametrize("uplink", UPLINKS.values(), ids=UPLINKS)
@pytest.mark.parametrize("make", [fed_avg, scaffold])
def test_own_entries_are_in_no_update_whatever_they_are_and_however_it_is_coded(make, uplink):
    exchange = head_at_home(make(local=STEPS, uplink=uplink).exchanges[0])
    engine, held = LeastSquaresEngine(LAYOUT), quadratic(np.eye(6), np.full(6, CANARY))
    state = {"model": np.zeros(6, np.float32), **exchange.server.init(np.zeros(6, np.float32))}
    kept = {}
    for number in range(3):
        done = client_update(exchange, engine, state, kept, held, Seeds(number))
        kept, sent = done.kept, bundle_from_bytes(bundle_to_bytes(done.coded))
        assert abs(kept["own"] - CANARY).max() < CANARY * 0.9 ** (20 * number + 19)  # the canary is at home
        for array in decode_bundle(exchange.uplink, exchange.local.sections(6), sent).values():
            assert not array[HEAD].any()
            assert array[~HEAD].any()


def head_at_home(exchange):
    return replace(exchange, local=with_each(exchange.local, lambda rule: personal(rule, ("head.*",))))


def test_fed_per_shares_the_body_and_each_head_is_best_for_its_client():
    held = quadratics()
    ran = run_rounds(fed_per(own="head.*", local=STEPS), LeastSquaresEngine(LAYOUT), held, num_rounds=60)
    assert not ran.model[HEAD].any()  # the server never moves them
    for client, examples in held.items():
        # Curvatures are diagonal: a head's optimum is its client's own, whatever the body is.
        optimum = least_squares_optimum([examples], [1])
        found = personal_vector(ran.model, ran.kept[client], LAYOUT, ("head.*",))
        np.testing.assert_allclose(found[HEAD], optimum[HEAD], atol=1e-4)
        np.testing.assert_array_equal(found[~HEAD], ran.model[~HEAD])


def test_the_shared_body_is_that_of_fed_avg_where_head_and_body_do_not_interact():
    engine, held = LeastSquaresEngine(LAYOUT), quadratics()
    both = [
        run_rounds(make(local=STEPS), engine, held, num_rounds=5).model
        for make in (fed_avg, lambda **s: fed_per(own="head.*", **s))
    ]
    np.testing.assert_allclose(both[0][~HEAD], both[1][~HEAD], rtol=1e-6)


def test_dittos_personal_models_are_nearer_to_their_own_optimum_than_the_shared_one():
    held = quadratics()
    ran = run_rounds(ditto(pull=0.1, local=STEPS), LeastSquaresEngine(LAYOUT), held, num_rounds=60)
    np.testing.assert_array_equal(
        ran.model, run_rounds(fed_avg(local=STEPS), LeastSquaresEngine(LAYOUT), held, num_rounds=60).model
    )
    for client, examples in held.items():
        optimum = least_squares_optimum([examples], [1])
        own = personal_vector(ran.model, ran.kept[client], LAYOUT)
        assert np.linalg.norm(own - optimum) < 0.3 * np.linalg.norm(ran.model - optimum)


def test_ditto_ends_where_its_objective_is_least():
    """F(v) + λ/2‖v − w‖² with F = ½(v − t)ᵀA(v − t): v = (A + λ)⁻¹(A t + λ w), once w stands."""
    curvature, optimum = np.diag([0.5, 1, 2.0]), np.array([1.0, -1, 0.5])
    held = {"a": quadratic(curvature, optimum), "b": quadratic(np.eye(3), -optimum)}
    ran = run_rounds(ditto(pull=0.7, local=sgd(0.1, 20, 0)), LeastSquaresEngine(3), held, num_rounds=60)
    expected = np.linalg.solve(curvature + 0.7 * np.eye(3), curvature @ optimum + 0.7 * ran.model)
    np.testing.assert_allclose(ran.kept["a"]["personal"], expected, atol=1e-4)


def test_batch_norm_kept_at_home_serves_clients_with_other_sensors():
    task = Sensors()
    held, engine = {c: task.data(c) for c in task.clients()}, make_engine("sequential", task)
    ran = run_rounds(fed_bn(local=sgd(0.3, 3, 16)), engine, held, initial_vector(task, Seeds(0)), 10)
    shared = run_rounds(fed_avg(local=sgd(0.3, 3, 16)), engine, held, initial_vector(task, Seeds(0)), 10)
    norm = engine.layout.entries(["batch_norm"])
    np.testing.assert_array_equal(ran.model[norm], initial_vector(task, Seeds(0))[norm])
    for client, examples in held.items():
        own = personal_vector(ran.model, ran.kept[client], engine.layout, ("batch_norm",))
        assert evaluate(task, own, examples)["accuracy"] > 0.95
        mean = engine.layout.unflatten(own)["0.running_mean"]
        np.testing.assert_allclose(mean, np.asarray(examples.inputs).mean(0), rtol=0.05, atol=0.3)
    assert min(evaluate(task, shared.model, examples)["accuracy"] for examples in held.values()) < 0.8


def test_averaged_statistics_are_the_mean_of_the_clients_and_the_rule_of_the_server_does_not_matter():
    task = Sensors()
    held, engine = {c: task.data(c) for c in task.clients()}, make_engine("sequential", task)
    ran = run_rounds(fed_avg(local=sgd(1e-6, 100, 0)), engine, held, initial_vector(task, Seeds(0)))
    mean = engine.layout.unflatten(ran.model)["0.running_mean"]
    np.testing.assert_allclose(mean, np.mean([np.asarray(e.inputs).mean(0) for e in held.values()], axis=0), rtol=1e-3)


def test_a_new_device_uses_the_entries_of_the_base():
    base = np.arange(6, dtype=np.float32)
    assert personal_vector(base, {}, LAYOUT, ("head.*",)) is base


def test_what_is_kept_of_another_model_is_refused():
    with pytest.raises(InputError, match=r"keeps has shape \(3,\), its model's own part has \(2,\)"):
        personal_vector(np.zeros(6, np.float32), {"own": np.zeros(3)}, LAYOUT, ("head.*",))


def test_only_a_part_trains_and_is_sent():
    work = local_work(only(descent(0.1), ("head.*",)), epochs=20, batch_size=0)
    held = quadratics(num_clients=1)
    ran = run_rounds(fed_avg(local=work), LeastSquaresEngine(LAYOUT), held, num_rounds=20)
    assert not ran.model[~HEAD].any()
    np.testing.assert_allclose(ran.model[HEAD], least_squares_optimum([held["c0"]], [1])[HEAD], atol=1e-5)


@pytest.mark.parametrize("wrap", [only, personal])
def test_tensors_that_are_not_there_are_named(wrap):
    work = with_each(STEPS, lambda rule: wrap(rule, ("hat.*",)))
    with pytest.raises(InputError, match=r"no tensor of the model matches 'hat.\*'"):
        run_rounds(fed_avg(local=work), LeastSquaresEngine(LAYOUT), quadratics())
