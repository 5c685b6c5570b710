"""Scale, width and overflow rule of the exact sum, against Python's unbounded integers."""

from __future__ import annotations

import tracemalloc
from fractions import Fraction

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from edgewise.core.errors import FrameRefused, InputError
from edgewise.training.aggregate import fixed_point as fp
from edgewise.training.aggregate import sum_planes as planes_of


def integer_of(total, index):
    value = int(total.high[index])
    for low in total.low[::-1]:
        value = value * 2**32 + int(low[index])
    return value


def exact_sums(updates, units):
    scaled = [[round(Fraction(float(u)) * 2**40) for u in row] for row in np.asarray(updates)]
    return [sum(int(w) * q for w, q in zip(units, column, strict=True)) for column in zip(*scaled, strict=True)]


def integers_of(total):
    return [integer_of(total, index) for index in range(total.size)]


def as_bytes(total):
    return total.high.tobytes(), total.low.tobytes(), total.total_units


def arrived(total):
    return planes_of.add_arrays(fp.zero(total.size, len(total.low)), planes_of.to_arrays(total))


def test_a_sum_is_the_sum_of_rounded_integers():
    rng = np.random.default_rng(0)
    updates = (rng.normal(size=(50, 20)) * 10.0 ** rng.integers(-9, 4, (50, 20))).astype(np.float32)
    weights = rng.integers(0, 2**19 + 1, 50)
    assert integers_of(fp.add(fp.zero(20), updates, weights)) == exact_sums(updates, weights)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf, 1.001 * fp.MAX_MAGNITUDE, -1.001 * fp.MAX_MAGNITUDE, 3e38])
@pytest.mark.parametrize("shape", [(500,), (3, 500)])
def test_one_entry_that_cannot_be_summed_is_found_among_many(wrong, shape):
    update = np.random.default_rng(4).normal(size=shape).astype(np.float32)
    for array in (update.copy(), np.array(update, order="F"), np.zeros(shape, np.float32)):
        fp.check_update(array, 500)
        array.flat[7] = wrong
        with pytest.raises(InputError, match="entry 7 of the update is"):
            fp.check_update(array, 500)
    for most in (fp.MAX_MAGNITUDE, -fp.MAX_MAGNITUDE):
        fp.check_update(np.full(shape, most, np.float32), 500)


def test_entries_of_at_least_two_to_the_minus_17_are_represented_without_error():
    rng = np.random.default_rng(1)
    values = (rng.choice([-1, 1], 1000) * rng.uniform(2.0**-17, 1, 1000)).astype(np.float32)
    total = fp.add(fp.zero(1000), values, 1)
    assert all(Fraction(integer_of(total, i), 2**40) == Fraction(float(values[i])) for i in range(1000))


