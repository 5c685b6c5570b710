"""Reports to runs who is here and who is not, also after a restart, when nobody saw them come or go."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from edgewise.core.ids import ClientId, Generation, NodeId, Tier
from edgewise.fleet.membership.membership import NodeState
from edgewise.fleet.membership.watch import Watch
from edgewise.fleet.messages import NodeInfo
from edgewise.fleet.node.node import Node
from edgewise.fleet.training.role_driver import RoleDriver
from edgewise.training.protocols.messages import ClientLost, ClientReturned, EdgeLost, EdgeReturned, SeenClient
from edgewise.training.protocols.protocol import CLIENT, COORDINATOR, RunView

RETURN_GRACE_S = 10.0
"""How long after a restart those who were there before it may take to show themselves: five transport leases."""


class Presence:
    """Turns what a node's watch sees into events of its runs, one sighting after the other as they were seen.

    Args:
        node: The coordinator's, or an edge's.
        watch: Its eyes.
        drivers: Its servers' roles that are not over.
    """

    def __init__(self, node: Node, watch: Watch, drivers: Callable[[], Iterable[RoleDriver]]) -> None:
        self._node = node
        self._watch = watch
        self._drivers = drivers
        self._in_turn = asyncio.Lock()
        self._awaited: set[ClientId] = set()
        self._looked_at: object = None
        self._nodes: dict[ClientId, NodeId] = {}

    def clients(self) -> dict[ClientId, SeenClient]:
        """Clients that are here."""
        infos = (member.info for member in self._watch.members.alive() if member.info is not None)
        return {info.client: self._seen(info) for info in infos if info.client}

    def edges(self) -> dict[NodeId, Generation]:
        """Incarnation of each edge that is here."""
        return {member.node: member.generation for member in self._watch.members.alive(Tier.EDGE)}

    def nodes(self) -> dict[ClientId, NodeId]:
        """Where each client is or was; one that is coming back is found once its description is here."""
        if self._looked_at is not self._watch.members:  # the view is a value, made anew by every change
            self._looked_at = self._watch.members
            known = [m for m in self._watch.members.members.values() if m.state is not NodeState.JOINING]
            self._nodes = {m.info.client: m.node for m in known if m.info is not None and m.info.client}
        return self._nodes

    def is_there(self, node: NodeId) -> bool:
        """Whether a node has described itself and is not gone; one whose worker hangs is there."""
        member = self._watch.members.members.get(node)
        return member is not None and member.state not in (NodeState.JOINING, NodeState.GONE)

    async def is_here(self, info: NodeInfo) -> None:
        """Tells runs that a node is here (again)."""
        async with self._in_turn:
            for driver in tuple(self._drivers()):
                await self._is_here(driver, info)

    async def is_lost(self, info: NodeInfo, cause: str) -> None:
        """Tells runs that a node is gone or hangs."""
        async with self._in_turn:
            for driver in tuple(self._drivers()):
                await self._is_lost(driver, info, cause)

    async def catch_up(self, driver: RoleDriver) -> None:
        """Tells a run of those who came and went while it was being added: only the other runs heard of them."""
        async with self._in_turn:
            for member in tuple(self._watch.members.members.values()):
                if member.info is None:
                    continue
                is_missed, generation = self._known(driver, member.info, member.cause)
                if member.cause and not is_missed:
                    await self._is_lost(driver, member.info, member.cause)
                elif member.state is NodeState.ALIVE and (is_missed or generation < member.info.generation):
                    await self._is_here(driver, member.info)

    async def miss_absent(self, begun: Iterable[RoleDriver]) -> None:
        """Gives up who was there before a restart and is not since: there was no token whose end could be seen.

        Args:
            begun: Roles that go on from their logs, at the start or later, when what they lacked is there again.
        """
        await asyncio.sleep(RETURN_GRACE_S)
        cause = f"not seen since {self._node.name} went on with the run {RETURN_GRACE_S:.0f} s ago"
        async with self._in_turn:
            going_on = tuple(self._drivers())
            for driver in [each for each in begun if each in going_on]:
                for client in sorted(driver.seen):
                    if client not in self.clients():
                        await driver.dispatch(ClientLost(client, cause))
                view = view_of(driver)
                if view is None:
                    continue
                for client in [c for c, known in view.members.items() if not known.absence]:
                    if client not in self.clients():
                        await driver.dispatch(ClientLost(client, cause))
                for edge in [NodeId(e) for e, known in view.edges.items() if not known.absence]:
                    if edge not in self.edges():
                        await driver.dispatch(EdgeLost(edge, cause))

    def expect(self, *, again: bool = False) -> None:
        """Says whose work is awaited, so that a hung worker is noticed; `again` also if it is the same clients'."""
        awaited = {client for driver in self._drivers() for client in driver.awaited}
        if awaited == self._awaited and not again:
            return
        self._awaited = awaited
        self._watch.expect(node for client, node in self.nodes().items() if client in awaited)

    def _known(self, driver: RoleDriver, info: NodeInfo, cause: str) -> tuple[bool, int]:
        """Whether a run takes a node for absent, and the incarnation it knows."""
        view = view_of(driver)
        if view is None:  # an edge was told with its task who is there; why others are not, it has to hear
            return not cause and info.client not in driver.seen, info.generation
        known = view.edges.get(info.node) if info.tier is Tier.EDGE else view.members.get(info.client)
        return (True, 0) if known is None else (bool(known.absence), known.generation)

    async def _is_here(self, driver: RoleDriver, info: NodeInfo) -> None:
        if info.tier is Tier.EDGE and driver.role_name == COORDINATOR:
            await driver.dispatch(EdgeReturned(info.node, info.generation))
        if self._concerns(driver, info.client):
            await driver.dispatch(ClientReturned(info.client, self._seen(info)))

    async def _is_lost(self, driver: RoleDriver, info: NodeInfo, cause: str) -> None:
        if info.tier is Tier.EDGE and driver.role_name == COORDINATOR:
            await driver.dispatch(EdgeLost(info.node, cause))
        if self._concerns(driver, info.client):
            await driver.dispatch(ClientLost(info.client, cause))

    @staticmethod
    def _concerns(driver: RoleDriver, client: ClientId) -> bool:
        view = view_of(driver)
        return bool(client) and driver.role_name != CLIENT and (view is None or client in view.members)

    def _seen(self, info: NodeInfo) -> SeenClient:
        edge = info.parent if info.parent != self._node.name else NodeId("")
        return SeenClient(info.generation, info.num_examples, edge)


def view_of(driver: RoleDriver) -> RunView | None:
    """A coordinator's run as everybody sees it; None for other roles, and before it has begun."""
    if driver.role_name != COORDINATOR or driver.state is None:
        return None
    return driver.protocol.view(driver.state)
