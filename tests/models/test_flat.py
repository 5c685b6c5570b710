import msgspec
import numpy as np
import pytest
import torch
from torch import nn

from edgewise.core.errors import InputError, TaskError
from edgewise.core.ids import digest_of
from edgewise.core.seeds import Seeds
from edgewise.models.flat import initial_vector, layout_of, load_vector, vector_of
from edgewise.models.zoo.dense_stack import mlp
from edgewise.training.tasks.digits_task import DigitsTask


def test_the_model_of_job_s_has_4810_parameters():
    assert layout_of(mlp()).size == 64 * 64 + 64 + 64 * 10 + 10 == 4810


def test_a_vector_comes_back_as_it_went_in():
    vector = np.arange(4810, dtype=np.float32)
    assert np.array_equal(vector_of(load_vector(mlp(), vector)), vector)


def test_the_first_model_is_drawn_by_the_seed_tree_alone():
    before = torch.get_rng_state()
    first, second, other = (initial_vector(DigitsTask(), Seeds(seed)) for seed in (1, 1, 2))
    assert np.array_equal(first, second)
    assert not np.array_equal(first, other)
    assert torch.equal(before, torch.get_rng_state())


def test_a_vector_of_another_length_is_refused():
    with pytest.raises(InputError, match="a vector of this layout has 4810 entries, found 3"):
        load_vector(mlp(), np.zeros(3, np.float32))


class Normed(nn.Sequential):
    """Batch norm (its counter is an integer), a constant that is not saved, and an adapter."""

    def __init__(self):
        super().__init__(nn.Linear(2, 3), nn.BatchNorm1d(3))
        self.register_buffer("grid", torch.ones(5), persistent=False)
        self.low_rank = nn.Parameter(torch.ones(2, 1))
        self.low_rank.kind = "adapter"


def test_buffers_lie_behind_parameters_and_counters_are_left_out():
    layout = layout_of(Normed())
    kinds = [(slot.name, slot.kind) for slot in layout.slots]
    assert kinds == [
        ("low_rank", "adapter"),
        *((name, "parameter") for name in ("0.weight", "0.bias", "1.weight", "1.bias")),
        *((name, "buffer") for name in ("1.running_mean", "1.running_var")),
    ]
    assert (layout.num_trained, layout.size) == (2 + 6 + 3 + 3 + 3, 17 + 6)


def test_buffers_are_written_and_read_with_the_parameters():
    module = load_vector(Normed(), np.arange(23, dtype=np.float32))
    assert module[1].running_var.tolist() == [20, 21, 22]
    assert vector_of(module).tolist() == list(range(23))


def test_entries_are_found_by_name_by_kind_and_as_batch_norm():
    layout = layout_of(Normed())
    assert np.flatnonzero(layout.entries(["1.weight"])).tolist() == list(range(11, 14))
    assert np.flatnonzero(layout.entries(["0.*", "adapter"])).tolist() == list(range(11))
    assert np.flatnonzero(layout.entries(["batch_norm"])).tolist() == list(range(11, 23))
    with pytest.raises(InputError, match=r"no tensor of the model matches 'head.\*'"):
        layout.entries(["head.*"])


def test_a_layout_of_parameters_alone_is_named_as_it_was_before_there_were_kinds():
    slots = [{"name": "weight", "shape": [1, 2], "dtype": "float32", "offset": 0}]
    assert layout_of(nn.Linear(2, 1, bias=False)).digest == digest_of(msgspec.msgpack.encode({"slots": slots}))


def test_half_precision_is_refused():
    with pytest.raises(TaskError, match=r"parameter 'weight' is torch.float16, needed is torch.float32"):
        layout_of(nn.Linear(2, 2).half())


def test_a_model_without_parameters_is_refused():
    with pytest.raises(TaskError, match="has no parameters, so there is nothing to train"):
        layout_of(nn.ReLU())


def test_a_lazy_layer_is_refused_with_the_cure():
    with pytest.raises(
        TaskError, match=r"'1\.weight' of the task's model has no shape yet.*call the module once on zeros"
    ):
        layout_of(nn.Sequential(nn.Flatten(), nn.LazyLinear(3)))
