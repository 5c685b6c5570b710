"""The contract suite of local engines: every engine of the registry, on every task it serves."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from edgewise.codecs.bundle import Section
from edgewise.core.errors import DataError, InputError, MisfitError
from edgewise.core.provenance import origins_of
from edgewise.core.seeds import Seeds
from edgewise.core.spec import Spec
from edgewise.models.flat import initial_vector, load_vector, vector_of
from edgewise.models.task import Examples
from edgewise.training.local import ENGINES, StepDirection, descent, local_work, make_engine, sgd
from edgewise.training.local.batches import batches
from edgewise.training.local.evaluate import Evaluator
from edgewise.training.local.rule import VECTOR

SEEDS = [Seeds(1).at("client", i) for i in range(4)]


def _proximal(gradient, weights, received):
    return gradient + 0.5 * (weights - received)


def _plain(gradient, weights, received):
    return gradient


def _engine_or_skip(name, task):
    try:
        return make_engine(name, task)
    except MisfitError:
        pytest.skip(f"{name} does not serve {task.name}")


def _cohort(engine, task, work, received=None):
    received = initial_vector(task, Seeds(0)) if received is None else received
    received = received if isinstance(received, list) else {"model": received}
    return engine.work_cohort(work, received, [{}] * 4, [task.data(c) for c in task.clients()], SEEDS)


def _alone(engine, work, received, held, seeds, **settings):
    return engine.work_one(work, {"model": received}, {}, held, seeds, **settings)


@pytest.fixture(params=sorted(ENGINES))
def engine(request, task):
    return _engine_or_skip(request.param, task)


@pytest.mark.parametrize("direction", [_plain, _proximal], ids=["plain", "proximal"])
def test_every_engine_agrees_with_sgd_written_out(engine, task, work, direction):
    if direction is _proximal:
        work = sgd(0.1, 3, direction=StepDirection(Spec("pulled"), direction))
    received = initial_vector(task, Seeds(0))
    for result, client, seeds in zip(_cohort(engine, task, work), task.clients(), SEEDS, strict=True):
        expected = _sgd_written_out(task, work.loop, direction, received, task.data(client), seeds)
        assert np.abs(result.sent["model"] - expected).max() <= 1e-5


def test_weight_steps_and_loss_of_one_step(engine, task, work):
    once = sgd(0.1, 1, 64)
    module = load_vector(task.model(), initial_vector(task, Seeds(0)))
    for result, client in zip(_cohort(engine, task, once), task.clients(), strict=True):
        held = task.data(client)
        loss = task.loss(module(_tensor(held.inputs)), _tensor(held.targets))
        assert (result.num_examples, result.num_steps) == (len(held), 1)
        assert result.loss == pytest.approx(loss.item(), abs=1e-5)


def test_a_run_is_byte_equal_when_repeated(engine, task, work):
    first, second = (_cohort(engine, task, work) for _ in range(2))
    assert all(a.sent["model"].tobytes() == b.sent["model"].tobytes() for a, b in zip(first, second, strict=True))


def test_clients_may_start_from_different_models(engine, task, work):
    rows = [initial_vector(task, Seeds(i)) for i in range(4)]
    for i, result in enumerate(_cohort(engine, task, work, [{"model": row} for row in rows])):
        alone = _alone(engine, work, rows[i], task.data(f"c{i}"), SEEDS[i])
        assert np.abs(alone.sent["model"] - result.sent["model"]).max() <= 1e-5


def test_an_update_no_longer_descends_from_raw_data(engine, task, work):
    assert all(not origins_of(result.sent["model"]) for result in _cohort(engine, task, work))


def test_progress_counts_every_step(engine, task, work):
    counted = []
    result = _alone(engine, work, initial_vector(task, Seeds(0)), task.data("c3"), SEEDS[3], progress=counted.append)
    assert counted == list(range(1, result.num_steps + 1)) == list(range(1, 10))  # 3 epochs of 16 + 16 + 1


def test_an_exception_from_progress_stops_the_work(engine, task, work):
    def stop(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _alone(engine, work, initial_vector(task, Seeds(0)), task.data("c3"), SEEDS[3], progress=stop)


def test_a_client_without_examples_is_refused(engine, task, work):
    empty = Examples.of(np.zeros((0, *task.input_shape), np.float32), np.zeros(0, np.int64))
    with pytest.raises(DataError, match="the client holds no examples, so it cannot train"):
        _alone(engine, work, initial_vector(task, Seeds(0)), empty, SEEDS[0])


def test_a_model_of_another_layout_is_refused(engine, task, work):
    with pytest.raises(InputError, match=r"the received model has shape \(3,\), this task's model needs"):
        _alone(engine, work, np.zeros(3, np.float32), task.data("c0"), SEEDS[0])


@pytest.mark.parametrize("name", ["dense", "sequential"])
def test_a_result_does_not_depend_on_the_cohort_to_the_last_bit(name, dense_task, work):
    engine = make_engine(name, dense_task)
    received = initial_vector(dense_task, Seeds(0))
    for i, result in enumerate(_cohort(engine, dense_task, work)):
        alone = _alone(engine, work, received, dense_task.data(f"c{i}"), SEEDS[i])
        assert alone.sent["model"].tobytes() == result.sent["model"].tobytes()


def test_a_cohort_larger_than_a_stack_is_worked_in_slices(dense_task, work, monkeypatch):
    whole = _cohort(make_engine("dense", dense_task), dense_task, work)
    monkeypatch.setattr("edgewise.training.local.engines.sliced.STACK_BYTES", 1)
    counted = []
    received, held = initial_vector(dense_task, Seeds(0)), [dense_task.data(c) for c in dense_task.clients()]
    sliced = make_engine("dense", dense_task).work_cohort(
        work, {"model": received}, [{}] * 4, held, SEEDS, progress=counted.append
    )
    assert counted == list(range(1, 1 + sum(result.num_steps for result in sliced)))
    assert all(a.sent["model"].tobytes() == b.sent["model"].tobytes() for a, b in zip(whole, sliced, strict=True))


def test_dropout_is_drawn_from_the_seed_tree(dense_task, work):
    dense_task.model = lambda: nn.Sequential(nn.Flatten(), nn.Linear(6, 4), nn.Dropout(0.5))
    engine = make_engine("sequential", dense_task)
    before = torch.get_rng_state()
    first, second = (_cohort(engine, dense_task, work) for _ in range(2))
    assert first[3].sent["model"].tobytes() == second[3].sent["model"].tobytes()
    assert torch.equal(before, torch.get_rng_state())


def test_a_second_rule_sees_the_same_batches_and_changes_nothing_of_the_first(engine, task, work):
    quick, slow = descent(0.1), _renamed(descent(0.05), "second")
    one, other = (_cohort(engine, task, local_work(rule, epochs=3)) for rule in (quick, slow))
    for both, first, second in zip(_cohort(engine, task, local_work(quick, slow, epochs=3)), one, other, strict=True):
        np.testing.assert_array_equal(both.sent["model"], first.sent["model"])
        np.testing.assert_array_equal(both.sent["second"], second.sent["second"])
        assert both.loss == first.loss


def _renamed(rule, name):
    def finish(weights, carry, num_steps):
        return {name: rule.finish(weights, carry, num_steps)[0]["model"]}, {}

    return replace(rule, finish=finish, sends=(Section(name, shape=VECTOR),))


def _momentum_rule():
    """Carries an array that changes, and a number that does not; keeps the array."""

    def init(received, kept, oracle):
        return received["model"], {
            "received": received["model"],
            "v": kept.get("v", 0 * received["model"]),
            "beta": 0.5,
        }

    def step(gradient, weights, carry):
        v = carry["beta"] * carry["v"] + gradient
        return weights - 0.05 * v, {**carry, "v": v}

    def finish(weights, carry, num_steps):
        return {"model": weights - carry["received"]}, {"v": carry["v"]}

    return replace(
        descent(0.05), spec=Spec("momentum"), init=init, step=step, finish=finish, keeps=("v",), plain_rate=None
    )


def test_what_a_rule_carries_and_keeps_is_each_clients_own(engine, task):
    work, received = local_work(_momentum_rule(), epochs=2), {"model": initial_vector(task, Seeds(0))}
    held = [task.data(c) for c in task.clients()]
    kept = [{}] * 4
    for _ in range(2):  # the second time some clients keep nothing yet
        together = engine.work_cohort(work, received, kept, held, SEEDS)
        for i, result in enumerate(together):
            alone = engine.work_one(work, received, kept[i], held[i], SEEDS[i])
            assert np.abs(alone.sent["model"] - result.sent["model"]).max() <= 1e-5
            assert np.abs(alone.kept["v"] - result.kept["v"]).max() <= 1e-4
            assert not origins_of(result.kept["v"])
        kept = [together[0].kept, {}, together[2].kept, {"v": together[3].kept["v"], "uplink/model/0": np.ones(2)}]


def _asking(question):
    """Asks at the start, of all examples, and sends the answer; takes no step."""

    def init(received, kept, oracle):
        return received["model"], {"answer": question(oracle, received["model"])}

    finish = lambda weights, carry, num_steps: ({"answer": carry["answer"]}, {})  # noqa: E731
    return local_work(
        replace(descent(0.1), init=init, finish=finish, sends=(Section("answer", shape=(None,)),), plain_rate=None),
        epochs=0,
    )


def test_questions_about_all_examples_are_answered(engine, task):
    received = initial_vector(task, Seeds(0))
    asked = {
        "gradient": lambda oracle, w: oracle.gradient(w),
        "loss": lambda oracle, w: oracle.loss(w)[..., None],
        "hvp": lambda oracle, w: oracle.hvp(w, oracle.gradient(w)),
    }
    for name, question in asked.items():
        if name not in engine.offers:
            continue
        for i, result in enumerate(_cohort(engine, task, _asking(question))):
            expected = _answers(task, received, task.data(f"c{i}"))[name]
            assert np.abs(result.sent["answer"] - expected).max() <= 1e-4
            assert result.num_steps == 0
            assert result.loss == pytest.approx(_answers(task, received, task.data(f"c{i}"))["loss"], abs=1e-5)


def test_all_examples_are_asked_in_pieces(exits_task, monkeypatch):
    engine, asked = make_engine("sequential", exits_task), _asking(lambda oracle, w: oracle.hvp(w, oracle.gradient(w)))
    whole, loss = (
        [r.sent["answer"] for r in _cohort(engine, exits_task, asked)],
        [r.loss for r in _cohort(engine, exits_task, asked)],
    )
    monkeypatch.setattr("edgewise.training.local.engines.sequential.PIECE", 6)
    for answer, mean, result in zip(whole, loss, _cohort(engine, exits_task, asked), strict=True):
        assert np.abs(result.sent["answer"] - answer).max() <= 1e-4
        assert result.loss == pytest.approx(mean, abs=1e-5)


def test_outputs_are_those_of_the_serving_model(engine, task):
    received, inputs = initial_vector(task, Seeds(0)), np.asarray(task.data("c1").inputs)
    for result in _cohort(engine, task, _asking(lambda oracle, w: oracle.outputs(w, inputs)[-1])):
        expected = Evaluator(task).outputs(received, task.data("c1"))[-1]
        assert np.abs(result.sent["answer"] - expected).max() <= 1e-5


def test_random_numbers_come_from_the_clients_own_place(engine, task):
    def question(oracle, weights):
        return oracle.like(oracle.rng("drawn").normal(size=3))

    for seeds, result in zip(SEEDS, _cohort(engine, task, _asking(question)), strict=True):
        np.testing.assert_array_equal(result.sent["answer"], seeds.at("drawn").rng().normal(size=3))


def test_a_missing_section_is_named(engine, task):
    lacking = local_work(replace(descent(0.1), receives=("model", "control")))
    with pytest.raises(InputError, match=r"needs the sections \['control'\], received are \['model'\]"):
        _cohort(engine, task, lacking)


def _answers(task, received, held):
    module = load_vector(task.model(), received).train()
    loss = task.loss(module(_tensor(held.inputs)), _tensor(held.targets))
    slopes = torch.autograd.grad(loss, list(module.parameters()), create_graph=True)
    flat = torch.cat([s.reshape(-1) for s in slopes])
    along = torch.autograd.grad(flat @ flat.detach(), list(module.parameters()))
    size = received.size
    padded = [np.pad(f.detach().numpy(), (0, size - len(f))) for f in (flat, torch.cat([a.reshape(-1) for a in along]))]
    return {"loss": loss.item(), "gradient": padded[0], "hvp": padded[1]}


def test_batch_norm_moves_its_statistics_whatever_the_direction(normed_task):
    """With ten steps on all examples at once the running mean is 1 - 0.9^10 of the batch's where weights do not move."""
    received = initial_vector(normed_task, Seeds(0))
    engine = make_engine("sequential", normed_task)
    pulled = sgd(1e-12, 10, 0, StepDirection(Spec("pulled"), lambda g, w, r: g + 1e9 * (w - r)))
    for work in (sgd(1e-12, 10, 0), pulled):
        moved = _alone(engine, work, received, normed_task.data("c3"), SEEDS[0]).sent["model"]
        tensors = engine.layout.unflatten(moved)
        module = load_vector(normed_task.model(), received)
        mean = module[0](_tensor(normed_task.data("c3").inputs)).mean((0, 2, 3)).detach().numpy()
        np.testing.assert_allclose(tensors["1.running_mean"], (1 - 0.9**10) * mean, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(tensors["0.weight"], 0, atol=1e-6)


def test_batch_norm_over_a_single_example_is_refused_with_the_cure(normed_task):
    normed_task.model = lambda: nn.Sequential(nn.Flatten(), nn.Linear(16, 4), nn.BatchNorm1d(4))
    received = initial_vector(normed_task, Seeds(0))
    with pytest.raises(DataError, match="leaves no single example of this client's 33, batch_size=0 for all at once"):
        _alone(make_engine("sequential", normed_task), sgd(0.1), received, normed_task.data("c3"), SEEDS[3])


def _sgd_written_out(task, loop, direction, received, held, seeds):
    module = load_vector(task.model(), received).train()
    start = [p.detach().clone() for p in module.parameters()]
    for part in batches(len(held), loop, seeds):
        module.zero_grad()
        task.loss(module(_tensor(held.inputs)[part]), _tensor(held.targets)[part]).backward()
        with torch.no_grad():
            for p, s in zip(module.parameters(), start, strict=True):
                p -= 0.1 * direction(p.grad, p, s)
    return vector_of(module) - received


def _tensor(array):
    return torch.tensor(np.asarray(array))
