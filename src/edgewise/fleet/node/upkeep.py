"""Keeps a node's disk small: asks all parts what they hold, and lets go of the rest. What stays is judged in `store/retention.py`.

A blob goes only if no part of the node holds it, none has claimed it lately (`FolderBlobs.claim`: it is about to be named),
and every part that has records in the state folder could be asked. Before a blob that somebody wanted goes, its holder notes
that for good; so a node that is killed at any step finds all it needs, and goes on from there.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgewise.core.errors import EdgewiseError, StoreError
from edgewise.core.ids import Digest, Tier
from edgewise.fleet.messages import StateAnswer, StateRequest, StateRow
from edgewise.fleet.node.node import Node
from edgewise.fleet.store.retention import DISK_FRACTION, Hold, Stored, Verdict, judge

log = logging.getLogger("edgewise.fleet")
GRACE_S = 3600.0
"""How long a claim stands, and how long a part of a transfer that broke off waits to be gone on with."""
EVERY_S = 1800.0
"""At the latest, it is looked again."""
SETTLE_S = 1.0
"""What ends at once is looked at once."""
RECORDS = ("events.db", "registry.db", "serving.msgpack")
"""Files that name blobs; whose owner is not running here, nobody can say what they still need."""
_TEMPORARY = re.compile(r"\..+\.\d+\.\d+")
"""Left by a process that ended while it wrote a file (`core/files.py`)."""


class Upkeep:
    """A node's; make it before its roles, `begin` it when all of them have.

    Args:
        node: The node.
        state: Its state folder.
        keep_bytes: Budget; 0 for a tenth of the disk.
        grace_s: How long a claim stands.
    """

    def __init__(self, node: Node, state: Path, *, keep_bytes: int = 0, grace_s: float = GRACE_S) -> None:
        self._node, self._state, self._grace_s = node, state, grace_s
        self._keep_bytes = keep_bytes
        self._began_s = time.time()
        self._looking = asyncio.Lock()
        self._is_ended = threading.Event()
        node.route("control", StateRequest, self._asked, Tier.CLOUD)

    def begin(self) -> None:
        """Begins to look, now and whenever something may have fallen free."""
        self._node.spawn(self._go_on(), f"upkeep of {self._node.name}")

    async def close(self) -> None:
        """Returns when nothing is being deleted any more."""
        self._is_ended.set()
        async with self._looking:
            pass

    async def look(self, request: StateRequest) -> StateAnswer:
        """Judges what is on disk.

        Args:
            request: Whether what can go goes.

        Returns:
            What stays, and what went or could.

        Raises:
            StoreError: If the disk does not say what is there.
        """
        # A task of its own, not to be cancelled half-way: who waits for the lock waits for its thread.
        return await asyncio.shield(asyncio.ensure_future(self._look(request)))

    async def _asked(self, request: StateRequest, *_: Any) -> StateAnswer:
        return await self.look(request)

    async def _go_on(self) -> None:
        await asyncio.to_thread(self._remove_temporary)
        while True:
            self._node.spare.clear()
            try:
                found = await self.look(StateRequest(prune=True))
                if found.num_gone:
                    log.info("%s let go of %d of %d blobs", self._node.name, found.num_gone, found.num_going)
            except (EdgewiseError, OSError) as error:
                log.error("%s could not look after its disk: %s", self._node.name, error)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(EVERY_S):
                    await self._node.spare.wait()
            await asyncio.sleep(SETTLE_S)

    async def _look(self, request: StateRequest) -> StateAnswer:
        async with self._looking:
            return await self._judge(request)

    async def _judge(self, request: StateRequest) -> StateAnswer:
        stored, records_bytes = await asyncio.to_thread(self._stored)  # first: what comes later is not judged
        budget = request.keep_bytes or self._keep_bytes or int(DISK_FRACTION * shutil.disk_usage(self._state).total)
        try:
            verdict = judge(stored, self._holds(), budget)
        except StoreError as error:
            return StateAnswer(keep_bytes=budget, records_bytes=records_bytes, cause=error.message)
        num_gone = await asyncio.to_thread(self._prune, verdict) if request.prune else 0
        rows = (
            StateRow(s.hold.what, len(s.digests), s.size_bytes, s.hold.is_needed, s.stays)
            for s in verdict.shares
            if s.digests
        )
        return StateAnswer(tuple(rows), budget, records_bytes, len(verdict.goes), verdict.size_bytes, num_gone)

    def _holds(self) -> list[Hold]:
        """What all parts hold, of one moment."""
        holders = self._node.holders
        for name in RECORDS:
            if name not in holders and (self._state / name).exists():
                raise StoreError(
                    f"{name} in the state folder of {self._node.name} names blobs, and the part of the node that reads it does "
                    "not run. Nothing goes. Start the node as before (--task, or as coordinator).",
                    path=str(self._state / name),
                )
        return [hold for holder in holders.values() for hold in holder()]

    def _stored(self) -> tuple[dict[Digest, Stored], int]:
        """On a thread: what is on disk, and bytes of the files that name it."""
        found: dict[Digest, Stored] = {}
        for store in self._node.stores:
            for digest, is_whole, stat in store.stored():
                if not is_whole and time.time() - stat.st_mtime < self._grace_s:
                    continue  # its transfer may go on
                before = found.get(digest, Stored(0, 0.0))
                found[digest] = Stored(before.size_bytes + stat.st_size, max(before.time_s, stat.st_mtime))
            store.forget_claims(self._grace_s)
        return found, sum(path.stat().st_size for path in self._state.iterdir() if path.is_file())

    def _prune(self, verdict: Verdict) -> int:
        """On a thread: notes what goes, then deletes it, blob by blob; any step may be the last one."""
        for share in verdict.shares:
            if not share.stays and share.digests:
                share.hold.let_go()
        num_gone = 0
        for digest in sorted(verdict.goes):
            if self._is_ended.is_set():
                break
            gone = [store.let_go(digest, self._grace_s) for store in self._node.stores]
            num_gone += all(gone)
        return num_gone

    def _remove_temporary(self) -> None:
        for path in self._temporary():
            path.unlink(missing_ok=True)

    def _temporary(self) -> Iterator[Path]:
        """Files that an earlier process had begun to write."""
        for folder in (self._state, *(store.folder for store in self._node.stores)):
            for path in folder.iterdir():
                if _TEMPORARY.fullmatch(path.name) and path.is_file() and path.stat().st_mtime < self._began_s:
                    yield path
