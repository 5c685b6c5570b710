"""The twelve KPIs as rows of a table, the same in the page and on the command line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from edgewise.core.units import format_bytes
from edgewise.service.report.schema import Report, is_unknown


class KpiRow(msgspec.Struct, frozen=True):
    """One KPI.

    Attributes:
        half: `training` or `inference`.
        name: What it is.
        text: The number with its unit, "–" if unknown.
        source: `measured`, `modelled`, or why it is unknown.
        value: The number or numbers.
    """

    half: str
    name: str
    text: str
    source: str
    value: Any = None


def kpi_rows(report: Report) -> tuple[KpiRow, ...]:
    """The twelve KPIs: six of training, six of inference.

    Args:
        report: Any report.

    Returns:
        Twelve rows.
    """
    training, inference = report.kpis.training, report.kpis.inference
    latency = inference.latency_ms
    rows: list[tuple[str, str, list[tuple[str, Any]], Callable[[list[Any]], str], str]] = [
        ("training", "Training loss", [("loss", training.loss)], lambda v: f"{v[0]:.4f}", "measured"),
        (
            "training",
            "Convergence",
            [("accuracy", training.accuracy), ("rounds", training.rounds), ("seconds", training.seconds)],
            lambda v: f"{v[0]:.1%} after {v[1]} rounds, {v[2]:.1f} s",
            "measured",
        ),
        (
            "training",
            "Privacy: raw bytes off the devices",
            [("raw_bytes_off_device", training.raw_bytes_off_device)],
            lambda v: format_bytes(v[0]),
            "measured",
        ),
        (
            "training",
            "Communication",
            [
                ("uplink_bytes", training.uplink_bytes),
                ("downlink_bytes", training.downlink_bytes),
                ("wan_bytes", training.wan_bytes),
            ],
            lambda v: f"{format_bytes(v[0])} up, {format_bytes(v[1])} down, {format_bytes(v[2])} WAN",
            "measured",
        ),
        (
            "training",
            "Duration of a round",
            [("seconds", training.seconds), ("rounds", training.rounds)],
            lambda v: f"{1e3 * v[0] / max(v[1], 1):.0f} ms",
            "measured",
        ),
        (
            "training",
            "Energy",
            [("energy_j", training.energy_j)],
            lambda v: format_joules(v[0]),
            training.energy_source,
        ),
        (
            "inference",
            "Latency p50 / p95 / p99",
            [("latency_ms.p50", latency.p50), ("latency_ms.p95", latency.p95), ("latency_ms.p99", latency.p99)],
            lambda v: " / ".join(f"{x:.1f}" for x in v) + " ms",
            "measured",
        ),
        ("inference", "Accuracy", [("accuracy", inference.accuracy)], lambda v: f"{v[0]:.1%}", "measured"),
        (
            "inference",
            "Privacy: requests whose raw input left the device",
            [("raw_inputs_off_device_fraction", inference.raw_inputs_off_device_fraction)],
            lambda v: f"{v[0]:.1%}",
            "measured",
        ),
        (
            "inference",
            "Communication per request",
            [("bytes_per_request", inference.bytes_per_request)],
            lambda v: format_bytes(v[0]),
            "measured",
        ),
        (
            "inference",
            "Energy per request",
            [("energy_j_per_request", inference.energy_j_per_request)],
            lambda v: format_joules(v[0]),
            inference.energy_source,
        ),
        (
            "inference",
            "Peak memory of a serving device",
            [("peak_memory_bytes", inference.peak_memory_bytes)],
            lambda v: format_bytes(v[0]),
            "measured",
        ),
    ]
    return tuple(_row(report, *row) for row in rows)


def _row(
    report: Report, half: str, name: str, parts: list[tuple[str, Any]], text: Callable[[list[Any]], str], source: str
) -> KpiRow:
    values = [value for _, value in parts]
    value = values[0] if len(values) == 1 else {key.rpartition(".")[2]: v for key, v in parts}
    missing = next((key for key, v in parts if is_unknown(v)), None)
    if missing is None:
        return KpiRow(half, name, text(values), source, value)
    reason = report.unknown.get(f"kpis.{half}.{missing}", "not measured in this run")
    return KpiRow(half, name, "–", reason, value)


def format_joules(joules: float) -> str:
    """Writes an energy with three digits: `12.5 mJ`."""
    for scale, unit in ((1.0, "J"), (1e-3, "mJ"), (1e-6, "µJ")):
        if abs(joules) >= scale or unit == "µJ":
            return f"{joules / scale:.3g} {unit}"
    raise AssertionError("unreachable")
