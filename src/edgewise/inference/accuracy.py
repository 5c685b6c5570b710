"""How far predictions are from what was measured, request by request and over a whole stream. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median

import msgspec
import numpy as np

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


class ExitShare(msgspec.Struct, frozen=True):
    """How many requests end at one exit.

    Attributes:
        exit_index: Which.
        predicted: Share of all requests, 0…1.
        measured: Share of those that ended along the plan.
    """

    exit_index: int
    predicted: float
    measured: float


class StreamError(msgspec.Struct, frozen=True):
    """Predicted beside measured latency of a whole stream, mispredicted shares included.

    Attributes:
        predicted_s: Mean, median and 95th percentile, seconds.
        measured_s: The same.
        shares: By exit.
        num_requests: Requests measured.
    """

    predicted_s: tuple[float, float, float]
    measured_s: tuple[float, float, float]
    shares: tuple[ExitShare, ...]
    num_requests: int

    @property
    def error_fractions(self) -> tuple[float, float, float]:
        """|predicted − measured| / measured of mean, median and 95th percentile."""
        mean, p50, p95 = (abs(p - m) / m for p, m in zip(self.predicted_s, self.measured_s, strict=True))
        return mean, p50, p95

    @property
    def largest_share_error(self) -> float:
        """Largest |predicted − measured| over the exits."""
        return max((abs(share.predicted - share.measured) for share in self.shares), default=0.0)


def stream_error(plan: Plan, measured: Iterable[tuple[int | None, float]]) -> StreamError:
    """Compares a plan's prediction with a whole stream served along it.

    Args:
        plan: Its prediction counts.
        measured: (exit index, seconds) per answered request; None where a fallback answered, whose latency counts too.

    Returns:
        The comparison.

    Raises:
        InputError: If there are no requests.
    """
    rows = list(measured)
    if not rows:
        raise InputError(f"no request was answered along plan {plan.name!r}, so nothing can be compared. Serve some.")
    taken = np.asarray([seconds for _, seconds in rows])
    on_plan = [index for index, _ in rows if index is not None]
    shares = tuple(
        ExitShare(path.exit_index, path.fraction, on_plan.count(path.exit_index) / max(len(on_plan), 1))
        for path in plan.predicted.paths
    )
    p50, p95 = (float(np.quantile(taken, share)) for share in (0.5, 0.95))
    predicted = (plan.predicted.latency_mean_s, plan.predicted.latency_p50_s, plan.predicted.latency_p95_s)
    return StreamError(predicted, (float(taken.mean()), p50, p95), shares, len(rows))


def median_abs_error_fraction(pairs: Sequence[tuple[float, float]]) -> float:
    """Median of |measured − predicted| / measured.

    Args:
        pairs: (predicted, measured) in the same unit, measured > 0.

    Returns:
        The median; 0 is perfect.
    """
    return median(abs(measured - predicted) / measured for predicted, measured in pairs)