def test_the_mean_is_within_half_an_ulp_of_the_float64_mean():
    rng = np.random.default_rng(2)
    updates, weights = rng.normal(size=(40, 500)).astype(np.float32) * 0.1, rng.integers(1, 1000, 40)
    exact = np.average(updates.astype(np.float64), axis=0, weights=weights)
    found = fp.mean(fp.add(fp.zero(500), updates, weights))
    ulp = np.spacing(np.abs(exact).astype(np.float32)).astype(np.float64)
    # Half an ulp of float32, the stated 2⁻⁴¹ of representation, and float64's own noise.
    assert (np.abs(found - exact) <= ulp / 2 + 2.0**-41 + 1e-15).all()


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("num_lows", [1, 2])
def test_the_largest_updates_and_weights_do_not_overflow(sign, num_lows):
    update, most = np.full(2, sign * fp.MAX_MAGNITUDE, np.float32), fp.MAX_TOTAL_UNITS[num_lows]
    total = fp.add(fp.zero(2, num_lows), update, most // 2)
    total = fp.add(total, np.stack([update] * 64), most // 128)
    assert total.total_units == most
    assert integer_of(total, 0) == sign * most * 2**55
    assert fp.mean(total).tolist() == [sign * 2.0**15] * 2
    assert as_bytes(arrived(total)) == as_bytes(total)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_client_with_ten_million_examples_and_a_billion_together_are_exact(sign):
    rng = np.random.default_rng(0)
    updates, weights = sign * rng.uniform(0, 4, (20, 5)).astype(np.float32), rng.integers(10**7, 5 * 10**7, 20)
    weights[-1] += 10**9 - weights.sum()
    assert integers_of(fp.add(fp.zero(5), updates, weights)) == exact_sums(updates, weights)


LIMBS = st.sampled_from([1, 2])
ENTRY = st.floats(-(2.0**15), 2.0**15, width=32)


@given(st.data(), LIMBS)
def test_any_sum_is_exact_in_any_order_and_grouping(data, num_lows):
    most = fp.MAX_TOTAL_UNITS[num_lows] // 8
    rows = data.draw(st.lists(st.tuples(st.lists(ENTRY, min_size=3, max_size=3), st.integers(0, most)), max_size=8))
    updates = np.array([r[0] for r in rows], np.float32).reshape(-1, 3)
    units = np.array([r[1] for r in rows], np.int64)
    order = data.draw(st.permutations(range(len(rows))))
    cut = data.draw(st.integers(0, len(rows)))
    whole = fp.add(fp.zero(3, num_lows), updates, units)
    left, right = (fp.add(fp.zero(3, num_lows), updates[o], units[o]) for o in (order[:cut], order[cut:]))
    assert integers_of(whole) == (exact_sums(updates, units) or [0] * 3)
    assert as_bytes(fp.merge(left, arrived(right))) == as_bytes(whole) == as_bytes(arrived(whole))


@given(st.lists(st.integers(0, 2**36), min_size=1, max_size=6))
def test_whole_weights_give_the_same_mean_in_either_width(units):
    updates = np.random.default_rng(0).normal(size=(len(units), 4)).astype(np.float32)
    narrow, wide = (fp.add(fp.zero(4, k), updates, units) for k in (1, 2))
    assert integers_of(narrow) == integers_of(wide)


def test_more_weight_than_is_exact_is_refused_and_nothing_is_added():
    total = fp.FixedPointSum(np.zeros(1, np.int64), np.zeros((1, 1), np.uint32), fp.MAX_TOTAL_UNITS[1])
    with pytest.raises(InputError, match=r"would be 549,755,813,889, at most 549,755,813,888 are exact"):
        fp.add(total, np.ones(1, np.float32), 1)
    with pytest.raises(InputError, match="are exact"):
        fp.merge(total, total)
    assert as_bytes(total) == (bytes(8), bytes(4), 2**39)


def test_an_update_of_nonsense_adds_nothing():
    total = fp.zero(2**17)
    bad = np.ones(2**17, np.float32)
    bad[-1] = np.nan
    with pytest.raises(InputError, match="entry 131071 of the update is nan"):
        fp.add(total, bad, 1)
    assert as_bytes(total) == as_bytes(fp.zero(2**17))


@pytest.mark.parametrize("num_lows", [1, 2])
def test_a_sum_on_disk_has_the_bytes_of_one_in_memory(num_lows):
    size = 3 * 2**16 + 5
    updates = np.random.default_rng(0).normal(size=(3, size)).astype(np.float32)
    found = [fp.add(fp.zero(size, num_lows, on_disk), updates, [3, 2**33, 5]) for on_disk in (False, True)]
    assert as_bytes(found[0]) == as_bytes(found[1]) == as_bytes(arrived(found[1]))
    assert fp.mean(found[0]).tobytes() == fp.mean(found[1]).tobytes()
    part = slice(70_000, 150_001)
    assert fp.mean(found[1], entries=part).tobytes() == fp.mean(found[0])[part].tobytes()


def peak_bytes(work):
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_large_model_takes_little_memory_beside_the_sum():
    size = 2_000_000
    total, update = fp.zero(size), np.ones(size, np.float32)
    assert peak_bytes(lambda: fp.mean(fp.add(total, update, 3), entries=slice(0, 2**16))) < 4 * 2**20
    arrays = planes_of.to_arrays(total)
    assert peak_bytes(lambda: (planes_of.to_arrays(total), planes_of.add_arrays(total, arrays))) < 16 * 2**20


def test_a_cohort_larger_than_a_slice_equals_its_parts():
    updates = np.random.default_rng(3).normal(size=(2500, 3)).astype(np.float32)
    at_once, parts = fp.add(fp.zero(3), updates, 5), fp.zero(3)
    for start in range(0, 2500, 7):
        parts = fp.add(parts, updates[start : start + 7], 5)
    assert as_bytes(at_once) == as_bytes(parts)


def test_a_sum_travels_in_as_many_bytes_as_its_largest_entry_needs():
    rng = np.random.default_rng(0)
    small = fp.add(fp.zero(1000), rng.uniform(-0.25, 0.25, 1000).astype(np.float32), 100)
    # 100 · 2³⁸ < 2⁴⁵: 46 bits with the sign, 6 planes.
    arrays = planes_of.to_arrays(small)
    assert arrays["lengths"].shape == (6,)
    assert arrays["planes"].size <= 6 * 1001
    assert planes_of.to_arrays(fp.zero(1000))["planes"].size < 40


def test_a_sum_of_float32_updates_takes_less_than_five_bytes_an_entry():
    rng = np.random.default_rng(0)
    updates = (rng.normal(size=(3, 100_000)) * 0.01).astype(np.float32)
    arrays = planes_of.to_arrays(fp.add(fp.zero(100_000), updates, [14, 20, 9]))
    assert arrays["planes"].size < 5 * 100_000


@pytest.mark.parametrize("value", [0.0, -0.0, 1e-12, -1e-12, 127 * 2.0**-40, 128 * 2.0**-40, -129 * 2.0**-40, -32768.0])
def test_every_width_comes_back(value):
    total = fp.add(fp.zero(3), np.array([value, 0, -value], np.float32), 3)
    assert as_bytes(arrived(total)) == as_bytes(total)


def planes(*given, weight=1):
    packed = [b"\x00" + bytes(g) for g in given]
    return {
        "planes": np.frombuffer(b"".join(packed), np.uint8),
        "lengths": np.array([len(p) for p in packed], np.int64),
        "weight": np.array([weight]),
    }


def claiming(size):
    """The beginning of a packed plane whose header claims `size` entries."""
    writer = zstandard.ZstdCompressor().compressobj(size=size)
    return b"\x01" + writer.compress(bytes(9)) + writer.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)


BOMB = claiming(2**28 + 1)
CUT = np.frombuffer(b"\x01" + zstandard.ZstdCompressor().compress(bytes(2))[:-1], np.uint8)


@pytest.mark.parametrize(
    ("arrays", "text"),
    [
        ({}, "carries no 'planes'"),
        (planes(*[[0, 0]] * 13), "has 1 to 12 planes"),
        (planes([0, 0]) | {"lengths": np.array([7])}, "has 1 to 12 planes"),
        (planes([0, 0]) | {"lengths": np.array([-1, 4])}, "has 1 to 12 planes"),
        (planes([0, 0]) | {"lengths": np.array([0, 3])}, "has 1 to 12 planes"),
        (planes([0, 0, 0]), "of 2 entries is expected, found one of 3"),
        (planes([0, 0], [0]), r"have \[2, 1\] entries"),
        (planes(*[[127, 127]] * 12), "out of the range"),
        (planes(*[[0, 0]] * 11, [128, 128]), "out of the range"),
        (planes([0, 0], weight=-1), "out of the range"),
        (planes([0, 0], weight=2**39 + 1), "out of the range"),
        (planes([0]) | {"planes": np.array([1, 9], np.uint8)}, "cannot be unpacked"),
        (planes([0]) | {"planes": CUT, "lengths": np.array([CUT.size])}, "before its end"),
        (
            planes([0]) | {"planes": np.frombuffer(BOMB, np.uint8), "lengths": np.array([len(BOMB)])},
            "claims 268,435,457",
        ),
    ],
)
def test_a_sum_that_no_edge_folds_is_refused(arrays, text):
    with pytest.raises(FrameRefused, match=text):
        planes_of.add_arrays(fp.zero(2), arrays)


@pytest.mark.parametrize("on_disk", [False, True])
def test_forgetting_a_slice_leaves_the_others(on_disk):
    size = 2**20 + 3
    total = fp.add(fp.zero(size, 2, on_disk), np.arange(size, dtype=np.float32) % 1000, 2)
    before = fp.mean(total)
    for entries in fp.slices_of(500_000):
        fp.forget(total, entries)
    assert fp.mean(total, entries=slice(500_000, None)).tobytes() == before[500_000:].tobytes()
