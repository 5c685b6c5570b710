"""What the processes of a fleet grow by over 10,000 rounds and 1,000,000 requests: python -m benchmarks.soak  (`make soak`)

A coordinator, an edge and two devices are real processes. First they train on the digits in runs one after the other, a step each round; then
a model parted between device and edge answers requests over kept connections at both devices. Every process's memory, descriptors and
threads are sampled. Bars: the upper end of the 95 % interval of a process's memory slope (`growth.py` says which) is at most 0.1 MB
for 1,000 rounds and for 100,000 requests, descriptors and threads are flat. The curves are drawn into `soak-out/soak.png`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.growth import FLAT, Sample, Slope, flatness, look_at, slope_of
from benchmarks.report import Bar, close
from benchmarks.request_overhead import bench_graph, split_plan
from edgewise.core.errors import EdgewiseError
from edgewise.fleet.messages import Deploy
from edgewise.fleet.operator.operator import Operator, connect_operator
from edgewise.fleet.operator.submission import task_request
from edgewise.service.client import InferenceClient
from edgewise.simulation.emulated.emulated_fleet import CLOUD, OPERATOR, EmulatedFleet, make_folder
from edgewise.simulation.emulated.fleet_file import DeviceClass, EdgeClass, FleetFile, LinkClass
from edgewise.training.tasks.digits_task import DigitsTask

LIMIT_BYTES = 100_000
BRIEF_BYTES = 32_000_000
"""What a process may grow by in a brief soak after its warm-up: too little work to tell a slope, enough to see one run away."""
PER_ROUNDS, PER_REQUESTS = 1_000, 100_000
WORDS = {"name": "fed_avg", "local": {"name": "sgd", "learning_rate": 0.05, "max_steps": 1}, "uplink": "int8"}
TASK = {"clients": 2, "sizes": {"train": 200}}
QUICK = LinkClass("1000 Mbit/s", "0 ms")
MODEL = "soak"
CONNECTIONS = 2
"""Open requests at each device."""
TOLD_S = 30.0


@dataclass(slots=True)
class Phase:
    """One kind of work, and what the processes looked like meanwhile.

    Attributes:
        name: `rounds` or `requests`.
        per: Work for which the bar says what a process may grow by.
        wanted: How much is to be done.
        end: When it is cut.
        done: How much was done.
        failed: Requests that got no answer, by why.
        samples: By process.
        is_brief: Whether it is too short for a slope.
    """

    name: str
    per: int
    wanted: int
    end: float
    done: int = 0
    failed: dict[str, int] = field(default_factory=dict)
    samples: dict[str, list[Sample]] = field(default_factory=dict)
    is_brief: bool = False

    @property
    def is_over(self) -> bool:
        """Whether enough is done, or the time is over."""
        return self.done >= self.wanted or time.monotonic() > self.end


async def watch(phase: Phase, pids: dict[str, int], every_s: float, tell: Callable[[str], None]) -> None:
    """Samples every process until it is cancelled."""
    told = began = time.monotonic()
    while True:
        for name, pid in pids.items():
            if (sample := look_at(pid, phase.done)) is not None:
                phase.samples.setdefault(name, []).append(sample)
        if time.monotonic() - told > TOLD_S:
            told = time.monotonic()
            memory = ", ".join(f"{name} {of[-1].rss_bytes / 1e6:.1f} MB" for name, of in phase.samples.items())
            tell(f"  {phase.done:,} of {phase.wanted:,} {phase.name} in {told - began:,.0f} s; {memory}")
        await asyncio.sleep(every_s)


@contextlib.asynccontextmanager
async def watched(
    phase: Phase, pids: dict[str, int], every_s: float, tell: Callable[[str], None]
) -> AsyncIterator[None]:
    """Samples while a block runs, and once at its end."""
    watching = asyncio.create_task(watch(phase, pids, every_s, tell))
    try:
        yield
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


async def train(operator: Operator, phase: Phase, rounds_per_run: int) -> None:
    """Runs one after the other until enough rounds are closed."""
    task = DigitsTask(**TASK)
    for number in itertools.count(1):
        if phase.is_over:
            return
        rounds, before = min(rounds_per_run, phase.wanted - phase.done), phase.done
        request, files = task_request(task, WORDS, num_rounds=rounds, seed=number, register=False)
        run = await operator.submit(request, files)
        async for status in operator.watch(run):
            phase.done = before + len(status.rounds)
            if phase.is_over and status.state == "running":
                await operator.cancel(run)
        if status.state != "completed" and not phase.is_over:
            raise EdgewiseError(f"run {run!r} ended {status.state}: {status.cause}")


async def ask(operator: Operator, fleet: EmulatedFleet, phase: Phase) -> None:
    """Deploys a parted model and asks both devices over kept connections until enough requests are answered."""
    graph = bench_graph()
    ack = await operator.register(graph.model_bytes, task=MODEL)
    deployed = await operator.deploy(
        Deploy(ack.version, (split_plan(graph),), 5.0, staged=False, force=True, ungated=True)
    )
    if not deployed.accepted:
        raise EdgewiseError(f"the model was not deployed: {deployed.reason}")
    image = np.random.default_rng(0).random((1, 3, 32, 32), np.float32)

    async def keep_asking(device: str) -> None:
        port = int(fleet.children[device].ready["http_port"])
        async with InferenceClient("127.0.0.1", port) as client:
            while not phase.is_over:
                try:
                    await client.infer(MODEL, {"x": image})
                except EdgewiseError as error:
                    why = type(error).__name__
                    phase.failed[why] = phase.failed.get(why, 0) + 1
                    await asyncio.sleep(0.05)
                phase.done += 1

    await asyncio.gather(*(keep_asking(device) for device in fleet.devices for _ in range(CONNECTIONS)))


def draw(phases: list[Phase], file: Path) -> None:
    """Draws each process's memory over the work, and the number of its descriptors and threads."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5 * len(phases)))
    for row, phase in enumerate(phases):
        memory, counts = (figure.add_subplot(len(phases), 2, 2 * row + column) for column in (1, 2))
        for name, samples in phase.samples.items():
            work = [sample.work for sample in samples]
            memory.plot(work, [sample.rss_bytes / 1e6 for sample in samples], label=name, linewidth=1)
            counts.plot(work, [sample.num_fds for sample in samples], label=f"{name}: descriptors", linewidth=1)
            counts.plot(work, [sample.num_threads for sample in samples], "--", label=f"{name}: threads", linewidth=1)
        memory.set(xlabel=phase.name, ylabel="resident memory, MB")
        counts.set(xlabel=phase.name, ylabel="number")
        memory.legend(fontsize=7)
        counts.legend(fontsize=6)
    figure.tight_layout()
    figure.savefig(file, dpi=110)


