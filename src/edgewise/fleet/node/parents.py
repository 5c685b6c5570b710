"""Follows the nodes that a node's uplinks lead to, and moves it to the first uplink whose parent is there.

A parent is known by its router's Zenoh id, which holds its name and incarnation: a liveliness token counts for it only while this
node is linked to that very router, so no other node can declare a parent away or back.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from typing import Protocol

from edgewise.core.backoff import Backoff
from edgewise.core.errors import EdgewiseError, FrameRefused
from edgewise.core.ids import Generation, NodeId, Tier
from edgewise.fleet.node import uplink
from edgewise.fleet.node.node import Node
from edgewise.fleet.node.node_status import NodeStatus
from edgewise.transport.keys import Keys
from edgewise.transport.zenoh.session_config import zenoh_id
from edgewise.transport.zenoh.zenoh_transport import ZenohTransport

log = logging.getLogger("edgewise.fleet")
ATTACH_RETRY = Backoff(0.1, factor=3.0, most_s=5.0)
ATTACH_RETRIES = 5
LOOK_RETRY = Backoff(0.1, most_s=0.4)
LOOKS = 3
"""How often a router is looked for among those linked, for a token that may have come a moment before."""
DEAF = Backoff(5.0, most_s=60.0)
"""How long an uplink may be linked to a router and see no parent behind it, before it is linked anew."""
LOOKS_WHILE_DEAF = 4
"""Looks within each such time; the router has to be there in each."""


class OnParents(Protocol):
    """Is told where a node's requests can go."""

    def peer_changed(self, name: NodeId, there: bool) -> None:
        """A node further out appeared or vanished."""
        ...

    def ways_changed(self) -> None:
        """Another uplink leads to a node now, or it is known which does."""
        ...


