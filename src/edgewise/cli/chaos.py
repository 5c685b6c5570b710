"""`edgewise chaos`: campaigns of faults against a fleet that trains, in virtual time or as real processes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgewise.cli.output import AsJson, Output

if TYPE_CHECKING:
    from edgewise.chaos.campaign import Campaign
    from edgewise.chaos.campaign_report import CampaignReport
    from edgewise.chaos.many_campaigns import Tally

MOST_SHRUNK = 3
"""Failing campaigns that are made small at the end; the seeds of all are printed before."""


def command(
    campaigns: Annotated[int, typer.Option(min=1, help="How many campaigns to run.")] = 100,
    first: Annotated[int, typer.Option("--from", min=0, help="Seed of the first one; the others follow.")] = 0,
    seed: Annotated[int | None, typer.Option(min=0, help="Run this one only, and print what it is.")] = None,
    replay: Annotated[Path | None, typer.Option(help="Run the campaign in this file, as --json printed it.")] = None,
    task: Annotated[
        Path | None, typer.Option(help="Your task in place of the tiny one; it has clients a, b, c.")
    ] = None,
    jobs: Annotated[int, typer.Option(min=0, help="Processes; 0 for one a core.")] = 0,
    live: Annotated[
        bool,
        typer.Option("--live", help="Against real processes that train and serve digits; a campaign takes some 15 s."),
    ] = False,
    kept: Annotated[
        Path | None, typer.Option(help="With --live: a line for each campaign that is done; it goes on from there.")
    ] = None,
    table: Annotated[bool, typer.Option("--table", help="Print how often each fault met each phase.")] = False,
    as_json: AsJson = False,
) -> None:
    """Try a fleet against kills, lost power, full disks, bad links and liars; in virtual time, or as real processes.

    Each seed is a campaign: a small fleet, a job and faults, the same whenever it is run. One that breaks an invariant is made
    small and printed; the exit code is 1.

    Example:
      edgewise chaos --campaigns 20
    """
    out = Output(as_json)
    if live:
        _run_live(out, [seed] if seed is not None else range(first, first + campaigns), kept)
        return
    campaign = _given(seed, replay, task)
    if campaign is not None:
        _run_one(out, campaign)
        return
    from edgewise.chaos.many_campaigns import run_many

    start = time.monotonic()
    with out.progress("campaign", campaigns) as advance:

        def told(report: CampaignReport) -> None:
            advance(f"{report.seed} FAILED" if report.broken else "")

        source = str(task.resolve()) if task is not None else ""
        tally = run_many(range(first, first + campaigns), jobs=jobs or _cores(), task=source, on_report=told)
    _print_tally(out, tally, time.monotonic() - start, table=table)
    for report in tally.failed:  # before they are made small, which can take minutes
        out.line(f"seed {report.seed}: {report.broken[0]}")
    small = [_print_failure(out, report.seed, source) for report in tally.failed[:MOST_SHRUNK]]
    seeds = [report.seed for report in tally.failed]
    out.result(
        {"campaigns": tally.num, "failed": seeds, "smallest": small, "cells": tally.cells, "states": tally.states}
    )
    if tally.failed:
        raise typer.Exit(1)


def _run_live(out: Output, seeds: Sequence[int], kept: Path | None) -> None:
    from edgewise.chaos.live.live_campaign import run_kept
    from edgewise.chaos.live.live_results import shown, summed_up

    with out.progress("campaign of real processes", len(seeds)) as advance:
        results = run_kept(seeds, kept, lambda result: advance("\n".join(shown(result)) if result.broken else ""))
    broken = [result for result in results if result.broken]
    for result in broken:
        out.line("\n".join(shown(result)))
    out.line("\n".join(summed_up(results)))
    out.result({"campaigns": len(results), "failed": [r.seed for r in broken], "results": results})
    if broken:
        raise typer.Exit(1)


def _given(seed: int | None, replay: Path | None, task: Path | None) -> Campaign | None:
    from edgewise.chaos.campaign import draw_campaign, load_campaign

    if replay is not None:
        return load_campaign(replay)
    return None if seed is None else draw_campaign(seed, task=str(task.resolve()) if task is not None else "")


def _cores() -> int:
    from edgewise.chaos.many_campaigns import cores

    return cores()


def _run_one(out: Output, campaign: Campaign) -> None:
    from edgewise.chaos.many_campaigns import run_one

    out.line(f"seed {campaign.seed}: {campaign}")
    _, report = run_one(campaign)
    out.line(f"{report.state or 'never begun'} after {report.virtual_s:.1f} virtual seconds, trace {report.trace}")
    if not report.broken:
        out.line("every invariant holds")
        out.result({"campaign": campaign, "report": report})
        return
    smallest, found = run_one(campaign, is_to_shrink=True)
    _print_smallest(out, smallest, found)
    out.result({"campaign": campaign, "report": report, "smallest": smallest})
    raise typer.Exit(1)


def _print_tally(out: Output, tally: Tally, seconds: float, *, table: bool) -> None:
    ends = ", ".join(f"{num} {state}" for state, num in sorted(tally.states.items()))
    phases, rows = tally.table()
    out.line(
        f"{tally.num} campaigns in {seconds:.0f} s, {tally.virtual_s:,.0f} virtual seconds: {ends}; "
        f"{len(tally.failed)} with a broken invariant; {len(tally.cells)} cells of phase and fault"
    )
    if table:
        out.table("how often each fault met each phase", ["fault", *phases], rows)


def _print_failure(out: Output, seed: int, task: str) -> Any:
    from edgewise.chaos.campaign import draw_campaign
    from edgewise.chaos.many_campaigns import run_one

    smallest, report = run_one(draw_campaign(seed, task=task), is_to_shrink=True)
    _print_smallest(out, smallest, report)
    return smallest


def _print_smallest(out: Output, smallest: Campaign, report: CampaignReport) -> None:
    out.line(f"seed {smallest.seed} fails; the smallest campaign that still does:")
    out.line(str(smallest))
    for sentence in report.broken:
        out.line(f"  broken: {sentence}")
    task = f" --task {smallest.task}" if smallest.task else ""
    out.line(f"  again: edgewise chaos --seed {smallest.seed}{task}")
