"""The contract suite of local engines: every engine of the registry, on every task it serves."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from edgewise.core.errors import DataError, InputError, MisfitError
from edgewise.core.provenance import origins_of
from edgewise.core.seeds import Seeds
from edgewise.models.flat import initial_vector, load_vector, vector_of
from edgewise.models.task import Examples
from edgewise.training.local import ENGINES, make_engine
from edgewise.training.local.engines.engine import batches

SEEDS = [Seeds(1).at("client", i) for i in range(4)]


def _proximal(gradient, weights, received):
    return gradient + 0.5 * (weights - received)


def _engine_or_skip(name, task):
    try:
        return make_engine(name, task)
    except MisfitError:
        pytest.skip(f"{name} does not serve {task.name}")


def _cohort(engine, task, work, received=None):
    received = initial_vector(task, Seeds(0)) if received is None else received
    return engine.train_cohort(received, work, [task.data(c) for c in task.clients()], SEEDS)


@pytest.fixture(params=sorted(ENGINES))
def engine(request, task):
    return _engine_or_skip(request.param, task)


@pytest.mark.parametrize("direction", [None, _proximal], ids=["plain", "proximal"])
def test_every_engine_agrees_with_sgd_written_out(engine, task, work, direction):
    work = replace(work, direction=direction) if direction else work
    received = initial_vector(task, Seeds(0))
    for result, client, seeds in zip(_cohort(engine, task, work), task.clients(), SEEDS, strict=True):
        expected = _sgd_written_out(task, work, received, task.data(client), seeds)
        assert np.abs(result.update - expected).max() <= 1e-5


def test_weight_steps_and_loss_of_one_step(engine, task, work):
    once = replace(work, epochs=1, batch_size=64)
    module = load_vector(task.model(), initial_vector(task, Seeds(0)))
    for result, client in zip(_cohort(engine, task, once), task.clients(), strict=True):
        held = task.data(client)
        loss = task.loss(module(_tensor(held.inputs)), _tensor(held.targets))
        assert (result.weight, result.num_steps) == (len(held), 1)
        assert result.loss == pytest.approx(loss.item(), abs=1e-5)


def test_a_run_is_byte_equal_when_repeated(engine, task, work):
    first, second = (_cohort(engine, task, work) for _ in range(2))
    assert all(a.update.tobytes() == b.update.tobytes() for a, b in zip(first, second, strict=True))


def test_clients_may_start_from_different_models(engine, task, work):
    rows = np.stack([initial_vector(task, Seeds(i)) for i in range(4)])
    for i, result in enumerate(_cohort(engine, task, work, rows)):
        alone = engine.train(rows[i], work, task.data(f"c{i}"), SEEDS[i])
        assert np.abs(alone.update - result.update).max() <= 1e-5


def test_an_update_no_longer_descends_from_raw_data(engine, task, work):
    assert all(not origins_of(result.update) for result in _cohort(engine, task, work))


def test_progress_counts_every_step(engine, task, work):
    counted = []
    result = engine.train(initial_vector(task, Seeds(0)), work, task.data("c3"), SEEDS[3], progress=counted.append)
    assert counted == list(range(1, result.num_steps + 1)) == list(range(1, 10))  # 3 epochs of 16 + 16 + 1


def test_an_exception_from_progress_stops_the_work(engine, task, work):
    def stop(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.train(initial_vector(task, Seeds(0)), work, task.data("c3"), SEEDS[3], progress=stop)


def test_a_client_without_examples_is_refused(engine, task, work):
    empty = Examples.of(np.zeros((0, *task.input_shape), np.float32), np.zeros(0, np.int64))
    with pytest.raises(DataError, match="the client holds no examples, so it cannot train"):
        engine.train(initial_vector(task, Seeds(0)), work, empty, SEEDS[0])


def test_a_model_of_another_layout_is_refused(engine, task, work):
    with pytest.raises(InputError, match=r"the received model has shape \(3,\), this task's model needs"):
        engine.train(np.zeros(3, np.float32), work, task.data("c0"), SEEDS[0])


@pytest.mark.parametrize("name", ["dense", "sequential"])
def test_a_result_does_not_depend_on_the_cohort_to_the_last_bit(name, dense_task, work):
    engine = make_engine(name, dense_task)
    received = initial_vector(dense_task, Seeds(0))
    for i, result in enumerate(_cohort(engine, dense_task, work)):
        alone = engine.train(received, work, dense_task.data(f"c{i}"), SEEDS[i])
        assert alone.update.tobytes() == result.update.tobytes()


def test_a_cohort_larger_than_a_stack_is_worked_in_slices(dense_task, work, monkeypatch):
    whole = _cohort(make_engine("dense", dense_task), dense_task, work)
    monkeypatch.setattr("edgewise.training.local.engines.sliced.STACK_BYTES", 1)
    counted = []
    received, held = initial_vector(dense_task, Seeds(0)), [dense_task.data(c) for c in dense_task.clients()]
    sliced = make_engine("dense", dense_task).train_cohort(received, work, held, SEEDS, progress=counted.append)
    assert counted == list(range(1, 1 + sum(result.num_steps for result in sliced)))
    assert all(a.update.tobytes() == b.update.tobytes() for a, b in zip(whole, sliced, strict=True))


def test_dropout_is_drawn_from_the_seed_tree(dense_task, work):
    dense_task.model = lambda: nn.Sequential(nn.Flatten(), nn.Linear(6, 4), nn.Dropout(0.5))
    engine = make_engine("sequential", dense_task)
    before = torch.get_rng_state()
    first, second = (_cohort(engine, dense_task, work) for _ in range(2))
    assert first[3].update.tobytes() == second[3].update.tobytes()
    assert torch.equal(before, torch.get_rng_state())


def _sgd_written_out(task, work, received, held, seeds):
    module = load_vector(task.model(), received)
    start = [p.detach().clone() for p in module.parameters()]
    for part in batches(len(held), work, seeds):
        module.zero_grad()
        task.loss(module(_tensor(held.inputs)[part]), _tensor(held.targets)[part]).backward()
        with torch.no_grad():
            for p, s in zip(module.parameters(), start, strict=True):
                p -= work.learning_rate * work.direction(p.grad, p, s)
    return vector_of(module) - received


def _tensor(array):
    return torch.tensor(np.asarray(array))
