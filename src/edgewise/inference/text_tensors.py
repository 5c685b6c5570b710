"""Tensors of strings on the wire between nodes: bytes under a name of their own, shape in front."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewise.core.errors import FrameRefused
from edgewise.core.provenance import origins_of, traced
from edgewise.core.texts import pack_texts, unpack_texts

_SUFFIX = "#texts"
_SIZE_BYTES = 8
_MOST_AXES = 8


def wire_name(name: str) -> str:
    """What a tensor of strings is called on the wire."""
    return name + _SUFFIX


def pack_text_tensors(tensors: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Turns tensors of strings into bytes; others stay as they are.

    Args:
        tensors: By name.

    Returns:
        Those of strings as uint8[n] under their wire name, with the origins they had.
    """
    return {
        wire_name(name) if array.dtype.kind == "O" else name: _packed(array) if array.dtype.kind == "O" else array
        for name, array in tensors.items()
    }


def _packed(array: NDArray[Any]) -> NDArray[Any]:
    sizes = b"".join(size.to_bytes(_SIZE_BYTES, "little") for size in array.shape)
    data = bytes([array.ndim]) + sizes + pack_texts(array.ravel().tolist())
    return traced(np.frombuffer(data, np.uint8), *origins_of(array))


def unpack_text_tensors(tensors: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Undoes `pack_text_tensors` on the other side. Nothing in the bytes is trusted.

    Args:
        tensors: By wire name.

    Returns:
        By name.

    Raises:
        FrameRefused: If bytes under a wire name are no tensor of strings.
    """
    return {
        name.removesuffix(_SUFFIX): _unpacked(name, array) if name.endswith(_SUFFIX) else array
        for name, array in tensors.items()
    }


def _unpacked(name: str, array: NDArray[Any]) -> NDArray[Any]:
    data = bytes(np.asarray(array).view(np.ndarray).tobytes()) if array.dtype == np.uint8 else b""
    num_axes = data[0] if data else _MOST_AXES + 1
    start = 1 + num_axes * _SIZE_BYTES
    try:
        if num_axes > _MOST_AXES or start > len(data):
            raise ValueError("they do not begin with a shape")
        shape = tuple(int.from_bytes(data[at : at + _SIZE_BYTES], "little") for at in range(1, start, _SIZE_BYTES))
        texts = np.array(unpack_texts(data[start:], prod(shape)), object).reshape(shape)
    except (ValueError, OverflowError) as error:
        raise FrameRefused(f"tensor {name!r} holds {len(data):,} bytes that are no strings: {error}.") from error
    origins = origins_of(array)
    return traced(texts, *origins) if origins else texts
