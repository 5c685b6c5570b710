"""A node's disk as a loss of power leaves it: what was not synced is lost, or torn; what was, stands.

Files are real files in memory. The watch keeps beside each what a disk would have: the content at its last `sync`, the names
of a folder at its last `sync folder`, the write-ahead log of a database up to its last full commit.
"""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable
from pathlib import Path

from edgewise.chaos.virtual_loop import LANE, Died, Lane

_LOG = "-wal"
"""How SQLite names the write-ahead log of a database."""


class VirtualDisk:
    """The disk of one node; outlives the node's processes.

    Args:
        root: Folder of its state.
        rng: Draws what a loss of power leaves.
        on_act: Told of every act before and after it; may end the process.
    """

    def __init__(self, root: Path, rng: random.Random, on_act: Callable[[str, Path], None]) -> None:
        self.root = root
        self.trouble = ""
        self._rng = rng
        self._on_act = on_act
        self._process: Lane | None = None
        self._unsynced: dict[Path, bytes] = {}
        self._names: list[tuple[Path, bytes | None]] = []
        self._logs: dict[Path, int] = {}
        self._open: list[tuple[Path, Callable[[], None]]] = []

    def begin(self, process: Lane) -> None:
        """A new process uses the disk; acts of former ones are refused."""
        self._process = process

    def before(self, act: str, path: Path) -> None:
        """As `DiskWatch.before`."""
        self._check()
        if self.trouble and act.split()[0] in ("write", "append", "commit"):
            raise _trouble(self.trouble, path)
        self._on_act(act, path)
        self._check()
        if act in ("write", "append"):
            self._unsynced.setdefault(path, path.read_bytes() if path.exists() else b"")
        elif act == "remove":
            self._names.append((path, self._last(path)))
            self._unsynced.pop(path, None)
        elif act.startswith("rename "):
            self._names.append((path, self._last(path)))
            self._unsynced.pop(path, None)
            source = path.with_name(act.removeprefix("rename "))
            if source in self._unsynced:
                self._unsynced[path] = self._unsynced.pop(source)

    def after(self, act: str, path: Path, *, synced: bool = False) -> None:
        """As `DiskWatch.after`; who ends here has written, and it has not reached the disk."""
        self._on_act(f"{act} done", path)
        self._check()
        if act == "sync":
            self._unsynced.pop(path, None)
        elif act == "sync folder":
            self._names = [(name, before) for name, before in self._names if name.parent != path]
        elif act == "commit" and synced:
            self._logs[path] = _size(_log_of(path))
        if act == "sync" and path.name.endswith(_LOG):
            self._logs[path.with_name(path.name.removesuffix(_LOG))] = _size(path)

    def opened(self, path: Path, close: Callable[[], None]) -> None:
        """As `DiskWatch.opened`."""
        self._open.append((path, close))
        self._logs.setdefault(path, 0)

    def crash(self, *, power: bool) -> None:
        """The process is gone, and with `power` all that no sync had made last, as far as the draw says so.

        What a killed process did not sync can still be lost: by the power, as long as no later process syncs it. What is there
        after a loss of power stands.

        Args:
            power: Whether the power was lost, not only the process.
        """
        kept = {}
        for path, _ in self._open:  # closing would write the log into the database: a killed process does not
            for file in (path, _log_of(path)):
                kept[file] = file.read_bytes() if file.exists() else None
        for _, close in self._open:
            close()
        for path, data in kept.items():
            if data is None:
                path.unlink(missing_ok=True)
            else:
                path.write_bytes(data)
        self._open.clear()
        if power:
            for path in self._logs:
                self._logs[path] = self._tear_log(path)
            self._tear_files()
            self._unsynced.clear()
            self._names.clear()

    def close(self) -> None:
        """The process has ended in order: SQLite has written its logs into the databases."""
        self._open.clear()
        self._logs.clear()

    def flip(self, path: Path) -> None:
        """Flips a bit of a file."""
        data = bytearray(path.read_bytes())
        if data:
            data[int(self._rng.random() * len(data))] ^= 1 << int(self._rng.random() * 8)
            path.write_bytes(bytes(data))

    def _last(self, path: Path) -> bytes | None:
        return path.read_bytes() if path.exists() else None

    def _tear_log(self, path: Path) -> int:
        """Takes some of what no commit has synced; returns how many bytes are left."""
        log = _log_of(path)
        if not log.exists():
            return 0
        data, synced = log.read_bytes(), self._logs[path]
        if len(data) > synced:
            data = data[: synced + int(self._rng.random() * (len(data) - synced + 1))]
            log.write_bytes(data)
        return len(data)

    def _tear_files(self) -> None:
        for path, synced in self._unsynced.items():
            if not path.exists():
                continue
            data, draw = path.read_bytes(), self._rng.random()
            if draw < 0.4:
                path.write_bytes(synced)
            elif draw < 0.7:
                path.write_bytes(data[: int(self._rng.random() * len(data))])
            elif draw < 0.8:
                path.write_bytes(bytes(len(data)))
        stands = int(self._rng.random() * (len(self._names) + 1)) if self._rng.random() < 0.7 else 0
        for path, before in reversed(self._names[stands:]):
            if before is None:
                path.unlink(missing_ok=True)
            else:
                path.write_bytes(before)

    def _check(self) -> None:
        """Ends whoever still runs in a process that is gone."""
        process = LANE.get().process
        if process.is_dead or (self._process is not None and process is not self._process):
            raise Died


def _log_of(path: Path) -> Path:
    return path.with_name(path.name + _LOG)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _trouble(kind: str, path: Path) -> Exception:
    import sqlite3

    from sqlalchemy.exc import OperationalError

    if path.suffix != ".db":
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    error = sqlite3.OperationalError("database or disk is full" if kind == "full" else "database is locked")
    error.sqlite_errorcode = sqlite3.SQLITE_FULL if kind == "full" else sqlite3.SQLITE_BUSY
    return OperationalError("COMMIT", {}, error)
