"""What every aggregator keeps. A new one is tested by one line of EXAMPLES."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from edgewise.core.errors import InputError
from edgewise.core.spec import build
from edgewise.training.aggregate import AGGREGATORS, weighted_mean

EXAMPLES = [weighted_mean()]
each = pytest.mark.parametrize("aggregator", EXAMPLES, ids=lambda a: str(a.spec))
SIZE = 33


def sample(clients=5, seed=0):
    rng = np.random.default_rng(seed)
    scale = np.exp(rng.normal(size=(clients, SIZE)) * 4)
    return (rng.normal(size=(clients, SIZE)) * scale).clip(-1000, 1000).astype(np.float32), rng.integers(
        1, 500, clients
    )


def folded(aggregator, updates, weights):
    total = aggregator.init(SIZE)
    for update, weight in zip(updates, weights, strict=True):
        total = aggregator.add(total, update, weight)
    return total


def as_bytes(aggregator, total):
    return {name: array.tobytes() for name, array in aggregator.to_arrays(total).items()}


def test_every_registered_aggregator_has_an_example():
    assert {a.spec.name for a in EXAMPLES} == set(AGGREGATORS)


@each
def test_no_order_changes_a_bit_of_the_sum(aggregator):
    updates, weights = sample()
    sums = {
        tuple(as_bytes(aggregator, folded(aggregator, updates[list(order)], weights[list(order)])).values())
        for order in itertools.permutations(range(5))
    }
    assert len(sums) == 1


@each
def test_partial_sums_merge_to_the_same_bits_however_they_are_grouped(aggregator):
    updates, weights = sample(6)
    whole = as_bytes(aggregator, folded(aggregator, updates, weights))
    for cut in range(7):
        left, right = (folded(aggregator, updates[s], weights[s]) for s in (slice(cut), slice(cut, None)))
        assert as_bytes(aggregator, aggregator.merge(left, right)) == whole
        assert as_bytes(aggregator, aggregator.merge(right, left)) == whole


@each
def test_a_cohort_at_once_equals_its_clients_one_by_one(aggregator):
    updates, weights = sample(7)
    at_once = aggregator.add(aggregator.init(SIZE), updates, weights)
    assert as_bytes(aggregator, at_once) == as_bytes(aggregator, folded(aggregator, updates, weights))


@each
def test_a_sum_is_not_changed_by_adding_to_it(aggregator):
    updates, weights = sample(2)
    total = aggregator.add(aggregator.init(SIZE), updates[0], weights[0])
    before = as_bytes(aggregator, total)
    aggregator.add(total, updates[1], weights[1])
    assert as_bytes(aggregator, total) == before


@each
def test_it_scales_with_weights(aggregator):
    updates, weights = sample()
    once, thrice = (aggregator.finish(folded(aggregator, updates, weights * k)) for k in (1, 3))
    np.testing.assert_array_equal(once, thrice)


@each
def test_it_ignores_zero_weight(aggregator):
    updates, weights = sample()
    weights[2] = 0
    without = np.delete(updates, 2, axis=0), np.delete(weights, 2)
    assert as_bytes(aggregator, folded(aggregator, updates, weights)) == as_bytes(
        aggregator, folded(aggregator, *without)
    )


@each
def test_one_client_is_its_own_mean(aggregator):
    update = np.linspace(-4, 4, SIZE, dtype=np.float32)
    np.testing.assert_array_equal(aggregator.finish(folded(aggregator, [update], [7])), update)


@each
def test_a_sum_travels(aggregator):
    updates, weights = sample()
    total = folded(aggregator, updates, weights)
    arrays = {n: np.frombuffer(a.tobytes(), a.dtype).reshape(a.shape) for n, a in aggregator.to_arrays(total).items()}
    arrived = aggregator.from_arrays(arrays)
    assert as_bytes(aggregator, arrived) == as_bytes(aggregator, total)
    np.testing.assert_array_equal(aggregator.finish(arrived), aggregator.finish(total))


@each
def test_words_build_the_same_aggregator(aggregator):
    rebuilt = build("aggregate", AGGREGATORS, aggregator.spec.to_dict())
    updates, weights = sample()
    assert as_bytes(rebuilt, folded(rebuilt, updates, weights)) == as_bytes(
        aggregator, folded(aggregator, updates, weights)
    )


@each
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30])
def test_an_entry_that_cannot_be_summed_is_refused(aggregator, bad):
    update = np.zeros(SIZE, np.float32)
    update[5] = bad
    with pytest.raises(InputError, match=r"entry 5 of the update is"):
        aggregator.add(aggregator.init(SIZE), update, 1)


@each
@pytest.mark.parametrize("weight", [-1, 0.5, float("nan"), 2**19 + 1])
def test_a_weight_that_counts_no_examples_is_refused(aggregator, weight):
    with pytest.raises(InputError, match="is not a number of examples"):
        aggregator.add(aggregator.init(SIZE), np.zeros(SIZE, np.float32), weight)


@each
def test_another_size_is_refused(aggregator):
    with pytest.raises(InputError, match=r"has 33 entries, found shape \(32,\)"):
        aggregator.add(aggregator.init(SIZE), np.zeros(SIZE - 1, np.float32), 1)
    with pytest.raises(InputError, match="cannot be merged with one of 32"):
        aggregator.merge(aggregator.init(SIZE), aggregator.init(SIZE - 1))


@each
def test_a_mean_of_nothing_is_refused(aggregator):
    with pytest.raises(InputError, match="a mean of no examples does not exist"):
        aggregator.finish(aggregator.init(SIZE))
