"""Exact sums of weighted vectors: 96-bit fixed point, so that no order of folding changes a bit.

**Scale.** An entry u becomes the integer q = round(u · 2⁴⁰), to the nearest, ties to even. |u| ≤ 2¹⁵ is required, so
|q| ≤ 2⁵⁵, which float64 and int64 hold exactly. Entries of at least 2⁻¹⁷ are represented without any error (float32
has 24 bits); smaller ones err by at most 2⁻⁴¹ ≈ 4.5e-13.

**Width.** A sum is Σ w·q = high · 2³² + low with 0 ≤ low < 2³²; high is int64, low uint32. The form is unique, so equal
sums have equal bytes however they were folded: integer addition is associative and commutative.

**Overflow.** A weight is an integer below 2¹⁹ + 1 and all weights of a sum together stay at or below 2³⁹, more than
10⁶ clients of 2¹⁹ examples each (10⁶ · 2¹⁹ < 2³⁹). Then |Σ w·q| ≤ 2³⁹ · 2⁵⁵ = 2⁹⁴ and |high| ≤ 2⁶² + 1 < 2⁶³. Within one
addition w · (low half of q) < 2¹⁹ · 2³² = 2⁵¹, and 1,024 clients are added at a time, so partial sums stay below 2⁶²;
w · (high half) < 2¹⁹ · 2²⁴ = 2⁴³. Whatever breaks a bound is refused before anything is added.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray

from edgewise.codecs.codec import MAX_ENTRIES, Payload
from edgewise.core.errors import FrameRefused, InputError
from edgewise.core.layout import Vector

FRACTION_BITS = 40
MAX_MAGNITUDE = 2.0**15
MAX_WEIGHT = 2**19
MAX_TOTAL_WEIGHT = 2**39
_LOW_BITS = 32
_LOW_MASK = np.int64(2**_LOW_BITS - 1)
_SLICE = 1024
_SLICE_ENTRIES = 2**16
_WIDTH_BYTES = 12


@dataclass(frozen=True, slots=True)
class FixedPointSum:
    """Σ w·q per entry and Σ w.

    Attributes:
        high: int64[d].
        low: uint32[d]; the sum is high · 2³² + low, in units of 2⁻⁴⁰.
        total_weight: Σ w.
    """

    high: NDArray[np.int64]
    low: NDArray[np.uint32]
    total_weight: int


def zero(size: int) -> FixedPointSum:
    """The empty sum of vectors with `size` entries."""
    return FixedPointSum(np.zeros(size, np.int64), np.zeros(size, np.uint32), 0)


def check_update(update: Vector, size: int) -> None:
    """Refuses what cannot be summed exactly.

    Args:
        update: float32[..., d].
        size: d.

    Raises:
        InputError: If the last axis is not d, or an entry is not finite or beyond the range.
    """
    if update.ndim not in (1, 2) or update.shape[-1] != size:
        raise InputError(f"an update of this model has {size} entries, found shape {update.shape}.")
    fits = np.abs(update) <= MAX_MAGNITUDE  # also False for NaN
    if not fits.all():
        index = int(np.flatnonzero(~fits.ravel())[0])
        raise InputError(
            f"entry {index % size} of the update is {update.ravel()[index]!s}; a finite number of at most "
            f"{MAX_MAGNITUDE:,.0f} is needed. The client has diverged: lower its learning rate."
        )


def check_weight(weight: Any) -> NDArray[np.int64]:
    """Reads weights.

    Args:
        weight: One number, or one per client.

    Returns:
        int64[...] of the same shape.

    Raises:
        InputError: If one is not an integer in 0…2¹⁹.
    """
    if type(weight) is int and 0 <= weight <= MAX_WEIGHT:
        return np.array(weight, np.int64)
    given = np.asarray(weight, np.float64)
    ok = (given >= 0) & (given <= MAX_WEIGHT) & (given == np.floor(given))
    if not ok.all():
        raise InputError(
            f"weight {given[~ok].ravel()[0]!s} is not a number of examples. "
            f"An integer from 0 to {MAX_WEIGHT:,} is needed."
        )
    return given.astype(np.int64)


def add(total: FixedPointSum, update: Vector, weight: Any) -> FixedPointSum:
    """The sum with one weighted update, or with a cohort of them.

    Args:
        total: The sum so far; it is not changed.
        update: float32[d], or float32[clients, d].
        weight: Number of examples, or one per client.

    Returns:
        The new sum.

    Raises:
        InputError: If a number is out of range, or the weights of the sum grow beyond 2³⁹.
    """
    check_update(update, total.high.size)
    weights = np.broadcast_to(check_weight(weight), update.shape[:-1]).reshape(-1)
    rows = update.reshape(-1, total.high.size)
    # So many rows at a time that the intermediate integers stay in cache.
    height = max(1, min(_SLICE, _SLICE_ENTRIES // max(1, total.high.size)))
    for start in range(0, len(rows), height):
        total = _add_rows(total, rows[start : start + height], weights[start : start + height])
    return total


def _add_rows(total: FixedPointSum, rows: Vector, weights: NDArray[np.int64]) -> FixedPointSum:
    total_weight = _checked_total(total.total_weight + int(weights.sum()))
    q = np.rint(rows.astype(np.float64) * 2.0**FRACTION_BITS).astype(np.int64)
    low = total.low + ((q & _LOW_MASK) * weights[:, None]).sum(axis=0)
    q >>= _LOW_BITS
    q *= weights[:, None]
    high = total.high + q.sum(axis=0) + (low >> _LOW_BITS)
    return FixedPointSum(high, (low & _LOW_MASK).astype(np.uint32), total_weight)


def merge(left: FixedPointSum, right: FixedPointSum) -> FixedPointSum:
    """The sum of two sums over disjoint clients.

    Args:
        left: One sum.
        right: The other.

    Returns:
        Their sum.

    Raises:
        InputError: If they have different sizes or too much weight together.
    """
    if left.high.size != right.high.size:
        raise InputError(f"a sum of {left.high.size} entries cannot be merged with one of {right.high.size}.")
    total_weight = _checked_total(left.total_weight + right.total_weight)
    low = left.low.astype(np.int64) + right.low
    high = left.high + right.high + (low >> _LOW_BITS)
    return FixedPointSum(high, (low & _LOW_MASK).astype(np.uint32), total_weight)


def mean(total: FixedPointSum) -> Vector:
    """Σ w·u / Σ w, rounded once to float32.

    Args:
        total: A sum with some weight in it.

    Returns:
        float32[d].

    Raises:
        InputError: If no weight was added.
    """
    if total.total_weight == 0:
        raise InputError("a mean of no examples does not exist. At least one client with data must answer.")
    value = total.high.astype(np.float64) * 2.0**_LOW_BITS + total.low
    averaged: Vector = (value / (total.total_weight * 2.0**FRACTION_BITS)).astype(np.float32)
    return averaged


def _checked_total(total_weight: int) -> int:
    if total_weight > MAX_TOTAL_WEIGHT:
        raise InputError(
            f"all weights of a sum together would be {total_weight:,}, at most {MAX_TOTAL_WEIGHT:,} are exact. "
            "Use smaller weights or fewer clients a round."
        )
    return total_weight


def to_arrays(total: FixedPointSum) -> dict[str, NDArray[Any]]:
    """A sum for a frame: byte planes, as many as its largest entry needs, each packed where that makes it smaller.

    About 4.6 bytes an entry for a sum of float32 updates, where float32 itself would take 4 and not be exact.

    Args:
        total: Any sum.

    Returns:
        `planes` uint8[m], one after the other, least significant first, two's complement; `lengths` int64[width],
        bytes of each; `weight` int64[1].
    """
    halves = np.empty((total.high.size, 3), "<u4")
    halves[:, 0] = total.low
    halves[:, 1:] = total.high.astype("<i8").view("<u4").reshape(-1, 2)
    planes = np.ascontiguousarray(halves.view(np.uint8).reshape(-1, _WIDTH_BYTES).T)
    width = _WIDTH_BYTES
    # A plane is redundant where it only repeats the sign bit of the plane below.
    while width > 1 and np.array_equal(planes[width - 1], (planes[width - 2] >> 7) * np.uint8(255)):
        width -= 1
    packed = [_packed(plane.tobytes()) for plane in planes[:width]]
    return {
        "planes": np.frombuffer(b"".join(packed), np.uint8),
        "lengths": np.array([len(p) for p in packed], np.int64),
        "weight": np.array([total.total_weight], np.int64),
    }


def from_arrays(arrays: dict[str, NDArray[Any]]) -> FixedPointSum:
    """Undoes `to_arrays`.

    Args:
        arrays: From a frame; nothing in them is trusted. The number of entries is `lengths`' to say, not to believe:
            merge with `zero(d)` to check it.

    Returns:
        The sum.

    Raises:
        FrameRefused: If they are not a sum within its bounds.
    """
    planes, total_weight = _planes_of(arrays)
    full = np.empty((planes.shape[1], _WIDTH_BYTES), np.uint8)
    full[:, : len(planes)] = planes.T
    full[:, len(planes) :] = ((planes[-1] >> 7) * np.uint8(255))[:, None]
    words = full.view("<u4")
    high = np.ascontiguousarray(words[:, 1:]).view("<i8").reshape(-1).astype(np.int64)
    # |sum| ≤ weight · 2⁵⁵ in units of 2³²; one more for the floor of a negative sum.
    limit = max(total_weight, 0) * 2 ** (55 - _LOW_BITS) + 1
    if not 0 <= total_weight <= MAX_TOTAL_WEIGHT or (high > limit).any() or (high < -limit).any():
        raise FrameRefused(f"a sum of weight {total_weight:,} is out of the range of honest updates.")
    return FixedPointSum(high, words[:, 0].astype(np.uint32), total_weight)


def _planes_of(arrays: dict[str, NDArray[Any]]) -> tuple[NDArray[np.uint8], int]:
    payload = Payload((), arrays)
    planes, lengths = payload.array("planes", np.uint8, (None,)), payload.array("lengths", np.int64, (None,))
    weight = payload.array("weight", np.int64, (1,))
    fits = 1 <= lengths.size <= _WIDTH_BYTES and (lengths >= 0).all() and (lengths <= planes.size).all()
    if not fits or int(lengths.sum()) != planes.size:
        raise FrameRefused(f"a sum has 1 to {_WIDTH_BYTES} planes of {planes.size} bytes together, found {lengths}.")
    parts = [_unpacked(p.tobytes()) for p in np.split(planes, np.cumsum(lengths)[:-1])]
    if len({p.size for p in parts}) != 1:
        raise FrameRefused(f"the planes of a sum have {[p.size for p in parts]} entries; they must have as many each.")
    return np.stack(parts), int(weight[0])


def _packed(plane: bytes) -> bytes:
    smaller = zstandard.ZstdCompressor(level=1).compress(plane)
    return b"\x01" + smaller if len(smaller) < len(plane) else b"\x00" + plane


def _unpacked(data: bytes) -> NDArray[np.uint8]:
    if data[:1] == b"\x00":
        return np.frombuffer(data, np.uint8, offset=1)
    try:
        size = zstandard.frame_content_size(data[1:])
        if not 0 <= size <= MAX_ENTRIES:
            raise FrameRefused(f"a plane of a sum claims {size:,} entries, at most {MAX_ENTRIES:,} are accepted.")
        return np.frombuffer(zstandard.ZstdDecompressor().decompress(data[1:]), np.uint8)
    except zstandard.ZstdError as error:
        raise FrameRefused(f"a plane of a sum cannot be unpacked: {error}.") from error
