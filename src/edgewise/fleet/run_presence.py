"""Who is here and who is not, as a run must hear it: also after a restart, when nobody saw them come or go."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from edgewise.core.ids import Tier
from edgewise.fleet.live_run import LiveRun
from edgewise.fleet.messages import NodeInfo
from edgewise.fleet.node import Node
from edgewise.fleet.rounds import asked
from edgewise.fleet.watch import Watch
from edgewise.training.protocols import messages as m
from edgewise.training.protocols import regions as r

RETURN_GRACE_S = 10.0
"""How long after a restart those who were there before it may take to show themselves: five transport leases."""


class Presence:
    """Turns what the watch sees into events of runs.

    Args:
        node: The coordinator's.
        watch: Its eyes.
        perform: Carries out an action of a run.
    """

    def __init__(self, node: Node, watch: Watch, perform: Callable[[LiveRun, Any], Awaitable[None]]) -> None:
        self._node = node
        self._watch = watch
        self._perform = perform

    async def is_here(self, live: LiveRun, info: NodeInfo) -> None:
        """Tells a run that a node is here (again)."""
        if info.tier is Tier.EDGE and live.hierarchical:
            await live.driver.dispatch(r.EdgeReturned(info.node, info.epoch))
        elif info.client in live.submitted.config.clients:
            if live.hierarchical and info.parent and live.driver.state.homes.get(info.client) != info.parent:
                await live.driver.dispatch(r.ClientHomed(info.client, info.parent))
            actions = await live.driver.dispatch(m.ClientReturned(info.client, info.epoch))
            number = live.state.gathering.round
            # Known as present all the time, as after this process came back: the order may never have reached it.
            if not live.hierarchical and live.asks(number, info.client) and not asked(actions, info.client):
                await self._perform(live, m.RequestUpdate(live.submitted.run, number, (info.client,), live.state.model))

    async def is_lost(self, live: LiveRun, info: NodeInfo, cause: str) -> None:
        """Tells a run that a node is gone or hangs."""
        if info.tier is Tier.EDGE and live.hierarchical:
            await live.driver.dispatch(r.EdgeLost(info.node, cause))
        elif info.client in live.submitted.config.clients:
            await live.driver.dispatch(m.ClientLost(info.client, cause))

    async def catch_up(self, live: LiveRun) -> None:
        """Tells a run of those who came while it was being added: only the other runs heard of them."""
        if not live.is_open:
            return
        members = live.state.gathering.members
        for member in self._watch.members.alive():
            info = member.info
            if info is None:
                continue
            edge = live.driver.state.edges.get(info.node) if live.hierarchical and info.tier is Tier.EDGE else None
            known = edge if info.tier is Tier.EDGE else members.get(info.client)
            if known is None or known.absence or known.epoch < info.epoch:
                await self.is_here(live, info)

    async def miss_absent(self, runs: Iterable[LiveRun]) -> None:
        """Gives up who was there before a restart and is not since: there was no token whose end could be seen."""
        await asyncio.sleep(RETURN_GRACE_S)
        cause = f"not seen since {self._node.name} was started again {RETURN_GRACE_S:.0f} s ago"
        there = self._watch.members.alive()
        clients, nodes = {t.info.client for t in there if t.info is not None}, {t.node for t in there}
        for live in runs:
            if not live.is_open:
                continue
            for client in [c for c, k in live.state.gathering.members.items() if not k.absence and c not in clients]:
                await live.driver.dispatch(m.ClientLost(client, cause))
            edges = live.driver.state.edges if live.hierarchical else {}
            for edge in [e for e, k in edges.items() if not k.absence and e not in nodes]:
                await live.driver.dispatch(r.EdgeLost(edge, cause))
