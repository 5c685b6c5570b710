"""Appends events to a log on disk before they take effect; state is the fold of the log.

Example:
    >>> import tempfile
    >>> log = EventLog.open(Path(tempfile.mkdtemp()) / "events.sqlite")
    >>> log.append("run-1", "RoundStarted", b"1"), log.append("run-1", "UpdateReceived", b"2")
    (1, 2)
    >>> [(entry.index, entry.kind) for entry in log.read("run-1", after=1)]
    [(2, 'UpdateReceived')]
    >>> log.close()

Model versions are in `registry.py`; both may share one `Database`.
"""

from __future__ import annotations

import hashlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from edgewise.core.errors import StoreDamaged
from edgewise.fleet.store.database import Database
from edgewise.fleet.store.registry import Promotion, Registry

if TYPE_CHECKING:
    from sqlalchemy import Table

_CHECK_BYTES = 8
_BEGINS_ANEW = frozenset(("snapshot",))
"""Kinds of an entry that stands for all before it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogEntry:
    """Holds one event.

    Attributes:
        run: The run it belongs to.
        index: Its place in that run, from 1, without gaps; entries before a snapshot are gone.
        kind: Name of the event's type.
        payload: The event as its protocol wrote it.
        time_s: When it was written, seconds since 1970; for people, nothing is decided by it.
    """

    run: str
    index: int
    kind: str
    payload: bytes
    time_s: float


class EventLog:
    """Logs the events of any number of runs; open it with `open`. Thread-safe; one process writes."""

    def __init__(
        self, database: Database, *, crash_after: int | None = None, now: Callable[[], float] = time.time
    ) -> None:
        """Makes a log in an open database.

        Args:
            database: May hold a registry too.
            crash_after: Kill this process (SIGKILL) right after its n-th append is on disk; tests enumerate it.
            now: Wall clock of `LogEntry.time_s`.
        """
        self._database = database
        database.create(_events().metadata)
        self._crash_after = crash_after
        self._now = now
        self._num_appended = 0
        self._last: dict[str, int] = {}
        self._lock = threading.Lock()

    @staticmethod
    def open(path: str | Path, *, crash_after: int | None = None, read_only: bool = False) -> EventLog:
        """Opens a log of its own file, or creates it.

        Args:
            path: Where.
            crash_after: As in `EventLog`.
            read_only: Read beside the running writer.

        Returns:
            The log.

        Raises:
            StoreError: As `Database.open`.
        """
        database = Database.open(path, read_only=read_only)
        return EventLog(database, crash_after=crash_after)

    def append(self, run: str, kind: str, payload: bytes) -> int:
        """Appends one event; it is on disk when this returns.

        Args:
            run: The run.
            kind: Name of the event's type.
            payload: The event's bytes.

        Returns:
            Its index in the run, from 1.

        Raises:
            StoreError: If it could not be written; then it is not in the log, and may be tried again.
        """
        return self.append_many(run, [(kind, payload)])

    def append_many(self, run: str, events: Iterable[tuple[str, bytes]], *, durable: bool = True) -> int:
        """Appends several events in one transaction: all are on disk when this returns, or none is.

        Args:
            run: The run.
            events: (kind, payload) in order.
            durable: As in `Database.transaction`.

        Returns:
            The index of the last one; of the run's last event if none was given.

        Raises:
            StoreError: As `append`.
        """
        with self._lock:
            first = self._last_index(run) + 1
            rows = [
                {
                    "run": run,
                    "number": first + i,
                    "kind": kind,
                    "payload": payload,
                    "time_s": self._now(),
                    "checksum": _checksum(run, first + i, kind, payload),
                }
                for i, (kind, payload) in enumerate(events)
            ]
            if rows:
                with self._database.transaction(durable=durable) as connection:
                    connection.execute(_events().insert(), rows)
            self._last[run] = first + len(rows) - 1
            self._count(len(rows))
            return self._last[run]

    def _count(self, num_events: int) -> None:
        self._num_appended += num_events
        if self._crash_after is not None and self._num_appended >= self._crash_after:
            os.kill(os.getpid(), signal.SIGKILL)

    def compact(self, run: str, kind: str, payload: bytes, *, num_events: int, durable: bool = True) -> int:
        """Puts one entry in the place of everything so far and of some events that are not written themselves.

        Args:
            run: The run.
            kind: `snapshot`, or another word that `read` accepts at the beginning.
            payload: What they all come to.
            num_events: How many events it stands for that were not appended.
            durable: As in `Database.transaction`.

        Returns:
            Its index: the run's last one, as if those events had been appended.

        Raises:
            StoreError: As `append`; then everything is as before.
        """
        with self._lock:
            t, number = _events(), self._last_index(run) + num_events
            row = {"run": run, "number": number, "kind": kind, "payload": payload, "time_s": self._now()}
            row["checksum"] = _checksum(run, number, kind, payload)
            with self._database.transaction(durable=durable) as connection:
                connection.execute(t.delete().where(t.c.run == run))
                connection.execute(t.insert(), [row])
            self._last[run] = number
            self._count(num_events)
            return number

    def forget(self, run: str) -> None:
        """Removes a run's events; its next one has index 1."""
        t = _events()
        with self._lock, self._database.transaction() as connection:
            connection.execute(t.delete().where(t.c.run == run))
            self._last[run] = 0

    def read(self, run: str, after: int = 0, *, damaged: list[str] | None = None) -> list[LogEntry]:
        """Reads the events of a run in order.

        Args:
            run: The run.
            after: Leaves out those up to this index.
            damaged: Where what is missing or was changed is named, one sentence each, instead of raising; such entries are
                left out. For logs whose entries stand for themselves.

        Returns:
            The entries; empty for an unknown run.

        Raises:
            StoreDamaged: If an entry is missing or was changed on disk.
        """
        from sqlalchemy import select

        t = _events()
        query = select(t).where(t.c.run == run, t.c.number > after).order_by(t.c.number)
        with self._database.transaction() as connection:
            rows = connection.execute(query).all()
        entries = [
            LogEntry(run=row.run, index=row.number, kind=row.kind, payload=row.payload, time_s=row.time_s)
            for row in rows
        ]
        first = entries[0].index if entries and not after and entries[0].kind in _BEGINS_ANEW else after + 1
        whole, place = [], first - 1
        for entry, row in zip(entries, rows, strict=True):
            is_whole = row.checksum == _checksum(run, entry.index, entry.kind, entry.payload)
            wrong = [*range(place + 1, entry.index), *([] if is_whole else [entry.index])]
            place = entry.index
            for index in wrong:
                error = self._damaged(run, index)
                if damaged is None:
                    raise error
                damaged.append(error.message)
            if is_whole:
                whole.append(entry)
        return whole

    def _damaged(self, run: str, index: int) -> StoreDamaged:
        return StoreDamaged(
            f"event {index} of run {run!r} in {str(self._database.path)!r} is missing or damaged. "
            "Restore a copy of the file, or start a new run.",
            run=run,
            index=index,
            path=str(self._database.path),
        )

    def runs(self) -> tuple[str, ...]:
        """Returns the runs with events, in the order of their first entries."""
        from sqlalchemy import func, select

        t = _events()
        query = select(t.c.run).group_by(t.c.run).order_by(func.min(t.c.time_s), t.c.run)
        with self._database.transaction() as connection:
            return tuple(connection.execute(query).scalars())

    def close(self) -> None:
        """Closes the file; idempotent."""
        self._database.close()

    def _last_index(self, run: str) -> int:
        if run not in self._last:
            from sqlalchemy import func, select

            t = _events()
            with self._database.transaction() as connection:
                last = connection.execute(select(func.max(t.c.number)).where(t.c.run == run)).scalar()
            self._last[run] = last or 0
        return self._last[run]


@cache
def _events() -> Table:
    from sqlalchemy import Column, Float, Integer, LargeBinary, MetaData, String, Table

    return Table(
        "events",
        MetaData(),
        Column("run", String, primary_key=True),
        Column("number", Integer, primary_key=True),
        Column("kind", String, nullable=False),
        Column("payload", LargeBinary, nullable=False),
        Column("time_s", Float, nullable=False),
        Column("checksum", LargeBinary, nullable=False),
    )


def _checksum(run: str, index: int, kind: str, payload: bytes) -> bytes:
    hasher = hashlib.blake2b(f"{run}\x1f{index}\x1f{kind}\x1f".encode(), digest_size=_CHECK_BYTES)
    hasher.update(payload)
    return hasher.digest()


__all__ = ["Database", "EventLog", "LogEntry", "Promotion", "Registry"]
