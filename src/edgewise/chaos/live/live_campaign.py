"""Runs campaigns against real processes: `edgewise chaos --live --campaigns 20 --kept FILE`.

A fleet is started once for some campaigns and must be whole after each: leaks that one campaign would hide are seen.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edgewise.chaos.live.live_checks import HeldBefore, Request, broken_invariants, unexpected_lines
from edgewise.chaos.live.live_scene import DEADLINE_S, LiveScene
from edgewise.chaos.live.live_schedule import DEVICES, LiveSchedule, draw
from edgewise.core.errors import EdgewiseError
from edgewise.models.forward import INPUT
from edgewise.service.client import InferenceClient, Reply
from edgewise.testing.spoiled_graph import spoiled

GAP_S = 0.05
"""Between requests to a device."""
END_S = 45.0
"""Within so many seconds after its submission a run has ended, all faults being over by then."""
PER_FLEET = 20
"""Campaigns of one fleet."""


class LiveResult(msgspec.Struct, frozen=True, kw_only=True):
    """How a campaign ended.

    Attributes:
        schedule: What was done.
        broken: Invariants that did not hold, with what was seen; () where all did.
        ended: The run's state.
        requests: Number by outcome.
        seconds: What it took.
    """

    schedule: LiveSchedule
    broken: tuple[str, ...] = ()
    ended: str = ""
    requests: dict[str, int] = {}
    seconds: float = 0.0


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
        baseline = HeldBefore()
        for number, seed in enumerate(seeds):
            result = await _campaign(scene, draw(seed), baseline)
            on_result(result)
            if result.broken:
                shutil.rmtree(folder / f"logs-of-seed-{seed}", ignore_errors=True)  # of an earlier time
                (place / "logs").rename(folder / f"logs-of-seed-{seed}")
                return number + 1
    return len(seeds)


async def _campaign(scene: LiveScene, schedule: LiveSchedule, baseline: HeldBefore) -> LiveResult:
    start, name = time.monotonic(), f"seed-{schedule.seed}-{time.time_ns() % 10**6}"
    requests: list[Request] = []
    logs_before = baseline.log_sizes(scene)
    stop = asyncio.Event()
    run = await scene.submit(schedule.run, name, num_rounds=schedule.num_rounds, seed=schedule.training_seed)
    asking = [asyncio.create_task(_ask(scene, device, requests, stop)) for device in DEVICES]
    faults = [asyncio.create_task(_at(start, fault.at_s, scene.apply(fault))) for fault in schedule.faults]
    beside = asyncio.create_task(_beside(scene, schedule))
    broken: list[str] = []
    status = await scene.end_of(run, END_S)
    for fault, outcome in zip(schedule.faults, await asyncio.gather(*faults, return_exceptions=True), strict=True):
        broken += [f"a fault could not be brought about or healed, {fault}: {outcome}"] if outcome else []
    if status.state == "running":  # faults may have begun late
        status = await scene.end_of(run, END_S)
    with contextlib.suppress(TimeoutError, EdgewiseError):
        broken += await asyncio.wait_for(beside, END_S)
    beside.cancel()
    try:
        await scene.all_here()
    except EdgewiseError as error:
        broken.append(f"not everybody is back: {error.message}")
    stop.set()
    await asyncio.gather(*asking)
    broken += await broken_invariants(scene, schedule, status, requests)
    broken += await baseline.grown(scene) + unexpected_lines(scene, logs_before)
    counted = Counter(request.outcome for request in requests)
    return LiveResult(
        schedule=schedule,
        broken=tuple(broken),
        ended=status.state,
        requests=dict(sorted(counted.items())),
        seconds=time.monotonic() - start,
    )


async def _at(start: float, at_s: float, work: Any) -> None:
    await asyncio.sleep(max(0.0, start + at_s - time.monotonic()))
    await work


async def _ask(scene: LiveScene, device: str, requests: list[Request], stop: asyncio.Event) -> None:
    """Sends requests to a device at their times until it is told to stop; the last ones are waited for."""
    inputs = np.asarray(scene.task.parts.stream.inputs, np.float32)
    client: InferenceClient | None = None
    under_way, number = set[asyncio.Task[None]](), 0
    while not stop.is_set():
        if client is None or client.port != scene.port(device):
            client = InferenceClient("127.0.0.1", scene.port(device), timeout_s=30.0)
        one = inputs[number % len(inputs)][None]
        under_way.add(task := asyncio.create_task(_one(scene, client, device, one, requests)))
        task.add_done_callback(under_way.discard)
        number += 1
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), GAP_S)
    await asyncio.gather(*under_way)
    if client is not None:
        await client.close()


async def _one(scene: LiveScene, client: InferenceClient, device: str, image: Any, requests: list[Request]) -> None:
    was_down, began, reply = device in scene.down, time.monotonic(), Reply()
    model = scene.task.name
    try:
        reply = await client.infer(model, {INPUT: image}, parameters={"deadline_ms": 1e3 * DEADLINE_S})
        error, status = "", 200
    except EdgewiseError as failure:
        error, status = str(failure), int(failure.fields.get("status", 0))
    is_down = was_down or device in scene.down or client.port != scene.port(device)
    requests.append(Request(device, began, time.monotonic() - began, status, error, is_down, reply.parameters))


async def _beside(scene: LiveScene, schedule: LiveSchedule) -> list[str]:
    """What an operator does while the run goes on; what went wrong for no good reason."""
    good = await scene.operator.graph(scene.good)
    match schedule.beside:
        case "offer a bad version":
            ack = await scene.operator.register(spoiled(good, schedule.seed), task=scene.task.name, origin="spoiled")
            if ack.gate is None or ack.gate.passed:
                return ["the gate let a spoiled version through"]
            with contextlib.suppress(EdgewiseError):
                if await scene.deploy(ack.version):
                    return [f"version {ack.version}, which the gate refused, was deployed"]
        case "roll out":
            ack = await scene.operator.register(good, task=scene.task.name, origin="the same again")
            with contextlib.suppress(EdgewiseError):
                await scene.deploy(ack.version, staged=True)
        case "roll back":
            with contextlib.suppress(EdgewiseError):
                await scene.operator.rollback(scene.task.name)
    return []


def shown(result: LiveResult) -> Iterable[str]:
    """A result as lines for people."""
    schedule = result.schedule
    held = "held" if not result.broken else "BROKEN"
    asked = ", ".join(f"{n} {outcome}" for outcome, n in result.requests.items())
    yield (
        f"seed {schedule.seed}: {held} in {result.seconds:.0f} s; {schedule.run.name}, {schedule.num_rounds} rounds "
        f"{result.ended}; {schedule.beside}; {asked}"
    )
    if result.broken:
        yield from (f"    fault  {fault}" for fault in schedule.faults)
        yield from (f"    broken {line}" for line in result.broken)
        yield f"    again  edgewise chaos --live --seed {schedule.seed}"


def run_kept(
    seeds: Sequence[int], kept: Path | None = None, on_result: Callable[[LiveResult], None] = lambda _: None
) -> list[LiveResult]:
    """Runs campaigns; those that a file has already are left out, and each that is done is added to it.

    Logs of a fleet that broke an invariant stay beside that file; without one, in a folder for temporary files.

    Args:
        seeds: One each.
        kept: The file.
        on_result: Told of each that is run now.

    Returns:
        All results, those of the file among them.
    """
    results = {result.schedule.seed: result for result in _read(kept)}
    folder = Path(tempfile.mkdtemp(prefix="edgewise-chaos-")) if kept is None else kept.parent
    folder.mkdir(parents=True, exist_ok=True)

    def took(result: LiveResult) -> None:
        results[result.schedule.seed] = result
        if kept is not None:
            with kept.open("a") as file:
                file.write(msgspec.json.encode(result).decode() + "\n")
        on_result(result)

    level = logging.getLogger("edgewise").level
    logging.getLogger("edgewise").setLevel(logging.ERROR)  # what the operator sees of faults is no news
    try:
        asyncio.run(run_campaigns([seed for seed in seeds if seed not in results], folder, took))
    finally:
        logging.getLogger("edgewise").setLevel(level)
        with contextlib.suppress(OSError):  # it has logs
            folder.rmdir()
    return [results[seed] for seed in seeds]


def _read(path: Path | None) -> list[LiveResult]:
    if path is None or not path.exists():
        return []
    return [msgspec.json.decode(line, type=LiveResult) for line in path.read_text().splitlines()]
