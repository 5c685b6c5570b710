"""The report's plots: matplotlib figures, and their SVG with the page's own colours so that light and dark both read.

matplotlib is imported inside; the same report gives the same bytes.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from edgewise.service.report.observed import RequestRow, RoundRow
from edgewise.service.report.schema import Report, is_unknown


@dataclass(frozen=True, slots=True)
class Paint:
    """Colours of a figure, as hexadecimal text."""

    ink: str
    soft: str
    line: str
    card: str
    bad: str
    series: tuple[str, ...]


STAND_INS = Paint(
    "#010101",
    "#020202",
    "#030303",
    "#040404",
    "#050505",
    ("#0a0001", "#0a0002", "#0a0003", "#0a0004", "#0a0005", "#0a0006"),
)
"""Replaced in the SVG by the page's CSS variables."""
LIGHT = Paint(
    "#1c1e21",
    "#5e646c",
    "#e2e3df",
    "#ffffff",
    "#c0322b",
    ("#2463c9", "#c8660a", "#1f8255", "#7a49b8", "#b93d6b", "#6d7680"),
)
"""The page's light colours, for pictures."""


def style(paint: Paint) -> dict[str, Any]:
    """matplotlib's settings for these colours."""
    return {
        "svg.fonttype": "none",
        "font.size": 10,
        "font.family": ["DejaVu Sans"],
        "text.color": paint.ink,
        "axes.edgecolor": paint.line,
        "axes.labelcolor": paint.soft,
        "axes.titlecolor": paint.ink,
        "axes.titlesize": 11,
        "axes.titlelocation": "left",
        "axes.titleweight": "bold",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": paint.line,
        "grid.linewidth": 0.7,
        "xtick.color": paint.soft,
        "ytick.color": paint.soft,
        "xtick.major.size": 0,
        "ytick.major.size": 0,
        "legend.frameon": False,
        "legend.labelcolor": paint.soft,
        "legend.fontsize": 9,
        "lines.linewidth": 1.8,
        "lines.markersize": 4,
        "figure.facecolor": "none",
        "axes.facecolor": "none",
    }


Draw = Callable[[Any, Report, Paint], None]


def svg(name: str, draw: Draw, report: Report, size: tuple[float, float]) -> str:
    """Draws one figure as inline SVG.

    Args:
        name: Makes ids unique on the page.
        draw: Draws on a figure.
        report: What to draw.
        size: Inches.

    Returns:
        An `<svg>` element that takes its colours from the page.
    """
    import matplotlib
    from matplotlib.figure import Figure

    settings: Any = {**style(STAND_INS), "svg.hashsalt": name}
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure, report, STAND_INS)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r' width="[\d.]+pt"| height="[\d.]+pt"', "", text, count=2)
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', text))  # other ids would repeat from figure to figure
    text = re.sub(r' id="([^"]+)"', lambda found: found[0] if found[1] in used else "", text)
    for name_in_css in ("ink", "soft", "line", "card", "bad"):
        text = text.replace(getattr(STAND_INS, name_in_css), f"var(--{name_in_css})")
    for index, colour in enumerate(STAND_INS.series):
        text = text.replace(colour, f"var(--s{index + 1})")
    return text.replace("<svg", f'<svg role="img" aria-label="{name}"', 1)


def draw_learning(figure: Any, report: Report, paint: Paint) -> None:
    """Loss and accuracy per round, one line per training run."""
    loss, accuracy = figure.subplots(1, 2)
    for colour, (run, rows) in zip(_cycle(paint), _by_run(report.rounds).items(), strict=False):
        for axes, field in ((loss, "loss"), (accuracy, "accuracy")):
            points = [(r.round, getattr(r, field)) for r in rows if not is_unknown(getattr(r, field))]
            if points:
                axes.plot(*zip(*points, strict=True), marker="o", color=colour, label=run)
    loss.set(title="Training loss", xlabel="round")
    accuracy.set(title="Accuracy", xlabel="round", ylim=(None, 1.0))
    accuracy.yaxis.set_major_formatter(_formatter(lambda v, _: f"{v:.0%}"))
    for axes in (loss, accuracy):
        axes.xaxis.get_major_locator().set_params(integer=True)
    loss.set_ylim(0, None)
    _legend_below(figure, accuracy)


