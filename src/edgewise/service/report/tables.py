"""The report's tables as HTML. Every text is escaped; every number is formatted here and nowhere else."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from edgewise.core.units import format_bytes
from edgewise.service.report.observed import WayRow
from edgewise.service.report.planned import LevelEntry, PlanSection
from edgewise.service.report.rows import format_joules, kpi_rows
from edgewise.service.report.schema import Report, is_unknown

NONE = "–"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], classes: Sequence[str] = ()) -> str:
    """A table.

    Args:
        head: Column names; one that starts with `#` is right-aligned.
        rows: Cells, already HTML.
        classes: Class of each row; () for none.

    Returns:
        HTML.
    """
    sides = [' class="n"' if name.startswith("#") else "" for name in head]
    top = "".join(f"<th{side}>{escape(name.lstrip('#'))}</th>" for name, side in zip(head, sides, strict=True))
    body = []
    for index, row in enumerate(rows):
        mark = f' class="{classes[index]}"' if index < len(classes) and classes[index] else ""
        cells = "".join(f"<td{side}>{cell}</td>" for cell, side in zip(row, sides, strict=True))
        body.append(f"<tr{mark}>{cells}</tr>")
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'


def tag(text: str, kind: str = "") -> str:
    """A small coloured label."""
    return f'<span class="tag {kind}">{escape(text)}</span>'


def yes_no(value: bool | None, good: bool = True) -> str:
    """Yes in green, no in red, – if unknown; `good` says which answer is the good one."""
    return NONE if value is None else tag("yes" if value else "no", "good" if value is good else "bad")


def milliseconds(value: float | None) -> str:
    """One decimal below 100 ms, none above."""
    return NONE if is_unknown(value) or value is None else f"{value:.1f} ms" if value < 100 else f"{value:.0f} ms"


def percent(value: float | None) -> str:
    """One decimal."""
    return NONE if is_unknown(value) else f"{value:.1%}"


def size(value: float | None) -> str:
    """Bytes with a unit."""
    return NONE if is_unknown(value) or value is None else format_bytes(value)


def joules(value: float | None) -> str:
    """Joules with a prefix."""
    return NONE if is_unknown(value) or value is None else format_joules(value)


def plain(value: Any) -> str:
    """Text or – for nothing."""
    return NONE if value is None or value == "" else escape(str(value))


def kpi_table(report: Report) -> str:
    """The twelve KPIs."""
    rows = [
        (
            escape(r.half),
            f"<b>{escape(r.name)}</b>",
            escape(r.text),
            tag(r.source, r.source) if r.text != NONE else escape(r.source),
        )
        for r in kpi_rows(report)
    ]
    return table(("", "KPI", "#value", "how known"), rows)


def level_table(levels: Sequence[LevelEntry], plan: PlanSection | None = None) -> str:
    """The seven levels with their latency stacked by stage, the plan in force above them."""
    shown = [level.waterfall for level in levels] + ([plan.waterfall] if plan is not None else [])
    stages = list(dict.fromkeys(name for waterfall in shown for name, _ in waterfall))
    paints = {name: stage_paint(index) for index, name in enumerate(stages)}
    longest = max((sum(ms for _, ms in waterfall) for waterfall in shown), default=0.0) or 1.0
    rows, classes = [], []
    if plan is not None and plan.name and not any(level.recommended for level in levels):
        classes.append("chosen")
        rows.append(
            (
                "<b>plan</b>",
                f'<span class="w">{escape(" + ".join(plan.tiers)) or NONE}</span>',
                "in force",
                milliseconds(plan.predicted_p50_ms),
                milliseconds(plan.predicted_p95_ms),
                _waterfall(plan.waterfall, paints, longest),
                joules(plan.device_energy_j),
                size(plan.egress_bytes),
                percent(plan.accuracy),
                _reason(tag("recommended", "good"), plan.name),
            )
        )
    for level in levels:
        classes.append("chosen" if level.recommended else "" if level.feasible else "off")
        mark = tag("recommended", "good") if level.recommended else "" if level.feasible else tag("not allowed", "bad")
        rows.append(
            (
                f"<b>{level.level}</b>",
                f'<span class="w">{escape(" + ".join(level.tiers)) or NONE}</span>',
                escape(level.training_domain),
                milliseconds(level.predicted_p50_ms),
                milliseconds(level.predicted_p95_ms),
                _waterfall(level.waterfall, paints, longest),
                joules(level.device_energy_j),
                size(level.egress_bytes),
                percent(level.accuracy),
                _reason(mark, level.reason),
            )
        )
    legend = "".join(f'<span><i style="background:{paints[s]}"></i>{escape(s)}</span>' for s in stages)
    head = (
        "level",
        "computes",
        "trained",
        "#p50",
        "#p95",
        "longest path, by stage",
        "#device energy",
        "#egress",
        "#accuracy",
        "",
    )
    return table(head, rows, classes) + (f'<div class="legend">{legend}</div>' if legend else "")


def _reason(mark: str, text: str) -> str:
    return f'<div class="reason">{mark} {escape(text)}</div>'


NUM_COLOURS = 6
_HATCHES = ("90deg", "45deg", "0deg", "135deg")


def stage_paint(index: int) -> str:
    """A CSS background that no other stage has: six colours plain, then the same hatched in four directions."""
    colour, turn = f"var(--s{index % NUM_COLOURS + 1})", index // NUM_COLOURS
    if turn == 0:
        return colour
    width = 2 + (turn - 1) // len(_HATCHES)
    hatch = f"{_HATCHES[(turn - 1) % len(_HATCHES)]},{colour} 0 {width}px,var(--card) {width}px {2 * width}px"
    return f"repeating-linear-gradient({hatch})"


def way_table(ways: Sequence[WayRow]) -> str:
    """Ways of serving, measured in turn on the same inputs."""
    rows = [
        (
            f"<b>{escape(way.name)}</b>",
            milliseconds(way.predicted_mean_ms),
            milliseconds(way.mean_ms),
            milliseconds(way.p50_ms),
            milliseconds(way.p95_ms),
            percent(way.accuracy),
            f"{way.answered} / {way.requests}",
            _reason(
                tag("recommended", "good") if way.recommended else "" if way.allowed else tag("not allowed", "bad"), ""
            ),
        )
        for way in ways
    ]
    head = ("way", "#predicted mean", "#mean", "#p50", "#p95", "#accuracy", "#answered", "")
    return table(head, rows, ["chosen" if w.recommended else "" if w.allowed else "off" for w in ways])


def stream_table(plan: PlanSection) -> str:
    """Predicted beside measured, over the whole fault-free stream."""
    shares = plan.exit_shares
    rows = [
        (
            "<b>predicted</b>",
            milliseconds(plan.predicted_mean_ms),
            milliseconds(plan.predicted_p50_ms),
            milliseconds(plan.predicted_p95_ms),
            *(percent(share.predicted) for share in shares),
        ),
        (
            "<b>measured</b>",
            milliseconds(plan.measured_mean_ms),
            milliseconds(plan.measured_p50_ms),
            milliseconds(plan.measured_p95_ms),
            *(percent(share.measured) for share in shares),
        ),
        (
            "<b>off by</b>",
            percent(plan.mean_error_fraction),
            percent(plan.p50_error_fraction),
            percent(plan.p95_error_fraction),
            *(f"{100 * abs(share.predicted - share.measured):.1f} points" for share in shares),
        ),
    ]
    return table(("whole stream", "#mean", "#p50", "#p95", *(f"#leave at exit {s.exit}" for s in shares)), rows)


def _waterfall(waterfall: Sequence[tuple[str, float]], paints: dict[str, str], longest: float) -> str:
    if not waterfall:
        return '<div class="fallbox"></div>'
    bars = "".join(
        f'<i style="width:{100 * ms / longest:.2f}%;background:{paints[name]}" title="{escape(name)}: {ms:.2f} ms"></i>'
        for name, ms in waterfall
    )
    return f'<div class="fallbox"><div class="fall">{bars}</div></div>'


def baseline_table(report: Report) -> str:
    """The plan beside the baselines."""
    plan = report.plan
    first = (
        f"<b>{plain(plan.name or 'the plan')}</b>",
        milliseconds(plan.predicted_p50_ms),
        milliseconds(plan.predicted_p95_ms),
        milliseconds(plan.measured_p50_ms),
        joules(plan.device_energy_j),
        size(plan.egress_bytes),
        percent(plan.accuracy),
        _reason("", "the plan in force"),
    )
    rows = [
        (
            escape(b.name),
            milliseconds(b.predicted_p50_ms),
            milliseconds(b.predicted_p95_ms),
            milliseconds(b.measured_p50_ms),
            joules(b.device_energy_j),
            size(b.egress_bytes),
            percent(b.accuracy),
            _reason("" if b.allowed else tag("not allowed", "bad"), b.reason),
        )
        for b in report.baselines
    ]
    head = ("", "#p50", "#p95", "#measured p50", "#device energy", "#egress", "#accuracy", "")
    return table(head, [first, *rows], ["chosen", *("" if b.allowed else "off" for b in report.baselines)])


def phase_table(report: Report) -> str:
    """The phases of the stream."""
    shares = list(dict.fromkeys(name for p in report.faults.phases for name in p.shares))
    rows = [
        (
            f"<b>{escape(p.name)}</b>",
            f"{p.start_s:.1f}–{p.end_s:.1f} s",
            str(p.requests),
            plain(p.answered_by_deadline),
            percent(p.accuracy),
            milliseconds(p.p50_ms),
            milliseconds(p.p95_ms),
            *(percent(p.shares.get(name, 0.0)) for name in shares),
        )
        for p in report.faults.phases
    ]
    head = ("phase", "when", "#requests", "#in time", "#accuracy", "#p50", "#p95", *(f"#{name}" for name in shares))
    return table(head, rows)


def version_table(report: Report) -> str:
    """Versions and what their gates said."""
    rows = [
        (
            f"<b>{v.number}</b>",
            plain(v.what),
            f"<code>{escape(v.digest[:12])}</code>" if v.digest else NONE,
            str(v.parent) if v.parent else NONE,
            percent(v.accuracy),
            plain(v.gate.reason) if v.gate else NONE,
            tag(
                v.outcome,
                "bad" if v.outcome in ("refused", "rolled back") else "good" if v.outcome == "serving" else "",
            )
            if v.outcome
            else NONE,
        )
        for v in report.versions
    ]
    return table(("version", "from", "graph", "parent", "#accuracy", "gate", ""), rows)


def label_table(report: Report) -> str:
    """Label sources: share, agreement, and what left the devices for them."""
    rows = [
        (
            f"<b>{escape(r.source)}</b>",
            str(r.asked),
            str(r.labelled),
            percent(r.agreement),
            size(r.feature_bytes_sent),
            size(r.raw_bytes_sent),
        )
        for r in report.loop.labels
    ]
    return table(
        (
            "label source",
            "#asked",
            "#labelled",
            "#agreement with the truth, where known",
            "#features sent",
            "#raw sent",
        ),
        rows,
    )


def monitor_table(report: Report) -> str:
    """Drift monitors: evidence beside its threshold, what it is of, the proven error, and what is waited for."""
    rows = [
        (
            f"<b>{escape(r.monitor)}</b>",
            f"{r.statistic:.3g}",
            f"{r.threshold:g}",
            f"{1 / r.threshold:.1%}",
            f"{r.seen} {'labels' if r.monitor == 'harm' else 'requests'}",
            escape(r.found or "nothing found"),
            escape(r.waits_for or NONE),
            escape(r.price or "no labels"),
        )
        for r in report.loop.monitors
    ]
    heads = (
        "drift monitor",
        "#evidence",
        "#alarm at",
        "#false alarm ever, at most",
        "#from",
        "found",
        "waits for",
        "price",
    )
    return table(heads, rows)


def resource_table(report: Report) -> str:
    """CPU seconds, peak memory and energy per node."""
    rows = [
        (
            f"<b>{escape(r.node)}</b>",
            escape(r.tier),
            NONE if is_unknown(r.cpu_seconds) else f"{r.cpu_seconds:.2f} s",
            size(r.peak_memory_bytes),
            joules(r.energy_j),
            tag(r.energy_source, r.energy_source) if not is_unknown(r.energy_j) else "",
        )
        for r in report.resources
    ]
    return table(("node", "tier", "#CPU time", "#peak memory", "#energy", ""), rows)


def energy_table(report: Report) -> str:
    """Parameters of the energy model."""
    names = list(dict.fromkeys(name for p in report.energy_parameters.values() for name in p))
    rows = [
        (f"<b>{escape(tier)}</b>", *(f"{p[name]:g}" if name in p else NONE for name in names))
        for tier, p in report.energy_parameters.items()
    ]
    return table(("energy model", *(f"#{name}" for name in names)), rows)


def audit_table(report: Report) -> str:
    """Data of each client."""
    num = max((len(a.labels) for a in report.audit), default=0)
    rows = [
        (
            f"<b>{escape(a.client)}</b>",
            str(a.examples),
            *(str(a.labels[i]) if i < len(a.labels) else NONE for i in range(num)),
            "trains" if a.trains else "only infers",
        )
        for a in report.audit
    ]
    return table(("client", "#examples", *(f"#{i}" for i in range(num)), ""), rows)


def unknown_table(report: Report) -> str:
    """Null numbers and why."""
    rows = [(f"<code>{escape(path)}</code>", escape(reason)) for path, reason in report.unknown.items()]
    return table(("not known", "why"), rows)
