"""A run of a big model over real processes: python -m benchmarks.big_run [--short]

Submitted, trained, registered as a version, over TLS, by a coordinator and two devices. Measured are the seconds of each
part and the peak of the coordinator's memory above idle, as a multiple of the float32 model.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.live_round import Fleet
from benchmarks.report import Bar, close
from edgewise.core.ids import NodeId
from edgewise.fleet.operator.submission import task_request
from edgewise.models.task import load_task
from edgewise.testing import tiny_task

ENTRIES, SHORT_ENTRIES, ROUNDS, DEVICES = 100_000_000, 20_000_000, 2, 2
MOST = 5.0
LOCAL = {"name": "sgd", "learning_rate": 0.01, "epochs": 1, "batch_size": 4}


async def measure(num_entries: int) -> dict[str, Any]:
    """Trains a network of so many entries.

    Args:
        num_entries: d, about.

    Returns:
        Figures.
    """
    settings = {"hidden": num_entries // 8, "clients": [f"client-{i}" for i in range(DEVICES)]}
    with tempfile.TemporaryDirectory(prefix="edgewise-") as folder:
        live = Fleet(Path(folder), num_devices=DEVICES, task_file=tiny_task.__file__, task_settings=settings)
        try:
            await live.start()
            idle = (await live.operator.ledger(NodeId("cloud"))).peak_memory_bytes
            task = load_task(tiny_task.__file__, **settings)
            algorithm = {"name": "fed_avg", "local": LOCAL}
            request, files = await asyncio.to_thread(
                task_request, task, algorithm, num_rounds=ROUNDS, protocol="synchronous", register=True
            )
            start = time.perf_counter()
            run = await live.operator.submit(request, files)
            submitted = time.perf_counter()
            rounds_done = submitted
            async for status in live.operator.watch(run, patience_s=600.0):
                if len(status.rounds) == ROUNDS:
                    rounds_done = (
                        min(rounds_done, time.perf_counter()) if rounds_done > submitted else time.perf_counter()
                    )
            end = time.perf_counter()
            if status.state != "completed" or not status.version:
                raise SystemExit(f"the run ended {status.state}: {status.cause}")
            peak = (await live.operator.ledger(NodeId("cloud"))).peak_memory_bytes
        finally:
            await live.close()
    model_bytes = 4 * request.spec.num_entries
    return {
        "entries": request.spec.num_entries,
        "submit_s": round(submitted - start, 2),
        "round_s": [round(r.seconds, 2) for r in status.rounds],
        "version_s": round(end - rounds_done, 2),
        "model_bytes": model_bytes,
        "idle_bytes": idle,
        "peak_bytes": peak,
        "times_model": round((peak - idle) / model_bytes, 2),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs it and prints figures and bars."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help=f"{SHORT_ENTRIES:,} entries instead of {ENTRIES:,}")
    short = parser.parse_args(arguments).short
    figures = asyncio.run(measure(SHORT_ENTRIES if short else ENTRIES))
    for name, value in figures.items():
        print(f"{name:14s} {value}")
    times = figures["times_model"]
    close("big_run", figures, [Bar("the coordinator's peak above idle", f"<= {MOST} x model", times, times <= MOST)])


if __name__ == "__main__":
    main()
