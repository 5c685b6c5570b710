"""How long a killed process is away, beyond its imports: coordinator, edge and device of a fleet that trains and serves.

    python -m benchmarks.back_after_kill [--short] [--runs N]

Each is killed (SIGKILL) and started at once. It is back when the fleet counts on it again: the coordinator when it
answers an operator, an edge and a device when the coordinator lists their new incarnation as alive, and a device's
endpoint when it answers a request. What the same imports take alone is measured beside it, interleaved.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.report import Bar, close, print_row, quantile
from edgewise.chaos.live.live_scene import LiveScene
from edgewise.core.errors import EdgewiseError
from edgewise.models.forward import INPUT
from edgewise.service.client import InferenceClient

IMPORTS = {
    "cloud": "import edgewise.cli.coordinator, edgewise.fleet.coordinator, onnxruntime, zenoh",
    "edge-1": "import edgewise.cli.agent, edgewise.fleet.agent, onnxruntime, zenoh",
    "device-1": "import edgewise.cli.agent, edgewise.fleet.agent, onnxruntime, zenoh, torch.func, "
    "edgewise.training.local, edgewise.training.tasks.digits_task, sklearn.datasets",
}
BAR_S = 2.0
MOST_S = 60.0


async def away_s(scene: LiveScene, name: str) -> tuple[float, float]:
    """Seconds until a killed node is counted on again, and until a device's endpoint answers (0 for others)."""
    before = {row.info.node: row.info.generation for row in (await scene.operator.nodes()).nodes}
    await scene.fleet.children[name].kill()
    start = time.monotonic()
    restarting = asyncio.create_task(scene.fleet.restart(name))

    async def alive() -> float:
        while time.monotonic() - start < MOST_S:
            with contextlib.suppress(EdgewiseError):
                rows = (await scene.operator.nodes()).nodes
                here = {r.info.node: r.info.generation for r in rows if r.state == "alive"}
                if here.get(name, 0) > before[name]:
                    break
            await asyncio.sleep(0.01)
        return time.monotonic() - start

    async def answers() -> float:
        if not name.startswith("device"):
            return 0.0
        await restarting
        image = np.asarray(scene.task.parts.stream.inputs[:1], np.float32)
        async with InferenceClient("127.0.0.1", scene.port(name)) as client:
            while time.monotonic() - start < MOST_S:
                with contextlib.suppress(EdgewiseError):
                    await client.infer(scene.task.name, {INPUT: image})
                    break
                await asyncio.sleep(0.01)
        return time.monotonic() - start

    found = await asyncio.gather(alive(), answers())
    await restarting
    await scene.all_here()
    return found[0], found[1]


def imports_s(name: str) -> float:
    """Seconds that a process takes which only imports what a node imports."""
    start = time.monotonic()
    subprocess.run([sys.executable, "-c", IMPORTS[name]], check=True)
    return time.monotonic() - start


async def measure(num_runs: int) -> dict[str, list[tuple[float, float, float]]]:
    """By node, of each kill: seconds beyond the imports until it is counted on and until it answers; the imports alone."""
    taken: dict[str, list[tuple[float, float, float]]] = {name: [] for name in IMPORTS}
    with tempfile.TemporaryDirectory(prefix="edgewise-bench-") as folder:
        async with LiveScene(Path(folder)).running() as scene:
            for number in range(num_runs):
                for name, rows in taken.items():
                    alone = await asyncio.to_thread(imports_s, name)
                    back, answered = await away_s(scene, name)
                    rows.append((back - alone, max(0.0, answered - alone), alone))
                print(f"run {number + 1} of {num_runs}", file=sys.stderr)
    return taken


def main() -> None:
    """Measures and prints."""
    logging.getLogger("edgewise").setLevel(logging.ERROR)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="three kills of each")
    parser.add_argument("--runs", type=int, default=10, help="kills of each")
    options = parser.parse_args()
    taken = asyncio.run(measure(3 if options.short else options.runs))
    bars = []
    for name, rows in taken.items():
        print_row(f"{name}: its imports alone", [row[2] for row in rows], "s")
        for what, column in (("is counted on", 0), ("answers requests", 1)):
            values = [row[column] for row in rows]
            if not any(values):
                continue
            print_row(f"{name} {what}, after them", values, "s")
            beyond = quantile(values, 0.5)
            bars.append(
                Bar(f"{name} {what}, median", f"<= {BAR_S} s after its imports", round(beyond, 2), beyond <= BAR_S)
            )
    close("back_after_kill", taken, bars)


if __name__ == "__main__":
    main()
