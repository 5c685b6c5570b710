"""Memory of a fleet's processes while their links flap: python -m benchmarks.link_flaps --minutes 60

Zenoh's router was seen to grow from 30 to 300 MB when a radio link dropped (zenoh-ts#457). Here a cloud, an edge and a device,
processes of their own under mutual TLS, lose both their links again and again: cut, or black, for less and for more than a
lease, while an operator sends the device frames of 100 kB that pile up before the link. Resident memory of each process is taken
every second. Flat is: from the end of the first quarter on, the 95 % limit of its slope stays below 2 MB over the whole run, or
what it gained is less than that. After the last flap the device is to answer within ten seconds: a new session, and the one that
sent the frames. docs/decisions/0016-a-blocked-link-is-closed.md tells what kept it from that.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import logging
import random
import resource
import tempfile
import time
from pathlib import Path
from statistics import mean, median
from typing import Any

import msgspec
import numpy as np

from benchmarks.report import Bar, close
from edgewise.core.errors import EdgewiseError
from edgewise.core.ids import NodeId, Tier
from edgewise.fleet.node.proof import proofs_of
from edgewise.fleet.node.settings import AgentSettings
from edgewise.fleet.operator.operator import Operator, connect_operator
from edgewise.ledger.entry import Purpose
from edgewise.simulation.emulated.emulated_fleet import CLOUD, OPERATOR, EmulatedFleet
from edgewise.simulation.emulated.fleet_file import DeviceClass, EdgeClass, FleetFile, LinkClass
from edgewise.transport.frame import make_frame

EDGE, DEVICE, LATER = "edge-1", "device-1", "operator-2"
LINKS = ((DEVICE, EDGE), (EDGE, CLOUD))
GROWTH_MB, WARM_UP_FRACTION = 4.0, 0.25
FRAME_BYTES, FRAMES_PER_S = 100_000, 10.0
BACK_S, TRIED_S = 10.0, 60.0
QUICK = LinkClass("100 Mbit/s", "1 ms")


class Flapping(EmulatedFleet):
    """A device that neither trains nor answers requests: what grows is what links and routing keep."""

    def _device_settings(self, device: str) -> AgentSettings:
        return msgspec.structs.replace(super()._device_settings(device), http="")


async def measure(minutes: float, seed: int = 0) -> dict[str, Any]:
    """Lets the links of a fleet flap.

    Args:
        minutes: How long.
        seed: Of the flaps.

    Returns:
        Per process its megabytes over time; how many flaps, frames sent and answered; seconds until the device answered at last,
        a new session and the one that sent the frames (None if not within a minute).
    """
    devices = DeviceClass(per_edge=1, trainers_per_edge=0, dilation=1.0, link=QUICK, standby=False)
    file = FleetFile(name="flaps", edges=EdgeClass(count=1, link=QUICK), devices=devices)
    with tempfile.TemporaryDirectory() as folder:
        fleet = Flapping(file, Path(folder))
        try:
            await fleet.start()
            fleet.issue(LATER, Tier.CLOUD)
            session = connect_operator(
                fleet.identity(OPERATOR), fleet.endpoint(CLOUD), Path(folder) / "operator", "flaps"
            )
            async with session as operator:
                await answers_again(operator)
                return await _measured(fleet, operator, minutes, random.Random(seed))
        finally:
            await fleet.stop()


async def _measured(fleet: EmulatedFleet, operator: Operator, minutes: float, rng: random.Random) -> dict[str, Any]:
    counts = {"flaps": 0, "sent": 0, "answered": 0}
    memory: dict[str, list[tuple[float, float]]] = {name: [] for name in (CLOUD, EDGE, DEVICE)}
    began_s = time.monotonic()

    async def sample() -> None:
        while True:
            for name, values in memory.items():
                values.append((time.monotonic() - began_s, resident_mb(fleet.children[name].pid)))
            await asyncio.sleep(1.0)

    working = [asyncio.create_task(work) for work in (sample(), _send(operator, counts))]
    try:
        while time.monotonic() - began_s < 60 * minutes:
            source, target = rng.choice(LINKS)
            await fleet.set_link(source, target, outage=rng.choice(("cut", "black_hole")))
            await asyncio.sleep(rng.choice((0.3, 1.0, 3.0)))
            await fleet.set_link(source, target, outage=None)
            counts["flaps"] += 1
            await asyncio.sleep(rng.choice((0.3, 1.5, 3.0)))
    finally:
        for task in working:
            task.cancel()
        await asyncio.gather(*working, return_exceptions=True)
    ended_s = time.monotonic()
    old = asyncio.create_task(answers_again(operator))
    back_s = await _answers_anew(fleet)
    await asyncio.wait({old}, timeout=max(0.0, ended_s + TRIED_S - time.monotonic()))
    old_back_s = old.result() if old.done() and old.exception() is None else None
    old.cancel()
    return {"memory_mb": memory, **counts, "back_s": back_s, "old_session_back_s": old_back_s}


async def _answers_anew(fleet: EmulatedFleet) -> float | None:
    """As `answers_again`, through a session that was not there while the links flapped; None if not within a minute."""
    began_s, state = time.monotonic(), Path(fleet.folder) / LATER
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(TRIED_S):
            while True:
                with contextlib.suppress(EdgewiseError):
                    later = connect_operator(fleet.identity(LATER), fleet.endpoint(CLOUD), state, "flaps")
                    async with later as operator:
                        await answers_again(operator)
                        return time.monotonic() - began_s
                await asyncio.sleep(0.2)
    return None


async def _send(operator: Operator, counts: dict[str, int]) -> None:
    """Sends frames whatever becomes of them; each waits for its answer at most 2 s."""
    node, asked = operator.node, set[asyncio.Task[None]]()
    data = {"x": np.zeros(FRAME_BYTES, np.uint8)}

    async def ask(purpose: Purpose) -> None:
        with contextlib.suppress(EdgewiseError):
            frame = make_frame("info_request", tensors=data, purpose=purpose)
            await node.transport.query(node.keys.service(DEVICE, "progress"), frame, timeout_s=2.0)
            counts["answered"] += 1

    try:
        for number in itertools.count():
            counts["sent"] += 1
            task = asyncio.create_task(ask((Purpose.CONTROL, Purpose.SERVING, Purpose.BULK)[number % 3]))
            asked.add(task)
            task.add_done_callback(asked.discard)
            await asyncio.sleep(1 / FRAMES_PER_S)
    finally:
        for task in asked:
            task.cancel()


async def answers_again(operator: Operator) -> float:
    """Seconds until the device answers who it is.

    Raises:
        TimeoutError: If it does not within a minute.
    """
    began_s = time.monotonic()
    async with asyncio.timeout(TRIED_S):
        while True:
            try:
                await proofs_of(operator.node, NodeId(DEVICE), timeout_s=1.0)
                return time.monotonic() - began_s
            except EdgewiseError:
                await asyncio.sleep(0.2)


def resident_mb(process: int) -> float:
    """Resident memory of a process, in MB."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def growth(samples: list[tuple[float, float]]) -> dict[str, float]:
    """How memory moved after the warm-up.

    Args:
        samples: (seconds, MB), at least four.

    Returns:
        `mb`: at the end; `gained_mb`: median of the last quarter over that of the quarter after the warm-up;
        `slope_mb`: what the least-squares slope makes over the whole run, at its upper 95 % limit.
    """
    kept = samples[int(WARM_UP_FRACTION * len(samples)) :]
    times, values = [at for at, _ in kept], [mb for _, mb in kept]
    part = max(1, len(values) // 3)
    center, level = mean(times), mean(values)
    spread_s = sum((at - center) ** 2 for at in times) or 1.0
    slope = sum((at - center) * (mb - level) for at, mb in kept) / spread_s
    rest = sum((mb - level - slope * (at - center)) ** 2 for at, mb in kept) / max(1, len(kept) - 2)
    whole_s = samples[-1][0] - samples[0][0]
    return {
        "mb": values[-1],
        "gained_mb": median(values[-part:]) - median(values[:part]),
        "slope_mb": whole_s * (slope + 1.96 * (rest / spread_s) ** 0.5),
    }


def bars_of(figures: dict[str, Any]) -> tuple[dict[str, dict[str, float]], list[Bar]]:
    """Growth by process, and what is promised of it."""
    grown = {name: growth(samples) for name, samples in figures["memory_mb"].items()}
    bars = [
        Bar(
            f"memory of {name} over {figures['flaps']} flaps",
            f"<= {GROWTH_MB} MB gained",
            f"{of['gained_mb']:+.2f} MB, slope {of['slope_mb']:+.2f} MB, {of['mb']:.1f} MB at the end",
            min(of["gained_mb"], of["slope_mb"]) <= GROWTH_MB,
        )
        for name, of in grown.items()
    ]
    for who, key in (("a new session", "back_s"), ("the session that sent", "old_session_back_s")):
        back_s = figures[key]
        said = "not within a minute" if back_s is None else f"{back_s:.1f} s"
        bars.append(
            Bar(
                f"the device answers {who} after the last flap",
                f"<= {BACK_S:.0f} s",
                said,
                back_s is not None and back_s <= BACK_S,
            )
        )
    return grown, bars


def main() -> None:
    """Runs it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--minutes", type=float, default=5.0, help="how long the links flap; an hour is the whole measurement"
    )
    parser.add_argument("--short", action="store_true", help="half a minute")
    parser.add_argument("--json", action="store_true", help="only the closing JSON line")
    args = parser.parse_args()
    logging.getLogger("edgewise").setLevel(logging.ERROR)  # nodes come and go on purpose
    figures = asyncio.run(measure(0.5 if args.short else args.minutes))
    grown, bars = bars_of(figures)
    if not args.json:
        print(f"{figures['flaps']} flaps; of {figures['sent']} frames {figures['answered']} were answered")
        print(f"  the session that sent them: answered again after {figures['old_session_back_s']} s")
        for name, of in grown.items():
            print(f"  {name:<10} {of['mb']:6.1f} MB at the end, {of['gained_mb']:+.2f} MB since the warm-up")
    close("link_flaps", {"growth": grown, **{k: v for k, v in figures.items() if k != "memory_mb"}}, bars)


if __name__ == "__main__":
    main()