def judged(phase: Phase) -> tuple[dict[str, Any], list[Bar]]:
    """The figures of a phase and its bars, process by process."""
    figures: dict[str, Any] = {"done": phase.done, "failed": phase.failed, "processes": {}}
    bars = []
    for name, samples in phase.samples.items():
        slope, (fds, threads) = slope_of(samples), flatness(samples)
        figures["processes"][name] = {
            **_in_words(slope, phase.per),
            "fds": fds,
            "threads": threads,
            "samples": len(samples),
        }
        what = f"{name}, {phase.per:,} {phase.name}"
        if phase.is_brief:
            grown = samples[-1].rss_bytes - samples[len(samples) // 4].rss_bytes
            most = BRIEF_BYTES
            bars.append(
                Bar(
                    f"{name}, {phase.name}: memory", f"<= +{most / 1e6:.0f} MB", f"{grown / 1e6:+.1f} MB", grown <= most
                )
            )
        elif slope is None:
            bars.append(Bar(f"{what}: memory", "<= 0.1 MB", "too few samples", False))
            continue
        else:
            high = slope.high * phase.per
            said = f"{slope.per_unit * phase.per / 1e6:+.3f} MB, 95 % [{slope.low * phase.per / 1e6:+.3f}, {high / 1e6:+.3f}]"
            bars.append(Bar(f"{what}: memory", "upper end <= 0.1 MB", said, high <= LIMIT_BYTES))
        said = f"{fds:+.1f} descriptors, {threads:+.1f} threads"
        bars.append(Bar(f"{what}: flat", f"<= {FLAT}", said, max(fds, threads) <= FLAT))
    if phase.name == "requests":
        bars.append(Bar("requests without an answer", 0, sum(phase.failed.values()), not phase.failed))
    return figures, bars


def _in_words(slope: Slope | None, per: int) -> dict[str, float]:
    if slope is None:
        return {}
    return {"slope_bytes": slope.per_unit * per, "low_bytes": slope.low * per, "high_bytes": slope.high * per}


async def soak(options: argparse.Namespace, tell: Callable[[str], None]) -> list[Phase]:
    """Runs both phases."""
    devices = DeviceClass(per_edge=2, trainers_per_edge=2, dilation=1.0, link=QUICK, standby=False)
    edges = EdgeClass(count=1, dilation=1.0, link=QUICK)
    file = FleetFile(name="soak", edges=edges, devices=devices, task_settings=TASK)
    phases = []
    with make_folder() as name:
        fleet = EmulatedFleet(file, Path(name))
        try:
            await fleet.start(lambda step: tell(f"  {step}"))
            identity, folder = fleet.identity(OPERATOR), Path(name) / "operator"
            async with connect_operator(identity, fleet.endpoint(CLOUD), folder, "soak") as operator:
                await operator.wait_for_nodes(lambda rows: sum(row.state == "alive" for row in rows) >= 4, 60.0)
                pids = {name: child.pid for name, child in fleet.children.items()}
                num_phases = sum(map(bool, (options.rounds, options.requests)))
                half_s = options.minutes * 60.0 / num_phases if options.minutes else float("inf")
                every_s = options.every or (2.0 if half_s > 600 else 0.25)
                if options.rounds:
                    phases.append(
                        Phase("rounds", PER_ROUNDS, options.rounds, time.monotonic() + half_s, is_brief=options.short)
                    )
                    async with watched(phases[-1], pids, every_s, tell):
                        await train(operator, phases[-1], options.rounds_per_run)
                if options.requests:
                    phases.append(
                        Phase(
                            "requests",
                            PER_REQUESTS,
                            options.requests,
                            time.monotonic() + half_s,
                            is_brief=options.short,
                        )
                    )
                    async with watched(phases[-1], pids, every_s, tell):
                        await ask(operator, fleet, phases[-1])
        finally:
            await fleet.stop()
    return phases


def main() -> None:
    """Soaks, draws, judges."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10_000)
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--minutes", type=float, default=None, help="cut it: half of them for each phase")
    parser.add_argument("--rounds-per-run", type=int, default=500)
    parser.add_argument("--every", type=float, default=None, help="seconds between samples")
    parser.add_argument("--out", type=Path, default=Path("soak-out"))
    parser.add_argument("--short", action="store_true", help="200 rounds and 20,000 requests, coarse bars")
    parser.add_argument("--json", action="store_true", help="the closing line alone on standard output")
    options = parser.parse_args()
    if options.rounds + options.requests < 1:
        parser.error("there is nothing to do. Ask for --rounds or --requests.")
    if options.short:
        options.rounds, options.requests, options.rounds_per_run = 200, 20_000, 100
    said = sys.stderr if options.json else sys.stdout
    try:
        phases = asyncio.run(soak(options, lambda line: print(line, file=said, flush=True)))
    except EdgewiseError as error:
        sys.exit(f"soak: {error}")
    options.out.mkdir(parents=True, exist_ok=True)
    draw(phases, options.out / "soak.png")
    figures, bars = {}, []
    for phase in phases:
        figures[phase.name], found = judged(phase)
        bars += found
    figures["curves"] = str(options.out / "soak.png")
    close("soak", figures, bars)


if __name__ == "__main__":
    main()
