"""Exact sums of weighted vectors: 96- or 128-bit fixed point, so that no order of folding changes a bit.

**Scale.** An entry u becomes the integer q = round(u · 2⁴⁰), to the nearest, ties to even. |u| ≤ 2¹⁵ is required, so
|q| ≤ 2⁵⁵, which float64 and int64 hold exactly. Entries of at least 2⁻¹⁷ are represented without any error (float32
has 24 bits); smaller ones err by at most 2⁻⁴¹ ≈ 4.5e-13. A weight W is a whole number of units; what a unit is stands
fixed before anything is added (`Weigh.unit`), so rounding to it depends on nothing but the weight.

**Width.** A sum is Σ W·q = high · 2³²ᵏ + lowₖ₋₁ · 2³²⁽ᵏ⁻¹⁾ + … + low₀ with 0 ≤ lowᵢ < 2³²; high is int64, each low uint32.
The form is unique, so equal sums have equal bytes however they were folded: integer addition is associative and
commutative. k = 1 where weights are whole numbers (12 bytes an entry), k = 2 where they are real (16 bytes).

**Overflow.** All weights of a sum together stay at or below 2³⁹ units for k = 1 (10⁹ examples are 2³⁰) and 2⁶¹ for k = 2
(10⁹ at a unit of 2⁻³⁰ are 2⁶⁰). Then |Σ W·q| ≤ 2⁹⁴ and |high| ≤ 2⁶² + 1, or ≤ 2¹¹⁶ and |high| ≤ 2⁵² + 1. Within one addition
q = q₁ · 2³² + q₀, with 0 ≤ q₀ < 2³² and |q₁| ≤ 2²³. Where m rows of weight at most 2³⁰/m are added together, Σ W·q₀ < 2⁶² and
|Σ W·q₁| ≤ 2⁵³. Otherwise W = W₁ · 2³² + W₀ as well, and 16 rows are added at a time: W₀·q₀ < 2⁶⁴ fits uint64 and is cut
into halves before it is summed (< 2³⁶ each); |Σ W₀·q₁| ≤ 16 · 2⁵⁵ = 2⁵⁹, Σ W₁·q₀ < 2²⁹ · 2³² = 2⁶¹, |Σ W₁·q₁| ≤ 2⁵²: every
partial sum stays below 2⁶². Only high itself may pass 2⁶³ on the way for k = 1; it is exact modulo 2⁶⁴, and its end fits.
Whatever breaks a bound is refused before anything is added.

**Memory.** A sum is changed in place, in slices of entries that stay in cache, so adding an update of 100 M entries needs
a few megabytes beside the sum. `zero(on_disk=True)` keeps the sum in a file that is mapped and let go slice by slice.
"""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewise.core.errors import InputError
from edgewise.core.layout import Vector

FRACTION_BITS = 40
MAX_MAGNITUDE = 2.0**15
MAX_TOTAL_UNITS: Mapping[int, int] = {1: 2**39, 2: 2**61}
"""By number of low limbs k."""
LOW_BITS = 32
_LOW_MASK = np.int64(2**LOW_BITS - 1)
_NARROW_UNITS = 2**30
_WIDE_ROWS = 16
_ROWS = 1024
_SLICE_ENTRIES = 2**15  # temporaries of 256 KiB: larger ones go back to the system each time and are paged in anew
_LARGE_ENTRIES = 2**20
"""From so many entries a sum lies in mapped memory, which can be given back slice by slice while it is finished."""


@dataclass(slots=True)
class FixedPointSum:
    """Σ W·q per entry and Σ W; changed in place by what adds to it.

    Attributes:
        high: int64[d].
        low: uint32[k, d]; the sum is high · 2³²ᵏ + Σ low[i] · 2³²ⁱ, in units of 2⁻⁴⁰.
        total_units: Σ W.
        mapped: What they lie in, high first: a file, or private memory of a large sum; None for a small one.
        on_disk: Whether it is a file.
    """

    high: NDArray[np.int64]
    low: NDArray[np.uint32]
    total_units: int = 0
    mapped: mmap.mmap | None = None
    on_disk: bool = False

    @property
    def size(self) -> int:
        """d."""
        return self.high.size

    @property
    def max_units(self) -> int:
        """The most that all weights together may be."""
        return MAX_TOTAL_UNITS[len(self.low)]


