"""From the planner's, the session's and the loop's own values to rows of the report. Pure; words a reader knows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from math import isfinite

from edgewise.core.ids import NodeId
from edgewise.datasets.audit import SplitAudit
from edgewise.inference.observation import Observation
from edgewise.inference.session import AnswerSource
from edgewise.ledger.energy import Energy
from edgewise.ledger.resources import Resources
from edgewise.lifecycle.loop import TimelineNote
from edgewise.planning import levels
from edgewise.planning.baselines import BaselineRow
from edgewise.planning.plan import Plan
from edgewise.service.report.observed import AuditRow, RequestRow, ResourceRow, TimelineEntry, WayRow
from edgewise.service.report.planned import Baseline, LevelEntry, PlannerAnswer

WORDS: dict[AnswerSource, str] = {
    AnswerSource.PLAN: "full plan",
    AnswerSource.FILTER: "filter",
    AnswerSource.OTHER_EDGE: "another edge",
    AnswerSource.LOCAL_TAIL: "device exit",
    AnswerSource.DEVICE_EXIT: "device exit",
    AnswerSource.EDGE_EXIT: "edge exit",
    AnswerSource.NONE: "nobody",
}
"""Who answered, as the report says it."""


def level_rows(rows: Iterable[levels.LevelRow], recommended: Plan | None = None) -> tuple[LevelEntry, ...]:
    """The planner's seven levels.

    Args:
        rows: From `plan_levels`.
        recommended: The plan to use; only a row with this very plan is marked, not one of the same level.

    Returns:
        One row each; numbers of infeasible levels are None.
    """
    return tuple(
        LevelEntry(
            row.level,
            tuple(str(t) for t in row.tiers),
            row.training_domain,
            row.feasible,
            row.reason or (row.plan.name if row.plan else ""),
            _number(row.predicted_p50_ms),
            _number(row.predicted_p95_ms),
            _number(row.device_energy_j),
            _number(row.egress_bytes),
            _number(row.accuracy),
            waterfall_ms(row.plan) if row.plan else (),
            recommended is not None and row.plan is not None and row.plan.digest == recommended.digest,
        )
        for row in rows
    )


def waterfall_ms(plan: Plan) -> tuple[tuple[str, float], ...]:
    """Milliseconds by stage of the request that goes furthest in a plan; () if it predicts no path."""
    if not plan.predicted.paths:
        return ()
    furthest = max(plan.predicted.paths, key=lambda path: path.exit_index)
    return tuple((name, 1e3 * seconds) for name, seconds in furthest.waterfall)


def baseline_rows(
    rows: Iterable[BaselineRow],
    measured_p50_ms: Mapping[str, float] | None = None,
    measured_mean_ms: Mapping[str, float] | None = None,
) -> tuple[Baseline, ...]:
    """The plain ways of serving.

    Args:
        rows: From `baselines`.
        measured_p50_ms: By name, for those that were run too.
        measured_mean_ms: Likewise.

    Returns:
        One row each.
    """
    return tuple(
        Baseline(row.name, row.allowed, row.reason)
        if row.plan is None
        else Baseline(
            row.name,
            row.allowed,
            row.reason,
            1e3 * row.plan.predicted.latency_p50_s,
            1e3 * row.plan.predicted.latency_p95_s,
            (measured_p50_ms or {}).get(row.name),
            row.plan.predicted.device_energy_j,
            row.plan.predicted.egress_bytes,
            _number(row.plan.predicted.accuracy),
            (measured_mean_ms or {}).get(row.name),
        )
        for row in rows
    )


def planner_answer(question: str, said: levels.Recommendation, ways: Sequence[WayRow] = ()) -> PlannerAnswer:
    """One of the planner's answers.

    Args:
        question: Policy and links as a sentence.
        said: From `recommend`.
        ways: The answer and the best others, as measured.

    Returns:
        The row.
    """
    predicted = said.plan.predicted
    return PlannerAnswer(
        question,
        said.plan.name,
        tuple(str(t) for t in said.plan.tiers),
        said.level,
        said.collaborate,
        1e3 * predicted.latency_p50_s,
        1e3 * predicted.latency_p95_s,
        _number(predicted.accuracy),
        predicted.egress_bytes,
        _number(said.margin_fraction),
        said.reason,
        1e3 * predicted.latency_mean_s,
        _number(said.gain_fraction),
        tuple(ways),
        measured_best(ways),
    )


def measured_best(ways: Sequence[WayRow]) -> bool | None:
    """Whether no allowed way is certainly faster in the mean than the recommended one; None if that was not measured."""
    others = [way.gain for way in ways if way.allowed and not way.recommended and way.gain is not None]
    return None if not others else all(low <= 0.0 for _, low, _ in others)


def request_row(
    seen: Observation,
    *,
    scheduled_s: float,
    start_s: float = 0.0,
    plan: Plan | None = None,
    phase: str = "",
    right: bool | None = None,
    warm_up: bool = False,
) -> RequestRow:
    """One served request.

    Args:
        seen: What the device observed.
        scheduled_s: Scheduled arrival on the clock of `seen`; the wait before the device took it counts.
        start_s: Zero of the report's clock, on the same clock.
        plan: Plan in force; its predicted p50 of the path taken is set beside the measurement.
        phase: Phase of the stream.
        right: Whether the answer was right.
        warm_up: Left out of the comparison.

    Returns:
        The row; a request nobody answered has no latency.
    """
    answered = seen.source is not AnswerSource.NONE
    latency = 1e3 * (seen.arrived_s + seen.latency_s - scheduled_s) if answered else None
    paths = {path.exit_index: 1e3 * path.p50_s for path in plan.predicted.paths} if plan else {}
    predicted = paths.get(seen.exit_index) if seen.source is AnswerSource.PLAN and seen.exit_index is not None else None
    by = WORDS[seen.source]
    return RequestRow(scheduled_s - start_s, latency, predicted, seen.exit_index, phase, by, right, warm_up)


def shares_of(rows: Sequence[RequestRow]) -> dict[str, float]:
    """Share of requests by who answered, largest first.

    Args:
        rows: Requests.

    Returns:
        Fractions that sum to 1; {} for no request.
    """
    return {who: num / len(rows) for who, num in Counter(row.by for row in rows).most_common()}


def timeline_entries(
    notes: Iterable[TimelineNote], start_s: float = 0.0, kind: str = "step"
) -> tuple[TimelineEntry, ...]:
    """The loop's timeline.

    Args:
        notes: From the loop's state.
        start_s: Zero of the report's clock, on the loop's.
        kind: `step`, `fault` or `plan`.

    Returns:
        One entry each.
    """
    return tuple(TimelineEntry(note.time - start_s, note.phase, note.text, kind) for note in notes)


def resource_rows(used: Iterable[Resources], energy: Mapping[NodeId, Energy]) -> tuple[ResourceRow, ...]:
    """What each node used.

    Args:
        used: Readings, one per node.
        energy: By node, where known.

    Returns:
        One row each.
    """
    return tuple(
        ResourceRow(
            r.node,
            str(r.tier),
            r.cpu_seconds,
            r.peak_memory_bytes,
            energy[r.node].joules if r.node in energy else None,
            energy[r.node].source if r.node in energy else "modelled",
        )
        for r in used
    )


def audit_rows(audit: SplitAudit, infers_only: Iterable[str] = ()) -> tuple[AuditRow, ...]:
    """Data of each client.

    Args:
        audit: Of the split.
        infers_only: Clients whose data no training sees.

    Returns:
        One row each, with a count for every label of the split.
    """
    labels = range(1 + max((label for counts in audit.label_counts.values() for label in counts), default=-1))
    without = frozenset(infers_only)
    return tuple(
        AuditRow(
            client,
            num,
            tuple(audit.label_counts.get(client, {}).get(label, 0) for label in labels),
            client not in without,
        )
        for client, num in audit.examples.items()
    )


def _number(value: float) -> float | None:
    return value if isfinite(value) else None
