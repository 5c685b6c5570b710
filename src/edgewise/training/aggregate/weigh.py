"""How much an update counts. A weight is any non-negative real, rounded to a unit that stands fixed beforehand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isfinite

import numpy as np
from numpy.typing import NDArray

from edgewise.core.errors import InputError
from edgewise.core.spec import Spec, build
from edgewise.training.aggregate.fixed_point import MAX_TOTAL_UNITS
from edgewise.training.algorithm import Counted, Weigh

REAL_UNIT = 2.0**-30
"""Of real weights. One of at least 2⁻¹¹ is rounded by less than 2⁻²⁰ of itself, and 10⁹ together are exact sums."""


def examples() -> Weigh:
    """Counts an update by the number of examples behind it, as McMahan et al. (AISTATS 2017) do."""
    return Weigh(Spec("examples"), lambda counted: counted.num_examples)


def uniform() -> Weigh:
    """Counts every update alike."""
    return Weigh(Spec("uniform"), lambda counted: 1)


def loss() -> Weigh:
    """Counts an update by the loss of the received model on its client's data, so that hard clients move it more."""

    def weight(counted: Counted) -> float:
        if "loss" not in counted.metrics:
            raise InputError(
                f"an update without a metric 'loss' cannot be weighted by it, it has {sorted(counted.metrics)}. "
                "Let the local work report it, or weigh by examples."
            )
        return counted.metrics["loss"]

    return Weigh(Spec("loss"), weight, REAL_UNIT)


def staleness(weigh: Weigh | Spec | str = "examples", power: float = 0.5) -> Weigh:
    """Counts late updates less: (1 + τ)^-power of what they would count in time.

    Args:
        weigh: What they would count in time.
        power: 0 ignores staleness.

    Returns:
        The weight; τ is `Counted.staleness`.

    Raises:
        InputError: If `power` is negative.

    Reference:
        Nguyen et al., "Federated Learning with Buffered Asynchronous Aggregation", AISTATS 2022, section 5 (power ½).
        Differs: a weighted mean divides by the sum of the weights, not by the number of updates.
    """
    if not power >= 0:
        raise InputError(f"staleness makes late updates count less, so power must be at least 0, found {power!r}.")
    inner = make_weigh(weigh)
    return Weigh(
        Spec("staleness", {"weigh": inner.spec, "power": power}),
        lambda counted: inner.weight(counted) * (1.0 + counted.staleness) ** -power,
        REAL_UNIT,
    )


WEIGHTS: dict[str, Callable[..., Weigh]] = {
    "examples": examples,
    "loss": loss,
    "staleness": staleness,
    "uniform": uniform,
}


def make_weigh(spec: Weigh | Spec | str) -> Weigh:
    """Builds a weight from its spec; one that is built already stays as it is."""
    if isinstance(spec, Weigh):
        return spec
    return build("weigh", WEIGHTS, Spec.parse(spec) if isinstance(spec, str) else spec)


def num_lows_of(weigh: Weigh) -> int:
    """Low limbs that a sum with such weights needs: 1 where they are whole numbers, 2 where they are real."""
    return 1 if weigh.unit == 1 else 2


def units_of(weigh: Weigh, weights: Sequence[float]) -> NDArray[np.int64]:
    """Weights in whole units, which sums keep exactly.

    Args:
        weigh: What they were made with.
        weights: One per update.

    Returns:
        int64[updates].

    Raises:
        InputError: If one is negative, not finite, too large, or not whole where whole numbers are needed.
    """
    most = MAX_TOTAL_UNITS[num_lows_of(weigh)] * weigh.unit
    for weight in weights:
        if weigh.unit == 1 and not (0 <= weight <= most and weight == int(weight)):
            raise InputError(
                f"weight {weight!s} is not a number of examples. An integer from 0 to {int(most):,} is needed."
            )
        if not (isfinite(weight) and 0 <= weight <= most):
            raise InputError(
                f"weight {weight!s} of {weigh.spec} cannot be counted. A number from 0 to {int(most):,} is needed."
            )
    if weigh.unit == 1:
        return np.array([int(weight) for weight in weights], np.int64)
    return np.rint(np.asarray(weights, np.float64) / weigh.unit).astype(np.int64)
