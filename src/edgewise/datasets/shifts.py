"""Makes drifted inputs: the same digits, rotated and noisy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgewise.core.provenance import RAW, traced


def rotated(inputs: NDArray[np.float32], degrees: float) -> NDArray[np.float32]:
    """Rotates images about their centre, bilinear, padded with zeros.

    Args:
        inputs: float32[n, channels, height, width] in 0..1.
        degrees: Angle; positive is counter-clockwise as seen.

    Returns:
        The same shape and range; still traced.
    """
    from scipy.ndimage import rotate

    turned = rotate(np.asarray(inputs), degrees, axes=(3, 2), reshape=False, order=1, mode="constant", cval=0.0)
    return traced(np.clip(turned, 0, 1).astype(np.float32), RAW)


def noisy(inputs: NDArray[np.float32], deviation: float, *, rng: np.random.Generator) -> NDArray[np.float32]:
    """Adds Gaussian noise and clips to 0..1.

    Args:
        inputs: float32[n, ...] in 0..1.
        deviation: Standard deviation of the noise.
        rng: Draws it.

    Returns:
        The same shape; still traced.
    """
    noise = rng.normal(0.0, deviation, inputs.shape)
    return traced(np.clip(np.asarray(inputs) + noise, 0, 1).astype(np.float32), RAW)


def drifted(
    inputs: NDArray[np.float32], *, degrees: float = 15.0, deviation: float = 0.1, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Rotates, then adds noise: the demo's drift.

    Args:
        inputs: float32[n, channels, height, width] in 0..1.
        degrees: As in `rotated`.
        deviation: As in `noisy`.
        rng: Draws the noise.

    Returns:
        The same shape; still traced.
    """
    return noisy(rotated(inputs, degrees), deviation, rng=rng)
