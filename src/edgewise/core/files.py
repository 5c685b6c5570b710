"""Writes files atomically; everything Edgewise stores on disk goes through here."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
    path = Path(path)
    with _named(path):
        return _write(path, data, mode, durable)


def check_writable(path: str | Path) -> None:
    """Refuses a place where nothing can be written, before hours of work are to end there.

    Args:
        path: A file that will be written with `write_atomic`; missing folders are made.

    Raises:
        OSError: Its `filename` is this path.
    """
    path = Path(path)
    with _named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        with tempfile.TemporaryFile(dir=path.parent):
            pass


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Errors of the disk name the file that was meant, not the temporary one beside it."""
    try:
        yield
    except OSError as error:
        error.filename, error.filename2 = str(path), None
        raise


def _write(path: Path, data: bytes | memoryview, mode: int, durable: bool) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(data)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    if durable:
        _sync_folder(path.parent)
    return path


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
