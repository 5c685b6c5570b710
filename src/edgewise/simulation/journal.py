"""What clients of a simulation did, on the disk: a killed simulation does the same again from it, without the work.

    header (job, engine) │ snapshot │ work of an instant │ metrics of a round │ …        each: length, crc32, msgpack

Everything else of a simulation is decided by the seed, so it ends in the model, to the last bit, in which it would have
ended. A torn entry at the end is dropped. When a round has closed and the entries have outgrown what the run is then
(`snapshot.py`), the file becomes that, in one step; it is removed when the run has ended.
"""

from __future__ import annotations

import os
import zlib
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from edgewise.core.errors import InputError
from edgewise.core.files import write_atomic
from edgewise.core.ids import RoundNumber
from edgewise.core.layout import Vector
from edgewise.simulation.virtual_clients import Worked, Workers
from edgewise.simulation.virtual_run import Evaluate
from edgewise.training.protocols.letters import WorkOrder
from edgewise.training.protocols.protocol import Blobs

_WORK, _METRICS, _SNAPSHOT = "work", "metrics", "snapshot"
_PREFIX = 8
_MOST_BYTES = 2**31
"""Of a snapshot; a larger run keeps its entries."""


@dataclass(slots=True)
class Journal:
    """A file of entries: those read are given again, new ones are appended.

    Attributes:
        path: The file.
        engine: Local engine of the run that wrote it; "" if it is new.
        num_read: Entries that were there.
        snapshot: Where the run was when the entries begin; b"" at its start.
    """

    path: Path
    engine: str = ""
    num_read: int = 0
    snapshot: bytes = b""
    _header: Any = None
    _grown_bytes: int = 0
    _read: deque[Any] = field(default_factory=deque)
    _file: BinaryIO | None = None

    @staticmethod
    def open(path: Path) -> Journal:
        """Reads what a killed simulation left.

        Args:
            path: The file; need not exist.

        Returns:
            The journal; `begin` it before use.

        Raises:
            InputError: If the path is no file that can be read.
        """
        journal = Journal(path)
        try:
            data = path.read_bytes() if path.exists() else b""
        except OSError as error:
            raise InputError(f"journal {str(path)!r} cannot be read: {error.strerror}. Name another file.") from error
        entries = list(_entries(data))
        if data and not entries:
            raise InputError(f"{str(path)!r} is no journal of a simulation. Name another file, or remove it.")
        journal._read.extend(entries)
        journal.engine = str(entries[0]["engine"]) if entries else ""
        journal.num_read = max(0, len(entries) - 1)
        return journal

    def begin(self, job: str, engine: str) -> None:
        """Begins a run.

        Args:
            job: Names the run: what the results depend on.
            engine: Its local engine.

        Raises:
            InputError: If the entries are of another run, or the file cannot be written.
        """
        if self._read and self._read[0]["job"] != job:
            raise InputError(
                f"journal {str(self.path)!r} is of another job, task or seed. Remove it to begin anew, or name another file."
            )
        entries = list(self._read) or [{"job": job, "engine": engine}]
        try:
            self._replace(entries)
        except OSError as error:
            raise InputError(
                f"journal {str(self.path)!r} cannot be written: {error.strerror}. Name another file."
            ) from error
        self._header = self._read.popleft() if self._read else entries[0]
        if self._read and self._read[0].get("kind") == _SNAPSHOT:
            self.snapshot = self._read.popleft()["content"]

    def next(self, kind: str, key: Any) -> Any:
        """The next entry that was read, or None if there are no more.

        Args:
            kind: Which is expected.
            key: What it is of.

        Returns:
            Its content.

        Raises:
            InputError: If the next is another: the task or the program changed since.
        """
        if not self._read:
            return None
        entry = self._read.popleft()
        if entry.get("kind") != kind or entry.get("key") != key:
            raise InputError(
                f"journal {str(self.path)!r} has {entry.get('key')!r} where this run has {key!r}: the task's data or the "
                "program changed since it was written. Remove it to begin anew."
            )
        return entry["content"]

    def add(self, kind: str, key: Any, content: Any) -> None:
        """Appends an entry; it is in the operating system's hands when this returns."""
        self._append({"kind": kind, "key": key, "content": content})

    def is_long(self, run_bytes: int) -> bool:
        """Whether its new entries have outgrown the run, and nothing that was read is still to be given."""
        return not self._read and run_bytes <= min(self._grown_bytes, _MOST_BYTES)

    def compact(self, snapshot: bytes) -> None:
        """Puts a snapshot in the place of all entries; killed at any time, the file is the old one or the new one.

        Args:
            snapshot: Of the run as it is.

        Raises:
            OSError: If the disk refuses; the old file is still there.
        """
        self._replace([self._header, {"kind": _SNAPSHOT, "key": None, "content": snapshot}])

    def close(self, *, is_done: bool) -> None:
        """Closes the file; removes it if the run has ended."""
        if self._file is not None:
            self._file.close()
            self._file = None
        if is_done:
            self.path.unlink(missing_ok=True)

    def _append(self, entry: Any) -> None:
        assert self._file is not None
        data = _framed(entry)
        self._grown_bytes += len(data)
        self._file.write(data)
        self._file.flush()
        os.fsync(self._file.fileno()) if entry.get("kind") == _METRICS else None

    def _replace(self, entries: Sequence[Any]) -> None:
        write_atomic(self.path, b"".join(map(_framed, entries)))
        if self._file is not None:
            self._file.close()
        self._file, self._grown_bytes = self.path.open("ab"), 0


def _framed(entry: Any) -> bytes:
    data = msgspec.msgpack.encode(entry)
    return len(data).to_bytes(4, "little") + zlib.crc32(data).to_bytes(4, "little") + data


def _entries(data: bytes) -> Any:
    at = 0
    while at + _PREFIX <= len(data):
        size, crc = (int.from_bytes(data[at + i : at + i + 4], "little") for i in (0, 4))
        body = data[at + _PREFIX : at + _PREFIX + size]
        if len(body) < size or zlib.crc32(body) != crc:
            return  # torn: the process was killed while it wrote
        yield msgspec.msgpack.decode(body)
        at += _PREFIX + size


@dataclass(slots=True)
class JournaledWorkers:
    """Workers whose results are kept, and given again where they are there.

    Attributes:
        workers: Do what is not in the journal.
        journal: Begun.
    """

    workers: Workers
    journal: Journal

    def work(self, orders: Sequence[tuple[WorkOrder, bytes]], blobs: Blobs) -> list[Worked]:
        """As in `Workers`."""
        key = [[order.client, order.round, order.exchange] for order, _ in orders]
        found = self.journal.next(_WORK, key)
        if found is not None:
            return [msgspec.convert(worked, Worked) for worked in found]
        done = self.workers.work(orders, blobs)
        self.journal.add(_WORK, key, done)
        return done


def journaled(evaluate: Evaluate, journal: Journal) -> Evaluate:
    """An evaluation whose results are kept, and given again where they are there.

    Args:
        evaluate: Judges a model.
        journal: Begun.

    Returns:
        The same, by way of the journal.
    """

    def judged(number: RoundNumber, vector: Vector) -> dict[str, float]:
        found = journal.next(_METRICS, int(number))
        if found is None:
            found = evaluate(number, vector)
            journal.add(_METRICS, int(number), found)
        return dict(found)

    return judged
