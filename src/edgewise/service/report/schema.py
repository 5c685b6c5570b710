"""`Report`: everything a run has to say, as one value. `report.json` is this struct and nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import isnan
from typing import Any

import msgspec

from edgewise.ledger.kpis import Kpis
from edgewise.service.report.observed import (
    AuditRow,
    MonitorRow,
    RequestRow,
    ResourceRow,
    RoundRow,
    SplitSizes,
    TimelineEntry,
    VersionRow,
)
from edgewise.service.report.planned import Baseline, LevelEntry, PlannerAnswer, PlanSection


class CodecSection(msgspec.Struct, frozen=True):
    """The coded uplink beside the uncoded one, same seed.

    Attributes:
        uncoded_bytes: Uplink of the whole run.
        coded_bytes: The same with the codec.
        accuracy_uncoded: Of the model trained so.
        accuracy_coded: The same with the codec.
        codec: Spec text.
    """

    uncoded_bytes: int | None = None
    coded_bytes: int | None = None
    accuracy_uncoded: float | None = None
    accuracy_coded: float | None = None
    codec: str = ""


class PhaseRow(msgspec.Struct, frozen=True):
    """One phase of the stream: fault-free, link drop, edge killed, edge back, drifted, recovered.

    Attributes:
        name: Its name.
        start_s: On the report's clock.
        end_s: On the report's clock.
        requests: In it.
        answered_by_deadline: Of them.
        accuracy: Of its answers.
        p50_ms: Median latency.
        p95_ms: 95th percentile.
        shares: By who answered, e.g. `full plan`, `device exit`, `another edge`.
    """

    name: str
    start_s: float
    end_s: float
    requests: int = 0
    answered_by_deadline: int | None = None
    accuracy: float | None = None
    p50_ms: float | None = None
    p95_ms: float | None = None
    shares: dict[str, float] = {}


class FaultsSection(msgspec.Struct, frozen=True):
    """What happened while a link dropped and an edge was killed.

    Attributes:
        requests: Sent during the faults.
        answered_by_deadline: Of them.
        plan_switches: Times the plan changed.
        lost: Requests never answered.
        failover_ms: From the kill to the first answer that used another edge or the device's exit instead.
        returned_home: Whether the restarted edge was used again.
        shares: Of the requests, by who answered: `full plan`, `device exit`, `another edge`.
        deadline_ms: Three times the fault-free plan's predicted p95, at least 100 ms and what the device needs alone after it.
        phases: One row each.
        notes: What the faults did, one sentence each; of every late or unanswered request, what was seen.
    """

    requests: int | None = None
    answered_by_deadline: int | None = None
    plan_switches: int | None = None
    lost: int | None = None
    failover_ms: float | None = None
    returned_home: bool | None = None
    shares: dict[str, float] = {}
    deadline_ms: float | None = None
    phases: tuple[PhaseRow, ...] = ()
    notes: tuple[str, ...] = ()


class LabelRow(msgspec.Struct, frozen=True):
    """What one label source gave.

    Attributes:
        source: e.g. `feedback`, `teacher`.
        asked: Examples it was asked about.
        labelled: Of them labelled.
        agreement: Share equal to the true label where that is known.
        raw_bytes_sent: Raw bytes that left a device for it.
        feature_bytes_sent: Feature bytes that did.
    """

    source: str
    asked: int
    labelled: int
    agreement: float | None = None
    raw_bytes_sent: int = 0
    feature_bytes_sent: int = 0


class LoopSection(msgspec.Struct, frozen=True):
    """The closed loop: drift, labels, retraining, gate, rollout, rollback.

    Attributes:
        accuracy_before: On the stream before the drift.
        accuracy_drifted: On the drifted stream under the old version.
        accuracy_after: On the drifted stream under the new version.
        bad_version_refused: Whether the gate refused the deliberately bad version.
        rolled_back: Whether `edgewise rollback` restored the former version.
        drift_delay_requests: Requests from the change to the alarm.
        detector: The method, with its parameters.
        labels: Per source.
        monitors: Of drift, with the evidence of each.
        drift_kind: What changed: `class mix`, `covariates`, `answers`, `concept`; "" if nothing was found.
    """

    accuracy_before: float | None = None
    accuracy_drifted: float | None = None
    accuracy_after: float | None = None
    bad_version_refused: bool | None = None
    rolled_back: bool | None = None
    drift_delay_requests: int | None = None
    detector: str = ""
    labels: tuple[LabelRow, ...] = ()
    monitors: tuple[MonitorRow, ...] = ()
    drift_kind: str = ""


class Conclusion(msgspec.Struct, frozen=True):
    """One of the questions that a run is for, and what it found.

    Attributes:
        question: As the README asks it.
        verdict: In a word or two: `yes`, `no`, `do not collaborate`, …
        answer: With the numbers, in sentences.
        holds: Whether it turned out well; None if nobody looked.
    """

    question: str
    verdict: str
    answer: str
    holds: bool | None = None


class Report(msgspec.Struct, frozen=True):
    """A run's report.

    Attributes:
        title: What was run.
        kpis: The twelve.
        plan: The plan and the seven levels.
        codec: The coded uplink beside the uncoded.
        faults: Link drop and edge kill.
        loop: The closed loop.
        split: Sizes of the four parts of the data.
        audit: Data per client.
        rounds: History of every training run.
        answers: The planner's answers, side by side.
        baselines: What one would do without collaborating.
        versions: Versions and gates.
        requests: Observations, for the plots.
        timeline: What happened, in order.
        resources: Per node.
        energy_parameters: Parameters of the energy model, by tier.
        conclusions: Answers to the four questions, `conclusions(report)`.
        unknown: Dotted path of every null number, with the reason.
        meta: Version, seed, machine, date: words only.
    """

    title: str = "Edgewise run"
    kpis: Kpis = Kpis()
    plan: PlanSection = PlanSection()
    codec: CodecSection = CodecSection()
    faults: FaultsSection = FaultsSection()
    loop: LoopSection = LoopSection()
    split: SplitSizes | None = None
    audit: tuple[AuditRow, ...] = ()
    rounds: tuple[RoundRow, ...] = ()
    answers: tuple[PlannerAnswer, ...] = ()
    baselines: tuple[Baseline, ...] = ()
    versions: tuple[VersionRow, ...] = ()
    requests: tuple[RequestRow, ...] = ()
    timeline: tuple[TimelineEntry, ...] = ()
    resources: tuple[ResourceRow, ...] = ()
    energy_parameters: dict[str, dict[str, float]] = {}
    conclusions: tuple[Conclusion, ...] = ()
    unknown: dict[str, str] = {}
    meta: dict[str, str] = {}


SECTIONS = ("kpis", "plan", "codec", "faults", "loop")
"""Parts whose null numbers need a reason."""


def unknown_numbers(report: Report) -> tuple[str, ...]:
    """Dotted paths of the null numbers in the five sections, levels that are not feasible left out.

    Args:
        report: Any report.

    Returns:
        Paths, e.g. `kpis.training.energy_j`, in order.
    """
    found: list[str] = []
    for section in SECTIONS:
        found.extend(_nulls(section, getattr(report, section)))
    return tuple(found)


def explained(report: Report, reasons: Mapping[str, str], otherwise: str = "not measured in this run") -> Report:
    """Gives every null number its reason.

    Args:
        report: Any report.
        reasons: By dotted path, or by the beginning of one: `faults` covers all of that section.
        otherwise: For the rest.

    Returns:
        The report with `unknown` filled; reasons it already has are kept.
    """
    unknown = {}
    for path in unknown_numbers(report):
        parts = path.split(".")
        prefixes = [".".join(parts[:n]) for n in range(len(parts), 0, -1)]
        known = {**reasons, **report.unknown}
        unknown[path] = next((known[p] for p in prefixes if p in known), otherwise)
    return msgspec.structs.replace(report, unknown=unknown)


def is_unknown(value: Any) -> bool:
    """Whether a number is not there: None, or not a number."""
    return value is None or (isinstance(value, float) and isnan(value))


def _nulls(path: str, value: Any) -> Iterator[str]:
    if is_unknown(value):
        yield path
    elif isinstance(value, LevelEntry) and not value.feasible:
        return
    elif isinstance(value, msgspec.Struct):
        for name in value.__struct_fields__:
            yield from _nulls(f"{path}.{name}", getattr(value, name))
    elif isinstance(value, tuple):
        for index, inner in enumerate(value):
            yield from _nulls(f"{path}.{index}", inner)
