"""Drives `membership`: watches liveliness tokens, queries infos and the progress counters of awaited workers."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable, Iterable

from edgewise.core.backoff import Backoff
from edgewise.core.errors import EdgewiseError, IdentityRefused
from edgewise.core.ids import NodeId, Tier
from edgewise.fleet.membership import membership
from edgewise.fleet.membership.membership import Membership, NodeState
from edgewise.fleet.messages import NodeInfo, Progress, ProgressRequest
from edgewise.fleet.node.node import Node
from edgewise.transport.keys import Keys

log = logging.getLogger("edgewise.fleet")

ASK_EVERY_S = 1.0
"""How often a worker's counter is asked while its work is awaited."""
INFO_RETRY = Backoff(0.05, most_s=2.0)
"""Waits between attempts to query a node's info while its liveliness token is present."""


class Watch:
    """Watches the other nodes of a fleet.

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
        ask_every_s: float = ASK_EVERY_S,
    ) -> None:
        """Makes a watch; `start` begins.

        Args:
            node: Who watches.
            ready: Called with the info of a node that is alive (again) and known.
            lost: Called with a node that is lost, and why.
            tiers: Tiers to watch.
            ask_every_s: How often an awaited worker's counter is asked.
        """
        self.members = Membership()
        self._node = node
        self._ready = ready
        self._lost = lost
        self._tiers = frozenset(tiers)
        self._ask_every_s = ask_every_s
        self._awaited: set[NodeId] = set()
        self._asking: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()

    async def start(self) -> None:
        """Starts to watch liveliness tokens on the node's uplink."""
        await self._node.transport.watch_presence(self._node.keys.alive("*", "*", "*"), self._presence)

    def expect(self, nodes: Iterable[NodeId]) -> None:
        """Sets whose work is awaited; their progress counters, and those of suspects, are queried until it is done."""
        self._awaited = set(nodes)
        if self._asked and (self._asking is None or self._asking.done()):
            self._asking = self._node.spawn(self._ask_progress(), "progress watch")

    async def wait_for(self, condition: Callable[[Membership], bool], timeout_s: float) -> bool:
        """Waits until the view meets a condition or the deadline passes.

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
        tier, node, generation = Keys.read_alive(key)
        if node == self._node.name or tier not in self._tiers:
            return
        appeared = membership.NodeAppeared(node, tier, generation)
        self._fold(appeared if there else membership.NodeVanished(node, generation))

    def _fold(self, event: membership.Event) -> None:
        self.members, actions = membership.step(self.members, event)
        for action in actions:
            match action:
                case membership.AskInfo(node):
                    self._node.spawn(self._ask_info(node), f"info of {node}")
                case membership.NodeLost(node, cause):
                    info = self.members.members[node].info
                    works = info is None or info.capability.cores > 0  # an operator just has asked what it wanted
                    log.log(logging.WARNING if works else logging.DEBUG, "%s: %s", self._node.name, cause)
                    self._lost(node, cause)
                case membership.NodeReady(info, after):
                    if after:
                        log.warning("%s: %s is back; %s", self._node.name, info.node, after)
                    self._ready(info)
        self._changed.set()

    async def _ask_info(self, node: NodeId) -> None:
        generation = self.members.members[node].generation
        for attempt in itertools.count():
            member = self.members.members[node]
            if member.generation != generation or member.state is NodeState.GONE:
                return  # another liveliness token has its own query
            try:
                info = await self._node.info_of(node, fresh=True)
            except IdentityRefused as error:
                log.warning("%s does not count %s in: %s", self._node.name, node, error)
                return
            except EdgewiseError as error:
                log.info("%s: no info of %s yet: %s", self._node.name, node, error)
                await asyncio.sleep(INFO_RETRY.delay_s(attempt))
            else:
                self._fold(membership.NodeDescribed(info))
                return

    @property
    def _asked(self) -> set[NodeId]:
        """Returns the nodes whose counter is queried: awaited ones and suspects, who may recover."""
        members = self.members.members.values()
        return self._awaited | {m.node for m in members if m.state is NodeState.SUSPECTED}

    async def _ask_progress(self) -> None:
        while self._asked:
            await asyncio.sleep(self._ask_every_s)
            await asyncio.gather(*(self._ask_counter(node) for node in sorted(self._asked)))

    async def _ask_counter(self, node: NodeId) -> None:
        try:
            progress = await self._node.ask(
                node, "progress", ProgressRequest(), Progress, timeout_s=max(self._ask_every_s, 0.1)
            )
        except EdgewiseError:
            return  # an unreachable node is the token's business
        self._fold(membership.ProgressObserved(node, progress))
