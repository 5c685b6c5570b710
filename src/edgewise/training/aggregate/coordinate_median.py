"""The median of each entry."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgewise.core.layout import Vector
from edgewise.core.spec import Spec
from edgewise.training.aggregate.weigh import uniform
from edgewise.training.algorithm import Aggregator, Closed, Kind, Weigh


@dataclass(frozen=True)
class CoordinateMedian(Aggregator):
    """Made by `coordinate_median`."""

    spec: Spec
    weigh: Weigh
    kind: Kind = Kind.COLLECT

    def finish_slice(self, rows: Vector, weights: Sequence[float], closed: Closed) -> Vector:
        counted = rows if all(weights) else rows[np.asarray(weights) > 0]
        counted.sort(axis=0)
        middle: Vector = 0.5 * counted[(len(counted) - 1) // 2] + 0.5 * counted[len(counted) // 2]
        return middle


def coordinate_median() -> CoordinateMedian:
    """Takes the median of each entry over the updates, so that less than half of the clients cannot move it far.

    Every update counts alike. It must read them all: O(clients) memory per entry, in slices of entries (`collect.py`).

    Returns:
        The aggregator.

    Reference:
        Yin et al., "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates", ICML 2018, algorithm 1, option I.
    """
    return CoordinateMedian(Spec("coordinate_median"), uniform())