def draw_bytes(figure: Any, report: Report, paint: Paint) -> None:
    """Bytes up and down per round, one pair of bars per training run."""
    runs = _by_run(report.rounds)
    up, down = figure.subplots(1, 2, sharey=True)
    width = 0.8 / max(len(runs), 1)
    for index, (colour, (run, rows)) in enumerate(zip(_cycle(paint), runs.items(), strict=False)):
        for axes, field in ((up, "uplink_bytes"), (down, "downlink_bytes")):
            points = [(r.round - 0.4 + width * (index + 0.5), getattr(r, field)) for r in rows if getattr(r, field)]
            if points:
                places, sizes = zip(*points, strict=True)
                axes.bar(places, [s / 1e3 for s in sizes], width * 0.92, color=colour, label=run)
    up.set(title="Devices send", xlabel="round", ylabel="kB per round")
    down.set(title="Devices receive", xlabel="round")
    for axes in (up, down):
        axes.grid(axis="x", visible=False)
        axes.xaxis.get_major_locator().set_params(integer=True)
    _legend_below(figure, up)


def draw_prediction(figure: Any, report: Report, paint: Paint) -> None:
    """Predicted against measured latency of every fault-free request, with the ±15 % band."""
    axes = figure.subplots()
    rows = [
        r for r in report.requests if r.predicted_ms and r.latency_ms and not r.warm_up and r.phase in _calm(report)
    ]
    for colour, exit_index in zip(_cycle(paint), sorted({r.exit for r in rows if r.exit is not None}), strict=False):
        at = [r for r in rows if r.exit == exit_index]
        axes.scatter(
            [r.predicted_ms for r in at],
            [r.latency_ms for r in at],
            s=14,
            color=colour,
            alpha=0.55,
            linewidths=0,
            label=f"left at exit {exit_index}",
        )
    most = 1.1 * max(
        [r.predicted_ms or 0 for r in rows] + sorted(r.latency_ms or 0 for r in rows)[: max(1, int(0.98 * len(rows)))]
    )
    axes.plot([0, most], [0, most], color=paint.soft, linewidth=1)
    axes.fill_between([0, most], [0, most / 1.15], [0, most / 0.85], color=paint.soft, alpha=0.12, linewidth=0)
    axes.set(
        title="Predicted and measured", xlabel="predicted, ms", ylabel="measured, ms", xlim=(0, most), ylim=(0, most)
    )
    _legend(axes, loc="lower right")


def draw_distribution(figure: Any, report: Report, paint: Paint) -> None:
    """Cumulative latency of the phases of the stream, with the deadline."""
    axes = figure.subplots()
    for colour, phase in zip(_cycle(paint), dict.fromkeys(r.phase for r in report.requests), strict=False):
        values = sorted(r.latency_ms for r in report.requests if r.phase == phase and r.latency_ms is not None)
        if values:
            axes.step(
                values, [(i + 1) / len(values) for i in range(len(values))], where="post", color=colour, label=phase
            )
    if report.faults.deadline_ms is not None:
        axes.axvline(report.faults.deadline_ms, color=paint.bad, linewidth=1, linestyle="--")
        axes.text(report.faults.deadline_ms, 0.02, " deadline", color=paint.bad, fontsize=9)
    axes.set(title="Latency by phase", xlabel="ms from the scheduled arrival", ylim=(0, 1.02), xscale="log")
    from matplotlib.ticker import LogLocator

    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(_formatter(lambda v, _: f"{v:g}"))
    axes.xaxis.set_minor_formatter(_formatter(lambda v, _: ""))
    axes.yaxis.set_major_formatter(_formatter(lambda v, _: f"{v:.0%}"))
    _legend_below(figure, axes, ncols=3)