def zero(size: int, num_lows: int = 1, on_disk: bool = False) -> FixedPointSum:
    """The empty sum of vectors with `size` entries.

    Args:
        size: d.
        num_lows: k; 1 for weights that are whole numbers, 2 for real ones.
        on_disk: In a nameless file of the temporary folder (TMPDIR, which should not be in memory) instead of in memory.

    Returns:
        The sum.
    """
    if not size or (not on_disk and size < _LARGE_ENTRIES):
        return FixedPointSum(np.zeros(size, np.int64), np.zeros((num_lows, size), np.uint32))
    mapped = _mapped((8 + 4 * num_lows) * size, on_disk)
    low = np.frombuffer(mapped, np.uint32, offset=8 * size).reshape(num_lows, size)
    return FixedPointSum(np.frombuffer(mapped, np.int64, size), low, 0, mapped, on_disk)


def _mapped(size_bytes: int, on_disk: bool) -> mmap.mmap:
    if not on_disk:
        private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
        return mmap.mmap(-1, size_bytes, **private)
    with tempfile.TemporaryFile(prefix="edgewise-sum-") as file:
        file.truncate(size_bytes)
        return mmap.mmap(file.fileno(), 0)


def slices_of(size: int, width: int = _SLICE_ENTRIES) -> Iterator[slice]:
    """Cuts 0…size into slices of at most `width`."""
    return (slice(start, min(start + width, size)) for start in range(0, size, width))


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
    # A sum of squares is at least each of them, whatever is rounded on the way; with a NaN or an overflow it compares false.
    # A large one gains nothing by it, and would pay with a work space of the library that adds.
    if update.size <= _SLICE_ENTRIES and update.flags.c_contiguous:
        with np.errstate(over="ignore", invalid="ignore"):
            if np.dot(flat := update.reshape(-1), flat) <= MAX_MAGNITUDE**2 / 4:
                return
    # A NaN passes through min and max, and compares false.
    if update.size == 0 or (update.max() <= MAX_MAGNITUDE and update.min() >= -MAX_MAGNITUDE):
        return
    index = int(np.argmin((np.abs(update) <= MAX_MAGNITUDE).ravel()))
    raise InputError(
        f"entry {index % size} of the update is {update.ravel()[index]!s}; a finite number of at most "
        f"{MAX_MAGNITUDE:,.0f} is needed. The client has diverged: lower its learning rate."
    )


