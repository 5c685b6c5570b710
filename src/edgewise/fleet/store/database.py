"""Opens one SQLite file for one writer: locking, durability, errors. Its tables: `events.py`, `registry.py`.

WAL with `synchronous=FULL`: when a transaction returns, it is on the disk, whatever happens to process or power next.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from edgewise.core.errors import StoreDamaged, StoreError
from edgewise.core.files import disk_watch, storing, sync, sync_folder, unavailable
from edgewise.core.private_files import make_private_folder, open_private

if TYPE_CHECKING:
    from sqlalchemy import Connection, MetaData

FORMAT = 3
"""Of our tables and of what stands in them; kept in SQLite's `user_version`. 1 is Edgewise 0.1.0, which is not read; 2 has no
seals in the registry, which are added when it is opened for writing."""
_OLDEST = 2
_FULL = 2
"""SQLite's number of `synchronous=FULL`."""
_CURES = {
    "full": "Free some space on that disk, then start the node again; nothing that was acknowledged is lost.",
    "not a database": "It is another kind of file or was overwritten. Restore a copy, or move it away to begin anew.",
    "malformed": "The file is damaged. Restore a copy, or move it away to begin anew.",
    "locked": "Another program holds it. Close that program; copy the file if you want to look into it.",
    "readonly": "Give this user the right to write there, or choose another state folder.",
    "unable to open": "Check that the folder exists and this user may write there.",
}


_LOCKED_S = 0.5
"""How long one attempt waits for another program; then it is *not now*, and whoever asked tries again."""
_UNAVAILABLE = {
    sqlite3.SQLITE_BUSY: "is locked",
    sqlite3.SQLITE_LOCKED: "is locked",
    sqlite3.SQLITE_PROTOCOL: "is locked",
    sqlite3.SQLITE_FULL: "is full",
    sqlite3.SQLITE_READONLY: "is read-only",
    sqlite3.SQLITE_PERM: "may not be written",
    sqlite3.SQLITE_CANTOPEN: "cannot be opened",
    sqlite3.SQLITE_IOERR: "takes nothing",
    sqlite3.SQLITE_NOMEM: "finds no memory",
}
"""What SQLite says of a file that may take the same later."""
_DAMAGED = frozenset((sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB))


