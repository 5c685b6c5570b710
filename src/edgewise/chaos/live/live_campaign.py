"""Runs campaigns against real processes: `edgewise chaos --live --campaigns 20 --kept FILE`.

A fleet is started once for some campaigns and must be whole after each: leaks that one campaign would hide are seen.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import msgspec

from edgewise.chaos.live.live_checks import HeldBefore, broken_invariants, names_damage, unexpected_lines
from edgewise.chaos.live.live_operator import BrokenPromise, act
from edgewise.chaos.live.live_requests import make_stream
from edgewise.chaos.live.live_results import LOGS, LiveResult, add_result, code_ran, read_results
from edgewise.chaos.live.live_scene import LiveScene
from edgewise.chaos.live.live_schedule import DEVICES, LiveSchedule, draw
from edgewise.core.errors import EdgewiseError

END_S = 120.0
"""Within so many seconds after its submission, and after the last fault, a run has ended; it takes a tenth of it. What
stands still does so for good, and on a machine with other things to do a process may need a minute to start."""
PER_FLEET = 20
"""Campaigns of one fleet."""
_Seen: TypeAlias = tuple[str, str, dict[str, int], list[str]]
"""The run's state, what came of what the operator did, requests by outcome, broken invariants."""


async def run_campaigns(
    seeds: Sequence[int], folder: Path, on_result: Callable[[LiveResult], None] = lambda _: None
) -> None:
    """Runs campaigns one after the other.

    Args:
        seeds: One each.
        folder: For the fleets' states and logs; those of a fleet whose campaigns all held are removed.
        on_result: Told of each.
    """
    left = list(seeds)
    while left:
        some, left = left[:PER_FLEET], left[PER_FLEET:]
        with tempfile.TemporaryDirectory(prefix="fleet-", dir=folder) as place:
            num_done = await _on_one_fleet(some, Path(place), folder, on_result)
        left = some[num_done:] + left


async def _on_one_fleet(
    seeds: Sequence[int], place: Path, folder: Path, on_result: Callable[[LiveResult], None]
) -> int:
    """How many were run: a broken invariant ends a fleet, and its logs are kept beside the results."""
    scene = LiveScene(place)
    async with scene.running():
        baseline, commit = HeldBefore(), await asyncio.to_thread(code_ran)
        for number, seed in enumerate(seeds):
            result = await _judged(scene, draw(seed), baseline, commit)
            if result.broken:
                logs = (place / "logs").rename(folder / f"logs-of-seed-{seed}")
                on_result(msgspec.structs.replace(result, broken=(*result.broken, f"{LOGS}{logs}")))
                return number + 1
            on_result(result)
    return len(seeds)


async def _judged(scene: LiveScene, schedule: LiveSchedule, baseline: HeldBefore, commit: str) -> LiveResult:
    start = time.monotonic()
    ended, did, requests, broken = "never begun", "", dict[str, int](), list[str]()
    try:
        await scene.all_here()
        await scene.serve_good()
        start = time.monotonic()
        ended, did, requests, broken = await _campaign(scene, schedule, baseline)
    except EdgewiseError as error:
        broken = [f"it could not be begun, or judged: {error.message}"]
    return LiveResult(
        seed=schedule.seed,
        commit=commit,
        run=schedule.run.name,
        num_rounds=schedule.num_rounds,
        ended=ended,
        beside=schedule.beside,
        did=did.replace(f"{scene.folder}/", ""),  # where it ran says nothing to others
        num_faults=len(schedule.faults),
        requests=requests,
        seconds=round(time.monotonic() - start, 1),
        broken=tuple(broken),
    )


async def _campaign(scene: LiveScene, schedule: LiveSchedule, baseline: HeldBefore) -> _Seen:
    start, name = time.monotonic(), f"seed-{schedule.seed}-{time.time_ns() % 10**6}"
    stream = make_stream(scene, name, degrees=schedule.degrees, seed=schedule.seed)
    logs_before = baseline.log_sizes(scene)
    faults_over = asyncio.Event()
    run = await scene.submit(schedule.run, name, num_rounds=schedule.num_rounds, seed=schedule.training_seed)
    asking = [asyncio.create_task(stream.ask(scene, device)) for device in DEVICES]
    faults = [asyncio.create_task(_at(start, fault.at_s, scene.apply(fault))) for fault in schedule.faults]
    beside = asyncio.create_task(act(scene, schedule, faults_over))
    broken: list[str] = []
    status = await scene.end_of(
        run, END_S, stands_still=lambda s: names_damage(schedule, s) and all(fault.done() for fault in faults)
    )
    for fault, outcome in zip(schedule.faults, await asyncio.gather(*faults, return_exceptions=True), strict=True):
        broken += [f"a fault could not be brought about or healed, {fault}: {outcome}"] if outcome else []
    faults_over.set()
    if status.state == "running" and names_damage(schedule, status):  # nobody has that blob: people decide
        await scene.operator.cancel(run)  # type: ignore[arg-type]
    if status.state == "running":  # faults may have begun late
        status = await scene.end_of(run, END_S)
    did, failed = await _what_came_of(beside, schedule)
    try:
        await scene.all_here()
    except EdgewiseError as error:
        failed.append(f"not everybody is back: {error.message}")
    stream.stop.set()
    await asyncio.gather(*asking)
    broken += failed + await broken_invariants(scene, schedule, status, stream.requests)
    broken += await baseline.grown(scene) + unexpected_lines(scene, logs_before)
    counted = Counter(request.outcome for request in stream.requests)
    return status.state, did, dict(sorted(counted.items())), broken


async def _what_came_of(beside: asyncio.Task[str], schedule: LiveSchedule) -> tuple[str, list[str]]:
    """What the operator did, in words, and what must not have come of it."""
    try:
        return await asyncio.wait_for(beside, END_S), []
    except BrokenPromise as error:
        return "", [str(error)]
    except TimeoutError:
        return "", [f"{schedule.beside} has not ended, {END_S:.0f} s after the run and every fault did"]
    except EdgewiseError as error:
        return f"not done: {error.message[:80]}", []


async def _at(start: float, at_s: float, work: Any) -> None:
    await asyncio.sleep(max(0.0, start + at_s - time.monotonic()))
    await work


def run_kept(
    seeds: Sequence[int], kept: Path | None = None, on_result: Callable[[LiveResult], None] = lambda _: None
) -> list[LiveResult]:
    """Runs campaigns; those that held and that a file has already are left out, and each that is done is added to it.

    Logs of a fleet that broke an invariant stay in a folder for temporary files, which its result names.

    Args:
        seeds: One each.
        kept: The file.
        on_result: Told of each that is run now.

    Returns:
        All results, those of the file among them.
    """
    results = {} if kept is None else read_results(kept)
    left = [seed for seed in seeds if seed not in results or results[seed].broken]
    folder = Path(tempfile.mkdtemp(prefix="edgewise-chaos-"))

    def took(result: LiveResult) -> None:
        results[result.seed] = result
        if kept is not None:
            add_result(kept, result)
        on_result(result)

    level = logging.getLogger("edgewise").level
    logging.getLogger("edgewise").setLevel(logging.ERROR)  # what the operator sees of faults is no news
    try:
        asyncio.run(run_campaigns(left, folder, took))
    finally:
        logging.getLogger("edgewise").setLevel(level)
        with contextlib.suppress(OSError):  # it has logs
            folder.rmdir()
    return [results[seed] for seed in seeds]
