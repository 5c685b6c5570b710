"""The coordinator's orders of a run: delivered while they are wanted, a refusal becomes an event with its cause."""

from __future__ import annotations

import asyncio

from edgewise.core.backoff import Backoff
from edgewise.core.ids import ClientId, Epoch, NodeId, RunId
from edgewise.fleet.membership.watch import Watch
from edgewise.fleet.messages import BlobRef, DismissOrder, FoldOrder, NodeInfo
from edgewise.fleet.node.delivery import give_order
from edgewise.fleet.node.node import Node
from edgewise.fleet.training.live_run import LiveRun
from edgewise.fleet.training.round_intake import train_order
from edgewise.training.protocols import messages as m
from edgewise.training.protocols import regions as r

MODEL_TIMEOUT_S = 600.0
"""Longest an edge may take to fetch a round's model before it takes the order."""
RETRY = Backoff(1.0, most_s=30.0)


def clients_of(watch: Watch, task: str) -> dict[ClientId, NodeInfo]:
    """Clients that are here and hold data of a task."""
    alive = (member.info for member in watch.members.alive() if member.info is not None)
    return {info.client: info for info in alive if info.client and info.task == task}


class RunOrders:
    """Gives a run's orders.

    Args:
        node: The coordinator's.
        watch: Its eyes.
    """

    def __init__(self, node: Node, watch: Watch) -> None:
        self._node = node
        self._watch = watch

    async def ask_client(self, live: LiveRun, request: m.RequestUpdate, client: ClientId) -> None:
        """Orders a client's part of a round; one that is not here is asked when it is."""
        info = clients_of(self._watch, live.submitted.wish.task).get(client)
        if info is None:
            return
        wish, config = live.submitted.wish, live.submitted.config
        order, tensors = train_order(
            self._node, request, algorithm=config.algorithm, seed=config.seed, layout=config.layout,
            num_entries=config.num_entries, hard_examples=wish.hard_examples,
        )  # fmt: skip
        live.downlink_bytes += 4 * config.num_entries

        def wanted() -> bool:
            return live.asks(request.round, client) and self._watch.members.has(info.node, info.epoch)

        refusal = await give_order(self._node, info.node, order, tensors, run=request.run, wanted=wanted)
        if refusal:
            await live.driver.dispatch(m.ClientFailed(request.run, request.round, client, info.epoch, refusal))

    async def ask_edge(self, live: LiveRun, region: r.RegionOrder) -> None:
        """Orders a region of an edge; one that is not here is asked when it is."""
        config, member = live.submitted.config, self._watch.members.members.get(region.edge)
        if member is None:
            return
        model = BlobRef(region.model, 4 * config.num_entries, self._node.name)
        order = FoldOrder(region, config.layout, model, live.submitted.wish.hard_examples)
        live.downlink_bytes += 4 * config.num_entries * len(region.clients)

        def wanted() -> bool:
            given = live.driver.state.assignments.get(region.assignment)
            is_open = live.is_open and given is not None and not given.sum and not given.is_void
            return is_open and self._watch.members.has(region.edge, member.epoch)

        refusal = await give_order(
            self._node, region.edge, order, run=region.run, wanted=wanted, timeout_s=MODEL_TIMEOUT_S
        )
        if refusal:
            await live.driver.dispatch(r.EdgeLost(region.edge, f"it refuses the order: {refusal}"))

    async def dismiss(self, edge: NodeId, epoch: Epoch, runs: tuple[RunId, ...]) -> None:
        """Tells an edge that runs have ended."""
        await give_order(
            self._node, edge, DismissOrder(runs), run=runs[-1], wanted=lambda: self._watch.members.has(edge, epoch)
        )

    async def ask_missing(self, live: LiveRun, number: int) -> None:
        """A round below its quorum asks those again who are missing but there: a late worker, a lost order."""
        live.retries += 1
        await asyncio.sleep(RETRY.delay_s(live.retries - 1))
        state = live.state
        if state is None or state.outcome is not None or state.gathering.round != number:
            return
        there = clients_of(self._watch, live.submitted.wish.task)
        for client in [c for c in state.gathering.missing if c in there]:
            await live.driver.dispatch(m.ClientReturned(client, there[client].epoch))
