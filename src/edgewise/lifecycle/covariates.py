"""Covariates: four numbers that say how an input looks, whatever the model. Computed where the input is; only they leave."""

from __future__ import annotations

from math import ceil, isfinite
from typing import Any

import numpy as np
from numpy.typing import NDArray

COVARIATES = ("brightness", "contrast", "roughness", "stillness")
"""Mean; standard deviation; mean step between neighbours; share of neighbours that are equal, as of a sensor that is stuck."""
MAX_VALUES = 65_536
"""Of a larger input some rows are looked at, evenly spaced."""


def covariates(example: NDArray[Any]) -> tuple[float, ...]:
    """How one input looks, as every plan can tell: the device has the input, wherever the model runs.

    Args:
        example: Numbers of any shape, without the batch's axis; its last two axes have the neighbours.

    Returns:
        As `COVARIATES`; () of what is no array of numbers. What is not finite counts as 0.
    """
    array = np.asarray(example)
    if array.dtype.kind not in "fiub" or not array.size:
        return ()
    rows = array.reshape(-1, array.shape[-1] if array.ndim else 1)
    rows = rows[:: max(1, ceil(array.size / MAX_VALUES))].astype(np.float32)
    along, across = np.diff(rows, axis=1), np.diff(rows, axis=0)
    steps = [np.abs(step) for step in (along, across) if step.size]
    found = (
        float(rows.mean()),
        float(rows.std()),
        max((float(step.mean()) for step in steps), default=0.0),
        max((float((step == 0).mean()) for step in steps), default=0.0),
    )
    return tuple(value if isfinite(value) else 0.0 for value in found)
