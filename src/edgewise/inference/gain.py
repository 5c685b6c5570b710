"""What one way of serving gains over another, measured on the same inputs in turn, with its confidence interval. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgewise.core.errors import InputError

RESAMPLES = 4000
CONFIDENCE = 0.95
LEAST_PAIRS = 8


class Gain(msgspec.Struct, frozen=True):
    """A gain of one statistic: 1 − ours / theirs; negative is a loss.

    Attributes:
        fraction: As measured.
        low: Lower end of its confidence interval.
        high: Upper end.
    """

    fraction: float
    low: float
    high: float

    @property
    def is_certain(self) -> bool:
        """Whether the whole interval is a gain."""
        return self.low > 0.0


class MeasuredGain(msgspec.Struct, frozen=True):
    """What one way gains over another.

    Attributes:
        mean: Of the mean latency.
        p95: Of the 95th percentile.
        num_pairs: Inputs that both ways answered.
    """

    mean: Gain
    p95: Gain
    num_pairs: int


def measured_gain(ours: Sequence[float], theirs: Sequence[float], rng: np.random.Generator) -> MeasuredGain:
    """Compares latencies of two ways that were asked about the same inputs in turn.

    Args:
        ours: Seconds of our way, by input.
        theirs: Of the other, in the same order.
        rng: Draws the resamples.

    Returns:
        Gains of mean and 95th percentile, with intervals of 95 % from pairs drawn with replacement.

    Raises:
        InputError: If the two are not of one length, or fewer than `LEAST_PAIRS`.

    Reference:
        Efron & Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13 (percentile intervals).
    """
    pairs = np.asarray([ours, theirs], float) if len(ours) == len(theirs) else np.zeros((2, 0))
    num = pairs.shape[1]
    if num < LEAST_PAIRS:
        raise InputError(
            f"a gain is measured on pairs of answers, at least {LEAST_PAIRS}; given are {len(ours)} and {len(theirs)}. "
            "Ask both ways about the same inputs, more of them."
        )
    drawn = pairs[:, rng.integers(0, num, (RESAMPLES, num))]
    return MeasuredGain(_gain(pairs, drawn, _mean), _gain(pairs, drawn, _p95), num)


def _gain(
    pairs: NDArray[np.float64],
    drawn: NDArray[np.float64],
    statistic: Callable[[NDArray[np.float64]], NDArray[np.float64]],
) -> Gain:
    ours, theirs = statistic(pairs)
    again, other = statistic(drawn)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(1 - again / other, [tail, 1 - tail])
    return Gain(float(1 - ours / theirs), float(low), float(high))


def _mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(values.mean(-1))


def _p95(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.quantile(values, 0.95, axis=-1))
