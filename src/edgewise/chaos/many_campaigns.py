"""Runs many campaigns on the cores there are, and counts what they met.

Each runs in a process of its own making whose hashes are not salted: a set of names has the same order everywhere, and a
seed the same trace.
"""

from __future__ import annotations

import multiprocessing
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from edgewise.chaos.campaign import Campaign, draw_campaign
from edgewise.chaos.campaign_report import CampaignReport
from edgewise.chaos.run_campaign import run_campaign
from edgewise.chaos.shrink import shrink

CHUNK = 10
PER_PROCESS = 100
"""Chunks after which processes are replaced by new ones. CPython's pool can do that itself, and may hang then (gh-115634)."""


@dataclass
class Tally:
    """What campaigns came to.

    Attributes:
        num: How many ran.
        failed: Reports of those that broke an invariant.
        cells: How often each fault met each phase of a role, `client/working/kill`.
        states: How often a run ended so.
        virtual_s: Virtual seconds of all.
    """

    num: int = 0
    failed: list[CampaignReport] = field(default_factory=list)
    cells: Counter[str] = field(default_factory=Counter)
    states: Counter[str] = field(default_factory=Counter)
    virtual_s: float = 0.0

    def add(self, report: CampaignReport) -> None:
        """Counts a campaign in."""
        self.num += 1
        self.cells.update(report.cells)
        self.states[report.state or "never begun"] += 1
        self.virtual_s += report.virtual_s
        if report.broken:
            self.failed.append(report)

    def table(self) -> tuple[list[str], list[list[Any]]]:
        """Faults by phases: the phases, and a row for each fault with how often it met each."""
        phases = sorted({cell.rpartition("/")[0] for cell in self.cells})
        kinds = sorted({cell.rpartition("/")[2] for cell in self.cells})
        return phases, [[kind, *(self.cells[f"{phase}/{kind}"] for phase in phases)] for kind in kinds]


def run_many(
    seeds: Iterable[int],
    *,
    jobs: int,
    task: str = "",
    settings: dict[str, Any] | None = None,
    until_failures: int | None = None,
    on_report: Callable[[CampaignReport], None] = lambda _: None,
) -> Tally:
    """Runs campaigns.

    Args:
        seeds: Which.
        jobs: Processes at a time.
        task: A task file in place of the tiny one.
        settings: Of the task.
        until_failures: Stop after so many that fail; None for all.
        on_report: Told of each as it ends.

    Returns:
        What they came to.
    """
    tally, left = Tally(), iter(seeds)
    chunks = iter(lambda: list(islice(left, CHUNK)), [])
    while generation := list(islice(chunks, jobs * PER_PROCESS)):
        with _pool(jobs) as pool:
            for done in as_completed([pool.submit(_run_chunk, chunk, task, settings or {}) for chunk in generation]):
                for report in done.result():
                    tally.add(report)
                    on_report(report)
                if until_failures is not None and len(tally.failed) >= until_failures:
                    pool.shutdown(wait=False, cancel_futures=True)
                    return tally
    return tally


def cores() -> int:
    """Processes that run at a time where nobody says: one for each core this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_one(campaign: Campaign, *, is_to_shrink: bool = False) -> tuple[Campaign, CampaignReport]:
    """Runs one campaign in a process whose hashes are not salted.

    Args:
        campaign: Which.
        is_to_shrink: Whether to make it small if it fails.

    Returns:
        The campaign, or the smallest one that still fails, and its report.
    """
    with _pool(1) as pool:
        return pool.submit(_run_or_shrink, campaign, is_to_shrink).result()


def _run_or_shrink(campaign: Campaign, is_to_shrink: bool) -> tuple[Campaign, CampaignReport]:
    return shrink(campaign) if is_to_shrink else (campaign, run_campaign(campaign))


def _run_chunk(seeds: list[int], task: str, settings: dict[str, Any]) -> list[CampaignReport]:
    return [run_campaign(draw_campaign(seed, task=task, settings=settings)) for seed in seeds]


@contextmanager
def _pool(jobs: int) -> Iterator[ProcessPoolExecutor]:
    own = {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    before = {name: os.environ.get(name) for name in own}
    os.environ.update(own)
    try:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(jobs, mp_context=context) as pool:
            yield pool
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value
