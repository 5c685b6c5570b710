"""Drives aggregators that must read every update, in slices of entries so that memory stays bounded."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from edgewise.core.errors import InputError
from edgewise.core.layout import Vector
from edgewise.training.aggregate.fixed_point import slices_of
from edgewise.training.algorithm import Aggregator, Closed

SLICE_BYTES = 2**26


def collected(
    aggregator: Aggregator,
    decode: Callable[[int, slice], Vector],
    num_updates: int,
    size: int,
    weights: Sequence[float],
    closed: Closed,
    slice_bytes: int = SLICE_BYTES,
) -> Vector:
    """Folds updates slice by slice.

    Args:
        aggregator: A COLLECT.
        decode: (index of an update, entries) -> these entries of it, float32; read in order of entries.
        num_updates: How many there are.
        size: d.
        weights: One per update.
        closed: The exchange that closes.
        slice_bytes: What a slice of all updates together may take; at most three times as much is in use.

    Returns:
        float32[size].

    Raises:
        InputError: If there are no updates.
    """
    if not num_updates or not any(weights):
        raise InputError("nothing can be made of no updates. At least one client with data must answer.")
    result = np.empty(size, np.float32)
    width = max(1, slice_bytes // (4 * num_updates))
    rows = np.empty((num_updates, min(width, size)), np.float32)
    for entries in slices_of(size, width):
        part = rows[:, : entries.stop - entries.start]
        for index in range(num_updates):
            part[index] = decode(index, entries)
        result[entries] = aggregator.finish_slice(part, weights, closed)
    return result
