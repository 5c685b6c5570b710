"""Who is here and who is not, as a run must hear it: also after a restart, when nobody saw them come or go."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from edgewise.core.ids import Tier
from edgewise.fleet.membership.membership import NodeState
from edgewise.fleet.membership.watch import Watch
from edgewise.fleet.messages import NodeInfo
from edgewise.fleet.node.node import Node
from edgewise.fleet.training.live_run import LiveRun
from edgewise.fleet.training.round_intake import asked
from edgewise.training.protocols import messages as m
from edgewise.training.protocols import regions as r

RETURN_GRACE_S = 10.0
"""How long after a restart those who were there before it may take to show themselves: five transport leases."""


class Presence:
    """Turns what the watch sees into events of runs, one sighting after the other as they were seen.

    Args:
        node: The coordinator's.
        watch: Its eyes.
        perform: Carries out an action of a run.
    """

    def __init__(self, node: Node, watch: Watch, perform: Callable[[LiveRun, Any], Awaitable[None]]) -> None:
        self._node = node
        self._watch = watch
        self._perform = perform
        self._in_turn = asyncio.Lock()

    async def is_here(self, runs: Iterable[LiveRun], info: NodeInfo) -> None:
        """Tells runs that a node is here (again)."""
        async with self._in_turn:
            for live in runs:
                await self._is_here(live, info)

    async def is_lost(self, runs: Iterable[LiveRun], info: NodeInfo, cause: str) -> None:
        """Tells runs that a node is gone or hangs."""
        async with self._in_turn:
            for live in runs:
                await self._is_lost(live, info, cause)

    async def catch_up(self, live: LiveRun) -> None:
        """Tells a run of those who came and went while it was being added: only the other runs heard of them."""
        async with self._in_turn:
            for member in self._watch.members.members.values():
                if member.info is None or not live.is_open:
                    continue
                known = self._known(live, member.info)
                if member.cause and known is not None and not known.absence:
                    await self._is_lost(live, member.info, member.cause)
                elif member.state is NodeState.ALIVE and (
                    known is None or known.absence or known.epoch < member.info.epoch
                ):
                    await self._is_here(live, member.info)

    @staticmethod
    def _known(live: LiveRun, info: NodeInfo) -> m.Member | None:
        if live.hierarchical and info.tier is Tier.EDGE:
            return live.driver.state.edges.get(info.node)  # type: ignore[no-any-return]
        return live.state.gathering.members.get(info.client)  # type: ignore[no-any-return]

    async def _is_here(self, live: LiveRun, info: NodeInfo) -> None:
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

    async def _is_lost(self, live: LiveRun, info: NodeInfo, cause: str) -> None:
        if info.tier is Tier.EDGE and live.hierarchical:
            await live.driver.dispatch(r.EdgeLost(info.node, cause))
        elif info.client in live.submitted.config.clients:
            await live.driver.dispatch(m.ClientLost(info.client, cause))

    async def miss_absent(self, runs: Iterable[LiveRun]) -> None:
        """Gives up who was there before a restart and is not since: there was no token whose end could be seen."""
        await asyncio.sleep(RETURN_GRACE_S)
        cause = f"not seen since {self._node.name} was started again {RETURN_GRACE_S:.0f} s ago"
        async with self._in_turn:
            for live in [live for live in runs if live.is_open]:
                for client in [c for c, known in live.state.gathering.members.items() if not known.absence]:
                    if client not in {t.info.client for t in self._watch.members.alive() if t.info is not None}:
                        await live.driver.dispatch(m.ClientLost(client, cause))
                edges = live.driver.state.edges if live.hierarchical else {}
                for edge in [e for e, known in edges.items() if not known.absence]:
                    if edge not in {t.node for t in self._watch.members.alive()}:
                        await live.driver.dispatch(r.EdgeLost(edge, cause))
