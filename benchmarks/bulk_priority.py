"""Does a model crossing a link delay an inference on it? Idle against loaded, both directions, no rate configured.

A device and its edge, two processes, mutual TLS, over a link of 20 Mbit/s + 5 ms with a bounded queue. The device asks
the edge to run a stage (4 KB of activations) on an open-loop clock; beside it a 100 MB blob is pulled, once by the
device and once from it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np

from benchmarks.fleet_processes import KEYS, Bench, FetchOrder, fleet
from benchmarks.report import Bar, close, print_row, quantile
from edgewise.core.units import parse_rate
from edgewise.ledger.entry import Purpose
from edgewise.simulation.links.shape import Shape
from edgewise.transport.bulk.fetch import fetch_blob
from edgewise.transport.frame import make_frame

RATE = parse_rate("20 Mbit/s")
DELAY_S = 0.005
SPACING_S = 0.04
ACTIVATIONS = 1000
LATENCY_BAR = 2.0
SHARE_BAR = 0.6


async def infer(bench: Bench, stop: asyncio.Event, num: int | None = None) -> list[float]:
    """Asks for a stage every `SPACING_S`; latency counts from the scheduled start."""
    latencies: list[float] = []
    x = np.ones(ACTIVATIONS, np.float32)

    async def one(scheduled: float) -> None:
        question = make_frame("stage_request", tensors={"x": x}, purpose=Purpose.SERVING)
        await bench.device.query(KEYS.service("edge-1", "stage"), question, timeout_s=30.0)
        latencies.append(time.perf_counter() - scheduled)

    start, asked = time.perf_counter(), []
    while not stop.is_set() and (num is None or len(asked) < num):
        scheduled = start + len(asked) * SPACING_S
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), max(0.0, scheduled - time.perf_counter()))
            break
        asked.append(asyncio.create_task(one(scheduled)))
    await asyncio.gather(*asked)
    return latencies


async def loaded(bench: Bench, size: int, move: Callable[[str, int], Awaitable[object]], digest: str) -> dict:
    """Inference latencies while a blob moves, and the blob's share of the link."""
    stop = asyncio.Event()
    asking = asyncio.create_task(infer(bench, stop))
    start = time.perf_counter()
    await move(digest, size)
    took = time.perf_counter() - start
    stop.set()
    return {"latencies": await asking, "seconds": took, "share": size / took / RATE}


async def measure(size: int, rounds: int, idle_num: int) -> dict[str, list]:
    """Idle, down, idle, up, … in one run."""
    seen: dict[str, list] = {"idle": [], "down": [], "up": [], "share_down": [], "share_up": []}
    with tempfile.TemporaryDirectory() as folder:
        async with fleet(Path(folder), Shape(bytes_per_s=RATE, delay_s=DELAY_S)) as bench:

            async def down(digest: str, size: int) -> None:
                await fetch_blob(bench.device, KEYS.service("edge-1", "blob"), digest, size, bench.blobs)  # type: ignore[arg-type]

            async def up(digest: str, size: int) -> None:
                order = make_frame("fetch", FetchOrder(digest, size), purpose=Purpose.CONTROL)
                await bench.device.query(KEYS.service("edge-1", "control"), order, timeout_s=600.0)

            await infer(bench, asyncio.Event(), 10)
            for _ in range(rounds):
                for way, move, store in (("down", down, bench.edge_blobs), ("up", up, bench.blobs)):
                    seen["idle"] += await infer(bench, asyncio.Event(), idle_num)
                    result = await loaded(bench, size, move, store.put(os.urandom(size)))
                    seen[way] += result["latencies"]
                    seen[f"share_{way}"].append(result["share"])
    return seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="10 MB instead of 100 MB")
    parser.add_argument("--json", action="store_true", help="only the closing JSON line")
    options = parser.parse_args()
    size, rounds, idle_num = (10_000_000, 2, 75) if options.short else (100_000_000, 1, 300)
    seen = asyncio.run(measure(size, rounds, idle_num))
    p95 = {name: 1000.0 * quantile(seen[name], 0.95) for name in ("idle", "down", "up")}
    if not options.json:
        print(f"bulk_priority: {size / 1e6:.0f} MB beside inference on 20 Mbit/s + 5 ms")
        for name in ("idle", "down", "up"):
            print_row(f"inference latency, {name} (p95 {p95[name]:.1f} ms)", [1000 * v for v in seen[name]], "ms")
    bars = []
    figures: dict[str, object] = {"p95_ms": p95, "blob_bytes": size}
    for way in ("down", "up"):
        ratio, share = p95[way] / p95["idle"], float(np.mean(seen[f"share_{way}"]))
        figures[way] = {"p95_ratio": ratio, "bulk_share": share}
        bars.append(
            Bar(
                f"inference p95 beside bulk {way}, against idle",
                f"<= {LATENCY_BAR} x",
                round(ratio, 2),
                ratio <= LATENCY_BAR,
            )
        )
        bars.append(Bar(f"share of the link for bulk {way}", f">= {SHARE_BAR}", round(share, 3), share >= SHARE_BAR))
    close("bulk_priority", figures, bars)


if __name__ == "__main__":
    main()
