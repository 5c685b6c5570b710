"""Converts payloads to tensors of a frame or bytes of a blob and back, validating what is received."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgewise.codecs.codec import Payload, Shape, check_shape
from edgewise.core.errors import FrameRefused

_DTYPES = frozenset(["float32", "float16", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"])


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
    check_shape(tuple(shape))
    return Payload(tuple(shape), named)


class _Array(msgspec.Struct, frozen=True, array_like=True):
    name: str
    dtype: str
    shape: Shape


class _PayloadHeader(msgspec.Struct, frozen=True, array_like=True):
    shape: Shape
    arrays: tuple[_Array, ...]


def payload_to_bytes(payload: Payload) -> bytes:
    """Encodes a payload as the bytes of a blob; equal payloads give equal bytes.

    Args:
        payload: Any payload.

    Returns:
        header_length:u32 | header (msgpack) | arrays in order of name, little-endian.
    """
    named = sorted(payload.arrays.items())
    header = msgspec.msgpack.encode(
        _PayloadHeader(payload.shape, tuple(_Array(name, str(array.dtype), array.shape) for name, array in named))
    )
    arrays = [np.ascontiguousarray(np.asarray(array)).tobytes() for _, array in named]
    return b"".join((len(header).to_bytes(4, "little"), header, *arrays))


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
    try:
        header = msgspec.msgpack.decode(data[4:start], type=_PayloadHeader)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise FrameRefused(f"{len(data):,} bytes are not a payload: {error}.") from error
    check_shape(header.shape)
    arrays, offset = {}, start
    for meta in header.arrays:
        if meta.dtype not in _DTYPES:
            raise FrameRefused(f"array {meta.name!r} of a payload has dtype {meta.dtype!r}, which cannot travel.")
        check_shape(meta.shape)
        count = prod(meta.shape)
        end = offset + count * np.dtype(meta.dtype).itemsize
        if end > len(data):
            raise FrameRefused(f"array {meta.name!r} of a payload ends at byte {end:,} of {len(data):,}.")
        arrays[meta.name] = np.frombuffer(data, np.dtype(meta.dtype), count, offset).reshape(meta.shape)
        offset = end
    if offset != len(data):
        raise FrameRefused(f"a payload of {offset:,} bytes is followed by {len(data) - offset:,} more.")
    return Payload(header.shape, arrays)
