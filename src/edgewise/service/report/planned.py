"""What the planner said and how true it was, as the report has it: levels, ways, answers, the plan. Read `schema.py` next."""

from __future__ import annotations

import msgspec

from edgewise.service.report.observed import WayRow


class LevelEntry(msgspec.Struct, frozen=True):
    """One of the seven levels of edge intelligence, best plan of it.

    Attributes:
        level: 0 to 6.
        tiers: Who computes, from the device outward.
        training_domain: `cloud`, `federated`, `edge` or `device`.
        feasible: Whether the policy allows it.
        reason: Why not, or what the plan is.
        predicted_p50_ms: Median latency.
        predicted_p95_ms: 95th percentile.
        device_energy_j: Per request, modelled.
        egress_bytes: Leaving the device per request.
        accuracy: Predicted from the level's own model.
        waterfall: Milliseconds by stage of the request that goes furthest, in order.
        recommended: Whether this very plan is the one recommended; a plan of the same level with another model is not.
    """

    level: int
    tiers: tuple[str, ...]
    training_domain: str
    feasible: bool
    reason: str = ""
    predicted_p50_ms: float | None = None
    predicted_p95_ms: float | None = None
    device_energy_j: float | None = None
    egress_bytes: float | None = None
    accuracy: float | None = None
    waterfall: tuple[tuple[str, float], ...] = ()
    recommended: bool = False


class Baseline(msgspec.Struct, frozen=True):
    """What one would do without collaborating, beside the plan: raw to the edge, PNG to the cloud, int8 on the device.

    Attributes:
        name: Its name.
        allowed: Whether the policy allows it.
        reason: Why not.
        predicted_p50_ms: Median latency.
        predicted_p95_ms: 95th percentile.
        measured_p50_ms: If it was run too, in turn with the plan.
        measured_mean_ms: The same, mean.
        device_energy_j: Per request, modelled.
        egress_bytes: Leaving the device per request.
        accuracy: Predicted.
    """

    name: str
    allowed: bool = True
    reason: str = ""
    predicted_p50_ms: float | None = None
    predicted_p95_ms: float | None = None
    measured_p50_ms: float | None = None
    device_energy_j: float | None = None
    egress_bytes: float | None = None
    accuracy: float | None = None
    measured_mean_ms: float | None = None


class PlannerAnswer(msgspec.Struct, frozen=True):
    """One question put to the planner and what it said.

    Attributes:
        question: The policy and links, as a sentence.
        plan: Name of the plan it recommends.
        tiers: Who computes.
        level: Its level.
        collaborates: False is "do not collaborate".
        predicted_p50_ms: Median latency.
        predicted_p95_ms: 95th percentile.
        accuracy: Predicted.
        egress_bytes: Per request.
        margin_fraction: 1 − p50(plan) / p50(best plan that uses one node).
        reason: One sentence.
        predicted_mean_ms: Mean latency.
        gain_fraction: 1 − mean(plan) / mean(best plan that uses one node), predicted; 0 where it is that plan.
        ways: The answer and the best others, measured in turn on the same inputs.
        is_measured_best: Whether no other allowed way was certainly faster in the mean; None if nothing was measured.
    """

    question: str
    plan: str
    tiers: tuple[str, ...]
    level: int | None = None
    collaborates: bool = False
    predicted_p50_ms: float | None = None
    predicted_p95_ms: float | None = None
    accuracy: float | None = None
    egress_bytes: float | None = None
    margin_fraction: float | None = None
    reason: str = ""
    predicted_mean_ms: float | None = None
    gain_fraction: float | None = None
    ways: tuple[WayRow, ...] = ()
    is_measured_best: bool | None = None


class ExitShareRow(msgspec.Struct, frozen=True):
    """Requests that end at one exit, predicted beside measured.

    Attributes:
        exit: Which, from 0, as in the names of the model's outputs.
        predicted: Share of all requests, 0…1.
        measured: The same.
    """

    exit: int
    predicted: float
    measured: float


class PlanSection(msgspec.Struct, frozen=True):
    """The plan in force and how true its prediction was.

    Attributes:
        level: Of the plan.
        tiers: Who computes.
        margin_fraction: 1 − p50(plan) / p50(best plan that uses one node).
        predicted_p50_ms: From the profile taken before the stream.
        measured_p50_ms: In the fault-free part, warm-up excluded.
        median_abs_error_fraction: Median over requests of |measured − predicted| / measured.
        levels: The seven, in order.
        name: Text a person recognises.
        predicted_p95_ms: The deadline is at least three times this.
        device_energy_j: Per request, predicted.
        egress_bytes: Leaving the device per request, predicted.
        accuracy: Predicted.
        num_warm_up: Requests left out of the comparison.
        num_compared: Requests in it.
        predicted_mean_ms: Of the whole stream.
        measured_mean_ms: The same, fault-free, warm-up excluded.
        measured_p95_ms: Likewise.
        mean_error_fraction: |predicted − measured| / measured of the mean.
        p50_error_fraction: Of the median.
        p95_error_fraction: Of the 95th percentile.
        exit_shares: By exit.
        share_error_points: Largest difference of a share, in percentage points.
        gain_over: The way the plan was measured beside: the best on one node, or the best shared one.
        gain_mean: Measured gain of the mean over it, with its interval of 95 %: (gain, low, high) in 0…1.
        gain_p95: The same of the 95th percentile.
        gain_pairs: Inputs that both answered.
        assumed: What the plan was made from, in words.
        waterfall: Milliseconds by stage of the request that goes furthest, in order.
    """

    level: int | None = None
    tiers: tuple[str, ...] = ()
    margin_fraction: float | None = None
    predicted_p50_ms: float | None = None
    measured_p50_ms: float | None = None
    median_abs_error_fraction: float | None = None
    levels: tuple[LevelEntry, ...] = ()
    name: str = ""
    predicted_p95_ms: float | None = None
    device_energy_j: float | None = None
    egress_bytes: float | None = None
    accuracy: float | None = None
    num_warm_up: int | None = None
    num_compared: int | None = None
    predicted_mean_ms: float | None = None
    measured_mean_ms: float | None = None
    measured_p95_ms: float | None = None
    mean_error_fraction: float | None = None
    p50_error_fraction: float | None = None
    p95_error_fraction: float | None = None
    exit_shares: tuple[ExitShareRow, ...] = ()
    share_error_points: float | None = None
    gain_over: str = ""
    gain_mean: tuple[float, float, float] | None = None
    gain_p95: tuple[float, float, float] | None = None
    gain_pairs: int | None = None
    assumed: tuple[str, ...] = ()
    waterfall: tuple[tuple[str, float], ...] = ()
