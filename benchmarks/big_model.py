"""What a coordinator needs for a big model: python -m benchmarks.big_model

Folds updates that lie in files, steps the server and stores the next model, in a process of its own, and compares the peak
of its memory above idle with the float32 model. Once with the sum in memory, once with the sum on disk.
"""

from __future__ import annotations

import argparse
import json
import mmap
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.report import Bar, close
from edgewise.codecs import none
from edgewise.codecs.bundle import bundle_to_bytes, encode_bundle
from edgewise.core.ids import Digest, RoundNumber, digest_of
from edgewise.training.aggregate import weighted_mean
from edgewise.training.algorithm import MODEL, Closed, Exchange
from edgewise.training.algorithms.fed_avg import one_exchange
from edgewise.training.local import sgd
from edgewise.training.protocols.folding import Decoder, fold, section_to_blob, step_server, vector_from_bytes
from edgewise.training.protocols.messages import Answer
from edgewise.training.server import step

ENTRIES, SHORT_ENTRIES, UPDATES = 100_000_000, 20_000_000, 4
IN_MEMORY, ON_DISK = 5.0, 2.2


class MappedFolder(Mapping[Digest, Any]):
    """Files of a folder, by name, as buffers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __getitem__(self, digest: Digest) -> Any:
        with (self.folder / digest).open("rb") as file:
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))

    def __iter__(self) -> Iterator[Digest]:
        return (Digest(path.name) for path in self.folder.iterdir())

    def __len__(self) -> int:
        return sum(1 for _ in self)


def exchange_of(*, on_disk: bool) -> Exchange:
    """FedAvg's exchange, its sum in memory or on disk."""
    return one_exchange(sgd(), step(), {MODEL: weighted_mean(disk_entries=1 if on_disk else None)}, none())


def write_round(folder: Path, num_entries: int, num_updates: int) -> tuple[Digest, list[Answer]]:
    """A model and updates of it as blobs.

    Args:
        folder: For the files.
        num_entries: d.
        num_updates: How many.

    Returns:
        The model's name, and the updates as a protocol names them.
    """
    tile = np.random.default_rng(0).normal(0, 0.01, 2**16).astype(np.float32)
    vector = np.resize(tile, num_entries)
    names = []
    for number in range(num_updates + 1):
        vector[0] = number  # no two files alike
        data = bundle_to_bytes(encode_bundle({MODEL: none()}, {MODEL: vector}, None, np.random.default_rng(0))[0])
        names.append(digest_of(vector.data if number == num_updates else data))
        (folder / names[-1]).write_bytes(vector.data if number == num_updates else data)
    return names[-1], [Answer(update=name, num_examples=7 + i) for i, name in enumerate(names[:-1])]


def close_round(folder: Path, model: Digest, answers: list[Answer], num_entries: int, *, on_disk: bool) -> Digest:
    """What a coordinator does at the end of a round; the next model is a new file of the folder."""
    blobs, exchange = MappedFolder(folder), exchange_of(on_disk=on_disk)
    sums = fold(exchange, Decoder(blobs), answers, num_entries)
    closed = Closed(RoundNumber(1), len(answers), len(answers), np.random.default_rng(0))
    state = {MODEL: vector_from_bytes(blobs[model], num_entries)}
    stepped = step_server(exchange, blobs, state, sums, answers, closed)
    section, data = section_to_blob(MODEL, stepped.changed[MODEL])
    (folder / section.blob.digest).write_bytes(data)
    return section.blob.digest


def measured(folder: Path, num_entries: int, num_updates: int, *, on_disk: bool) -> dict[str, Any]:
    """Runs `close_round` here and says what it took.

    Returns:
        `peak_bytes` above idle, `seconds`, and the next model's `digest`.
    """
    with tempfile.TemporaryDirectory() as small:
        close_round(Path(small), *write_round(Path(small), 1000, num_updates), 1000, on_disk=on_disk)
    model, answers = Digest((folder / "model").read_text()), json.loads((folder / "answers").read_text())
    listed = [Answer(update=Digest(name), num_examples=count) for name, count in answers]
    idle, started = _resident_bytes(), time.perf_counter()
    digest = close_round(folder, model, listed, num_entries, on_disk=on_disk)
    return {"peak_bytes": _peak_bytes() - idle, "seconds": time.perf_counter() - started, "digest": digest}


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _peak_bytes() -> int:
    # Not `ru_maxrss`, which a process takes over from the one that started it.
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def run_alone(folder: Path, num_entries: int, num_updates: int, *, on_disk: bool) -> dict[str, Any]:
    """`measured` in a process of its own.

    Args:
        folder: Holds the round, as `write_round` made it, and its names.
        num_entries: d.
        num_updates: How many.
        on_disk: Whether the sum is.

    Returns:
        As `measured`, with `multiple`: the peak in float32 models.
    """
    words = [sys.executable, "-m", "benchmarks.big_model", "--in", str(folder), "--entries", str(num_entries)]
    words += ["--updates", str(num_updates), *(["--on-disk"] if on_disk else [])]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found | {"multiple": round(found["peak_bytes"] / (4 * num_entries), 3)}


def prepare(folder: Path, num_entries: int, num_updates: int) -> None:
    """Writes a round and its names for `run_alone`."""
    model, answers = write_round(folder, num_entries, num_updates)
    (folder / "model").write_text(model)
    (folder / "answers").write_text(json.dumps([(a.update, a.num_examples) for a in answers]))


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help=f"{SHORT_ENTRIES:,} entries instead of {ENTRIES:,}")
    parser.add_argument("--json", action="store_true", help="only the closing JSON line")
    parser.add_argument("--entries", type=int, default=0)
    parser.add_argument("--updates", type=int, default=UPDATES)
    parser.add_argument("--in", dest="folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--on-disk", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.folder is not None:
        print(json.dumps(measured(args.folder, args.entries, args.updates, on_disk=args.on_disk)))
        return
    num_entries = args.entries or (SHORT_ENTRIES if args.short else ENTRIES)
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder), num_entries, args.updates)
        found = {
            name: run_alone(Path(folder), num_entries, args.updates, on_disk=name == "on disk")
            for name in ("in memory", "on disk")
        }
    if not args.json:
        print(
            f"{num_entries:,} entries, {args.updates} updates; peak above idle in float32 models of {4 * num_entries:,} bytes"
        )
        for name, row in found.items():
            print(f"  the sum {name:<12} {row['multiple']:.2f} models, {row['seconds']:.1f} s")
    bars = [
        Bar("peak memory, the sum in memory", f"<= {IN_MEMORY} models", found["in memory"]["multiple"], found["in memory"]["multiple"] <= IN_MEMORY),
        Bar("peak memory, the sum on disk", f"<= {ON_DISK} models", found["on disk"]["multiple"], found["on disk"]["multiple"] <= ON_DISK),
        Bar("both give one model", "equal bytes", "equal" if found["in memory"]["digest"] == found["on disk"]["digest"] else "unequal", found["in memory"]["digest"] == found["on disk"]["digest"]),
    ]  # fmt: skip
    close("big_model", {"entries": num_entries, "updates": args.updates, **found}, bars)


if __name__ == "__main__":
    main()
