"""Rounds real numbers to levels: to the nearest, or to one of the two neighbours at random."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgewise.codecs.codec import Payload, Shape, rows_of
from edgewise.core.errors import FrameRefused, InputError

ROUNDINGS = ("nearest", "stochastic")


def check_rounding(rounding: str) -> None:
    """Validates the name of a rounding.

    Args:
        rounding: `nearest` or `stochastic`.

    Raises:
        InputError: If it is neither.
    """
    if rounding not in ROUNDINGS:
        raise InputError(f"rounding {rounding!r} is not known. Use 'nearest' or 'stochastic'.")


def quantise(
    array: NDArray[np.float32], largest_level: int, rounding: str, rng: np.random.Generator
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Rounds each row to levels −L…L of its own scale.

    Args:
        array: float32[...], finite.
        largest_level: L.
        rounding: `nearest`, or `stochastic` (unbiased: up with the probability of the fraction).
        rng: Used by `stochastic`, once per entry in order.

    Returns:
        levels int8[rows, n], scale float32[rows]: the largest magnitude of the row divided by L.
    """
    rows = array.reshape(rows_of(array.shape))
    scale = (np.abs(rows).max(axis=1, initial=0.0) / np.float32(largest_level)).astype(np.float32)
    # A row of denormals can have scale 0 although its entries are not: it decodes to 0 then.
    steps = rows / np.where(scale > 0, scale, np.inf).astype(np.float32)[:, None]
    levels = np.rint(steps) if rounding == "nearest" else np.floor(steps + rng.random(steps.shape, np.float32))
    return np.clip(levels, -largest_level, largest_level).astype(np.int8), scale


def scales_in(payload: Payload, num_rows: int) -> NDArray[np.float32]:
    """Returns the scales of a payload.

    Args:
        payload: As received.
        num_rows: Rows of its array.

    Returns:
        float32[rows].

    Raises:
        FrameRefused: If they are missing, misshaped, negative or not finite.
    """
    scale = payload.array("scale", np.float32, (num_rows,))
    if not (np.isfinite(scale).all() and (scale >= 0).all()):
        raise FrameRefused(f"scale {scale[:10].tolist()!r} of a payload must be finite and at least 0.")
    return scale


def dequantise(levels: NDArray[np.int8], scale: NDArray[np.float32], shape: Shape) -> NDArray[np.float32]:
    """Returns levels times scale.

    Args:
        levels: int8[rows, n].
        scale: float32[rows].
        shape: Of the result.

    Returns:
        float32[*shape].
    """
    with np.errstate(over="ignore"):  # what is not finite then, the codec refuses
        values: NDArray[np.float32] = levels.astype(np.float32) * scale[:, None]
    return values.reshape(shape)
