"""The mean of each entry without its extremes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgewise.core.errors import InputError
from edgewise.core.layout import Vector
from edgewise.core.spec import Spec
from edgewise.training.aggregate.weigh import uniform
from edgewise.training.algorithm import Aggregator, Closed, Kind, Weigh


@dataclass(frozen=True)
class TrimmedMean(Aggregator):
    """Made by `trimmed_mean`."""

    spec: Spec
    weigh: Weigh
    fraction: float
    kind: Kind = Kind.COLLECT

    def finish_slice(self, rows: Vector, weights: Sequence[float], closed: Closed) -> Vector:
        counted = rows if all(weights) else rows[np.asarray(weights) > 0]
        counted.sort(axis=0)
        cut = int(self.fraction * len(counted))
        left: Vector = counted[cut : len(counted) - cut].mean(axis=0, dtype=np.float64).astype(np.float32)
        return left


def trimmed_mean(fraction: float = 0.1) -> TrimmedMean:
    """Drops the largest and the smallest ⌊fraction · m⌋ of m values of each entry and averages the rest.

    Every update counts alike. It must read them all: O(clients) memory per entry, in slices of entries (`collect.py`).

    Args:
        fraction: Dropped at either end, in [0, 0.5); β in the paper.

    Returns:
        The aggregator.

    Raises:
        InputError: If `fraction` is outside [0, 0.5).

    Reference:
        Yin et al., "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates", ICML 2018, algorithm 1, option II.
    """
    if not 0 <= fraction < 0.5:
        raise InputError(f"a trimmed mean drops a fraction in [0, 0.5) at either end, found fraction={fraction!r}.")
    return TrimmedMean(Spec("trimmed_mean", {"fraction": fraction}), uniform(), fraction)
