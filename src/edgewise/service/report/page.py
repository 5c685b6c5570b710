"""The page: one HTML file with its style and plots inside; it asks for nothing from anywhere."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from importlib.resources import files

from edgewise.service.report import plots, tables
from edgewise.service.report.conclusions import conclusions, headline
from edgewise.service.report.planned import PlannerAnswer
from edgewise.service.report.schema import Report, is_unknown
from edgewise.service.report.tables import milliseconds, percent, size

Section = tuple[str, str, str]
"""Anchor, heading, body; an empty body is left out."""


def render_page(report: Report) -> str:
    """Writes the page.

    Args:
        report: What to show.

    Returns:
        A whole HTML document; the same report gives the same text.
    """
    sections = [section for make in SECTIONS if (section := make(report))[2]]
    style = files("edgewise.service.report").joinpath("page.css").read_text("utf-8")
    links = "".join(f'<a href="#{anchor}">{escape(title)}</a>' for anchor, title, _ in sections)
    body = "".join(
        f'<section id="{anchor}"><h2>{escape(title)}</h2>{text}</section>' for anchor, title, text in sections
    )
    meta = "".join(f"<span>{escape(key)} {escape(value)}</span>" for key, value in report.meta.items())
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(report.title)}</title><style>{style}</style></head><body>"
        f'<header><h1>{escape(report.title)}</h1><div class="meta">{meta}</div></header>'
        f"{_cards(report)}<nav>{links}</nav>{body}"
        "<footer>Every number is in <code>report.json</code> beside this page. "
        "Measured numbers come from frame counters, clocks and process counters; modelled ones say so.</footer></body></html>\n"
    )


def _figure(name: str, draw: plots.Draw, report: Report, size_in: tuple[float, float], caption: str) -> str:
    return f"<figure>{plots.svg(name, draw, report, size_in)}<figcaption>{escape(caption)}</figcaption></figure>"


def _card(value: str, text: str) -> str:
    return f'<div class="card"><b>{value}</b><span>{escape(text)}</span></div>'


def _cards(report: Report) -> str:
    plan, faults, loop = report.plan, report.faults, report.loop
    cards = []
    if not is_unknown(report.kpis.training.accuracy):
        cards.append(
            _card(
                percent(report.kpis.training.accuracy),
                f"accuracy after {report.kpis.training.rounds} rounds of training",
            )
        )
    said = headline(report)
    if said is not None:
        cards.insert(0, _card(escape(said[0]), said[1]))
    if (
        plan.mean_error_fraction is not None
        and plan.p50_error_fraction is not None
        and plan.p95_error_fraction is not None
    ):
        cards.append(
            _card(
                percent(plan.mean_error_fraction),
                f"off in the predicted mean of the whole stream; p50 {plan.p50_error_fraction:.1%}, p95 "
                f"{plan.p95_error_fraction:.1%}, shares of exits {plan.share_error_points or 0:.1f} points",
            )
        )
    if faults.requests and faults.answered_by_deadline is not None:
        cards.append(
            _card(f"{faults.answered_by_deadline} / {faults.requests}", "answered by the deadline during faults")
        )
    if not is_unknown(loop.accuracy_drifted) and not is_unknown(loop.accuracy_after):
        cards.append(
            _card(
                f"{percent(loop.accuracy_drifted)} → {percent(loop.accuracy_after)}",
                "accuracy on drifted inputs, before and after the loop",
            )
        )
    if not is_unknown(report.kpis.training.raw_bytes_off_device):
        cards.append(_card(size(report.kpis.training.raw_bytes_off_device), "of raw training data left a device"))
    return f'<div class="cards">{"".join(cards)}</div>' if cards else ""


def _kpis(report: Report) -> Section:
    return "kpis", "Twelve KPIs", tables.kpi_table(report)


def _data(report: Report) -> Section:
    body = ""
    if report.split is not None:
        s = report.split
        cards = [
            _card(str(n), t)
            for n, t in (
                (s.train, "train, on the devices"),
                (s.calibration, "calibration: thresholds"),
                (s.gate, "gate: versions compared"),
                (s.stream, "stream: served"),
            )
        ]
        body += f'<p>The examples are divided once, disjointly, by seed.</p><div class="cards">{"".join(cards)}</div>'
    if report.audit:
        body += "<h3>Who holds what, per label</h3>" + tables.audit_table(report)
    return "data", "Data", body


def _training(report: Report) -> Section:
    if not report.rounds:
        return "training", "Training", ""
    body = _figure(
        "loss and accuracy per round",
        plots.draw_learning,
        report,
        (10, 3.3),
        "Loss and accuracy after each round, one line per training run.",
    )
    if any(r.uplink_bytes for r in report.rounds):
        body += _figure(
            "bytes up and down per round",
            plots.draw_bytes,
            report,
            (10, 3.0),
            "Bytes on the devices' links in each round, frames and all, by training run.",
        )
    codec = report.codec
    if codec.uncoded_bytes and codec.coded_bytes:
        body += (
            f"<p>With <code>{escape(codec.codec or 'the codec')}</code> the uplink carries {size(codec.coded_bytes)} instead of "
            f"{size(codec.uncoded_bytes)}, <b>{codec.uncoded_bytes / codec.coded_bytes:.1f}x</b> fewer; accuracy "
            f"{percent(codec.accuracy_coded)} beside {percent(codec.accuracy_uncoded)} uncoded.</p>"
        )
    return "training", "Training", body


def _plan(report: Report) -> Section:
    plan = report.plan
    body = ""
    if report.answers:
        body += f'<p>The same model, three questions.</p><div class="trio">{"".join(_answer(a) for a in report.answers)}</div>'
    for answer in report.answers:
        if answer.ways:
            body += f"<h3>Measured: {escape(answer.question)}</h3>" + tables.way_table(answer.ways)
    if plan.levels:
        body += (
            "<h3>Seven levels of edge intelligence</h3><p>The plan in force first, then the best plan of each level with the "
            "model that this level would train, predicted from measured profiles; device energy is modelled.</p>"
        )
        body += tables.level_table(plan.levels, plan)
    if plan.assumed:
        body += f"<p>Assumed: {escape('; '.join(plan.assumed))}.</p>"
    if report.baselines:
        body += "<h3>The plan and what one would do without it</h3>" + tables.baseline_table(report)
    return "plan", "Plan", body


def _answer(answer: PlannerAnswer) -> str:
    gain = answer.gain_fraction
    margin = "" if gain is None or not answer.collaborates else f", mean {gain:+.0%} against one node, predicted"
    best = {True: tables.tag("measured best", "good"), False: tables.tag("not the measured best", "bad"), None: ""}
    verdict = "collaborate" if answer.collaborates else "do not collaborate"
    return (
        f'<div class="card"><h3>{escape(answer.question)}</h3><b>{escape(answer.plan)}</b>'
        f"<span>{tables.tag(verdict, 'good' if answer.collaborates else '')} {best[answer.is_measured_best]} {escape(' + '.join(answer.tiers))}{margin}</span>"
        f"<span>predicted mean {milliseconds(answer.predicted_mean_ms)}, p50 {milliseconds(answer.predicted_p50_ms)}, p95 {milliseconds(answer.predicted_p95_ms)}, "
        f"{size(answer.egress_bytes)} per request, accuracy {percent(answer.accuracy)}</span>"
        f"<span>{escape(answer.reason)}</span></div>"
    )


def _serving(report: Report) -> Section:
    if not any(r.latency_ms for r in report.requests):
        return "serving", "Serving", ""
    plan = report.plan
    body = ""
    if plan.measured_mean_ms is not None:
        body = tables.stream_table(plan)
    if not is_unknown(plan.median_abs_error_fraction):
        body += (
            f"<p>By the path each request took, the median error is {percent(plan.median_abs_error_fraction)} over "
            f"{tables.plain(plan.num_compared)} requests ({tables.plain(plan.num_warm_up)} warm-up left out).</p>"
        )
    drawn = [
        _figure(
            "latency by phase",
            plots.draw_distribution,
            report,
            (5.4, 4.0),
            "Share of requests answered within a time; waiting for a busy node counts.",
        )
    ]
    if any(r.predicted_ms for r in report.requests):
        drawn.insert(
            0,
            _figure(
                "predicted and measured latency",
                plots.draw_prediction,
                report,
                (5.4, 4.0),
                "Each dot is a request of the fault-free part; the band is ±15 %.",
            ),
        )
    return "serving", "Serving", f'{body}<div class="pair">{"".join(drawn)}</div>'


def _timeline(report: Report) -> Section:
    if not report.timeline:
        return "timeline", "The loop, as it happened", ""
    body = _figure(
        "timeline of the loop", plots.draw_timeline, report, (10, 6.6), "Dashed red: a fault. Purple: the plan changed."
    )
    items = "".join(
        f'<li class="{escape(e.kind)}"><time>{e.time_s:.1f} s</time><span>{tables.tag(e.phase, e.kind)}</span><span>{escape(e.text)}</span></li>'
        for e in report.timeline
    )
    return "timeline", "The loop, as it happened", f'{body}<ol class="story">{items}</ol>'


def _faults(report: Report) -> Section:
    faults = report.faults
    if faults.requests is None and not faults.phases:
        return "faults", "Faults", ""
    shares = ", ".join(f"{percent(share)} {name}" for name, share in faults.shares.items())
    body = (
        f"<p>{tables.plain(faults.answered_by_deadline)} of {tables.plain(faults.requests)} requests were answered by their deadline of "
        f"{milliseconds(faults.deadline_ms)}; {tables.plain(faults.lost)} lost, {tables.plain(faults.plan_switches)} plan switches, "
        f"failover in {milliseconds(faults.failover_ms)}, the restarted edge used again: {tables.yes_no(faults.returned_home)}"
        f"{'. Answered by: ' + escape(shares) if shares else ''}.</p>"
    )
    if faults.notes:
        body += "<ul>" + "".join(f"<li>{escape(note)}</li>" for note in faults.notes) + "</ul>"
    return "faults", "Faults", body + (tables.phase_table(report) if faults.phases else "")


def _quality(report: Report) -> Section:
    loop = report.loop
    body = ""
    if not is_unknown(loop.accuracy_before) or loop.detector:
        body += (
            f"<p>Accuracy {percent(loop.accuracy_before)} before the drift, {percent(loop.accuracy_drifted)} on drifted inputs, "
            f"{percent(loop.accuracy_after)} after retraining. Drift was noticed after {tables.plain(loop.drift_delay_requests)} requests"
            f"{' by ' + escape(loop.detector) if loop.detector else ''}{'; what changed: ' + escape(loop.drift_kind) if loop.drift_kind else ''}. Bad version refused: {tables.yes_no(loop.bad_version_refused)}; "
            f"rollback restored the former version: {tables.yes_no(loop.rolled_back)}.</p>"
        )
    if loop.monitors:
        body += tables.monitor_table(report)
    if loop.labels:
        body += tables.label_table(report)
    if report.versions:
        body += tables.version_table(report)
    return "quality", "Staying good", body


def _cost(report: Report) -> Section:
    body = tables.resource_table(report) if report.resources else ""
    if report.energy_parameters:
        body += tables.energy_table(report)
    return "cost", "What each node used", body


def _conclusions(report: Report) -> Section:
    found = report.conclusions or conclusions(report)
    answers = "".join(
        f'<div class="card"><h3>{escape(c.question)}</h3><b>{escape(c.verdict)}</b><span>{escape(c.answer)}</span></div>'
        for c in found
        if any(c.holds is not None for c in found)
    )
    return "conclusions", "Four answers", f'<div class="trio">{answers}</div>' if answers else ""


def _unknown(report: Report) -> Section:
    return "unknown", "What is not known", tables.unknown_table(report) if report.unknown else ""


SECTIONS: tuple[Callable[[Report], Section], ...] = (
    _kpis,
    _data,
    _training,
    _plan,
    _serving,
    _timeline,
    _faults,
    _quality,
    _cost,
    _unknown,
    _conclusions,
)
