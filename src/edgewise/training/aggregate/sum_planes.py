"""How an exact sum travels: byte planes, each packed where that makes it smaller. Nothing read here is trusted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray

from edgewise.codecs.codec import MAX_ENTRIES, Payload
from edgewise.core.errors import FrameRefused
from edgewise.training.aggregate.fixed_point import FixedPointSum, add_units, merge_part, slices_of

_PLAIN, _PACKED = b"\x00", b"\x01"
_SLICE_ENTRIES = 2**18

Reader = Callable[[int], NDArray[np.uint8]]
"""How many of a plane's next entries -> these entries."""


def to_arrays(total: FixedPointSum) -> dict[str, NDArray[Any]]:
    """A sum for a frame: byte planes, as many as its largest entry needs.

    About 4.6 bytes an entry for a sum of float32 updates, where float32 itself would take 4 and not be exact.

    Args:
        total: Any sum.

    Returns:
        `planes` uint8[m], one after the other, least significant first, two's complement; `lengths` int64[width],
        bytes of each; `weight` int64[1], in whole units.
    """
    width = 8 + 4 * len(total.low)
    while width > 1 and _is_sign(total, width - 1):
        width -= 1
    compressor, planes, lengths = zstandard.ZstdCompressor(level=1), bytearray(), []
    for place in range(width):
        packed = _packed(total, place, compressor)
        planes += packed
        lengths.append(len(packed))
    return {
        "planes": np.frombuffer(planes, np.uint8),
        "lengths": np.array(lengths, np.int64),
        "weight": np.array([total.total_units], np.int64),
    }


def add_arrays(total: FixedPointSum, arrays: Mapping[str, NDArray[Any]]) -> FixedPointSum:
    """The sum with one that travelled, slice by slice.

    Args:
        total: Of the size that is expected; it is changed, and worth nothing after an error.
        arrays: As `to_arrays` made them, from a frame.

    Returns:
        The new sum.

    Raises:
        FrameRefused: If they are not a sum of that size within its bounds.
        InputError: If there would be too much weight together.
    """
    readers, units = _readers_of(total, arrays)
    if not 0 <= units <= total.max_units:
        raise FrameRefused(f"a sum of weight {units:,} is out of the range of honest updates.")
    add_units(total, units)
    num_lows = len(total.low)
    # |sum| ≤ units · 2⁵⁵ in units of 2³²ᵏ; one more each for the floors.
    limit = (units << 55 >> 32 * num_lows) + 2
    for entries in slices_of(total.size, _SLICE_ENTRIES):
        full = np.empty((entries.stop - entries.start, 8 + 4 * num_lows), np.uint8)
        for place, reader in enumerate(readers):
            full[:, place] = reader(len(full))
        full[:, len(readers) :] = ((full[:, len(readers) - 1] >> 7) * np.uint8(255))[:, None]
        words = full.view("<u4")
        high = np.ascontiguousarray(words[:, num_lows:]).view("<i8").reshape(-1).astype(np.int64, copy=False)
        if (high > limit).any() or (high < -limit).any():
            raise FrameRefused(f"a sum of weight {units:,} is out of the range of honest updates.")
        merge_part(total, entries, high, words[:, :num_lows].T)
    return total


def _plane(total: FixedPointSum, place: int, entries: slice) -> NDArray[np.uint8]:
    """Byte `place` of each entry of a slice, least significant first."""
    limb, byte = divmod(place, 4)
    if limb < len(total.low):
        return np.asarray(total.low[limb, entries], "<u4").view(np.uint8)[byte::4]
    return np.asarray(total.high[entries], "<i8").view(np.uint8)[place - 4 * len(total.low) :: 8]


def _is_sign(total: FixedPointSum, place: int) -> bool:
    """A plane is redundant where it only repeats the sign bit of the plane below."""
    return all(
        np.array_equal(_plane(total, place, s), (_plane(total, place - 1, s) >> 7) * np.uint8(255))
        for s in slices_of(total.size, _SLICE_ENTRIES)
    )


def _packed(total: FixedPointSum, place: int, compressor: zstandard.ZstdCompressor) -> bytes:
    if total.size <= _SLICE_ENTRIES:
        plane = _plane(total, place, slice(0, total.size)).tobytes()
        smaller = compressor.compress(plane)
        return _PACKED + smaller if len(smaller) < total.size else _PLAIN + plane
    writer = compressor.compressobj(size=total.size)
    smaller = b"".join(writer.compress(part) for part in _parts(total, place)) + writer.flush()
    return _PACKED + smaller if len(smaller) < total.size else b"".join((_PLAIN, *_parts(total, place)))


def _parts(total: FixedPointSum, place: int) -> Iterator[bytes]:
    return (_plane(total, place, s).tobytes() for s in slices_of(total.size, _SLICE_ENTRIES))


def _readers_of(total: FixedPointSum, arrays: Mapping[str, NDArray[Any]]) -> tuple[list[Reader], int]:
    payload, width = Payload((), arrays), 8 + 4 * len(total.low)
    planes, lengths = payload.array("planes", np.uint8, (None,)), payload.array("lengths", np.int64, (None,))
    weight = payload.array("weight", np.int64, (1,))
    fits = 1 <= lengths.size <= width and (lengths >= 1).all() and (lengths <= planes.size).all()
    if not fits or int(lengths.sum()) != planes.size:
        raise FrameRefused(f"a sum has 1 to {width} planes of {planes.size} bytes together, found {lengths}.")
    parts = [np.ascontiguousarray(p).data for p in np.split(planes, np.cumsum(lengths)[:-1])]
    sizes = [_size_of(part) for part in parts]
    if len(set(sizes)) != 1:
        raise FrameRefused(f"the planes of a sum have {sizes} entries; they must have as many each.")
    if sizes[0] != total.size:
        raise FrameRefused(f"a sum of {total.size:,} entries is expected, found one of {sizes[0]:,}.")
    return [_opened(part) for part in parts], int(weight[0])


def _size_of(part: memoryview) -> int:
    if part[:1] == _PLAIN:
        return len(part) - 1
    try:
        size = zstandard.frame_content_size(part[1:])
    except zstandard.ZstdError as error:
        raise FrameRefused(f"a plane of a sum cannot be unpacked: {error}.") from error
    if not 0 <= size <= MAX_ENTRIES:
        raise FrameRefused(f"a plane of a sum claims {size:,} entries, at most {MAX_ENTRIES:,} are accepted.")
    return size


def _opened(part: memoryview) -> Reader:
    if part[:1] == _PLAIN:
        return _plain_reader(part[1:])
    stream = zstandard.ZstdDecompressor().stream_reader(part[1:])

    def read(size: int) -> NDArray[np.uint8]:
        try:
            found = stream.read(size)
        except zstandard.ZstdError as error:
            raise FrameRefused(f"a plane of a sum cannot be unpacked: {error}.") from error
        if len(found) != size:
            raise FrameRefused(f"a plane of a sum ends {size - len(found):,} entries before its end.")
        return np.frombuffer(found, np.uint8)

    return read


def _plain_reader(data: memoryview) -> Reader:
    position = 0

    def read(size: int) -> NDArray[np.uint8]:
        nonlocal position
        position += size
        return np.frombuffer(data[position - size : position], np.uint8)

    return read