class Database:
    """Holds an open SQLite file; thread-safe."""

    def __init__(self, path: Path, connection: Connection, lock_file: IO[str] | None) -> None:
        self.path = path
        self._connection = connection
        self._lock_file = lock_file
        self._lock = threading.RLock()
        self._is_durable = True

    @property
    def is_writable(self) -> bool:
        """Whether it was opened for writing."""
        return self._lock_file is not None

    @staticmethod
    def open(path: str | Path, *, read_only: bool = False) -> Database:
        """Opens a file, or creates it.

        Args:
            path: Where; its folder is made.
            read_only: Look into it while its writer runs; nothing can be changed.

        Returns:
            The open database.

        Raises:
            StoreError: If another process writes it, it is damaged, of a newer format, or cannot be opened.
        """
        path = Path(path)
        with _as_store_error(path, is_opening=True):
            if not read_only:
                make_private_folder(path.parent)
            lock_file = None if read_only else _take_lock(path)
            try:
                if not read_only:
                    open_private(path, "ab").close()  # SQLite's own files take its permissions
                    _make_last(path)
                database = Database(path, _connect(path, read_only), lock_file)
            except BaseException:
                if lock_file is not None:
                    lock_file.close()
                raise
            if (watch := disk_watch()) is not None:
                watch.opened(path, database.close)
            return database

    @contextmanager
    def transaction(self, *, durable: bool = True) -> Iterator[Connection]:
        """Runs one transaction: on disk when the block ends, undone if it raises.

        Args:
            durable: False lets it be lost with the power, never with the process, and never in part; a later durable one
                makes it durable, too.

        Raises:
            StoreUnavailable: If the file takes nothing now: it is full, locked or read-only. Nothing of it is written.
            StoreDamaged: If the file is no whole database any more.
            StoreError: For what else the disk or SQLite says.
        """
        with self._lock, _as_store_error(self.path):
            if durable is not self._is_durable:
                self._connection.exec_driver_sql(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
                self._connection.rollback()  # what SQLAlchemy has begun for the pragma
                self._is_durable = durable
            watch, level = disk_watch(), None
            with self._connection.begin():
                before = self._num_changes()
                yield self._connection
                if watch is not None and self._num_changes() != before:
                    level = self._connection.exec_driver_sql("PRAGMA synchronous").scalar_one()
                    watch.before("commit", self.path)
            if watch is not None and level is not None:
                watch.after("commit", self.path, synced=level >= _FULL)

    def _num_changes(self) -> int:
        """Rows that were written so far."""
        return int(self._connection.connection.driver_connection.total_changes)  # type: ignore[union-attr]

    def create(self, tables: MetaData) -> None:
        """Creates missing tables and columns of text; closes the file if that fails, so that no lock is left behind."""
        if self._lock_file is None:
            return
        try:
            self._create(tables)
        except BaseException:
            self.close()
            raise

    def check_has(self, tables: MetaData) -> None:
        """Refuses a file that an earlier Edgewise wrote and that is only read here, so that nothing is added to it."""
        with self.transaction() as connection:
            for table in tables.tables.values():
                there = {row[1] for row in connection.exec_driver_sql(f"PRAGMA table_info({table.name})")}
                if any(column.name not in there for column in table.columns):
                    raise StoreError(
                        f"{str(self.path)!r} was written by an earlier Edgewise. Start its node once with this one, then look "
                        "into it."
                    )

    def _create(self, tables: MetaData) -> None:
        with self.transaction() as connection:
            tables.create_all(connection)
            for table in tables.tables.values():
                there = {row[1] for row in connection.exec_driver_sql(f"PRAGMA table_info({table.name})")}
                for name in (column.name for column in table.columns if column.name not in there):
                    connection.exec_driver_sql(
                        f"ALTER TABLE {table.name} ADD COLUMN {name} VARCHAR NOT NULL DEFAULT ''"
                    )

    def close(self) -> None:
        """Closes the file and releases its lock; idempotent."""
        with self._lock:
            self._connection.close()
            self._connection.engine.dispose()
            if self._lock_file is not None:
                self._lock_file.close()
                self._lock_file = None


def _connect(path: Path, read_only: bool) -> Connection:
    from sqlalchemy import create_engine
    from sqlalchemy.pool import StaticPool

    if read_only and not path.exists():
        raise StoreError(f"there is no store at {str(path)!r}. Give the state folder of a node that has run.")
    mode = "?mode=ro&uri=true" if read_only else "?mode=rwc&uri=true"
    engine = create_engine(
        f"sqlite:///file:{path.absolute()}{mode}",
        poolclass=StaticPool,
        connect_args={"check_same_thread": False, "timeout": _LOCKED_S},
    )
    connection = engine.connect()
    try:
        found = int(connection.exec_driver_sql("PRAGMA user_version").scalar_one())
        if 0 < found < _OLDEST:
            raise StoreError(
                f"{str(path)!r} was written by Edgewise 0.1.0, whose runs and versions this one does not read. "
                "Give this node a new state folder, or go on with 0.1.0; versions can be taken over: download their "
                "graphs with 0.1.0 and register them anew.",
                format=found,
            )
        if found > FORMAT:
            raise StoreError(
                f"{str(path)!r} has format {found}, this Edgewise reads up to {FORMAT}. Update Edgewise on this node."
            )
        if not read_only:
            connection.exec_driver_sql("PRAGMA journal_mode=WAL")
            connection.exec_driver_sql("PRAGMA synchronous=FULL")
            if found != FORMAT:  # else nothing is written: another program may hold the file for a moment
                connection.exec_driver_sql(f"PRAGMA user_version={FORMAT}")
        connection.commit()
    except BaseException:
        connection.close()
        engine.dispose()
        raise
    return connection


def _make_last(path: Path) -> None:
    """Has what a killed process committed, and named beside, last from here on: it may have ended between write and sync."""
    log = path.with_name(path.name + "-wal")
    if log.exists():
        with log.open("rb") as file:
            sync(file.fileno(), log)
    sync_folder(path.parent)


def _take_lock(path: Path) -> IO[str]:
    file = open_private(path.with_name(path.name + ".lock"), "a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read().strip() or "unknown"
        file.close()
        raise StoreError(
            f"{str(path)!r} is being written by process {holder}; a log has one writer. "
            "Stop that process, or give this node its own state folder.",
            process=holder,
        ) from None
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    return file


@contextmanager
def _as_store_error(path: Path, *, is_opening: bool = False) -> Iterator[None]:
    try:
        with contextlib.nullcontext() if is_opening else storing(path):
            yield
    except StoreError:
        raise
    except Exception as error:
        if not _is_storage(error):
            raise
        orig = getattr(error, "orig", error)
        code = (getattr(orig, "sqlite_errorcode", None) or 0) & 0xFF
        if not is_opening and code in _UNAVAILABLE:
            raise unavailable(path, _UNAVAILABLE[code], str(orig)) from error
        kind = StoreDamaged if code in _DAMAGED else StoreError
        cure = next((cure for word, cure in _CURES.items() if word in str(orig)), "Check disk and permissions.")
        raise kind(f"the store {str(path)!r} failed: {orig}. {cure}", path=str(path)) from error


def _is_storage(error: Any) -> bool:
    from sqlalchemy.exc import DBAPIError

    return isinstance(error, (OSError, DBAPIError))
