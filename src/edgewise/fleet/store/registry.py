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

Each row seals the one before it (`seal_chain.py`): one that was changed or removed is named, and what needs it stops; the others stand.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from edgewise.core.errors import GateRefused, StoreDamaged, StoreError
from edgewise.core.unreadable import UNREADABLE
from edgewise.fleet.store.database import Database
from edgewise.fleet.store.registry_tables import (
    change_content,
    head_of,
    registry_tables,
    reseal_versions,
    seal_all,
    sealed_rows,
    set_head,
    table_of,
    version_content,
)
from edgewise.fleet.store.seal_chain import broken_rows, chained
from edgewise.models.version import GateResult, ModelVersion

if TYPE_CHECKING:
    from sqlalchemy import Connection


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
        database.create(registry_tables())
        self._now = now
        self._num_updates = 0
        self._looked_at: dict[str, tuple[object, dict[int, str]]] = {}
        self._seal_old_rows()

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
        try:
            return Registry(database)
        except BaseException:
            database.close()
            raise

    def add(self, version: ModelVersion) -> ModelVersion:
        """Adds a version.

        Args:
            version: Its number is ignored.

        Returns:
            The same with the number the registry gave it, from 1.
        """
        from sqlalchemy import func, select

        versions = table_of("versions")
        with self._database.transaction() as connection:
            last = connection.execute(select(func.max(versions.c.number))).scalar() or 0
            length, head = head_of(connection, "versions")
            number = max(last, length) + 1  # one that is missing keeps its number
            numbered = msgspec.structs.replace(version, number=number)
            record = msgspec.msgpack.encode(numbered)
            (sealed,) = chained([version_content(version.task, record)], former=head, first=number)
            row = {"number": number, "task": version.task, "record": record, "former": head, "seal": sealed.seal}
            connection.execute(versions.insert(), row)
            set_head(connection, "versions", number, sealed.seal)
        return numbered

    def get(self, number: int) -> ModelVersion:
        """One version.

        Raises:
            StoreDamaged: If its row is not as it was written.
            StoreError: If there is none of that number.
        """
        with self._database.transaction() as connection:
            return self._read(connection, number)

    @property
    def path(self) -> Path:
        """The file."""
        return self._database.path

    @property
    def damaged(self) -> dict[int, str]:
        """What is wrong with versions whose rows are not as they were written, as sentences."""
        with self._database.transaction() as connection:
            return {
                number: self._sentence(number, what) for number, what in self._broken(connection, "versions").items()
            }

    @property
    def damaged_history(self) -> dict[int, str]:
        """The same of the changes of what serves, by their place."""
        with self._database.transaction() as connection:
            return self._broken(connection, "promotions")

    def versions(self, task: str | None = None) -> tuple[ModelVersion, ...]:
        """All versions whose rows are whole, oldest first, or those of one task; `damaged` has the others."""
        from sqlalchemy import select

        versions = table_of("versions")
        with self._database.transaction() as connection:
            rows = connection.execute(select(versions).order_by(versions.c.number)).all()
            broken = self._broken(connection, "versions")
        records = [row.record for row in rows if row.number not in broken and task in (None, row.task)]
        return tuple(msgspec.msgpack.decode(record, type=ModelVersion) for record in records)

    def update(self, version: ModelVersion) -> ModelVersion:
        """Replaces a version's record, e.g. when its evidence or gate result is there.

        Args:
            version: With its number.

        Returns:
            The version.

        Raises:
            StoreDamaged: If its row is not as it was written.
            StoreError: If there is none of that number, or it is another model.
        """
        versions = table_of("versions")
        with self._database.transaction() as connection:
            known = self._read(connection, version.number)
            if (known.graph, known.weights, known.task) != (version.graph, version.weights, version.task):
                raise StoreError(
                    f"version {version.number} is another model; graph, weights and task of a version never change. "
                    "Add a new version instead."
                )
            statement = versions.update().where(versions.c.number == version.number)
            broken = self._broken(connection, "versions")
            self._num_updates += 1
            connection.execute(statement.values(record=msgspec.msgpack.encode(version)))
            reseal_versions(connection, version.number, broken)
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
            version = self._read(connection, number)
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
            StoreDamaged: If a row of the history is not as it was written.
            StoreError: If there is no earlier one.
        """
        with self._database.transaction() as connection:
            for place, what in self._broken(connection, "promotions").items():
                raise StoreDamaged(
                    f"change {place} of what serves {what} in {str(self.path)!r}: what served before is not sure. Deploy a "
                    "version by its number, or restore a backup.",
                    path=str(self.path),
                )
            served = _stack(_history(connection, task))
            if len(served) < 2:
                raise StoreError(f"{task!r} has no earlier version to return to; {len(served)} served so far.")
            self._record(connection, task, served[-2], "rollback")
            return self._read(connection, served[-2])

    def current(self, task: str) -> ModelVersion | None:
        """The version that serves a task; None before the first promotion."""
        with self._database.transaction() as connection:
            served = _stack(_history(connection, task))
            return self._read(connection, served[-1]) if served else None

    def history(self, task: str) -> tuple[Promotion, ...]:
        """Every change of the current version, oldest first."""
        with self._database.transaction() as connection:
            return _history(connection, task)

    def prune(self, number: int) -> None:
        """Notes that graph and weights of a version go, before they do; its record stays."""
        t = table_of("pruned")
        with self._database.transaction() as connection:
            if connection.execute(t.select().where(t.c.number == number)).first() is None:
                connection.execute(t.insert(), {"number": number, "time_s": self._now()})

    def pruned(self) -> frozenset[int]:
        """Versions whose graph and weights may be gone because there was no room for them."""
        t = table_of("pruned")
        with self._database.transaction() as connection:
            if not connection.dialect.has_table(connection, t.name):  # a file of an earlier release that is only read
                return frozenset()
            return frozenset(connection.execute(t.select()).scalars())

    def close(self) -> None:
        """Closes the file; idempotent."""
        self._database.close()

    def _record(self, connection: Connection, task: str, number: int, cause: str, note: str = "") -> None:
        now = self._now()
        length, head = head_of(connection, "promotions")
        (sealed,) = chained([change_content(task, number, cause, now, note)], former=head, first=length + 1)
        row = {"task": task, "number": number, "cause": cause, "time_s": now, "note": note}
        row |= {"place": length + 1, "former": head, "seal": sealed.seal}
        connection.execute(table_of("promotions").insert(), row)
        set_head(connection, "promotions", length + 1, sealed.seal)

    def _broken(self, connection: Connection, name: str) -> dict[int, str]:
        """Rows that are not as they were written; looked at anew once the file has changed."""
        stamp = (
            connection.exec_driver_sql("PRAGMA data_version").scalar(),
            head_of(connection, name),
            self._num_updates,
        )
        if name not in self._looked_at or self._looked_at[name][0] != stamp:
            self._looked_at[name] = stamp, broken_rows(sealed_rows(connection, name), *head_of(connection, name))
        return self._looked_at[name][1]

    def _read(self, connection: Connection, number: int) -> ModelVersion:
        from sqlalchemy import select

        versions = table_of("versions")
        record = connection.execute(select(versions.c.record).where(versions.c.number == number)).scalar()
        if what := self._broken(connection, "versions").get(number):
            raise StoreDamaged(self._sentence(number, what), path=str(self.path), version=number)
        if record is None:
            raise StoreError(f"the registry has no version {number}. See 'edgewise versions'.")
        try:
            return msgspec.msgpack.decode(record, type=ModelVersion)
        except UNREADABLE as error:
            raise StoreDamaged(
                self._sentence(number, f"cannot be read ({error})"), path=str(self.path), version=number
            ) from error

    def _sentence(self, number: int, what: str) -> str:
        return (
            f"the row of version {number} in {str(self.path)!r} {what}: that version is not used. Restore a backup with "
            "`edgewise restore`, or bring the model again as a new version; all others stand."
        )

    def _seal_old_rows(self) -> None:
        """Seals rows of an Edgewise that had no seals yet, once: later a row without one was not written by us."""
        if not self._database.is_writable:
            self._database.check_has(registry_tables())
            return
        with self._database.transaction() as connection:
            for name in ("versions", "promotions"):
                rows = sealed_rows(connection, name)
                if rows and head_of(connection, name) == (0, "") and not any(row.seal for row in rows):
                    seal_all(connection, name, rows)


def _history(connection: Connection, task: str) -> tuple[Promotion, ...]:
    from sqlalchemy import select

    t = table_of("promotions")
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
