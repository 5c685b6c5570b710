"""Writes files atomically; everything Edgewise stores on disk goes through here."""

from __future__ import annotations

import errno
import itertools
import os
from pathlib import Path

_SERIAL = itertools.count()


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
    try:
        return _write(Path(path), data, mode, durable)
    except OSError as error:
        _name(error, path)
        raise


def check_writable(path: str | Path) -> None:
    """Refuses a place where nothing can be written, before hours of work are to end there.

    Args:
        path: A file that will be written with `write_atomic`; missing folders are made.

    Raises:
        OSError: Its `filename` is this path.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        trial = path.with_name(f".{path.name}.{os.getpid()}.{next(_SERIAL)}")
        trial.touch(exist_ok=False)
        trial.unlink()
    except OSError as error:
        _name(error, path)
        raise


def _name(error: OSError, path: str | Path) -> None:
    """Lets an error of the disk name the file that was meant, not the temporary one beside it."""
    error.filename, error.filename2 = str(path), None


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
            _write_all(handle, data)
            if durable:
                os.fsync(handle)
        finally:
            os.close(handle)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if durable:
        _sync_folder(path.parent)
    return path


def _write_all(handle: int, data: bytes | memoryview) -> None:
    rest = memoryview(data).cast("B") if len(data) else memoryview(b"")
    while rest:  # one call writes at most 2 GiB
        rest = rest[os.write(handle, rest) :]


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
