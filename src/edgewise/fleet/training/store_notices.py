"""What a run waits for where a store takes nothing: told inward until the coordinator knows it, and mended where it can be.

    device ─▶ its server (an edge) ─▶ coordinator ─▶ `edgewise runs`

A blob that is damaged or gone is fetched again from whoever of the nodes in sight has it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable

from edgewise.core.errors import EdgewiseError, StoreDamaged, StoreError
from edgewise.core.ids import Digest, NodeId, RunId
from edgewise.fleet.messages import BLOB, Ack, NodeInfo, StoreNotice
from edgewise.fleet.node.node import Node
from edgewise.fleet.store.patience import StoreTroubles, what_waits
from edgewise.fleet.training.role_driver import RoleDriver
from edgewise.ledger.entry import Purpose
from edgewise.training.protocols.protocol import COORDINATOR
from edgewise.transport.bulk.fetch import fetch_unsized
from edgewise.transport.frame import Frame

log = logging.getLogger("edgewise.fleet")
NOBODY = NodeId("")
TELL_EVERY_S = 3.0
"""Well below the time that a store's sentence stands (`NEWS_S`)."""


class StoreNotices:
    """A node's stores that its runs wait for.

    Args:
        node: The node.
        servers: Drivers of a run here.
        others: Nodes in sight, which may hold a blob that is lost here.
    """

    def __init__(
        self, node: Node, servers: Callable[[RunId], Iterable[RoleDriver]], others: Callable[[], Iterable[NodeId]]
    ) -> None:
        self._node = node
        self._servers = servers
        self._others = others
        self._of_run: dict[RunId, StoreTroubles] = {}
        self._told_s: dict[RunId, float] = {}
        self._sought: set[Digest] = set()
        node.route("report", StoreNotice, self._heard)

    def met(self, driver: RoleDriver, error: StoreError) -> None:
        """A run meets a store that takes nothing now, or that has lost what it needs; on the event loop."""
        sentence = what_waits(error)
        if not self.of(driver.run):
            log.warning("%s: %s waits: %s", self._node.name, driver.run, error.message)
        self._note(driver, self._node.name, sentence)
        digest = error.fields.get("digest")
        if isinstance(error, StoreDamaged) and digest and digest not in self._sought:
            self._sought.add(Digest(digest))
            self._node.spawn(self._seek(driver, Digest(digest)), f"look for blob {digest[:12]}")

    def over(self, driver: RoleDriver) -> None:
        """This node's store takes what a run brings."""
        if driver.run in self._of_run:
            self._of_run[driver.run].over(self._node.name)

    def of(self, run: RunId) -> str:
        """Which stores a run waits for, and why; "" for none."""
        return self._of_run[run].sentence if run in self._of_run else ""

    def forget(self, run: RunId) -> None:
        """The run is over here."""
        self._of_run.pop(run, None)
        self._told_s.pop(run, None)

    def _note(self, driver: RoleDriver, node: NodeId, sentence: str) -> None:
        clock = asyncio.get_running_loop().time
        self._of_run.setdefault(driver.run, StoreTroubles(clock)).met(node, sentence)
        now = clock()
        if (
            driver.role_name == COORDINATOR
            or not driver.server
            or now - self._told_s.get(driver.run, -9e9) < TELL_EVERY_S
        ):
            return
        self._told_s[driver.run] = now
        self._node.spawn(
            self._tell(driver.server, StoreNotice(driver.run, node, sentence)), f"tell why {driver.run} waits"
        )

    async def _tell(self, server: NodeId, notice: StoreNotice) -> None:
        try:
            await self._node.ask(server, "report", notice, Ack, purpose=Purpose.TRAINING, run=notice.run)
        except EdgewiseError as error:
            log.info("%s cannot tell %s why %s waits: %s", self._node.name, server, notice.run, error)

    async def _heard(self, notice: StoreNotice, _: Frame, sender: NodeInfo) -> Ack:
        for driver in self._servers(notice.run):
            if driver.server != sender.node:  # never back to where it came from
                self._note(driver, notice.node, notice.sentence)
        return Ack()

    async def _seek(self, driver: RoleDriver, digest: Digest) -> None:
        try:
            await self.find(digest, driver.server)
        finally:
            self._sought.discard(digest)

    async def find(self, digest: Digest, first: NodeId = NOBODY) -> bool:
        """Fetches a blob from whoever of the nodes in sight has it.

        Args:
            digest: Which.
            first: Who is asked first.

        Returns:
            Whether it is here now.
        """
        related = self._node.grants.related(digest)
        for holder in dict.fromkeys([*filter(None, [first]), *related, *self._others()]):
            try:
                key = self._node.keys.service(holder, BLOB)
                await fetch_unsized(self._node.transport, key, digest, self._node.blobs)
            except EdgewiseError as error:
                log.info("%s does not give blob %s: %s", holder, digest[:12], error)
            else:
                log.warning("%s has fetched blob %s again, from %s", self._node.name, digest[:12], holder)
                return True
        return self._node.blobs.has(digest)
