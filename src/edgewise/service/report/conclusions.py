"""Answers to the README's four questions, each from the numbers of a report and from nothing else."""

from __future__ import annotations

from edgewise.core.units import format_bytes
from edgewise.service.report.schema import Conclusion, Report, is_unknown

QUESTIONS = (
    "Can I train on the data of these devices without moving it?",
    "Where should this model run, and is collaborating worth it at all?",
    "Does it keep answering when a node or a link dies?",
    "Does it stay good?",
)


def conclusions(report: Report) -> tuple[Conclusion, ...]:
    """Answers the four questions.

    Args:
        report: Of a run.

    Returns:
        Four answers; what the run did not look at says so.
    """
    found = (_trains(report), _collaborates(report), _survives(report), _stays_good(report))
    return tuple(
        Conclusion(q, *(f or ("not asked", "This run did not look.", None)))
        for q, f in zip(QUESTIONS, found, strict=True)
    )


Answer = tuple[str, str, bool | None]


def _trains(report: Report) -> Answer | None:
    training = report.kpis.training
    if training.accuracy is None or training.raw_bytes_off_device is None:
        return None
    kept = training.raw_bytes_off_device == 0
    moved = (
        "no byte of raw data left a device"
        if kept
        else f"{format_bytes(training.raw_bytes_off_device)} of raw data left devices"
    )
    sent = "" if training.uplink_bytes is None else f", which sent {format_bytes(training.uplink_bytes)} of updates"
    text = f"Accuracy {training.accuracy:.1%} after {training.rounds} rounds, on examples that no client holds; {moved}{sent}."
    return "yes" if kept else "no", text, kept


def gain_in_words(gain: tuple[float, float, float] | None) -> str:
    """A gain with its interval: `+36% (95%: +33% to +38%)`."""
    return "not measured" if gain is None else f"{gain[0]:+.0%} (95%: {gain[1]:+.0%} to {gain[2]:+.0%})"


def is_shared(report: Report) -> bool:
    """Whether more than one node computes in the plan in force."""
    return len(report.plan.tiers) > 1


def headline(report: Report) -> tuple[str, str] | None:
    """What a run says of collaborating, in one line.

    Args:
        report: Of a run.

    Returns:
        The measured gain of the mean, or "do not collaborate"; and what stands below it. None without a plan.
    """
    plan = report.plan
    if not plan.name:
        return None
    if not is_shared(report):
        told = (
            ""
            if plan.gain_mean is None
            else f"; sharing ({plan.gain_over}) would lose {gain_in_words(plan.gain_mean)} of the mean"
        )
        return "do not collaborate", f"best: {plan.name}{told}"
    if plan.gain_mean is None:
        return "collaborate", f"{plan.name}; its gain was not measured"
    if plan.gain_mean[1] <= 0:
        return "no certain gain", f"mean latency {gain_in_words(plan.gain_mean)} against {plan.gain_over}"
    below = (
        f"mean latency saved, measured, against {plan.gain_over}; 95%: {plan.gain_mean[1]:+.0%} to {plan.gain_mean[2]:+.0%}; "
        f"p95 {gain_in_words(plan.gain_p95)}"
    )
    return f"{plan.gain_mean[0]:+.0%}", below


def _collaborates(report: Report) -> Answer | None:
    said = headline(report)
    if said is None:
        return None
    plan, sentences = report.plan, list[str]()
    if is_shared(report):
        verdict = "collaborate" if plan.gain_mean is None or plan.gain_mean[1] > 0 else "no certain gain"
        gain = (
            f": mean {gain_in_words(plan.gain_mean)}, p95 {gain_in_words(plan.gain_p95)} against {plan.gain_over}"
            if plan.gain_mean
            else ""
        )
        sentences.append(f"{plan.name}{gain}.")
    else:
        verdict = said[0]
        sentences.append(f"{said[1]}.")
    for answer in report.answers[1:]:
        best = {True: ", the measured best", False: ", which was not the measured best", None: ""}[
            answer.is_measured_best
        ]
        sentences.append(f'Asked under "{answer.question}": {answer.plan}{best}.')
    measured = [answer.is_measured_best for answer in report.answers if answer.is_measured_best is not None]
    return verdict, " ".join(sentences), all(measured) if measured else None


def _survives(report: Report) -> Answer | None:
    faults = report.faults
    if not faults.requests or faults.answered_by_deadline is None:
        return None
    kept = faults.answered_by_deadline == faults.requests and not faults.lost
    text = (
        f"{faults.answered_by_deadline} of {faults.requests} requests answered by their deadline while a link dropped and an "
        f"edge was killed, {faults.lost or 0} lost"
    )
    failover = (
        ""
        if is_unknown(faults.failover_ms)
        else f"; first answer without the edge {faults.failover_ms:.0f} ms after the kill"
    )
    return "yes" if kept else "not always", f"{text}{failover}.", kept


def _stays_good(report: Report) -> Answer | None:
    loop = report.loop
    if loop.accuracy_before is None or loop.accuracy_drifted is None:
        return None
    text = f"Accuracy {loop.accuracy_before:.1%}, {loop.accuracy_drifted:.1%} on drifted inputs"
    noticed = (
        "the drift was not noticed"
        if loop.drift_delay_requests is None
        else f"noticed after {loop.drift_delay_requests} requests"
    )
    after = (
        "the new version was refused"
        if loop.accuracy_after is None
        else f"{loop.accuracy_after:.1%} after learning from them"
    )
    gate = {
        True: "a deliberately bad version was refused",
        False: "a bad version was not refused",
        None: "no bad version was offered",
    }
    text += f", {noticed}; {after}; {gate[loop.bad_version_refused]}."
    recovered = loop.accuracy_after is not None and loop.accuracy_after > loop.accuracy_drifted
    good = recovered and loop.bad_version_refused is not False and loop.drift_delay_requests is not None
    return "yes" if good else "not this time", text, good
