"""Tensors crossing a cut: encoded on one side, decoded on the other, still knowing where they come from.

Float32 tensors go through the cut's codec; tensors of another type (indices, masks) travel as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgewise.codecs import Codec, payload_from_tensors, payload_to_tensors
from edgewise.core.errors import FrameRefused
from edgewise.core.provenance import origins_of, traced
from edgewise.transport.frame import Frame, Tensor

_PLAIN = "/plain"


class Coded(msgspec.Struct, frozen=True):
    """One tensor of a cut on the wire: its name and the shape its payload stands for."""

    name: str
    shape: tuple[int, ...]


class CutPayload(msgspec.Struct, frozen=True):
    """What crosses.

    Attributes:
        coded: Goes into the message.
        tensors: Go beside the message.
        size_bytes: Bytes of the tensors.
    """

    coded: tuple[Coded, ...]
    tensors: tuple[Tensor, ...]
    size_bytes: int


def encode_cut(
    codec: Codec, names: Iterable[str], values: Mapping[str, NDArray[Any]], rng: np.random.Generator
) -> CutPayload:
    """Encodes the tensors of a cut.

    Args:
        codec: The cut's codec.
        names: Tensors that cross.
        values: At least those.
        rng: For codecs that round at random.

    Returns:
        The payload; each of its tensors carries the data classes of what it encodes.
    """
    coded: list[Coded] = []
    tensors: list[Tensor] = []
    for name in names:
        value = values[name]
        coded.append(Coded(name, tuple(value.shape)))
        if value.dtype != np.float32:
            arrays: dict[str, NDArray[Any]] = {f"{name}{_PLAIN}": np.ascontiguousarray(value)}
        else:
            payload, _ = codec.encode(value, codec.init(value.shape), rng)
            arrays = payload_to_tensors(payload, f"{name}/")
        origins = origins_of(value)
        tensors.extend(Tensor(key, array, origins) for key, array in arrays.items())
    return CutPayload(tuple(coded), tuple(tensors), sum(t.array.nbytes for t in tensors))


def decode_cut(codec: Codec, coded: Iterable[Coded], frame: Frame) -> dict[str, NDArray[Any]]:
    """Undoes `encode_cut` on the other side.

    Args:
        codec: The same codec.
        coded: From the message.
        frame: Carries the tensors.

    Returns:
        Arrays by name; raw data is traced as such again.

    Raises:
        FrameRefused: If a tensor is missing or does not fit.
    """
    arrays = {t.name: t.array for t in frame.tensors}
    values: dict[str, NDArray[Any]] = {}
    for item in coded:
        plain = arrays.get(f"{item.name}{_PLAIN}")
        if plain is None:
            value: NDArray[Any] = codec.decode(payload_from_tensors(item.shape, arrays, f"{item.name}/"))
        elif plain.shape == item.shape:
            value = plain
        else:
            raise FrameRefused(f"tensor {item.name!r} has shape {plain.shape}, its message says {item.shape}.")
        if frame.origins:
            prefix = f"{item.name}/"
            value = traced(value, *(o for t in frame.tensors if t.name.startswith(prefix) for o in t.origins))
        values[item.name] = value
    return values
