"""The report of a run: values (`report.json`), tables, and a page anybody can open (`index.html`).

How to use::

    from edgewise.service.report import Report, read_report, write_report

    report = Report(title="digits on 8 devices", kpis=Kpis(training_kpis(...), inference_kpis(...)), ...)
    report = explained(report, {"kpis.training.energy_j": "no energy model was given"})
    write_report(report, Path("demo-report"))     # report.json, index.html; nothing is fetched from anywhere
    for row in kpi_rows(read_report(Path("demo-report"))): print(row.name, row.text, row.source)

`convert.py` makes rows from the planner's, the session's and the loop's own values (`level_rows`, `baseline_rows`,
`planner_answer`, `request_row`, `timeline_entries`, `resource_rows`, `audit_rows`); `picture.py` draws one PNG.

Every part has a default, so a run that only trains, or only serves, has a report too: what is absent is not drawn, and a number nobody
measured is null with its reason in `unknown`.
"""

from edgewise.ledger.kpis import InferenceKpis, Kpis, LatencyMs, TrainingKpis
from edgewise.service.report.conclusions import conclusions
from edgewise.service.report.observed import (
    AuditRow,
    MonitorRow,
    RequestRow,
    ResourceRow,
    RoundRow,
    SplitSizes,
    TimelineEntry,
    VersionRow,
    WayRow,
)
from edgewise.service.report.planned import Baseline, ExitShareRow, LevelEntry, PlannerAnswer, PlanSection
from edgewise.service.report.report_files import read_report, write_report
from edgewise.service.report.rows import KpiRow, kpi_rows
from edgewise.service.report.schema import (
    CodecSection,
    Conclusion,
    FaultsSection,
    LabelRow,
    LoopSection,
    PhaseRow,
    Report,
    explained,
    unknown_numbers,
)

__all__ = [
    "AuditRow",
    "Baseline",
    "CodecSection",
    "Conclusion",
    "ExitShareRow",
    "FaultsSection",
    "InferenceKpis",
    "KpiRow",
    "Kpis",
    "LabelRow",
    "LatencyMs",
    "LevelEntry",
    "LoopSection",
    "MonitorRow",
    "PhaseRow",
    "PlanSection",
    "PlannerAnswer",
    "Report",
    "RequestRow",
    "ResourceRow",
    "RoundRow",
    "SplitSizes",
    "TimelineEntry",
    "TrainingKpis",
    "VersionRow",
    "WayRow",
    "conclusions",
    "explained",
    "kpi_rows",
    "read_report",
    "unknown_numbers",
    "write_report",
]
