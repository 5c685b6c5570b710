"""The mean of updates, weighted by examples."""

from __future__ import annotations

import numpy as np

from edgewise.core.layout import Vector
from edgewise.core.spec import Spec
from edgewise.training.aggregate import fixed_point
from edgewise.training.algorithm import Aggregator


def weighted_mean() -> Aggregator:
    """Averages updates with their numbers of examples as weights, exactly, in any order.

    Folds in O(d) memory, 12 bytes an entry (`fixed_point.py` has scale, width and overflow rule). The result is the
    float64 mean rounded to float32, up to 2⁻⁴¹ for entries below 2⁻¹⁷.

    Returns:
        The aggregator.

    Reference:
        McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017.
        Differs: sums in fixed point, so the result does not depend on the order of arrival.
    """

    def prepare(update: Vector, weight: float, rng: np.random.Generator) -> tuple[Vector, float]:
        return update, weight

    return Aggregator(
        Spec("weighted_mean"),
        prepare,
        fixed_point.zero,
        fixed_point.add,
        fixed_point.merge,
        fixed_point.mean,
        fixed_point.to_arrays,
        fixed_point.from_arrays,
    )
