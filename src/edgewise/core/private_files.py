"""Files and folders that their owner alone may read: a node's state holds what single clients sent.

They are made so, whatever the umask is, and never were readable for a moment; what an earlier release left open is mended.
"""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

PRIVATE = 0o600
"""Permission bits of a file."""
_FOLDER = 0o700
_OTHERS = 0o077
log = logging.getLogger("edgewise")


def open_private(path: Path, mode: str, buffering: int = -1) -> IO[Any]:
    """As `open`; a file that is made has the bits `PRIVATE` from its first byte on.

    Args:
        path: Which.
        mode: As `open` takes it.
        buffering: As `open` takes it.

    Returns:
        The file; close it.

    Raises:
        OSError: As `open`.
    """
    return open(path, mode, buffering, opener=lambda name, flags: os.open(name, flags, PRIVATE))


def make_private_folder(folder: Path) -> Path:
    """Makes a folder, and the missing ones above it, for their owner alone; one that is there stays as it is.

    Args:
        folder: Where.

    Returns:
        The folder.

    Raises:
        OSError: If it cannot be made, or is a file.
    """
    for missing in [path for path in (*reversed(folder.parents), folder) if not path.exists()]:
        missing.mkdir(_FOLDER, exist_ok=True)
    folder.mkdir(exist_ok=True)
    return folder


def exposed(folder: Path) -> list[Path]:
    """What others than its owner may read, write or enter of a state folder.

    Args:
        folder: A node's state folder.

    Returns:
        The folder itself, files in it, and its folders of blobs with theirs; sorted. Empty if it does not exist.
    """
    return sorted(path for path, mode in _entries(folder) if mode & _OTHERS)


def make_private(folder: Path) -> list[Path]:
    """Takes the rights of others from a state folder and what is in it.

    Args:
        folder: A node's state folder.

    Returns:
        What could not be mended because somebody else owns it; logged, too.
    """
    failed = []
    for path, mode in _entries(folder):
        if not mode & _OTHERS:
            continue
        try:
            path.chmod(mode & ~_OTHERS)
        except FileNotFoundError:  # it has ended meanwhile
            continue
        except PermissionError:
            failed.append(path)
    if failed:
        log.warning(
            "others may read %s, and this user may not change that. Have its owner call: chmod -R go-rwx %s",
            failed[0],
            folder,
        )
    return failed


_BLOB_FOLDERS = ("blobs", "kept")


def _entries(folder: Path) -> Iterator[tuple[Path, int]]:
    """A state folder, its files, and its folders of blobs, with permission bits; links are not followed."""
    below = (folder / name for name in _BLOB_FOLDERS)
    for root in (folder, *(path for path in below if path.is_dir() and not path.is_symlink())):
        try:
            yield root, stat.S_IMODE(root.stat().st_mode)
            entries = os.scandir(root)
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            continue
        with entries:
            for entry in entries:
                if entry.is_file(follow_symlinks=False):
                    try:
                        mode = entry.stat(follow_symlinks=False).st_mode
                    except FileNotFoundError:
                        continue
                    yield Path(entry.path), stat.S_IMODE(mode)
