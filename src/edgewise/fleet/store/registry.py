"""The model registry: every version ever made, which one serves each task, and the way back.

Example:
    >>> import tempfile
    >>> registry = Registry.open(Path(tempfile.mkdtemp()) / "registry.sqlite")
    >>> first = registry.add(ModelVersion(0, graph="g1", weights="w1", task="digits"))
    >>> second = registry.add(ModelVersion(0, graph="g2", weights="w2", task="digits", parent=first.number))
    >>> _ = registry.promote(first.number), registry.promote(second.number)
    >>> registry.rollback("digits").number
    1
    >>> registry.close()
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from edgewise.core.errors import GateRefused, StoreError
from edgewise.core.unreadable import UNREADABLE
from edgewise.fleet.store.database import Database
from edgewise.models.version import GateResult, ModelVersion

if TYPE_CHECKING:
    from sqlalchemy import Connection, MetaData, Table


@dataclass(frozen=True, slots=True)
class Promotion:
    """One change of the version that serves.

    Attributes:
        task: Of which task.
        number: The version that serves from here on.
        cause: `promote` or `rollback`.
        time_s: When, seconds since 1970.
        note: What spoke against it and an operator overrode, or from what it was rolled back; "" where there is nothing.
    """

    task: str
    number: int
    cause: str
    time_s: float
    note: str = ""


class Registry:
    """Model versions of a fleet; one process writes."""

    def __init__(self, database: Database, *, now: Callable[[], float] = time.time) -> None:
        self._database = database
        database.create(_tables())
        self._now = now

    @staticmethod
    def open(path: str | Path, *, read_only: bool = False) -> Registry:
        """Opens a registry of its own file, or makes it.

        Args:
            path: Where.
            read_only: Read beside the running writer.

        Returns:
            The registry.

        Raises:
            StoreError: As `Database.open`.
        """
        database = Database.open(path, read_only=read_only)
        return Registry(database)

    def add(self, version: ModelVersion) -> ModelVersion:
        """Adds a version.

        Args:
            version: Its number is ignored.

        Returns:
            The same with the number the registry gave it, from 1.
        """
        from sqlalchemy import func, select

        versions = _table("versions")
        with self._database.transaction() as connection:
            last = connection.execute(select(func.max(versions.c.number))).scalar() or 0
            numbered = msgspec.structs.replace(version, number=last + 1)
            row = {"number": last + 1, "task": version.task, "record": msgspec.msgpack.encode(numbered)}
            connection.execute(versions.insert(), row)
        return numbered

    def get(self, number: int) -> ModelVersion:
        """One version.

        Raises:
            StoreError: If there is none of that number.
        """
        with self._database.transaction() as connection:
            return _read(connection, number)

    def versions(self, task: str | None = None) -> tuple[ModelVersion, ...]:
        """All versions, oldest first, or those of one task."""
        from sqlalchemy import select

        versions = _table("versions")
        query = select(versions.c.record).order_by(versions.c.number)
        if task is not None:
            query = query.where(versions.c.task == task)
        with self._database.transaction() as connection:
            records = connection.execute(query).scalars().all()
        return tuple(msgspec.msgpack.decode(record, type=ModelVersion) for record in records)

    def update(self, version: ModelVersion) -> ModelVersion:
        """Replaces a version's record, e.g. when its evidence or gate result is there.

        Args:
            version: With its number.

        Returns:
            The version.

        Raises:
            StoreError: If there is none of that number, or it is another model.
        """
        versions = _table("versions")
        with self._database.transaction() as connection:
            known = _read(connection, version.number)
            if (known.graph, known.weights, known.task) != (version.graph, version.weights, version.task):
                raise StoreError(
                    f"version {version.number} is another model; graph, weights and task of a version never change. "
                    "Add a new version instead."
                )
            statement = versions.update().where(versions.c.number == version.number)
            connection.execute(statement.values(record=msgspec.msgpack.encode(version)))
        return version

    def set_gate(self, number: int, gate: GateResult) -> ModelVersion:
        """Records what the gate said of a version."""
        return self.update(msgspec.structs.replace(self.get(number), gate=gate))

    def promote(self, number: int, *, note: str = "") -> ModelVersion:
        """Makes a version the current one of its task.

        Args:
            number: Which.
            note: Why it is to serve whatever its gate said; kept in the history.

        Returns:
            The version.

        Raises:
            GateRefused: If its gate did not pass, and no note says why it is to serve.
            StoreError: If there is none of that number.
        """
        with self._database.transaction() as connection:
            version = _read(connection, number)
            if version.gate is not None and not version.gate.passed and not note:
                raise GateRefused(
                    f"version {number} of {version.task!r} did not pass its gate: {version.gate.reason} "
                    "Train on, or keep the current version."
                )
            self._record(connection, version.task, number, "promote", note)
        return version

    def rollback(self, task: str) -> ModelVersion:
        """Restores the version that served before the current one; again and again goes further back.

        Args:
            task: Of which task.

        Returns:
            The version that serves now.

        Raises:
            StoreError: If there is no earlier one.
        """
        with self._database.transaction() as connection:
            served = _stack(_history(connection, task))
            if len(served) < 2:
                raise StoreError(f"{task!r} has no earlier version to return to; {len(served)} served so far.")
            self._record(connection, task, served[-2], "rollback")
            return _read(connection, served[-2])

    def current(self, task: str) -> ModelVersion | None:
        """The version that serves a task; None before the first promotion."""
        with self._database.transaction() as connection:
            served = _stack(_history(connection, task))
            return _read(connection, served[-1]) if served else None

    def history(self, task: str) -> tuple[Promotion, ...]:
        """Every change of the current version, oldest first."""
        with self._database.transaction() as connection:
            return _history(connection, task)

    def close(self) -> None:
        """Closes the file; idempotent."""
        self._database.close()

    def _record(self, connection: Connection, task: str, number: int, cause: str, note: str = "") -> None:
        row = {"task": task, "number": number, "cause": cause, "time_s": self._now(), "note": note}
        connection.execute(_table("promotions").insert(), row)


def _read(connection: Connection, number: int) -> ModelVersion:
    from sqlalchemy import select

    versions = _table("versions")
    record = connection.execute(select(versions.c.record).where(versions.c.number == number)).scalar()
    if record is None:
        raise StoreError(f"the registry has no version {number}. See 'edgewise versions'.")
    try:
        return msgspec.msgpack.decode(record, type=ModelVersion)
    except UNREADABLE as error:
        raise StoreError(f"the record of version {number} is damaged: {error}. Restore a copy of the file.") from error


def _history(connection: Connection, task: str) -> tuple[Promotion, ...]:
    from sqlalchemy import select

    t = _table("promotions")
    rows = connection.execute(select(t).where(t.c.task == task).order_by(t.c.place)).all()
    return tuple(Promotion(row.task, row.number, row.cause, row.time_s, row.note) for row in rows)


def _stack(history: tuple[Promotion, ...]) -> list[int]:
    """Versions that served and were not rolled back; the last one serves."""
    served: list[int] = []
    for change in history:
        if change.cause == "rollback":
            served.pop()
        elif not served or served[-1] != change.number:
            served.append(change.number)
    return served


def _table(name: str) -> Table:
    return _tables().tables[name]


@cache
def _tables() -> MetaData:
    from sqlalchemy import Column, Float, Integer, LargeBinary, MetaData, String, Table

    tables = MetaData()
    Table(
        "versions",
        tables,
        Column("number", Integer, primary_key=True),
        Column("task", String, nullable=False, index=True),
        Column("record", LargeBinary, nullable=False),
    )
    Table(
        "promotions",
        tables,
        Column("place", Integer, primary_key=True),
        Column("task", String, nullable=False, index=True),
        Column("number", Integer, nullable=False),
        Column("cause", String, nullable=False),
        Column("time_s", Float, nullable=False),
        Column("note", String, nullable=False, server_default=""),
    )
    return tables
