"""Drives `membership`: liveliness tokens in, infos asked, workers' counters asked while something is awaited of them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable

from edgewise.core.errors import EdgewiseError
from edgewise.core.ids import NodeId, Tier
from edgewise.fleet import membership
from edgewise.fleet.membership import Membership
from edgewise.fleet.messages import NodeInfo, Progress, ProgressRequest, kind_of
from edgewise.fleet.node import Node
from edgewise.transport.frame import make_frame
from edgewise.transport.keys import Keys

log = logging.getLogger("edgewise.fleet")

ASK_EVERY_S = 1.0
"""How often a worker's counter is asked while its work is awaited."""
INFO_ATTEMPTS = 5


class Watch:
    """A node's eyes on others.

    Attributes:
        members: The view, folded.
    """

    def __init__(
        self,
        node: Node,
        *,
        ready: Callable[[NodeInfo], None] = lambda _: None,
        lost: Callable[[NodeId, str], None] = lambda *_: None,
        tiers: Iterable[Tier] = tuple(Tier),
    ) -> None:
        self.members = Membership()
        self._node = node
        self._ready = ready
        self._lost = lost
        self._tiers = frozenset(tiers)
        self._awaited: set[NodeId] = set()
        self._asking: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()

    async def start(self) -> None:
        """Begins to watch tokens on the node's uplink."""
        await self._node.transport.watch_presence(self._node.keys.alive("*", "*", "*"), self._presence)

    def expect(self, nodes: Iterable[NodeId]) -> None:
        """Says whose work is awaited now; their counters are asked until they are no longer expected."""
        self._awaited = set(nodes)
        if self._awaited and (self._asking is None or self._asking.done()):
            self._asking = self._node.spawn(self._ask_progress(), "progress watch")

    async def wait_for(self, condition: Callable[[Membership], bool], timeout_s: float) -> bool:
        """Waits until the view meets a condition.

        Args:
            condition: Tells whether it does.
            timeout_s: Deadline.

        Returns:
            Whether it did by then.
        """
        try:
            async with asyncio.timeout(timeout_s):
                while not condition(self.members):
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            return condition(self.members)
        return True

    def _presence(self, key: str, there: bool) -> None:
        tier, node, epoch = Keys.read_alive(key)
        if node == self._node.name or tier not in self._tiers:
            return
        appeared = membership.NodeAppeared(node, tier, epoch)
        self._fold(appeared if there else membership.NodeVanished(node, epoch))

    def _fold(self, event: membership.Event) -> None:
        self.members, actions = membership.step(self.members, event)
        for action in actions:
            match action:
                case membership.AskInfo(node):
                    self._node.spawn(self._ask_info(node), f"info of {node}")
                case membership.NodeLost(node, cause):
                    log.warning("%s: %s", self._node.name, cause)
                    self._lost(node, cause)
                case membership.NodeReady(info):
                    self._ready(info)
        self._changed.set()

    async def _ask_info(self, node: NodeId) -> None:
        for attempt in range(INFO_ATTEMPTS):
            try:
                info = await self._node.info_of(node, fresh=True)
            except EdgewiseError as error:
                log.info("%s: no info of %s yet: %s", self._node.name, node, error)
                await asyncio.sleep(0.05 * 2**attempt)
            else:
                self._fold(membership.NodeDescribed(info))
                return

    async def _ask_progress(self) -> None:
        while self._awaited:
            await asyncio.sleep(ASK_EVERY_S)
            for node in sorted(self._awaited):
                question = make_frame(kind_of(ProgressRequest), ProgressRequest())
                key = self._node.keys.service(node, "progress")
                try:
                    reply = await self._node.transport.query(key, question, timeout_s=ASK_EVERY_S)
                except EdgewiseError:
                    continue  # an unreachable node is the token's business
                self._fold(membership.ProgressObserved(node, reply.read(Progress)))
