"""Maps a model's tensors to one flat float32 vector and back. An update is vector + layout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from fnmatch import fnmatchcase
from functools import cached_property
from math import prod

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgewise.core.errors import InputError, nearest
from edgewise.core.ids import Digest, digest_of

Vector = NDArray[np.float32]
"""float32[..., d]: one model (`[d]`) or a cohort of models (`[clients, d]`)."""


class SlotKind(StrEnum):
    """What a tensor is to training.

    A PARAMETER has a gradient; an ADAPTER is a parameter that was added to a model to be trained in its place; what is FROZEN
    is a parameter that stays as it was received; a BUFFER is what the forward pass writes itself (running statistics of
    batch norm): no gradient, averaged plainly over clients.
    """

    PARAMETER = "parameter"
    FROZEN = "frozen"
    BUFFER = "buffer"
    ADAPTER = "adapter"


class Slot(msgspec.Struct, frozen=True, omit_defaults=True):
    """One tensor's place: name, shape, original dtype, offset in entries, kind."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    offset: int
    kind: SlotKind = SlotKind.PARAMETER

    @property
    def size(self) -> int:
        """Returns the number of entries."""
        return prod(self.shape)


class Layout(msgspec.Struct, frozen=True, dict=True):
    """Holds names, shapes, dtypes and offsets of a model's tensors, in order.

    Attributes:
        slots: One per tensor; offsets are contiguous. What is frozen and buffers are last.
    """

    slots: tuple[Slot, ...]

    @staticmethod
    def of(
        tensors: Mapping[str, NDArray[np.generic]] | Sequence[tuple[str, tuple[int, ...]]],
        kinds: Mapping[str, SlotKind] | None = None,
    ) -> Layout:
        """Lays tensors out in their given order.

        Args:
            tensors: Arrays by name, or (name, shape) pairs of float32 tensors.
            kinds: Of those that are no parameters; what has no gradient must be last.

        Returns:
            The layout.
        """
        if isinstance(tensors, Mapping):
            named = [(name, tuple(array.shape), str(array.dtype)) for name, array in tensors.items()]
        else:
            named = [(name, tuple(shape), "float32") for name, shape in tensors]
        slots, offset = [], 0
        for name, shape, dtype in named:
            slots.append(Slot(name, shape, dtype, offset, (kinds or {}).get(name, SlotKind.PARAMETER)))
            offset += prod(shape)
        return Layout(tuple(slots))

    @cached_property
    def size(self) -> int:
        """Returns d, the number of entries of the flat vector."""
        return sum(slot.size for slot in self.slots)

    @cached_property
    def num_trained(self) -> int:
        """Entries of parameters and adapters; those of what is frozen and of buffers are behind them."""
        return sum(slot.size for slot in self.slots if slot.kind not in (SlotKind.FROZEN, SlotKind.BUFFER))

    @property
    def buffers(self) -> tuple[tuple[int, int], ...]:
        """(offset, size) of the entries that have no gradient, frozen or buffers; empty without any."""
        return ((self.num_trained, self.size - self.num_trained),) if self.num_trained < self.size else ()

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

    def entries(self, patterns: Sequence[str]) -> NDArray[np.bool_]:
        """Which entries belong to tensors that match.

        Args:
            patterns: Names of tensors with `*` and `?`, kinds (`buffer`), or `batch_norm`: every tensor that stands
                beside a `running_mean`.

        Returns:
            bool[d].

        Raises:
            InputError: If a pattern matches nothing.
        """
        found = np.zeros(self.size, bool)
        normed = {slot.name[: -len(_MEAN)] for slot in self.slots if slot.name.endswith(_MEAN)}
        for pattern in patterns:
            matching = [slot for slot in self.slots if _matches(slot, pattern, normed)]
            if not matching:
                if pattern == BATCH_NORM:
                    raise InputError(
                        "batch norm is named, and no layer of the model keeps running statistics (a running_mean). "
                        "Leave it out, or name tensors (`norm.*`)."
                    )
                raise InputError(
                    f"no tensor of the model matches {pattern!r}.{nearest(pattern, [s.name for s in self.slots])} "
                    "Give names as in the layout (`head.*`), a kind, or 'batch_norm'."
                )
            for slot in matching:
                found[slot.offset : slot.offset + slot.size] = True
        return found


_MEAN = "running_mean"
BATCH_NORM = "batch_norm"
"""Of patterns: every tensor that stands beside a `running_mean`."""


def _matches(slot: Slot, pattern: str, normed: set[str]) -> bool:
    if pattern == BATCH_NORM:
        return slot.name[: slot.name.rfind(".") + 1] in normed
    return slot.kind == pattern or fnmatchcase(slot.name, pattern)
