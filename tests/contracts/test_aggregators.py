"""What every aggregator keeps. A new one is tested by one line of EXAMPLES."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from edgewise.core.errors import FrameRefused, InputError, MisfitError
from edgewise.core.ids import RoundNumber
from edgewise.core.spec import Spec, build
from edgewise.training.aggregate import AGGREGATORS, collected, coordinate_median, trimmed_mean, weighted_mean
from edgewise.training.algorithm import Closed, Counted, Kind

EXAMPLES = [
    weighted_mean(),
    weighted_mean("uniform"),
    weighted_mean("staleness(weigh=uniform(), power=0.5)"),
    weighted_mean("loss"),
    weighted_mean(divisor="all"),
    weighted_mean(disk_entries=1),
    coordinate_median(),
    trimmed_mean(0.2),
]
SUMS = [a for a in EXAMPLES if a.kind is Kind.SUM]
COLLECTS = [a for a in EXAMPLES if a.kind is Kind.COLLECT]
each = pytest.mark.parametrize("aggregator", EXAMPLES, ids=lambda a: str(a.spec))
each_sum = pytest.mark.parametrize("aggregator", SUMS, ids=lambda a: str(a.spec))
each_collect = pytest.mark.parametrize("aggregator", COLLECTS, ids=lambda a: str(a.spec))
SIZE = 33
POPULATION = tuple(Counted(n, metrics={"loss": 1.0}) for n in (1, 2, 3))


def closed(num=5, population=POPULATION):
    return Closed(RoundNumber(1), num, 10, np.random.default_rng(0), population)


def sample(clients=5, seed=0):
    rng = np.random.default_rng(seed)
    scale = np.exp(rng.normal(size=(clients, SIZE)) * 4)
    return (rng.normal(size=(clients, SIZE)) * scale).clip(-1000, 1000).astype(np.float32), rng.integers(
        1, 500, clients
    )


def folded(aggregator, updates, weights):
    total = aggregator.init(SIZE)
    for update, weight in zip(updates, weights, strict=True):
        total = aggregator.add(total, update[None], [weight])
    return total


def result(aggregator, updates, weights, slice_bytes=2**20, population=POPULATION):
    if aggregator.kind is Kind.SUM:
        return aggregator.finish(folded(aggregator, updates, weights), closed(len(updates), population))
    decode = lambda index, entries: updates[index][entries]  # noqa: E731
    return collected(aggregator, decode, len(updates), SIZE, weights, closed(len(updates), population), slice_bytes)


def as_bytes(aggregator, total):
    return {name: array.tobytes() for name, array in aggregator.to_arrays(total).items()}


def test_every_registered_aggregator_has_an_example():
    assert {a.spec.name for a in EXAMPLES} == set(AGGREGATORS)


@each
def test_no_order_changes_a_bit_of_the_result(aggregator):
    updates, weights = sample()
    found = {
        result(aggregator, updates[list(order)], weights[list(order)]).tobytes()
        for order in itertools.permutations(range(5))
    }
    assert len(found) == 1


@each
def test_words_build_the_same_aggregator(aggregator):
    rebuilt = build("aggregate", AGGREGATORS, aggregator.spec.to_dict())
    assert rebuilt.spec == aggregator.spec == build("aggregate", AGGREGATORS, Spec.parse(str(aggregator.spec))).spec
    np.testing.assert_array_equal(result(rebuilt, *sample()), result(aggregator, *sample()))


@each
def test_it_ignores_zero_weight(aggregator):
    updates, weights = sample()
    weights[2] = 0
    without = np.delete(updates, 2, axis=0), np.delete(weights, 2)
    np.testing.assert_array_equal(result(aggregator, updates, weights), result(aggregator, *without))


@each
def test_equal_updates_are_their_own_result(aggregator):
    update = np.linspace(-4, 4, SIZE, dtype=np.float32)
    np.testing.assert_array_equal(result(aggregator, np.stack([update] * 3), [2, 2, 2]), update)


@each
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_an_entry_that_cannot_be_folded_is_refused_at_the_door(aggregator, bad):
    update = np.zeros(SIZE, np.float32)
    aggregator.check(update)
    update[5] = bad
    with pytest.raises(InputError, match=r"entry 5 of the update is"):
        aggregator.check(update)


@each
def test_a_result_of_nothing_is_refused(aggregator):
    with pytest.raises(InputError, match="At least one client with data must answer"):
        result(aggregator, np.zeros((0, SIZE), np.float32), [], population=(Counted(0),))


@each_sum
def test_a_sum_is_not_collected(aggregator):
    with pytest.raises(MisfitError, match=r"is given its updates by sum, it has no 'finish_slice'"):
        aggregator.finish_slice(np.zeros((1, 1), np.float32), [1], closed())


@each_collect
def test_what_is_collected_is_not_summed(aggregator):
    with pytest.raises(MisfitError, match=r"is given its updates by collect, it has no 'init'"):
        aggregator.init(SIZE)


@each_sum
def test_no_order_changes_a_bit_of_the_sum(aggregator):
    updates, weights = sample()
    sums = {
        tuple(as_bytes(aggregator, folded(aggregator, updates[list(order)], weights[list(order)])).values())
        for order in itertools.permutations(range(5))
    }
    assert len(sums) == 1


@each_sum
def test_partial_sums_merge_to_the_same_bits_however_they_are_grouped(aggregator):
    updates, weights = sample(6)
    whole = as_bytes(aggregator, folded(aggregator, updates, weights))
    for cut in range(7):
        parts = [slice(cut), slice(cut, None)]
        for first, second in (parts, parts[::-1]):
            left, right = (folded(aggregator, updates[s], weights[s]) for s in (first, second))
            assert as_bytes(aggregator, aggregator.merge(left, right)) == whole


@each_sum
def test_a_cohort_at_once_equals_its_clients_one_by_one(aggregator):
    updates, weights = sample(7)
    at_once = aggregator.add(aggregator.init(SIZE), updates, weights)
    assert as_bytes(aggregator, at_once) == as_bytes(aggregator, folded(aggregator, updates, weights))


@each_sum
def test_some_entries_of_the_result_are_these_of_the_whole(aggregator):
    total = folded(aggregator, *sample())
    whole = aggregator.finish(total, closed())
    np.testing.assert_array_equal(aggregator.finish(total, closed(), slice(7, 20)), whole[7:20])


@each_sum
def test_a_sum_travels_onto_another(aggregator):
    updates, weights = sample()
    whole = as_bytes(aggregator, folded(aggregator, updates, weights))
    arrived = aggregator.init(SIZE)
    for part in (slice(2), slice(2, None)):
        arrays = aggregator.to_arrays(folded(aggregator, updates[part], weights[part]))
        arrived = aggregator.add_arrays(
            arrived, {n: np.frombuffer(a.tobytes(), a.dtype).reshape(a.shape) for n, a in arrays.items()}
        )
    assert as_bytes(aggregator, arrived) == whole
    assert aggregator.weight_of(arrived) == aggregator.units(weights)


@each_sum
@pytest.mark.parametrize("weight", [-1, float("nan"), float("inf"), 2.0**39 + 2])
def test_a_weight_that_cannot_be_counted_is_refused(aggregator, weight):
    for act in (
        lambda: aggregator.units([weight]),
        lambda: aggregator.add(aggregator.init(1), np.zeros((1, 1)), [weight]),
    ):
        with pytest.raises(InputError, match=r"is not a number of examples|cannot be counted"):
            act()


@each_sum
def test_another_size_is_refused(aggregator):
    with pytest.raises(InputError, match=r"has 33 entries, found shape \(1, 32\)"):
        aggregator.add(aggregator.init(SIZE), np.zeros((1, SIZE - 1), np.float32), [1])
    with pytest.raises(InputError, match="cannot be merged with one of 32"):
        aggregator.merge(aggregator.init(SIZE), aggregator.init(SIZE - 1))
    with pytest.raises(FrameRefused, match="of 33 entries is expected, found one of 32"):
        aggregator.add_arrays(aggregator.init(SIZE), aggregator.to_arrays(aggregator.init(SIZE - 1)))


@each_collect
def test_slices_change_no_bit(aggregator):
    whole = result(aggregator, *sample())
    for slice_bytes in (1, 20, 60, 4 * 5 * SIZE):
        np.testing.assert_array_equal(result(aggregator, *sample(), slice_bytes), whole)