def add(total: FixedPointSum, update: Vector, units: Any) -> FixedPointSum:
    """The sum with one weighted update, or with a cohort of them.

    Args:
        total: The sum so far; it is changed.
        update: float32[d], or float32[clients, d].
        units: Whole weights, one or one per client.

    Returns:
        The new sum.

    Raises:
        InputError: If a number is out of range, or the weights of the sum grow beyond its bound; nothing is added then.
    """
    check_update(update, total.size)
    given = np.broadcast_to(np.asarray(units, np.int64), update.shape[:-1]).reshape(-1)
    total.total_units = _checked_units(total, _sum_of(given))
    rows = update.reshape(-1, total.size)
    for entries in slices_of(total.size):
        # So many rows at a time that the intermediate integers stay in cache.
        height = max(1, min(_ROWS, _SLICE_ENTRIES // (entries.stop - entries.start)))
        if given.size and int(given.max()) > _NARROW_UNITS // height:
            height = min(height, _WIDE_ROWS)
        for start in range(0, len(rows), height):
            _add_part(total, entries, rows[start : start + height, entries], given[start : start + height])
        _let_go(total, entries)
    return total


def _add_part(total: FixedPointSum, entries: slice, rows: Vector, units: NDArray[np.int64]) -> None:
    scaled = np.multiply(rows, 2.0**FRACTION_BITS, dtype=np.float64)
    q = np.rint(scaled, out=scaled).astype(np.int64)
    column = units[:, None]
    if len(units) * int(units.max()) <= _NARROW_UNITS:
        first = q & _LOW_MASK
        first *= column
        q >>= LOW_BITS
        q *= column
        _carry(total, entries, (_over_rows(first), _over_rows(q)))
        return
    q0, q1 = (q & _LOW_MASK).astype(np.uint64), q >> LOW_BITS
    w0, w1 = column & _LOW_MASK, column >> LOW_BITS
    product = q0 * w0.astype(np.uint64)
    lower = (product & np.uint64(_LOW_MASK)).astype(np.int64)
    upper = (product >> np.uint64(LOW_BITS)).astype(np.int64)
    upper += q1 * w0
    upper += q0.astype(np.int64) * w1
    _carry(total, entries, (_over_rows(lower), _over_rows(upper), _over_rows(q1 * w1)))


def _over_rows(terms: NDArray[np.int64]) -> NDArray[np.int64]:
    found: NDArray[np.int64] = terms[0] if len(terms) == 1 else terms.sum(axis=0)
    return found


def _carry(total: FixedPointSum, entries: slice, parts: tuple[NDArray[np.int64], ...]) -> None:
    """Adds Σ parts[i] · 2³²ⁱ to a slice; the parts are used up."""
    carry: Any = np.int64(0)
    for low, part in zip(total.low, parts, strict=False):
        part += carry
        part += low[entries]
        low[entries] = part  # modulo 2³²
        part >>= LOW_BITS
        carry = part
    # For k = 1 there may be a third part, which high holds modulo 2⁶⁴; for k = 2 perhaps only two, and a carry is left.
    for place, part in enumerate(parts[len(total.low) :]):
        carry += part << LOW_BITS * place if place else part
    total.high[entries] += carry


def merge(left: FixedPointSum, right: FixedPointSum) -> FixedPointSum:
    """The sum of two sums over disjoint clients.

    Args:
        left: One sum; it is changed.
        right: The other.

    Returns:
        Their sum.

    Raises:
        InputError: If they have different sizes or too much weight together; nothing is added then.
    """
    if left.low.shape != right.low.shape:
        raise InputError(f"a sum of {left.size} entries cannot be merged with one of {right.size}.")
    left.total_units = _checked_units(left, right.total_units)
    for entries in slices_of(left.size):
        merge_part(left, entries, right.high[entries], right.low[:, entries])
        _let_go(right, entries)
    return left


def merge_part(total: FixedPointSum, entries: slice, high: NDArray[np.int64], low: NDArray[np.uint32]) -> None:
    """Adds the limbs of another sum to a slice; its weight is the caller's to add."""
    _carry(total, entries, (*low.astype(np.int64), high))
    _let_go(total, entries)


def add_units(total: FixedPointSum, units: int) -> None:
    """Counts weight that comes with limbs.

    Args:
        total: The sum; it is changed.
        units: Whole.

    Raises:
        InputError: If the weights of the sum would grow beyond its bound.
    """
    total.total_units = _checked_units(total, units)


def mean(total: FixedPointSum, divisor_units: int | None = None, entries: slice = slice(None)) -> Vector:
    """Σ W·u / Σ W, rounded to float32.

    Args:
        total: A sum.
        divisor_units: What to divide by instead of the sum's own weight.
        entries: Of which entries.

    Returns:
        float32[d], or of those entries.

    Raises:
        InputError: If there is no weight to divide by.
    """
    divisor = total.total_units if divisor_units is None else divisor_units
    if divisor == 0:
        raise InputError("a mean of no examples does not exist. At least one client with data must answer.")
    start, stop, _ = entries.indices(total.size)
    averaged: Vector = np.empty(stop - start, np.float32)
    for part in slices_of(stop - start):
        place = slice(start + part.start, start + part.stop)
        value = total.high[place].astype(np.float64)
        for low in total.low[::-1]:
            value = value * 2.0**LOW_BITS + low[place]
        averaged[part] = value / (divisor * 2.0**FRACTION_BITS)
        _let_go(total, place)
    return averaged


def _checked_units(total: FixedPointSum, more: int) -> int:
    total_units = total.total_units + more
    if total_units > total.max_units:
        raise InputError(
            f"all weights of a sum together would be {total_units:,}, at most {total.max_units:,} are exact. "
            "Use smaller weights or fewer clients a round."
        )
    return total_units


def _sum_of(units: NDArray[np.int64]) -> int:
    fits = units.size * int(units.max(initial=0)) < 2**63
    return int(units.sum()) if fits else sum(units.tolist())


def forget(total: FixedPointSum, entries: slice) -> None:
    """Frees what it can of the memory of entries that nobody will ask for again; they are worth nothing afterwards."""
    start, stop, _ = entries.indices(total.size)
    _release(total, start, stop)


def _let_go(total: FixedPointSum, entries: slice) -> None:
    """Gives the pages of a slice that is on disk back to the system, which writes them when it likes."""
    if total.on_disk:
        _release(total, entries.start, entries.stop)


def _release(total: FixedPointSum, start: int, stop: int) -> None:
    if total.mapped is None or not hasattr(mmap, "MADV_DONTNEED"):
        return
    page, size = mmap.PAGESIZE, total.size
    places = [(0, 8)] + [(8 * size + 4 * size * k, 4) for k in range(len(total.low))]
    for offset, itemsize in places:
        first, last = offset + itemsize * start, offset + itemsize * stop
        # Of a file a page may go that others still use; of private memory only pages that are all within.
        first = first // page * page if total.on_disk else -(-first // page) * page
        last = last if total.on_disk else last // page * page
        if first < last:
            total.mapped.madvise(mmap.MADV_DONTNEED, first, last - first)
