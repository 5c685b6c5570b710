import numpy as np
import pytest
import torch
from torch import nn

from edgewise.core.errors import InputError, TaskError
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


def test_batch_norm_is_refused():
    with pytest.raises(TaskError, match=r"keeps state beside its parameters \('1.running_mean'\).*group or layer norm"):
        layout_of(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))


def test_half_precision_is_refused():
    with pytest.raises(TaskError, match=r"parameter 'weight' is torch.float16, needed is torch.float32"):
        layout_of(nn.Linear(2, 2).half())


def test_a_model_without_parameters_is_refused():
    with pytest.raises(TaskError, match="has no parameters, so there is nothing to train"):
        layout_of(nn.ReLU())
