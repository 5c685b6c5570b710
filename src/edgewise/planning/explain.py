"""Plans in words: the waterfall of every path, and a table's cells for the levels. Rendering is the CLI's."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from edgewise.core.units import format_bytes
from edgewise.planning.baselines import BaselineRow
from edgewise.planning.levels import LevelRow
from edgewise.planning.plan import FILTERED, Plan

ACCURACY, AGREEMENT = "accuracy", "agreement"
"""What a plan's share of right answers is called: right by labels, or like the whole model's own answer."""


def level_columns(quality: str = ACCURACY) -> tuple[str, ...]:
    """Heads of the table of levels.

    Args:
        quality: `ACCURACY` or `AGREEMENT`.

    Returns:
        Nine.
    """
    head = ("level", "runs on", "model trained", "p50 ms", "p95 ms", "device mJ", "egress")
    return (*head, quality if quality == ACCURACY else "agreement, not accuracy", "plan or reason")


LEVEL_COLUMNS = level_columns()


def explain(plan: Plan, quality: str = ACCURACY) -> list[str]:
    """Says where a plan's time goes.

    Args:
        plan: With predictions.
        quality: What its share of right answers is called.

    Returns:
        Lines: a heading, then per exit its share and latency with every term above 1 µs.
    """
    predicted = plan.predicted
    lines = [
        f"{plan.name}: mean {predicted.latency_mean_s * 1e3:.2f} ms, p50 {predicted.latency_p50_s * 1e3:.2f} ms, "
        f"p95 {predicted.latency_p95_s * 1e3:.2f} ms, {quality} {predicted.accuracy:.3f}, "
        f"device {predicted.device_energy_j * 1e3:.3g} mJ (modelled), egress {format_bytes(predicted.egress_bytes)}"
    ]
    for handover in plan.handovers:
        raw = ", the raw input" if handover.carries_raw else ""
        way = f"{plan.site_of(handover.source)}→{plan.site_of(handover.target)}"
        size = format_bytes(handover.payload_bytes)
        lines.append(f"  cut {way}: {', '.join(handover.tensors)} as {handover.codec}, {size}{raw}")
    places = {gate.index: f"exit {gate.index} on {plan.site_of(gate.at)}" for gate in plan.exits}
    for gate in plan.filters:
        places[FILTERED] = f"{gate.spec} at {gate.threshold:.3g}"
    for path in predicted.paths:
        lines.append(f"  {places[path.exit_index]}: {path.fraction:.1%} of requests, {path.p50_s * 1e3:.2f} ms")
        lines.extend(f"    {name:<26}{seconds * 1e3:9.3f} ms" for name, seconds in path.waterfall if seconds > 1e-6)
    return lines


def level_cells(rows: Iterable[LevelRow]) -> list[Sequence[str]]:
    """The levels as text cells.

    Args:
        rows: From `plan_levels`.

    Returns:
        One row of `LEVEL_COLUMNS` per level.
    """
    return [_cells(row) for row in rows]


def _cells(row: LevelRow) -> Sequence[str]:
    head = (str(row.level), "+".join(row.tiers), row.training_domain)
    if row.plan is None:
        return (*head, "–", "–", "–", "–", "–", row.reason)
    return (
        *head,
        f"{row.predicted_p50_ms:.2f}",
        f"{row.predicted_p95_ms:.2f}",
        f"{row.device_energy_j * 1e3:.3g}",
        format_bytes(row.egress_bytes),
        f"{row.accuracy:.3f}",
        row.plan.name,
    )


def one_node_columns(quality: str = ACCURACY) -> tuple[str, ...]:
    """Heads of the table of the plain ways.

    Args:
        quality: `ACCURACY` or `AGREEMENT`.

    Returns:
        Four.
    """
    return ("way", "mean ms", quality, "allowed")


def one_node_cells(rows: Iterable[BaselineRow]) -> list[Sequence[str]]:
    """The plain ways as text cells.

    Args:
        rows: From `baselines`.

    Returns:
        One row of `one_node_columns` per way.
    """
    return [(row.name, *_mean_and_accuracy(row.plan), row.reason or "yes") for row in rows]


def _mean_and_accuracy(plan: Plan | None) -> tuple[str, str]:
    if plan is None:
        return "–", "–"
    return f"{plan.predicted.latency_mean_s * 1e3:.2f}", f"{plan.predicted.accuracy:.3f}"
