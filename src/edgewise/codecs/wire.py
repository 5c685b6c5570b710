"""Converts payloads to tensors of a frame or bytes of a blob and back, validating what is received."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from math import prod
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgewise.codecs.codec import Payload, Shape, check_shape
from edgewise.codecs.header_cache import MOST_HEADERS, remembered
from edgewise.core.errors import FrameRefused, InputError
from edgewise.core.unreadable import UNREADABLE

_DTYPES = {
    name: np.dtype(name)
    for name in ("float32", "float16", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


def payload_to_tensors(payload: Payload, prefix: str = "") -> dict[str, NDArray[Any]]:
    """Returns the arrays of a payload by their names in a frame; the shape goes into the message.

    Args:
        payload: What an encoder made.
        prefix: Put before each name, where a frame carries several payloads.

    Returns:
        Arrays by name.
    """
    return {prefix + name: array for name, array in payload.arrays.items()}


def payload_from_tensors(shape: Sequence[int], tensors: Mapping[str, NDArray[Any]], prefix: str = "") -> Payload:
    """Reads the payload of a frame.

    Args:
        shape: From the message.
        tensors: All tensors of the frame by name.
        prefix: As given to `payload_to_tensors`.

    Returns:
        The payload, its arrays not yet checked by a codec.

    Raises:
        FrameRefused: If the shape is not one, or there is no such tensor.
    """
    named = {name.removeprefix(prefix): array for name, array in tensors.items() if name.startswith(prefix)}
    if not named:
        raise FrameRefused(f"no tensor of a payload under {prefix!r}, only {sorted(tensors)[:10]}.")
    return payload_of(tuple(shape), named)


def payload_of(shape: Shape, arrays: Mapping[str, NDArray[Any]]) -> Payload:
    """A payload of arrays that came from elsewhere.

    Args:
        shape: As its header says.
        arrays: By name.

    Returns:
        The payload, its arrays not yet checked by a codec.

    Raises:
        FrameRefused: If the shape is not one, or there is no array.
    """
    if not arrays:
        raise FrameRefused(f"a payload of shape {shape} comes without an array.")
    check_shape(shape)
    return Payload(shape, arrays)


class _Array(msgspec.Struct, frozen=True, array_like=True):
    name: str
    dtype: str
    shape: Shape


class _PayloadHeader(msgspec.Struct, frozen=True, array_like=True):
    shape: Shape
    arrays: tuple[_Array, ...]


_HEADER = msgspec.msgpack.Decoder(_PayloadHeader)
_ENCODER = msgspec.msgpack.Encoder()


def payload_to_bytes(payload: Payload) -> bytes:
    """Encodes a payload as the bytes of a blob; equal payloads give equal bytes.

    Args:
        payload: Any payload.

    Returns:
        header_length:u32 | header (msgpack) | arrays in order of name, little-endian.
    """
    return b"".join(payload_to_buffers(payload))


def payload_to_buffers(payload: Payload) -> list[bytes | memoryview]:
    """The parts of `payload_to_bytes`; arrays are not copied.

    Args:
        payload: Any payload.

    Returns:
        To be joined or written in this order.

    Raises:
        InputError: If an array has a dtype that no receiver accepts.
    """
    named = sorted(payload.arrays.items())
    header = _header_of(payload.shape, tuple([(name, array.dtype, array.shape) for name, array in named]))
    return [len(header).to_bytes(4, "little"), header, *(np.ascontiguousarray(array).data for _, array in named)]


@lru_cache(MOST_HEADERS)
def _header_of(shape: Shape, named: tuple[tuple[str, np.dtype[Any], Shape], ...]) -> bytes:
    for name, dtype, _ in named:
        if dtype not in _NAMES:
            raise InputError(
                f"{name.removesuffix('/plain')!r} has dtype {dtype}, which cannot travel. Make it float32, or an integer."
            )
    return _ENCODER.encode(_PayloadHeader(shape, tuple(_Array(name, _NAMES[dtype], of) for name, dtype, of in named)))


def payload_from_bytes(data: bytes | memoryview) -> Payload:
    """Decodes the bytes of `payload_to_bytes`.

    Args:
        data: From a blob.

    Returns:
        The payload; its arrays are read-only views of `data`.

    Raises:
        FrameRefused: If the bytes are not exactly a payload.
    """
    start = 4 + int.from_bytes(data[:4], "little")
    shape, layout = _read_header(bytes(data[4:start]))
    arrays, offset = {}, start
    for name, dtype, count, of in layout:
        end = offset + count * dtype.itemsize
        if end > len(data):
            raise FrameRefused(f"array {name!r} of a payload ends at byte {end:,} of {len(data):,}.")
        flat = np.frombuffer(data, dtype, count, offset)
        arrays[name] = flat if len(of) == 1 else flat.reshape(of)
        offset = end
    if offset != len(data):
        raise FrameRefused(f"a payload of {offset:,} bytes is followed by {len(data) - offset:,} more.")
    return Payload(shape, arrays)


@remembered
def _read_header(data: bytes) -> tuple[Shape, tuple[tuple[str, np.dtype[Any], int, Shape], ...]]:
    """The payload's shape, and of each array name, dtype, entries and shape."""
    try:
        header = _HEADER.decode(data)
    except UNREADABLE as error:
        raise FrameRefused(f"{len(data):,} bytes are not a payload's header: {error}.") from error
    check_shape(header.shape)
    layout = []
    for meta in header.arrays:
        dtype = _DTYPES.get(meta.dtype)
        if dtype is None:
            raise FrameRefused(f"array {meta.name!r} of a payload has dtype {meta.dtype!r}, which cannot travel.")
        check_shape(meta.shape)
        layout.append((meta.name, dtype, prod(meta.shape), meta.shape))
    return header.shape, tuple(layout)
