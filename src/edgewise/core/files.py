"""Writes files atomically; everything Edgewise stores on disk goes through here.

What outlives a loss of power is said by what was synced. A `DiskWatch` sees each write, sync, rename and removal before
and after it is done, so that a campaign can refuse one, or take back afterwards what no sync had made last.
"""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Protocol

from edgewise.core.errors import StoreUnavailable

_SERIAL = itertools.count()
_SAYS = {
    errno.ENOSPC: "is full",
    errno.EDQUOT: "is full",
    errno.EFBIG: "may not grow",
    errno.EROFS: "is read-only",
    errno.EACCES: "may not be written",
    errno.EPERM: "may not be written",
    errno.EIO: "takes nothing",
    errno.EMFILE: "cannot be opened",
    errno.ENFILE: "cannot be opened",
}
CURES = {
    "is full": "Free some space there.",
    "may not grow": "Raise the limit of file sizes of this process.",
    "is read-only": "Mount it for writing.",
    "may not be written": "Give this user the right to write there.",
    "is locked": "Close the program that holds it; copy the file if you want to look into it.",
    "cannot be opened": "Raise the limit of open files, or see that the folder exists and this user may write there.",
}
"""What to do about a store that takes nothing, by what it says."""


class DiskWatch(Protocol):
    """Sees what happens to files.

    The acts: `write` a file anew, `append` to it, `sync` it, `rename` another to it, `sync folder`, `remove` it, and `commit` to
    a database.
    """

    def before(self, act: str, path: Path) -> None:
        """Told before an act; what it raises, the act raises instead of being done."""
        ...

    def after(self, act: str, path: Path, *, synced: bool = False) -> None:
        """Told after it; of a commit, whether it has reached the disk."""
        ...

    def opened(self, path: Path, close: Callable[[], None]) -> None:
        """Told of a file that stays open, and how it is closed."""
        ...


class _NoWatch:
    def before(self, act: str, path: Path) -> None:
        pass

    def after(self, act: str, path: Path, *, synced: bool = False) -> None:
        pass

    def opened(self, path: Path, close: Callable[[], None]) -> None:
        pass


_NOBODY = _NoWatch()
_WATCH: ContextVar[DiskWatch] = ContextVar("disk watch", default=_NOBODY)


def watch_disk(watch: DiskWatch) -> None:
    """Has all acts of the current context, and of what is begun from it, be seen by a watch.

    Args:
        watch: Whose.
    """
    _WATCH.set(watch)


def disk_watch() -> DiskWatch | None:
    """Who watches the current context; mostly nobody."""
    watch = _WATCH.get()
    return None if watch is _NOBODY else watch


def write_atomic(path: str | Path, data: bytes | memoryview, *, mode: int = 0o644, durable: bool = True) -> Path:
    """Writes a file atomically: after a crash it is unchanged or complete.

    The bytes go to a temporary file of the same folder, reach the disk, and take the name in one step.

    Args:
        path: Where; missing folders are made.
        data: The content.
        mode: Permission bits; 0o600 for keys. They hold from the first byte on.
        durable: Whether it must outlive a loss of power, too, not only the end of this process.

    Returns:
        The path.

    Raises:
        OSError: Its `filename` is this path, whatever the disk refused on the way to it.
    """
    with naming(path):
        return _write(Path(path), data, mode, durable)


def check_writable(path: str | Path) -> None:
    """Refuses a place where nothing can be written, before hours of work are to end there.

    Args:
        path: A file that will be written with `write_atomic`; missing folders are made.

    Raises:
        OSError: Its `filename` is this path.
    """
    path = Path(path)
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        trial = path.with_name(f".{path.name}.{os.getpid()}.{next(_SERIAL)}")
        trial.touch(exist_ok=False)
        trial.unlink()


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Has an error of the disk name the file that was meant: a full disk names none, else it is the temporary one beside it.

    Args:
        path: The file, as its user knows it.

    Raises:
        OSError: The same, with the path.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise type(error)(error.errno, error.strerror, str(path)) from error


@contextmanager
def storing(path: str | Path) -> Iterator[None]:
    """Has a store whose disk refuses say *not now*: what was to be stored is kept by whoever brought it.

    Args:
        path: The store's file or folder.

    Raises:
        StoreUnavailable: For whatever the disk said. It may take the same later.
    """
    try:
        yield
    except OSError as error:
        code = -1 if error.errno is None else error.errno
        text = error.strerror or str(error)
        raise unavailable(path, _SAYS.get(code, "takes nothing"), text) from error


def unavailable(path: str | Path, says: str, text: str) -> StoreUnavailable:
    """The error of a store that takes nothing now.

    Args:
        path: The store.
        says: One of the keys of `CURES`, or another predicate.
        text: What the disk or the database said.
    """
    cure = CURES.get(says, "See what the disk says.")
    reason = f"{says} ({text})"
    return StoreUnavailable(
        f"the store {str(path)!r} {reason}. {cure} Nothing that was acknowledged is lost; what waits for it goes on by itself.",
        path=str(path),
        reason=reason,
    )


def _write(path: Path, data: bytes | memoryview, mode: int, durable: bool) -> Path:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{next(_SERIAL)}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        handle = os.open(temporary, flags, mode)
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(temporary, flags, mode)
    try:
        try:
            os.fchmod(handle, mode)  # whatever the umask is
            watch = _WATCH.get()
            watch.before("write", temporary)
            _write_all(handle, data)
            watch.after("write", temporary)
            if durable:
                sync(handle, temporary)
        finally:
            os.close(handle)
        rename(temporary, path)
    except BaseException:
        remove(temporary)
        raise
    if durable:
        sync_folder(path.parent)
    return path


@contextmanager
def appending(path: Path) -> Iterator[None]:
    """Says that a file is written into that grows; nothing of it is synced.

    Args:
        path: Which.
    """
    watch = _WATCH.get()
    watch.before("append", path)
    yield
    watch.after("append", path)


def sync(handle: int, path: Path) -> None:
    """Has an open file reach the disk.

    Args:
        handle: Its descriptor.
        path: Its name.
    """
    watch = _WATCH.get()
    watch.before("sync", path)
    os.fsync(handle)
    watch.after("sync", path)


def rename(source: Path, path: Path) -> None:
    """Gives a file another name in one step; whoever had it before is gone.

    Args:
        source: The file.
        path: The name.
    """
    watch = _WATCH.get()
    watch.before(f"rename {source.name}", path)
    os.replace(source, path)
    watch.after(f"rename {source.name}", path)


def remove(path: Path) -> None:
    """Removes a file; idempotent.

    Args:
        path: Which.
    """
    watch = _WATCH.get()
    watch.before("remove", path)
    path.unlink(missing_ok=True)
    watch.after("remove", path)


def _write_all(handle: int, data: bytes | memoryview) -> None:
    rest = memoryview(data).cast("B") if len(data) else memoryview(b"")
    while rest:  # one call writes at most 2 GiB
        rest = rest[os.write(handle, rest) :]


def sync_folder(folder: Path) -> None:
    """Has the names in a folder reach the disk.

    Args:
        folder: Which.
    """
    watch = _WATCH.get()
    watch.before("sync folder", folder)
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
    watch.after("sync folder", folder)