class Parents:
    """Follows the parents of one node.

    Attributes:
        parent: Whom the primary uplink leads to; "" while it is not known.
        is_known: Set once it is.
        uplinks: Which are up, and the one in use.
        is_serving: Whether the node has been attached; before, nothing is moved.
    """

    def __init__(self, node: Node, tier: Tier, told: OnParents, status: NodeStatus) -> None:
        """Follows nobody yet; `watch` begins, uplink by uplink.

        Args:
            node: The node.
            tier: Where it stands.
            told: Told of parents.
            status: Says which parent is waited for.
        """
        self.parent = NodeId("")
        self.is_known = asyncio.Event()
        self.uplinks = uplink.Uplinks((True,))
        self.is_serving = False
        self._node, self._tier, self._told, self._status = node, tier, told, status
        self._names: dict[int, NodeId] = {}
        self._tier_of: dict[NodeId, Tier] = {}
        self._tokens: dict[int, set[tuple[NodeId, Generation]]] = {}
        self._linked: dict[int, set[Generation]] = {}
        self._beyond_away: dict[int, set[NodeId]] = {}
        self._moving = asyncio.Lock()
        self._is_renewing = False
        self._deaf: set[int] = set()

    @property
    def edge(self) -> NodeId | None:
        """The edge that the primary uplink leads to; None if it is no edge, or not known."""
        return self.parent if self._tier_of.get(self.parent) is Tier.EDGE else None

    async def watch(self, index: int, transport: ZenohTransport) -> None:
        """Follows the tokens seen through an uplink.

        Args:
            index: Which.
            transport: Its open session.
        """
        self._tokens[index], self._linked[index], self._beyond_away[index] = set(), set(), set()

        def seen(key: str, there: bool) -> None:
            try:
                tier, name, generation = Keys.read_alive(key)
            except FrameRefused:
                self._node.count_refusal("a liveliness token that is none")
                return
            if tier is not Tier.DEVICE and name != self._node.name:
                self._seen(index, transport, tier, name, generation, there)

        await transport.watch_presence(self._node.keys.alive("*", "*", "*"), seen)
        self._mind(index, transport)

    def _mind(self, index: int, transport: ZenohTransport) -> None:
        if index not in self._deaf and not self._linked[index]:
            self._deaf.add(index)
            self._node.spawn(self._relink(index, transport), f"uplink {index} of {self._node.name} sees no parent")

    async def _relink(self, index: int, transport: ZenohTransport) -> None:
        """Links an uplink anew whose router is linked, but told nothing of itself.

        Between routers, Zenoh 1.10 takes a connection in place of one that broke within its first tenth of a second, or that a
        frozen router ends only now, and may forget to declare over it what it has: this node sees nobody, and waits for a parent
        that is there.
        """
        for attempt in itertools.count():
            is_linked = True
            for _ in range(LOOKS_WHILE_DEAF):
                await asyncio.sleep(DEAF.delay_s(attempt) / LOOKS_WHILE_DEAF)
                is_linked = is_linked and bool(await transport.routers())
                if self._linked[index]:
                    self._deaf.discard(index)
                    return
            if is_linked:
                await transport.relink("a router is there, and nobody is seen behind it.")

    def _seen(
        self, index: int, transport: ZenohTransport, tier: Tier, name: NodeId, generation: Generation, there: bool
    ) -> None:
        tokens, beyond_away = self._tokens[index], self._beyond_away[index]
        if there:
            tokens.add((name, generation))
            if self._names.get(index, name) == name:
                look = self._look(index, transport, tier, name, generation)
                self._node.spawn(look, f"is {name} the parent of {self._node.name}")
        else:
            tokens.discard((name, generation))
            if self._names.get(index) == name and generation in self._linked[index]:
                self._linked[index].discard(generation)
                if not self._linked[index]:  # else it is the end of a former incarnation
                    self._changed(index, name, False)
                    self._mind(index, transport)
        if self._names.get(index, name) == name or tier is not Tier.CLOUD:
            return  # another edge is not on the way from here to the cloud
        if not there:
            beyond_away.add(name)
        elif name in beyond_away:
            beyond_away.discard(name)
            self._node.spawn(self._way_is_back(index, name), f"way of {self._node.name} to {name}")

    async def _look(
        self, index: int, transport: ZenohTransport, tier: Tier, name: NodeId, generation: Generation
    ) -> None:
        """Takes a token's node for the parent if its router is the one this uplink is linked to."""
        for attempt in range(LOOKS):
            if zenoh_id(name, generation) in await transport.routers():
                break
            await asyncio.sleep(LOOK_RETRY.delay_s(attempt))
        else:
            return
        if (name, generation) not in self._tokens[index] or self._names.setdefault(index, name) != name:
            return
        if name not in self._tier_of:
            self._tier_of[name] = tier
            self._node.set_parent(name, index)
            if index == 0:
                self.parent = name
                self.is_known.set()
            self._told.ways_changed()
        was_there = bool(self._linked[index])
        self._linked[index].add(generation)
        self._node.spawn(self._learn(name), f"who is {name}")
        if not was_there:
            self._changed(index, name, True)

    def _changed(self, index: int, name: NodeId, there: bool) -> None:
        self._told.peer_changed(name, there)
        if there:
            self._status.came(name)
        else:
            self._status.waits_for(
                name, "it ended, is frozen, or the link to it is cut. Look at that node and at the network."
            )
        self._node.spawn(self._uplink_changed(index, there), f"uplink {index} of {self._node.name}")

    async def _learn(self, parent: NodeId) -> None:
        """Has a parent prove its tier, so that the data policy knows how far data sent to it goes."""
        with contextlib.suppress(EdgewiseError):  # not known, it counts as the cloud; asked again when it returns
            await self._node.info_of(parent)

    async def _way_is_back(self, index: int, name: NodeId) -> None:
        """Declares everything anew on an uplink whose parent has a link onward again.

        When a link between two routers comes back, Zenoh 1.10 announces the tokens of clients again, but not the
        queryables of those that were another router's before: they are seen, and nobody reaches them.
        """
        if self._tier is not Tier.DEVICE:
            return
        try:
            is_node = (await self._node.info_of(name)).capability.cores > 0  # operators come and go as they like
        except EdgewiseError as error:
            log.info("%s cannot tell who is back beyond its parent: %s", self._node.name, error)
            is_node = True
        if not is_node or self._is_renewing:  # a whole part of the fleet comes back at once
            return
        self._is_renewing = True
        async with self._moving:
            self._is_renewing = False
            if self.uplinks.attached == index:
                log.info("%s serves anew on uplink %d: the way to %s is back", self._node.name, index, name)
                await self.attach(index)

    async def _uplink_changed(self, index: int, there: bool) -> None:
        async with self._moving:
            before = self.uplinks.attached
            self.uplinks, actions = uplink.step(self.uplinks, uplink.UplinkChanged(index, there))
            for action in actions if self.is_serving else ():
                log.warning("%s moves from uplink %d to %d", self._node.name, before, action.index)
                await self.attach(action.index)

    async def attach(self, index: int) -> None:
        """Serves on an uplink, however often it takes: a node that serves nowhere is lost to its fleet.

        Args:
            index: Which.
        """
        for attempt in range(ATTACH_RETRIES + 1):
            try:
                self.is_serving = True
                return await self._node.attach(index)
            except EdgewiseError as error:
                log.error("%s cannot serve on uplink %d: %s", self._node.name, index, error)
                if attempt == ATTACH_RETRIES:
                    raise
                await asyncio.sleep(ATTACH_RETRY.delay_s(attempt))