def draw_timeline(figure: Any, report: Report, paint: Paint) -> None:
    """Accuracy and latency over the run, the loop's phases below, the faults as lines through all three."""
    accuracy, latency, lanes = figure.subplots(3, 1, sharex=True, height_ratios=(1.2, 1.2, 1.3))
    _draw_accuracy(accuracy, report.requests, paint)
    _draw_latency(latency, report, paint)
    _draw_lanes(lanes, report, paint)
    for entry in report.timeline:
        if entry.kind == "fault":
            for axes in (accuracy, latency, lanes):
                axes.axvline(entry.time_s, color=paint.bad, linewidth=1, linestyle=(0, (4, 2)), zorder=0)


def _draw_accuracy(axes: Any, requests: Iterable[RequestRow], paint: Paint, window: int = 40) -> None:
    rows = [r for r in sorted(requests, key=lambda r: r.arrival_s) if r.right is not None]
    rolling = [
        (r.arrival_s, sum(bool(x.right) for x in rows[max(0, i - window + 1) : i + 1]) / min(window, i + 1))
        for i, r in enumerate(rows)
        if i >= min(window, len(rows)) // 2
    ]
    if rolling:
        axes.plot(*zip(*rolling, strict=True), color=paint.series[2])
    axes.set(title=f"Accuracy of the last {window} answers", ylim=(None, 1.02))
    axes.yaxis.set_major_formatter(_formatter(lambda v, _: f"{v:.0%}"))


def _draw_latency(axes: Any, report: Report, paint: Paint) -> None:
    for colour, who in zip(_cycle(paint), dict.fromkeys(r.by for r in report.requests), strict=False):
        at = [r for r in report.requests if r.by == who and r.latency_ms is not None]
        axes.scatter(
            [r.arrival_s for r in at], [r.latency_ms for r in at], s=9, color=colour, alpha=0.7, linewidths=0, label=who
        )
    if report.faults.deadline_ms is not None:
        axes.axhline(report.faults.deadline_ms, color=paint.soft, linewidth=1, linestyle="--")
    axes.set(title="Latency of each request, ms (dashed: the deadline)", ylim=(0, None))
    _legend(axes, loc="upper left", ncols=4, markerscale=2)


def _draw_lanes(axes: Any, report: Report, paint: Paint) -> None:
    phases = list(dict.fromkeys(e.phase for e in report.timeline))
    for lane, phase in enumerate(phases):
        for entry in (e for e in report.timeline if e.phase == phase):
            colour = {"fault": paint.bad, "plan": paint.series[3]}.get(entry.kind, paint.series[0])
            axes.scatter(
                [entry.time_s], [lane], s=34, color=colour, marker="X" if entry.kind == "fault" else "o", linewidths=0
            )
    axes.set_yticks(range(len(phases)), phases)
    axes.set(title="The loop", xlabel="seconds", ylim=(len(phases) - 0.4, -0.6))


def _calm(report: Report) -> frozenset[str]:
    """The phases without faults: the one of the first request."""
    return frozenset(r.phase for r in report.requests[:1])


def _by_run(rounds: Iterable[RoundRow]) -> dict[str, list[RoundRow]]:
    runs: dict[str, list[RoundRow]] = {}
    for row in rounds:
        runs.setdefault(row.run, []).append(row)
    return runs


def _cycle(paint: Paint) -> Iterable[str]:
    return [*paint.series] * 4


def _formatter(write: Callable[[float, int], str]) -> Any:
    from matplotlib.ticker import FuncFormatter

    return FuncFormatter(write)


def _legend(axes: Any, **settings: Any) -> None:
    if axes.get_legend_handles_labels()[1]:
        axes.legend(**settings)


def _legend_below(figure: Any, axes: Any, ncols: int = 6) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) > 1:
        figure.legend(handles, labels, loc="outside lower center", ncols=ncols)
