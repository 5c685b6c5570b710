"""Scale, width and overflow rule of the exact sum, against Python's unbounded integers."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import zstandard

from edgewise.core.errors import FrameRefused, InputError
from edgewise.training.aggregate import fixed_point as fp


def integer_of(total, index):
    return int(total.high[index]) * 2**32 + int(total.low[index])


def test_a_sum_is_the_sum_of_rounded_integers():
    rng = np.random.default_rng(0)
    updates = (rng.normal(size=(50, 20)) * 10.0 ** rng.integers(-9, 4, (50, 20))).astype(np.float32)
    weights = rng.integers(0, 2**19 + 1, 50)
    total = fp.add(fp.zero(20), updates, weights)
    for i in range(20):
        exact = sum(int(w) * round(Fraction(float(u)) * 2**40) for u, w in zip(updates[:, i], weights, strict=True))
        assert integer_of(total, i) == exact


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


def extreme_sum(sign, num_clients=10**6):
    """The sum of 10⁶ clients with the largest entry and the largest weight, by doubling."""
    update = np.full(2, sign * fp.MAX_MAGNITUDE, np.float32)
    total, power, left = fp.zero(2), fp.add(fp.zero(2), update, fp.MAX_WEIGHT), num_clients
    while left:
        if left & 1:
            total = fp.merge(total, power)
        left >>= 1
        power = fp.merge(power, power) if left else power
    return total


@pytest.mark.parametrize("sign", [1, -1])
def test_a_million_clients_with_the_largest_update_and_weight_do_not_overflow(sign):
    total = extreme_sum(sign)
    assert total.total_weight == 10**6 * 2**19
    assert integer_of(total, 0) == sign * 10**6 * 2**19 * 2**55
    assert fp.mean(total).tolist() == [sign * 2.0**15] * 2
    arrived = fp.from_arrays(fp.to_arrays(total))
    assert integer_of(arrived, 0) == integer_of(total, 0)


def test_more_weight_than_is_exact_is_refused():
    total = fp.FixedPointSum(np.zeros(1, np.int64), np.zeros(1, np.uint32), fp.MAX_TOTAL_WEIGHT)
    with pytest.raises(InputError, match=r"would be 549,755,813,889, at most 549,755,813,888 are exact"):
        fp.add(total, np.zeros(1, np.float32), 1)
    with pytest.raises(InputError, match="are exact"):
        fp.merge(total, total)


def test_a_cohort_larger_than_a_slice_equals_its_parts():
    updates = np.random.default_rng(3).normal(size=(2500, 3)).astype(np.float32)
    at_once, parts = fp.add(fp.zero(3), updates, 5), fp.zero(3)
    for start in range(0, 2500, 7):
        parts = fp.add(parts, updates[start : start + 7], 5)
    assert fp.to_arrays(at_once)["planes"].tobytes() == fp.to_arrays(parts)["planes"].tobytes()


def test_a_sum_travels_in_as_many_bytes_as_its_largest_entry_needs():
    rng = np.random.default_rng(0)
    small = fp.add(fp.zero(1000), rng.uniform(-0.25, 0.25, 1000).astype(np.float32), 100)
    # 100 · 2³⁸ < 2⁴⁵: 46 bits with the sign, 6 planes.
    arrays = fp.to_arrays(small)
    assert arrays["lengths"].shape == (6,)
    assert arrays["planes"].size <= 6 * 1001
    assert fp.to_arrays(fp.zero(1000))["planes"].size < 40


def test_a_sum_of_float32_updates_takes_less_than_five_bytes_an_entry():
    rng = np.random.default_rng(0)
    updates = (rng.normal(size=(3, 100_000)) * 0.01).astype(np.float32)
    arrays = fp.to_arrays(fp.add(fp.zero(100_000), updates, [14, 20, 9]))
    assert arrays["planes"].size < 5 * 100_000


@pytest.mark.parametrize("value", [0.0, -0.0, 1e-12, -1e-12, 127 * 2.0**-40, 128 * 2.0**-40, -129 * 2.0**-40, -32768.0])
def test_every_width_comes_back(value):
    total = fp.add(fp.zero(3), np.array([value, 0, -value], np.float32), 3)
    arrived = fp.from_arrays(fp.to_arrays(total))
    assert [integer_of(arrived, i) for i in range(3)] == [integer_of(total, i) for i in range(3)]


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


@pytest.mark.parametrize(
    ("arrays", "text"),
    [
        ({}, "carries no 'planes'"),
        (planes(*[[0, 0]] * 13), "has 1 to 12 planes"),
        (planes([0, 0]) | {"lengths": np.array([7])}, "has 1 to 12 planes"),
        (planes([0, 0]) | {"lengths": np.array([-1, 4])}, "has 1 to 12 planes"),
        (planes([0, 0], [0]), r"have \[2, 1\] entries"),
        (planes(*[[127, 127]] * 12), "out of the range"),
        (planes(*[[0, 0]] * 11, [128, 128]), "out of the range"),
        (planes([0, 0], weight=-1), "out of the range"),
        (planes([0, 0], weight=2**39 + 1), "out of the range"),
        (planes([0]) | {"planes": np.array([1, 9], np.uint8)}, "cannot be unpacked"),
        (
            planes([0]) | {"planes": np.frombuffer(BOMB, np.uint8), "lengths": np.array([len(BOMB)])},
            "claims 268,435,457",
        ),
    ],
)
def test_a_sum_that_no_edge_folds_is_refused(arrays, text):
    with pytest.raises(FrameRefused, match=text):
        fp.from_arrays(arrays)
