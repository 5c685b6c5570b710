"""What an update costs on the wire: frame, signature, Zenoh and mutual TLS included, handshake excluded.

A device hands updates to its edge through the link process, which counts every byte at its sockets; the kernel's own
count of the same sockets must agree. Small updates travel in the frame, large ones as a blob that the edge pulls.
The bar counts the direction of the update; the way back (questions for chunks, acknowledgement) is printed beside it.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.fleet_processes import KEYS, Bench, FetchOrder, fleet
from benchmarks.report import Bar, close
from edgewise.codecs import CODECS
from edgewise.core.spec import build
from edgewise.ledger.entry import Purpose
from edgewise.simulation.links.shape import Shape
from edgewise.transport.frame import make_frame

SIZES = {"job_s": 4_810, "digits_cnn": 100_000, "million": 1_000_000}
INLINE_BYTES = 64 * 1024
UNCODED_BAR, INT8_BAR, SMALL_INT8_BAR, AGREEMENT_BAR = 1.02, 3.9, 3.7, 0.01


def arrays_of(codec: str | None, update: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
    """What travels for an update: itself, or its payload's arrays."""
    if codec is None:
        return {"update": update}
    made = build("codecs", CODECS, codec)
    payload, _ = made.encode(update, made.init(update.shape), np.random.default_rng(0))
    return dict(payload.arrays)


async def send(bench: Bench, arrays: dict[str, NDArray[Any]]) -> None:
    """Hands one update to the edge, as the fleet does: in the frame, or announced and pulled."""
    if sum(array.nbytes for array in arrays.values()) <= INLINE_BYTES:
        frame = make_frame("update", tensors=arrays, purpose=Purpose.TRAINING)
        await bench.device.query(KEYS.service("edge-1", "report"), frame, timeout_s=60.0)
        return
    data = b"".join(array.tobytes() for array in arrays.values())
    order = make_frame("update", FetchOrder(bench.blobs.put(data), len(data)), purpose=Purpose.TRAINING)
    await bench.device.query(KEYS.service("edge-1", "control"), order, timeout_s=60.0)


async def measure(sizes: dict[str, int], repetitions: int) -> dict[str, dict[str, Any]]:
    """Bytes per update and codec: at the link's sockets both ways, and by the kernel."""
    rows: dict[str, dict[str, Any]] = {}
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        async with fleet(Path(folder), Shape(bytes_per_s=2.5e6, delay_s=0.005)) as bench:
            await send(bench, {"warm": np.zeros(10, np.float32)})
            for _ in range(repetitions):
                for name, size in sizes.items():
                    for codec in (None, "int8"):
                        update = rng.normal(0.0, 0.01, size).astype(np.float32)
                        arrays = arrays_of(codec, update)
                        before = (await bench.link.counters())["link"]
                        await send(bench, arrays)
                        after = (await bench.link.counters())["link"]
                        row = rows.setdefault(
                            f"{name}.{codec or 'uncoded'}", {"payload": 4 * size, "up": [], "down": [], "kernel": []}
                        )
                        for way in ("up", "down"):
                            row[way].append(after[way]["read_bytes"] - before[way]["read_bytes"])
                        row["kernel"].append(after["up"]["kernel_bytes"] - before["up"]["kernel_bytes"])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="without the million parameters")
    parser.add_argument("--json", action="store_true", help="only the closing JSON line")
    options = parser.parse_args()
    sizes = {k: v for k, v in SIZES.items() if not (options.short and k == "million")}
    rows = asyncio.run(measure(sizes, 3 if options.short else 5))
    figures = {name: {key: int(np.median(value)) for key, value in row.items()} for name, row in rows.items()}
    if not options.json:
        print("wire_bytes: one update over Zenoh with mutual TLS, median bytes at the link's sockets")
        for name, row in figures.items():
            print(f"  {name:<22} up {row['up']:>10,}  down {row['down']:>8,}  float32 payload {row['payload']:>10,}")
    bars = []
    for name in sizes:
        uncoded, coded = figures[f"{name}.uncoded"], figures[f"{name}.int8"]
        ratio, fewer = uncoded["up"] / uncoded["payload"], uncoded["up"] / coded["up"]
        bar = SMALL_INT8_BAR if name == "job_s" else INT8_BAR
        if name != "job_s":
            bars.append(
                Bar(
                    f"{name}: uncoded update against its payload",
                    f"<= {UNCODED_BAR}",
                    round(ratio, 4),
                    ratio <= UNCODED_BAR,
                )
            )
        bars.append(Bar(f"{name}: int8 sends fewer bytes than uncoded", f">= {bar} x", round(fewer, 3), fewer >= bar))
    apart = max(abs(row["kernel"] - row["up"]) / row["up"] for row in figures.values() if row["kernel"])
    bars.append(
        Bar("link's count against the kernel's", f"<= {AGREEMENT_BAR}", round(apart, 5), apart <= AGREEMENT_BAR)
    )
    close("wire_bytes", figures, bars)


if __name__ == "__main__":
    main()
