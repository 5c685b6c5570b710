"""How far predictions are from what was measured, request by request. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median

import msgspec

from edgewise.core.errors import InputError
from edgewise.planning.plan import Plan


class PredictionError(msgspec.Struct, frozen=True):
    """Predicted against measured latency of one plan.

    Attributes:
        median_abs_error_fraction: Median over requests of |measured − predicted| / measured.
        predicted_p50_s: Median of what was predicted for the requests that were compared, each by its own path.
        measured_p50_s: Median of what was measured.
        num_requests: Requests compared.
        num_warm_up: First requests left out.
        num_unpredicted: Requests left out because they did not take a path of the plan (a fallback answered).
    """

    median_abs_error_fraction: float
    predicted_p50_s: float
    measured_p50_s: float
    num_requests: int
    num_warm_up: int
    num_unpredicted: int


def prediction_error(
    plan: Plan, measured: Iterable[tuple[int | None, float]], *, num_warm_up: int = 10
) -> PredictionError:
    """Compares a plan's predictions with the requests it served.

    Args:
        plan: Its `predicted.paths` give the median latency by exit.
        measured: (exit index, seconds) per request in order of arrival; None where a fallback answered.
        num_warm_up: Requests at the start that are left out, and counted.

    Returns:
        The error.

    Raises:
        InputError: If nothing is left to compare.
    """
    predicted = {path.exit_index: path.p50_s for path in plan.predicted.paths}
    rows = list(measured)
    kept = [(predicted[e], s) for e, s in rows[num_warm_up:] if e is not None and e in predicted and s > 0]
    if not kept:
        raise InputError(
            f"of {len(rows)} requests none is left to compare after {num_warm_up} for warm-up; plan {plan.name!r} "
            f"predicts the exits {sorted(predicted)}. Serve more requests on it."
        )
    return PredictionError(
        median_abs_error_fraction(kept),
        median(p for p, _ in kept),
        median(s for _, s in kept),
        len(kept),
        min(num_warm_up, len(rows)),
        len(rows) - min(num_warm_up, len(rows)) - len(kept),
    )


def median_abs_error_fraction(pairs: Sequence[tuple[float, float]]) -> float:
    """Median of |measured − predicted| / measured.

    Args:
        pairs: (predicted, measured) in the same unit, measured > 0.

    Returns:
        The median; 0 is perfect.
    """
    return median(abs(measured - predicted) / measured for predicted, measured in pairs)
