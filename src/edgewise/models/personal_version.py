"""A personal version: the model all share, joined on a device with what never leaves it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewise.core.errors import InputError
from edgewise.core.layout import Layout, Vector

OWN = "own"
"""Kept section with the client's own entries of the model (`training/local/personal.py`)."""
PERSONAL = "personal"
"""Kept section that is a whole model of the client's own (`training/algorithms/ditto.py`)."""


def personal_vector(base: Vector, kept: Mapping[str, NDArray[Any]], layout: Layout, own: Sequence[str] = ()) -> Vector:
    """The model a device should use.

    A device that has kept nothing yet uses the base's entries: those of the run's first model, for the server never moves
    them. For batch norm they are a mean of 0 and a variance of 1: evaluate before such a version serves.

    Args:
        base: float32[d], the version all share.
        kept: What the device keeps of the run that made it.
        layout: Of both.
        own: Which entries are the client's own, as in `personal`.

    Returns:
        float32[d]; a copy where it differs from the base.

    Raises:
        InputError: If what is kept is not of this layout.
    """
    if PERSONAL in kept:
        return _checked(np.asarray(kept[PERSONAL], np.float32), layout.size)
    if OWN not in kept:
        return base
    entries = layout.entries(own)
    joined = np.array(base, np.float32)
    joined[entries] = _checked(np.asarray(kept[OWN], np.float32), int(entries.sum()))
    return joined


def _checked(array: Vector, size: int) -> Vector:
    if array.shape != (size,):
        raise InputError(
            f"what this device keeps has shape {array.shape}, its model's own part has {(size,)}. "
            "It is of another run or model: join it with a version of the run that made it."
        )
    return array
