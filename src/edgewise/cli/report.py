"""`edgewise report`: the twelve KPIs of a finished run, and its page drawn again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgewise.cli.output import AsJson, Output


def command(
    folder: Annotated[Path, typer.Argument(help="The folder of the run's report, or its report.json.")],
    page: Annotated[Path | None, typer.Option("--out", help="Draw the page again, into this folder.")] = None,
    as_json: AsJson = False,
) -> None:
    """Print the KPIs of a finished run, and draw its page.

    Example:
      edgewise report demo-report --out public
    """
    from edgewise.service.report import kpi_rows, read_report, write_report

    out = Output(as_json)
    report = read_report(folder)
    rows = [(row.half, row.name, row.text, row.source) for row in kpi_rows(report)]
    out.table(report.title or "report", ["half", "KPI", "value", "source"], rows)
    if page is not None:
        out.line(f"page: {write_report(report, page)}")
    out.result(report)
