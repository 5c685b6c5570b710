"""Writes files atomically; everything Edgewise stores on disk goes through here."""

from __future__ import annotations

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
        OSError: What the disk says; it names the path.
    """
    path = Path(path)
    with naming(path):
        return _write_atomic(path, data, mode, durable=durable)


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Has an error of the disk name the file that it is about: a full disk says nothing of that by itself.

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


def _write_atomic(path: Path, data: bytes | memoryview, mode: int, *, durable: bool) -> Path:
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
