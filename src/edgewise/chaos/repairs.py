"""What an operator does in a campaign about a run that waits for a blob which a disk has damaged.

First `edgewise repair` at every node; where that does not help, since nobody has the blob any more, the run is cancelled. Either
way it was said before which blob it is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from functools import partial

from edgewise.chaos.virtual_disk import Flipped
from edgewise.chaos.virtual_fleet import VirtualFleet
from edgewise.core.errors import EdgewiseError
from edgewise.core.ids import Digest
from edgewise.fleet.operator.refetch import fetch_from_anybody
from edgewise.fleet.store.repair import StateCheck, check_state, fetch_damaged
from edgewise.transport.bulk.blobs import DAMAGED, FolderBlobs

PATIENCE_S = 30.0
"""When all faults are over, an operator looks after so long why a run goes on."""
TIMES_ASKED, ASKED_EVERY_S = 3, 5.0
"""How often an operator asks for what nobody answers, and the seconds between."""
NAMED_BY = 12
"""Characters of a digest by which people are told of a blob."""


class Repairs:
    """An operator of one campaign.

    Args:
        fleet: Whose run waits.
    """

    def __init__(self, fleet: VirtualFleet) -> None:
        self._fleet = fleet
        self._was_repaired = False

    async def help(self) -> str | None:
        """Does the next thing that may help a run which waits for a damaged blob.

        Returns:
            What is not as it was promised; "" where something was done that may help; None where nothing is left to do.
        """
        live = self._fleet.live
        cause = "" if live is None else live.status.cause
        if not names_one(cause, self._fleet.flipped) or self._fleet.is_cancelled:
            return None
        if not self._was_repaired:
            self._was_repaired = True
            return await self._repaired()
        holders = [node for node, digest in self._whole() if digest[:NAMED_BY] in cause]
        is_led = self._fleet.spec.protocol.get("name") != "gossip"  # a client alone knows few whom it could ask
        if is_led and holders and not any(node in self._fleet.down for node in self._fleet.disks):
            return f"the run waits for a blob that {holders[0]} has: {cause}"
        self._fleet.is_cancelled = True
        cause = ""
        for _ in range(TIMES_ASKED):  # a fault may begin with the answer
            try:
                await self._fleet.operator.cancel(self._fleet.run)
                return ""
            except EdgewiseError as error:
                cause = error.message
                await asyncio.sleep(ASKED_EVERY_S)
        return f"a run that waits for a damaged blob cannot be cancelled: {cause}"

    async def _repaired(self) -> str:
        for node in sorted(self._fleet.disks):
            state = self._fleet.disks[node].root
            if not (state / "blobs").exists():
                continue
            found = check_state(state)
            if left_out := self._left_out(node, found):
                return f"`edgewise repair` does not name blob {left_out.digest[:NAMED_BY]} of {node}, which was flipped"
            try:
                await fetch_damaged(found, partial(fetch_from_anybody, self._fleet.operator))
            except EdgewiseError as error:
                return f"`edgewise repair` of {node} fails: {error}"
        return ""

    def _left_out(self, node: str, found: StateCheck) -> Flipped | None:
        """A flipped blob that is not whole and that nobody is told of."""
        named = {damage.name for damage in found.damages}
        for flipped in self._fleet.flipped:
            blobs = FolderBlobs(self._fleet.disks[node].root / flipped.folder)
            is_damaged = blobs.path(flipped.digest).with_name(f"{flipped.digest}{DAMAGED}").exists()
            if flipped.node == node and is_damaged and not blobs.has(flipped.digest) and flipped.digest not in named:
                return flipped
        return None

    def _whole(self) -> Iterable[tuple[str, Digest]]:
        for node, disk in sorted(self._fleet.disks.items()):
            blobs = FolderBlobs(disk.root / "blobs")
            for digest in sorted({flipped.digest for flipped in self._fleet.flipped}):
                if blobs.is_whole(digest):
                    yield node, digest


def names_one(cause: str, flipped: Iterable[Flipped]) -> bool:
    """Whether a cause names one of these blobs, as people are told."""
    return any(each.digest[:NAMED_BY] in cause for each in flipped)
