"""Writes files atomically; everything Edgewise stores on disk goes through here."""

from __future__ import annotations

import os
import tempfile
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
    """
    path = Path(path)
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
