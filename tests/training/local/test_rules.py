"""Directions, rules and loops as values: on arrays of numpy and of torch, and as words."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgewise.core.errors import InputError, MisfitError
from edgewise.training.algorithms import make_algorithm
from edgewise.training.local import clipped, descend, descent, local_work, proximal, sgd

# Norms 5 and 0.5.
GRADIENTS = np.array([[3.0, 4.0], [0.3, 0.4]], np.float32)
SHORTENED = np.array([[1.2, 1.6], [0.3, 0.4]], np.float32)


def test_a_gradient_longer_than_the_bound_is_shortened_to_it_and_a_shorter_one_left_as_it_is():
    found = clipped(2.0)(GRADIENTS, GRADIENTS, GRADIENTS)
    np.testing.assert_allclose(found, SHORTENED, rtol=1e-6)
    assert found.dtype == np.float32
    assert found[1].tobytes() == GRADIENTS[1].tobytes()


@pytest.mark.parametrize("gradient", [GRADIENTS[0], torch.from_numpy(GRADIENTS[0]), torch.from_numpy(GRADIENTS)])
def test_one_client_or_a_cohort_numpy_or_torch_are_clipped_alike(gradient):
    found = np.asarray(clipped(2.0)(gradient, gradient, gradient))
    np.testing.assert_allclose(found, SHORTENED if gradient.ndim == 2 else SHORTENED[0], rtol=1e-6)


def test_the_words_of_a_clipped_direction_rebuild_it_on_a_device():
    local = {"name": "sgd", "direction": {"name": "clipped", "bound": 2.0}}
    work = make_algorithm({"name": "fed_avg", "local": local}).exchanges[0].local
    assert str(work.spec.params["direction"]) == "clipped(bound=2.0)"
    zeros, carry = np.zeros_like(GRADIENTS), {"received": np.zeros_like(GRADIENTS)}
    moved, _ = work.rules[0].step(GRADIENTS.copy(), zeros, carry)
    np.testing.assert_allclose(moved, -0.1 * SHORTENED, rtol=1e-6)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: clipped(0.0), "clipped takes bound > 0, found 0.0"),
        (lambda: proximal(-1.0), "proximal takes mu >= 0, found -1.0"),
        (lambda: sgd(0.0), "sgd takes learning_rate > 0, found 0.0"),
        (lambda: sgd(epochs=0), "sgd takes epochs >= 1, found 0"),
        (lambda: sgd(batch_size=-1), r"batch_size >= 0 \(0 takes all\) and max_steps >= 1, found 1, -1 and None"),
        (lambda: sgd(max_steps=0), "max_steps >= 1, found 1, 16 and 0"),
        (lambda: descent(0.0), "descent takes learning_rate > 0, found 0.0"),
    ],
)
def test_numbers_out_of_range_are_refused(build, message):
    with pytest.raises(InputError, match=message):
        build()


def test_a_step_is_in_place_and_alike_in_numpy_and_torch():
    for like in (np.array, torch.tensor):
        weights = like(GRADIENTS)
        assert descend(weights, like(SHORTENED), 0.5) is weights
        np.testing.assert_allclose(np.asarray(weights), GRADIENTS - 0.5 * SHORTENED, rtol=1e-6)


def test_work_without_a_rule_is_refused():
    with pytest.raises(MisfitError, match=r"local_work\(.*\) has no rule, so it trains nothing"):
        local_work()


def test_two_rules_that_send_one_section_are_refused():
    with pytest.raises(MisfitError, match=r"two rules of local_work.* use one section: \['model', 'model'\]"):
        local_work(descent(0.1), descent(0.2))
