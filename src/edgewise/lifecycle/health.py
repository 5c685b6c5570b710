"""Health of a stage of a rollout: reports, limits, the evaluation. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgewise.core.ids import NodeId


@dataclass(frozen=True, slots=True)
class HealthLimits:
    """What a stage must keep to; each limit is evaluated over the stage's nodes together.

    Attributes:
        min_requests: Requests per updated node before its stage is evaluated.
        max_error_fraction: Share of requests without an answer by their deadline.
        max_latency_ratio: p95 against `baseline_p95_s`, the worst node's; not evaluated if that is None.
        max_confidence_drop: Mean confidence below `baseline_confidence`; not evaluated if that is None.
        max_accuracy_drop: Accuracy below `baseline_accuracy` where labels are known; not evaluated if that is None.
        baseline_p95_s: p95 latency of the version served before.
        baseline_confidence: Its mean confidence on recent inputs.
        baseline_accuracy: Its accuracy on recent inputs.
        patience_s: Longest time a stage may take to install, and then to be evaluated; after it, a node that has not
            installed is unhealthy, and a stage is evaluated by the requests it has.
    """

    min_requests: int = 5
    max_error_fraction: float = 0.02
    max_latency_ratio: float = 2.0
    max_confidence_drop: float = 0.2
    max_accuracy_drop: float = 0.1
    baseline_p95_s: float | None = None
    baseline_confidence: float | None = None
    baseline_accuracy: float | None = None
    patience_s: float = 60.0


@dataclass(frozen=True, slots=True)
class HealthObserved:
    """What one node served since its last report; mean values are over `num_requests`.

    Attributes:
        node: Who served.
        version: Which version answered; reports on another one are left out.
        num_requests: Requests of this report.
        num_errors: Of them without an answer by their deadline.
        p95_latency_s: None if not measured.
        confidence: Mean top-1 softmax; None if not measured.
        num_labelled: Requests whose label came back.
        num_right: Of them answered rightly.
        time: Seconds on the fleet's clock.
    """

    node: NodeId
    version: int
    num_requests: int
    num_errors: int
    time: float
    p95_latency_s: float | None = None
    confidence: float | None = None
    num_labelled: int = 0
    num_right: int = 0


@dataclass(frozen=True, slots=True)
class HealthView:
    """Reports of one node under the new version, summed."""

    num_requests: int = 0
    num_errors: int = 0
    confidence_sum: float = 0.0
    num_confident: int = 0
    num_labelled: int = 0
    num_right: int = 0
    worst_p95_s: float = 0.0


def added(health: HealthView, report: HealthObserved) -> HealthView:
    """One more report of the same node.

    Args:
        health: So far.
        report: What it served since.

    Returns:
        The sum.
    """
    is_confident = report.confidence is not None
    return HealthView(
        health.num_requests + report.num_requests,
        health.num_errors + report.num_errors,
        health.confidence_sum + (report.confidence or 0.0) * report.num_requests,
        health.num_confident + (report.num_requests if is_confident else 0),
        health.num_labelled + report.num_labelled,
        health.num_right + report.num_right,
        max(health.worst_p95_s, report.p95_latency_s or 0.0),
    )


def fault_of(stage: Sequence[HealthView], limits: HealthLimits) -> str:
    """What is wrong with a stage.

    Args:
        stage: HealthView of its nodes.
        limits: What they must keep to.

    Returns:
        The first broken limit as text, "" if all are kept.
    """
    num = sum(h.num_requests for h in stage)
    errors = sum(h.num_errors for h in stage)
    if num and errors / num > limits.max_error_fraction:
        return f"{errors} of {num} requests without an answer in time, allowed is {limits.max_error_fraction:.1%}"
    worst = max((h.worst_p95_s for h in stage), default=0.0)
    if limits.baseline_p95_s is not None and worst > limits.max_latency_ratio * limits.baseline_p95_s:
        return f"p95 latency {1e3 * worst:.1f} ms, allowed is {limits.max_latency_ratio:g} x {1e3 * limits.baseline_p95_s:.1f} ms"
    confident = sum(h.num_confident for h in stage)
    if limits.baseline_confidence is not None and confident:
        mean, least = (
            sum(h.confidence_sum for h in stage) / confident,
            limits.baseline_confidence - limits.max_confidence_drop,
        )
        if mean < least:
            return f"mean confidence {mean:.3f} over {confident} requests, needed is {least:.3f}"
    labelled = sum(h.num_labelled for h in stage)
    if limits.baseline_accuracy is not None and labelled:
        accuracy, least = (
            sum(h.num_right for h in stage) / labelled,
            limits.baseline_accuracy - limits.max_accuracy_drop,
        )
        if accuracy < least:
            return f"accuracy {accuracy:.3f} over {labelled} labelled requests, needed is {least:.3f}"
    return ""
