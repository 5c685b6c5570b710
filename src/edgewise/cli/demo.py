"""`edgewise demo`: the whole loop on this machine."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

from edgewise.cli.output import AsJson, Output
from edgewise.cli.running import run_async
from edgewise.cli.threads import one_thread


def command(
    report: Annotated[Path, typer.Option("--report", help="Where the report goes.")] = Path("demo-report"),
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of data, training and drift.")] = 0,
    short: Annotated[bool, typer.Option("--short", help="The same stages with fewer rounds and requests.")] = False,
    capture: Annotated[
        Path | None, typer.Option("--capture", help="Keep the plaintext of every frame sent here, for audits.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run the main job end to end on this machine: train together, plan, serve, survive, stay good, report.

    Example:
        edgewise demo --report demo-report
    """
    one_thread()
    logging.basicConfig(level=logging.ERROR)  # what the demo breaks on purpose, it says itself
    from edgewise.demo.run import run_demo
    from edgewise.demo.scenario import DemoSettings

    output = Output(as_json)
    settings = DemoSettings.short(seed) if short else DemoSettings(seed)
    output.result(run_async(run_demo(settings, output, report, capture=capture)))
