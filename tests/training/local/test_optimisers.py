"""Local optimisers against torch.optim, step by step on the same batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgewise.core.errors import InputError, MisfitError
from edgewise.core.seeds import Seeds
from edgewise.models.flat import initial_vector, load_vector, vector_of
from edgewise.training.algorithms import make_algorithm
from edgewise.training.local import make_engine
from edgewise.training.local.batches import batches
from tests.training.local.conftest import DenseTask

SGD, ADAM, ADAM_W = torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW
OPTIMISERS = {
    "momentum": ({"name": "sgd", "momentum": 0.9}, SGD, {"momentum": 0.9}),
    "nesterov": (
        {"name": "sgd", "momentum": 0.8, "nesterov": True, "weight_decay": 0.1},
        SGD,
        {"momentum": 0.8, "nesterov": True, "weight_decay": 0.1},
    ),
    "decay": ({"name": "sgd", "weight_decay": 0.3}, SGD, {"weight_decay": 0.3}),
    "adam": ({"name": "adam", "beta_1": 0.8, "weight_decay": 0.1}, ADAM, {"betas": (0.8, 0.999), "weight_decay": 0.1}),
    "adam_w": ({"name": "adam_w", "weight_decay": 0.3}, ADAM_W, {"weight_decay": 0.3}),
}
COSINE = {"name": "cosine", "steps": 10, "warmup": 2}
RATES = [0.05 / 3, 0.05 * 2 / 3, *(0.05 * 0.5 * (1 + np.cos(np.pi * k / 8)) for k in range(9))]
"""Of a cosine of ten steps after two of warm-up, from 0.05."""
SEEDS = Seeds(3).at("client")


class HalfFrozen(DenseTask):
    objective = ""

    def model(self):
        net = super().model()
        net[1].requires_grad_(False)
        return net


def work_of(words):
    return make_algorithm({"name": "fed_avg", "local": words}).exchanges[0].local


def own(task, make, client="c3", rates=(), every=1, start=None):
    """What torch's own optimiser makes of the client's batches."""
    module = load_vector(task.model(), initial_vector(task, Seeds(0)) if start is None else start).train()
    optimiser, held = make(module.parameters()), task.data(client)
    parts = batches(len(held), work_of({"name": "sgd", "epochs": 3, "batch_size": 8}).loop, SEEDS)
    for number, part in enumerate(parts):
        size = min(every, len(parts) - number // every * every)
        loss = task.loss(module(torch.tensor(np.array(held.inputs))[part]), torch.tensor(np.array(held.targets))[part])
        (loss / size).backward()
        if (number + 1) % every and number + 1 < len(parts):
            continue
        if rates:
            optimiser.param_groups[0]["lr"] = rates[min(number, len(rates) - 1)]
        optimiser.step()
        optimiser.zero_grad()
    return vector_of(module)


def ours(task, words, engine="sequential", clients=("c3",), kept=None, start=None):
    start = initial_vector(task, Seeds(0)) if start is None else start
    work = work_of({"learning_rate": 0.05, "epochs": 3, "batch_size": 8, **words})
    held = [task.data(client) for client in clients]
    results = make_engine(engine, task).work_cohort(
        work, {"model": start}, kept or [{}] * len(held), held, [SEEDS] * len(held)
    )
    return [start + result.sent["model"] for result in results], [result.kept for result in results]


@pytest.mark.parametrize("engine", ["sequential", "stacked", "dense"])
@pytest.mark.parametrize("name", OPTIMISERS)
def test_a_local_optimiser_is_torchs_own(name, engine):
    words, kind, settings = OPTIMISERS[name]
    task = DenseTask()
    found, _ = ours(task, words, engine, ("c0", "c3"))
    for client, vector in zip(("c0", "c3"), found, strict=True):
        wanted = own(task, lambda weights: kind(weights, lr=0.05, **settings), client)
        assert np.abs(vector - wanted).max() <= 1e-5


def test_a_schedule_goes_on_from_round_to_round():
    task, words = DenseTask(), {"name": "sgd", "schedule": COSINE, "max_steps": 5}
    (first,), kept = ours(task, words)
    whole, _ = ours(task, {"name": "sgd", "schedule": COSINE})
    assert kept[0]["steps_done"].tolist() == [5.0]
    assert np.abs(whole[0] - own(task, lambda weights: SGD(weights, lr=0.05), rates=[*RATES, 0.0])).max() <= 1e-5
    (later,), kept = ours(task, words, kept=kept, start=first)
    after_five = own(task, lambda weights: SGD(weights, lr=0.05), rates=[*RATES[5:10], 0.0], start=first)
    assert np.abs(later - after_five).max() <= 1e-5
    assert kept[0]["steps_done"].tolist() == [10.0]


@pytest.mark.parametrize("engine", ["stacked", "dense"])
def test_a_cohort_whose_clients_are_at_different_steps_is_scheduled_one_by_one(engine):
    task, words = DenseTask(), {"name": "sgd", "momentum": 0.9, "schedule": COSINE}
    kept = [{"steps_done": np.float32([4.0])}, {"steps_done": np.float32([1.0])}]
    alone = [ours(task, words, clients=(c,), kept=[k])[0][0] for c, k in zip(("c0", "c3"), kept, strict=True)]
    together, after = ours(task, words, engine, ("c0", "c3"), kept)
    assert np.abs(np.stack(together) - np.stack(alone)).max() <= 1e-5
    assert [k["steps_done"].tolist() for k in after] == [[7.0], [16.0]]


@pytest.mark.parametrize("name", ["momentum", "adam_w"])
def test_accumulated_batches_make_one_step_and_what_is_left_over_a_last_one(name):
    words, kind, settings = OPTIMISERS[name]
    task = DenseTask()  # 33 examples make 15 batches of 8 in three epochs: three steps of 4 and one of 3
    (found,), _ = ours(task, {**words, "accumulate": 4})
    wanted = own(task, lambda weights: kind(weights, lr=0.05, **settings), every=4)
    assert np.abs(found - wanted).max() <= 1e-5
    with pytest.raises(MisfitError, match="Use engine 'sequential'"):
        ours(task, {**words, "accumulate": 4}, "stacked")


def test_what_does_not_train_does_not_decay():
    task = HalfFrozen()
    start = initial_vector(task, Seeds(0))
    (moved,), _ = ours(task, {"name": "adam_w", "weight_decay": 0.5, "accumulate": 4})
    layout = make_engine("sequential", task).layout
    assert (moved != start).tolist() == (~layout.entries(["frozen"])).tolist()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"name": "sgd", "momentum": 1.0}, r"momentum in 0 to 1 \(1 excluded\), found 1.0"),
        ({"name": "sgd", "nesterov": True}, "nesterov with momentum > 0"),
        ({"name": "adam", "weight_decay": -1.0}, "weight_decay >= 0"),
        ({"name": "adam", "epsilon": 0.0}, "epsilon > 0"),
        ({"name": "adam", "epochs": 0}, "adam takes epochs >= 1"),
        ({"name": "sgd", "accumulate": 0}, "batches >= 1"),
        ({"name": "sgd", "schedule": {"name": "cosine", "steps": 2, "warmup": 3}}, "0 <= warmup < steps"),
        ({"name": "sgd", "schedule": {"name": "exponential", "factor": 2.0}}, r"factor in \(0, 1\]"),
    ],
)
def test_settings_out_of_range_are_refused(words, message):
    with pytest.raises(InputError, match=message):
        work_of(words)


def test_rules_are_written_by_name_and_what_is_none_is_refused():
    assert [rule.spec.name for rule in work_of({"name": "local_work", "rules": ["descent"]}).rules] == ["descent"]
    with pytest.raises(InputError, match=r"local_work takes rules, 'decent' is none\. Did you mean 'descent'\?"):
        work_of({"name": "local_work", "rules": ["decent"]})


def test_bf16_is_a_word_of_every_optimiser_that_engines_without_it_refuse():
    for name in ("sgd", "adam", "adam_w"):
        words = {"name": name, "precision": "bf16", "accumulate": 2}
        assert work_of(work_of(words).spec.to_dict()).loop.precision == "bf16"
    with pytest.raises(MisfitError, match=r"asks an engine for \['bf16'\], engine 'dense' answers"):
        make_engine("dense", DenseTask()).check(work_of({"name": "sgd", "precision": "bf16"}), {})
    with pytest.raises(InputError, match="precision is one of float32, bf16, found 'fp16'"):
        work_of({"name": "sgd", "precision": "fp16"})
