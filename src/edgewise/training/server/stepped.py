"""Applies a server's rule to folded sections: in slices for a large model, plainly to buffers, and never to nonsense."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import hypot
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewise.codecs.bundle import Bundle
from edgewise.core.errors import InputError, MisfitError
from edgewise.training.aggregate.fixed_point import slices_of
from edgewise.training.algorithm import MODEL, Closed, ServerRule

SLICE_ENTRIES = 2**18


@dataclass(frozen=True, slots=True)
class Folded:
    """A folded section that can be read in parts, so that it need not be there at once.

    Attributes:
        shape: Of the section.
        read: Entries of the flat section -> float32[width]. Each is read once, in order.
    """

    shape: tuple[int, ...]
    read: Callable[[slice], NDArray[Any]]

    def whole(self) -> NDArray[Any]:
        """All of it, in its shape."""
        return self.read(slice(None)).reshape(self.shape)


@dataclass(frozen=True, slots=True)
class NextState:
    """What a step changes.

    Attributes:
        changed: The sections that are new; the others stand.
        update_norm: Euclidean norm of the folded `model` section; 0 where none was sent.
    """

    changed: dict[str, NDArray[Any]]
    update_norm: float


def next_state(
    rule: ServerRule,
    state: Bundle,
    folded: Mapping[str, Folded],
    closed: Closed,
    buffers: Sequence[tuple[int, int]] = (),
    slice_entries: int = SLICE_ENTRIES,
) -> NextState:
    """Steps a server's state.

    A rule that is elementwise sees slices of all sections as large as the model, one after the other; the result is the
    same to the last bit, and only the new sections are there at full size.

    Args:
        rule: The server's.
        state: Its sections; not changed.
        folded: What clients sent, folded.
        closed: The exchange that closes.
        buffers: (offset, size) of entries of `model` that are averaged plainly whatever the rule does: statistics of batch norm.
        slice_entries: Of a slice.

    Returns:
        The sections that change.

    Raises:
        InputError: If nothing was folded, or a new section is not finite.
    """
    size = state[MODEL].size
    width = slice_entries if rule.is_elementwise else max(1, size)
    vectors = {name for name, section in folded.items() if section.shape == (size,)}
    rest = {name: section.whole() for name, section in folded.items() if name not in vectors}
    changed: dict[str, NDArray[Any]] = {}
    norm, num_bad = 0.0, dict[str, int]()
    for entries in slices_of(size, width):
        part = rest | {name: folded[name].read(entries) for name in vectors}
        with np.errstate(over="ignore", invalid="ignore"):
            found = _checked(
                rule,
                rule.step({n: a[entries] if a.shape == (size,) else a for n, a in state.items()}, part, closed),
                entries.stop - entries.start,
            )
        if MODEL in part:
            norm = hypot(norm, float(np.linalg.norm(np.asarray(part[MODEL], np.float64))))
            if MODEL in found:
                found[MODEL] = _with_buffers(found[MODEL], state[MODEL], part[MODEL], entries, buffers)
        for name, array in found.items():
            num_bad[name] = num_bad.get(name, 0) + int(np.size(array) - np.count_nonzero(np.isfinite(array)))
            is_vector = (
                state[name].shape == (size,) if name in state else np.shape(array) == (entries.stop - entries.start,)
            )
            if width >= size or not is_vector:
                changed[name] = np.asarray(array)
                continue
            if name not in changed:
                changed[name] = np.empty(size, array.dtype)
            changed[name][entries] = array
    for name, count in num_bad.items():
        if count:
            raise InputError(f"{rule.spec} gives a {name} with {count} of {changed[name].size} entries not finite")
    return NextState(changed, norm)


def _checked(rule: ServerRule, found: Bundle, width: int) -> dict[str, NDArray[Any]]:
    """The sections that a step gave, as arrays of numbers; a model is float32 of its width."""
    if not isinstance(found, Mapping):
        raise MisfitError(f"its step is to give the sections that change, as a dict; found a {type(found).__name__}.")
    arrays = {name: np.asarray(array) for name, array in found.items()}
    for name, array in arrays.items():
        if array.dtype.kind not in "fiub":
            raise MisfitError(
                f"its step gives a {name} that is no array of numbers, but a {type(found[name]).__name__}."
            )
    if MODEL in arrays:
        if arrays[MODEL].shape != (width,):
            raise MisfitError(f"its step gives a model of shape {arrays[MODEL].shape}, {(width,)} is needed.")
        arrays[MODEL] = arrays[MODEL].astype(np.float32, copy=False)
    return arrays


def _with_buffers(
    stepped: NDArray[Any],
    model: NDArray[Any],
    mean: NDArray[Any],
    entries: slice,
    buffers: Sequence[tuple[int, int]],
) -> NDArray[Any]:
    for offset, size in buffers:
        start, stop = max(offset, entries.start), min(offset + size, entries.stop)
        if start < stop:
            here = slice(start - entries.start, stop - entries.start)
            stepped = stepped if stepped.flags.owndata else stepped.copy()
            stepped[here] = model[start:stop] + mean[here]
    return stepped
