"""Maps a model's tensors to one flat float32 vector and back. An update is vector + layout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from math import prod

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgewise.core.errors import InputError
from edgewise.core.ids import Digest, digest_of

Vector = NDArray[np.float32]
"""float32[..., d]: one model (`[d]`) or a cohort of models (`[clients, d]`)."""


class Slot(msgspec.Struct, frozen=True):
    """Holds one tensor's name, shape, original dtype and offset in entries."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    offset: int

    @property
    def size(self) -> int:
        """Returns the number of entries."""
        return prod(self.shape)


class Layout(msgspec.Struct, frozen=True, dict=True):
    """Holds names, shapes, dtypes and offsets of a model's tensors, in order.

    Attributes:
        slots: One per tensor; offsets are contiguous.
    """

    slots: tuple[Slot, ...]

    @staticmethod
    def of(tensors: Mapping[str, NDArray[np.generic]] | Sequence[tuple[str, tuple[int, ...]]]) -> Layout:
        """Lays tensors out in their given order.

        Args:
            tensors: Arrays by name, or (name, shape) pairs of float32 tensors.

        Returns:
            The layout.
        """
        if isinstance(tensors, Mapping):
            named = [(name, tuple(array.shape), str(array.dtype)) for name, array in tensors.items()]
        else:
            named = [(name, tuple(shape), "float32") for name, shape in tensors]
        slots, offset = [], 0
        for name, shape, dtype in named:
            slots.append(Slot(name, shape, dtype, offset))
            offset += prod(shape)
        return Layout(tuple(slots))

    @cached_property
    def size(self) -> int:
        """Returns d, the number of entries of the flat vector."""
        return sum(slot.size for slot in self.slots)

    @cached_property
    def digest(self) -> Digest:
        """Returns the digest of the layout; equal layouts have equal digests."""
        return digest_of(msgspec.msgpack.encode(self))

    def flatten(self, tensors: Mapping[str, NDArray[np.generic]]) -> Vector:
        """Writes tensors into one vector.

        Args:
            tensors: An array per slot.

        Returns:
            float32[d].

        Raises:
            InputError: If a tensor is missing or has another shape.
        """
        flat = np.empty(self.size, np.float32)
        for slot in self.slots:
            if slot.name not in tensors or tuple(tensors[slot.name].shape) != slot.shape:
                found = tensors[slot.name].shape if slot.name in tensors else "nothing"
                raise InputError(f"tensor {slot.name!r} must have shape {slot.shape}, found {found}.")
            flat[slot.offset : slot.offset + slot.size] = np.asarray(tensors[slot.name]).ravel()
        return flat

    def unflatten(self, flat: Vector) -> dict[str, NDArray[np.float32]]:
        """Returns views of a vector as named tensors.

        Args:
            flat: float32[..., d].

        Returns:
            Per slot float32[..., *shape]; views, no copies.

        Raises:
            InputError: If the last axis is not d.
        """
        if flat.shape[-1] != self.size:
            raise InputError(f"a vector of this layout has {self.size} entries, found {flat.shape[-1]}.")
        return {
            slot.name: flat[..., slot.offset : slot.offset + slot.size].reshape((*flat.shape[:-1], *slot.shape))
            for slot in self.slots
        }
