"""Copies a coordinator's state folder into one file, also while it runs, and makes a folder of such a file again.

The log is copied before the registry, and blobs last: what the log names is in the registry, what the registry names is
among the blobs, whatever is written meanwhile. A run that goes on while it is copied goes on from there when restored.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import sqlite3
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import IO

import msgspec

from edgewise import __version__
from edgewise.core.errors import InputError, StoreError
from edgewise.core.files import naming
from edgewise.core.private_files import make_private, open_private
from edgewise.core.unreadable import UNREADABLE
from edgewise.fleet.store.registry import Registry

FORMAT = 1
_NO_BACKUP: tuple[type[Exception], ...] = (
    tarfile.TarError,
    ValueError,
    OverflowError,  # times and sizes that no clock and no disk has
    KeyError,  # a link to nothing
    FileNotFoundError,  # these four: names that do not fit together
    FileExistsError,
    IsADirectoryError,
    NotADirectoryError,
    *UNREADABLE,
)
"""What reading an archive that is none of ours may raise."""
MANIFEST = "manifest.json"
_DATABASES = ("events.db", "registry.db")
"""In the order in which they are copied."""
_LEFT_OUT = (".lock", "-wal", "-shm", ".part")
_COPY_BYTES = 2**20


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a backup holds.

    Attributes:
        format: Of the file; `FORMAT`.
        edgewise: Version that wrote it.
        made_s: When, seconds since 1970.
        versions: Model versions in it.
        files: SHA-256 by path below the state folder.
    """

    format: int
    edgewise: str
    made_s: float
    versions: int
    files: dict[str, str]

    @property
    def size(self) -> int:
        """Number of files."""
        return len(self.files)


def write_backup(state: Path, file: Path) -> Manifest:
    """Copies a state folder into a tar file; the node may run meanwhile.

    Args:
        state: The folder.
        file: Where; whole or not there.

    Returns:
        What it holds.

    Raises:
        InputError: If that is no coordinator's state folder.
        StoreError: If a version's graph or weights are not there.
    """
    missing = [name for name in _DATABASES if not (state / name).is_file()]
    if missing:
        raise InputError(
            f"{str(state)!r} is no state folder of a coordinator: it has no {' and no '.join(missing)}. Give the folder that "
            "`edgewise coordinator --state` names."
        )
    with naming(file):
        return _write(state, file)


def _write(state: Path, file: Path) -> Manifest:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{file.name}.", dir=file.parent) as folder:
        copies = {name: _copied(state / name, Path(folder) / name) for name in _DATABASES}
        versions, pruned = _versions_of(copies["registry.db"])
        digests: dict[str, str] = {}
        partial = Path(folder) / "backup.tar"
        with open_private(partial, "wb") as made_tar, tarfile.open(fileobj=made_tar, mode="w") as tar:
            for name, path in copies.items():
                _add(tar, path, name, digests)
            for path in _others(state):
                try:
                    _add(tar, path, path.relative_to(state).as_posix(), digests)
                except FileNotFoundError:
                    continue  # a run has let go of it meanwhile
            for number, blob in versions:
                if blob and number not in pruned and f"blobs/{blob}" not in digests:
                    raise StoreError(
                        f"version {number} lacks its blob {blob[:12]} in {str(state)!r}. Deploy it anew, then back up."
                    )
            numbers = {number for number, _ in versions}
            made = Manifest(
                format=FORMAT, edgewise=__version__, made_s=time.time(), versions=len(numbers), files=digests
            )
            _add_bytes(tar, MANIFEST, msgspec.json.encode(made))
        with partial.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(partial, file)
    return made


def restore(file: Path, state: Path) -> Manifest:
    """Makes a state folder of a backup; every file is checked before the folder has its name.

    Args:
        file: From `write_backup`.
        state: The new folder; it does not exist, or is empty.

    Returns:
        What was restored.

    Raises:
        InputError: If the folder is in use, or the file is no backup.
        StoreError: If the file is damaged.
    """
    if state.exists() and (not state.is_dir() or any(state.iterdir())):
        raise InputError(
            f"{str(state)!r} is not empty; a backup is restored into a new folder. Move that one away, or name another."
        )
    state.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{state.name}.", dir=state.parent))
    try:
        try:
            with tarfile.open(file, "r:") as tar:
                tar.extractall(folder, filter="data")
            found = msgspec.json.decode((folder / MANIFEST).read_bytes(), type=Manifest)
        except _NO_BACKUP as error:
            if not file.exists():
                raise
            raise InputError(f"{str(file)!r} is no whole backup: {error}. Make one with `edgewise backup`.") from error
        if found.format > FORMAT:
            raise InputError(
                f"{str(file)!r} was written by Edgewise {found.edgewise}, in a newer form. Update this one."
            )
        for name, digest in found.files.items():
            path = folder / name
            if not path.is_file() or _digest_of(path) != digest:
                raise StoreError(
                    f"{name!r} in {str(file)!r} is damaged or missing. Take another backup.", path=str(file)
                )
        (folder / MANIFEST).unlink()
        make_private(folder)
        here = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()}
        if strangers := sorted(here - found.files.keys()):
            raise StoreError(
                f"{str(file)!r} holds {strangers[:10]}, which its list does not name. Take another backup.",
                path=str(file),
            )
        if state.exists():
            state.rmdir()
        folder.rename(state)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return found


def _copied(source: Path, target: Path) -> Path:
    """A database as it is at one moment, whoever writes it."""
    with (
        closing(sqlite3.connect(f"file:{source.absolute()}?mode=ro", uri=True)) as there,
        closing(sqlite3.connect(target)) as here,
    ):
        there.backup(here)
        (found,) = here.execute("PRAGMA integrity_check").fetchone()
    if found != "ok":
        raise StoreError(f"{str(source)!r} is damaged: {found}. Restore an earlier backup.", path=str(source))
    return target


def _versions_of(path: Path) -> tuple[list[tuple[int, str]], frozenset[int]]:
    """Number and blobs of every version, and which were let go of."""
    registry = Registry.open(path)  # the copy: what an earlier Edgewise wrote is sealed
    try:
        found = [(v.number, str(blob)) for v in registry.versions() for blob in (v.graph, v.weights)]
        return found, registry.pruned()
    finally:
        registry.close()


def _others(state: Path) -> Iterator[Path]:
    for path in sorted(state.rglob("*")):
        name = path.name
        if path.is_file() and name not in _DATABASES and not name.startswith(".") and not name.endswith(_LEFT_OUT):
            yield path


def _add(tar: tarfile.TarFile, path: Path, name: str, digests: dict[str, str]) -> None:
    with path.open("rb") as file:
        digest = _digest_of_open(file)
        file.seek(0)
        entry = tar.gettarinfo(arcname=name, fileobj=file)
        tar.addfile(entry, file)
    digests[name] = digest


def _add_bytes(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(data), 0o600
    tar.addfile(entry, io.BytesIO(data))


def _digest_of(path: Path) -> str:
    with path.open("rb") as file:
        return _digest_of_open(file)


def _digest_of_open(file: IO[bytes]) -> str:
    hasher = hashlib.sha256()
    while part := file.read(_COPY_BYTES):
        hasher.update(part)
    return hasher.hexdigest()
