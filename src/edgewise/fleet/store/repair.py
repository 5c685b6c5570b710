"""Checks a node's state folder, row by row and blob by blob, and has what is damaged fetched again from whoever holds it.

Nothing is thrown away: a damaged blob is moved aside, so that its node takes it for missing, and fetches it where it can.
"""

from __future__ import annotations

import asyncio
import re
import sqlite3
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from pathlib import Path

import msgspec

from edgewise.core.errors import EdgewiseError, InputError, StoreDamaged
from edgewise.core.ids import Digest, NodeId
from edgewise.fleet.store.events import EventLog
from edgewise.fleet.store.registry import Registry
from edgewise.transport.bulk.blobs import DAMAGED, FolderBlobs

EVENTS, REGISTRY, BLOBS, KEPT = "events.db", "registry.db", "blobs", "kept"
_BLOB = re.compile(r"[0-9a-f]{64}")
_FROM_BACKUP = "Restore a backup with `edgewise restore`"

FetchAgain = Callable[[Digest, FolderBlobs], Awaitable[NodeId | None]]
"""(blob, where it belongs) -> the node that gave it; None where nobody has it."""


class Damage(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that is not as it was written.

    Attributes:
        kind: `database`, `version`, `history`, `event` or `blob`.
        name: Which: a version's number, a run and an event, a digest.
        path: The file.
        cause: What is wrong with it.
        needed_by: What depends on it, and stops.
        cure: What to do.
        mended_by: Who gave it again; "" while it is damaged.
    """

    kind: str
    name: str
    path: str
    cause: str
    needed_by: tuple[str, ...] = ()
    cure: str = ""
    mended_by: str = ""


class StateCheck(msgspec.Struct, frozen=True, kw_only=True):
    """What a look through a state folder found.

    Attributes:
        state: The folder.
        blobs: How many were read.
        rows: How many events, versions and changes of what serves.
        damages: What is wrong; empty where all is as it was written.
    """

    state: str
    blobs: int
    rows: int
    damages: tuple[Damage, ...] = ()

    @property
    def unmended(self) -> tuple[Damage, ...]:
        """What is still wrong."""
        return tuple(damage for damage in self.damages if not damage.mended_by)


def check_state(state: Path) -> StateCheck:
    """Looks through a state folder; its node may run meanwhile. Damaged blobs are moved aside.

    Args:
        state: The folder.

    Returns:
        What was found.

    Raises:
        InputError: If that is no node's state folder.
    """
    if not any((state / name).exists() for name in (EVENTS, REGISTRY, BLOBS)):
        raise InputError(
            f"{str(state)!r} is no state folder of a node: it has no {EVENTS}, no {REGISTRY} and no {BLOBS}. Give the folder "
            "that its `--state` names."
        )
    damages: list[Damage] = []
    needed: dict[str, list[str]] = {}
    rows = 0
    for name, look in ((REGISTRY, _registry), (EVENTS, _events)):
        path = state / name
        if not path.is_file():
            continue
        if cause := _integrity(path):
            damages.append(Damage(kind="database", name=name, path=str(path), cause=cause, cure=_FROM_BACKUP + "."))
            continue
        found, number = look(path, needed)
        damages += found
        rows += number
    found, number = _blobs(state, needed)
    return StateCheck(state=str(state), blobs=number, rows=rows, damages=(*damages, *found))


async def fetch_damaged(check: StateCheck, fetch: FetchAgain) -> StateCheck:
    """Has blobs that are damaged or missing fetched again.

    Args:
        check: What was found.
        fetch: Asks the fleet.

    Returns:
        The same, with who gave what.
    """
    damages = []
    for damage in check.damages:
        if damage.kind == "blob" and Path(damage.path).parent.name == BLOBS:
            holder = await fetch(Digest(damage.name), FolderBlobs(Path(damage.path).parent))
            if holder is not None:
                await asyncio.to_thread(Path(damage.path + DAMAGED).unlink, missing_ok=True)
                damage = msgspec.structs.replace(damage, mended_by=str(holder), cure="")
        damages.append(damage)
    return msgspec.structs.replace(check, damages=tuple(damages))


def _integrity(path: Path) -> str:
    """What SQLite finds wrong with a file; "" for nothing."""
    try:
        with closing(sqlite3.connect(f"file:{path.absolute()}?mode=ro", uri=True)) as there:
            (found,) = there.execute("PRAGMA integrity_check").fetchone()
    except sqlite3.DatabaseError as error:
        found = str(error)
    return "" if found == "ok" else f"SQLite says: {found}"


def _registry(path: Path, needed: dict[str, list[str]]) -> tuple[list[Damage], int]:
    registry = Registry.open(path, read_only=True)
    try:
        versions, pruned = registry.versions(), registry.pruned()
        for version in versions:
            for what, digest in (("graph", version.graph), ("weights", version.weights)):
                if digest and (version.number not in pruned or (path.parent / BLOBS / digest).exists()):
                    needed.setdefault(digest, []).append(f"the {what} of version {version.number} of {version.task}")
        rows = [
            Damage(
                kind="version",
                name=str(number),
                path=str(path),
                cause=sentence,
                needed_by=(f"version {number}",),
                cure=f"{_FROM_BACKUP}, or bring the model again: `edgewise serve MODEL.onnx --connect …`.",
            )
            for number, sentence in registry.damaged.items()
        ]
        history = [
            Damage(kind="history", name=str(place), path=str(path), cause=f"change {place} of what serves {what}",
                   needed_by=("the registry's way back",), cure=_FROM_BACKUP + ".")
            for place, what in registry.damaged_history.items()
        ]  # fmt: skip
        num_changes = sum(len(registry.history(task)) for task in {version.task for version in versions})
        return rows + history, len(versions) + len(rows) + num_changes
    finally:
        registry.close()


def _events(path: Path, needed: dict[str, list[str]]) -> tuple[list[Damage], int]:
    log, found, rows = EventLog.open(path, read_only=True), [], 0
    try:
        for run in log.runs():
            damaged: list[str] = []
            entries = log.read(run, damaged=damaged)
            rows += len(entries)
            for entry in entries:
                for digest in re.findall(rb"[0-9a-f]{64}", entry.payload):
                    users = needed.setdefault(digest.decode(), [])
                    if f"run {run}" not in users:
                        users.append(f"run {run}")
            found += [
                Damage(
                    kind="event",
                    name=run,
                    path=str(path),
                    cause=sentence,
                    needed_by=(f"run {run}",),
                    cure=f"{_FROM_BACKUP}, or start that run anew.",
                )
                for sentence in damaged
            ]
    finally:
        log.close()
    return found, rows


def _blobs(state: Path, needed: dict[str, list[str]]) -> tuple[list[Damage], int]:
    found: dict[str, Damage] = {}
    number = 0
    for folder in (state / BLOBS, state / KEPT):
        if not folder.is_dir():
            continue
        blobs = FolderBlobs(folder)
        for digest in _digests_in(folder):
            number += 1
            try:
                blobs.check(digest)
            except StoreDamaged:
                pass  # moved aside: it is listed with those that were before
            except EdgewiseError as error:
                found[digest] = _blob(folder, digest, error.message, needed)
        for aside in sorted(folder.glob(f"*{DAMAGED}")):
            digest = Digest(aside.name.removesuffix(DAMAGED))
            if not blobs.has(digest):
                cause = f"it is not what its name says; it lies in {aside.name}"
                found[digest] = _blob(folder, digest, cause, needed)
    versions = (d for d, users in needed.items() if any("of version" in user for user in users))
    for wanted in versions:
        if wanted not in found and not (state / BLOBS / wanted).exists():
            found[wanted] = _blob(state / BLOBS, Digest(wanted), "it is missing", needed)
    return list(found.values()), number


def _digests_in(folder: Path) -> Iterator[Digest]:
    for path in sorted(folder.iterdir()):
        if _BLOB.fullmatch(path.name):
            yield Digest(path.name)


def _blob(folder: Path, digest: Digest, cause: str, needed: dict[str, list[str]]) -> Damage:
    if folder.name == KEPT:
        cure = "What a client keeps is on its disk alone: it begins that anew with its next order."
    else:
        cure = "Look for it in the fleet: `edgewise repair --state … --connect … --identity …`, or restore a backup."
    return Damage(
        kind="blob",
        name=digest,
        path=str(folder / digest),
        cause=cause,
        needed_by=tuple(needed.get(digest, ())),
        cure=cure,
    )
