"""An edge's part in hierarchical training: takes the cloud's order, asks its devices, folds, forwards one sum.

Everything it acknowledged is in its own log: killed between receiving and forwarding, it replays, forwards the same sum, and
the cloud counts it once.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

from edgewise.core.errors import EdgewiseError, RemoteError
from edgewise.core.ids import ClientId, Epoch, NodeId, RunId, Tier
from edgewise.fleet.messages import (
    Ack,
    BlobRef,
    DismissOrder,
    EdgeSum,
    FoldOrder,
    NodeInfo,
    TrainFailed,
    UpdateReport,
)
from edgewise.fleet.node import Node
from edgewise.fleet.rounds import BlobMapping, RunDriver, answer_to, check_client, train_order, update_event
from edgewise.fleet.store import EventLog
from edgewise.fleet.trainer import RETRY_S
from edgewise.fleet.watch import Watch
from edgewise.ledger.entry import Purpose
from edgewise.training.protocols.messages import (
    ClientFailed,
    ClientLost,
    ClientReturned,
    RequestUpdate,
    RoundTimedOut,
    SetRoundDeadline,
)
from edgewise.training.protocols.regional import EdgeState, make_edge_step
from edgewise.training.protocols.regions import ForwardSum, RegionOpened, RunDismissed, SumAcknowledged
from edgewise.transport.frame import Frame

log = logging.getLogger("edgewise.fleet")
LOG = "edge"


class Aggregator:
    """The edge's role.

    Args:
        node: Its node.
        state: Folder of its log.
        crash_after: For tests, see `EventLog`.
    """

    def __init__(self, node: Node, state: Path, *, crash_after: int | None = None) -> None:
        self.node = node
        self.events = EventLog.open(state / "edge.db", crash_after=crash_after)
        self.watch = Watch(node, ready=self._ready, lost=self._lost, tiers=(Tier.DEVICE,))
        blobs = BlobMapping(node.blobs)
        self._driver = RunDriver(LOG, make_edge_step(blobs), self.events, node.blobs, self._perform, EdgeState())
        self._orders: dict[RunId, FoldOrder] = {}
        self._cloud: dict[RunId, NodeId] = {}
        self._uplink_bytes: dict[RunId, int] = {}
        self._forwarding: set[tuple[RunId, int]] = set()
        node.route("control", FoldOrder, self._fold, Tier.CLOUD)
        node.route("control", DismissOrder, self._dismiss, Tier.CLOUD)
        node.route("report", UpdateReport, self._update, Tier.DEVICE)
        node.route("report", TrainFailed, self._failed, Tier.DEVICE)

    async def start(self) -> None:
        """Replays the log, begins to watch devices, goes on with what was interrupted."""
        self._driver.replay()
        await self.watch.start()
        # What is outstanding is repeated when the cloud repeats its order: it sees this incarnation and asks anew.

    async def close(self) -> None:
        """Closes the log."""
        self.events.close()

    async def _fold(self, order: FoldOrder, frame: Frame, _: NodeInfo) -> Ack:
        await self.node.fetch(order.model)  # once over the WAN; devices take it from here
        run = order.region.run
        self._orders[run], self._cloud[run] = order, frame.sender
        # Nobody waits for the round here: the order is durable, the sum comes by its own report.
        await self._driver.dispatch(RegionOpened(order.region, self._present()))
        self._expect()
        return Ack()

    async def _dismiss(self, order: DismissOrder, *_: Any) -> Ack:
        self._orders.pop(order.run, None)
        await self._driver.dispatch(RunDismissed(order.run))
        return Ack()

    async def _update(self, report: UpdateReport, frame: Frame, sender: NodeInfo) -> Ack:
        event = await update_event(self.node, report, frame, sender)
        size = report.payload.size_bytes if report.payload else sum(t.array.nbytes for t in frame.tensors)
        self._uplink_bytes[report.run] = self._uplink_bytes.get(report.run, 0) + size
        actions = await self._driver.dispatch(event)
        self._expect()
        return answer_to(actions, report.client)

    async def _failed(self, report: TrainFailed, frame: Frame, sender: NodeInfo) -> Ack:
        check_client(sender, report.client)
        await self._driver.dispatch(ClientFailed(report.run, report.round, report.client, frame.epoch, report.cause))
        self._expect()
        return Ack()

    def _ready(self, info: NodeInfo) -> None:
        if info.client and self._driver.state.regions:
            self.node.spawn(self._driver.dispatch(ClientReturned(info.client, info.epoch)), f"{info.node} is back")

    def _lost(self, node: NodeId, cause: str) -> None:
        info = self.watch.members.members[node].info
        if info is not None and info.client and self._driver.state.regions:
            self.node.spawn(self._driver.dispatch(ClientLost(info.client, cause)), f"{node} is lost")

    def _present(self) -> dict[ClientId, Epoch]:
        members = self.watch.members.alive(Tier.DEVICE)
        return {m.info.client: m.epoch for m in members if m.info is not None and m.info.client}

    def _expect(self) -> None:
        """Says whose work is awaited, so that a hung worker is noticed."""
        outstanding = {
            c for r in self._driver.state.regions.values() if r.report is None for c in r.gathering.outstanding
        }
        self.watch.expect(n for c, n in self._nodes().items() if c in outstanding)

    def _nodes(self) -> dict[ClientId, NodeId]:
        members = self.watch.members.members.values()
        return {m.info.client: m.node for m in members if m.info is not None and m.info.client}

    async def _perform(self, action: Any) -> None:
        match action:
            case RequestUpdate():
                for client in action.clients:
                    self.node.spawn(self._ask(action, client), f"ask {client} for round {action.round}")
            case ForwardSum():
                key = (action.report.run, action.report.assignment)
                if key not in self._forwarding:
                    self._forwarding.add(key)
                    self.node.spawn(self._forward(action, key), f"forward the sum of round {action.report.round}")
            case SetRoundDeadline(run, number, deadline_s) if deadline_s is not None:
                timed_out = RoundTimedOut(run, number)
                asyncio.get_running_loop().call_later(
                    deadline_s, lambda: self.node.spawn(self._driver.dispatch(timed_out), "round deadline")
                )
            case _:
                pass  # accepted and refused updates are answered where they arrived

    async def _ask(self, request: RequestUpdate, client: ClientId) -> None:
        wish = self._orders[request.run]
        order, tensors = train_order(
            self.node, request, algorithm=wish.region.algorithm, seed=wish.region.seed, layout=wish.layout,
            collected=wish.collected,
        )  # fmt: skip
        node = self._nodes().get(client)
        if node is None:
            return
        try:
            ack = await self.node.ask(node, "control", order, Ack, tensors, purpose=Purpose.TRAINING, run=request.run)
        except EdgewiseError as error:
            log.warning("%s could not be asked for round %d: %s", node, request.round, error)
            return  # its token tells whether it is gone; if it returns it is asked again
        if not ack.accepted:
            epoch = self.watch.members.members[node].epoch
            await self._driver.dispatch(ClientFailed(request.run, request.round, client, epoch, ack.reason))

    async def _forward(self, action: ForwardSum, key: tuple[RunId, int]) -> None:
        report = action.report
        digest = self.node.blobs.put(action.data)
        taken = self._uplink_bytes.pop(report.run, 0)
        message = EdgeSum(report, BlobRef(digest, len(action.data), self.node.name), taken)
        cloud = self._cloud.get(report.run)
        try:
            for attempt in range(10**9):
                if cloud is None:
                    return
                try:
                    ack = await self.node.ask(
                        cloud, "report", message, Ack, purpose=Purpose.TRAINING, run=report.run, timeout_s=600.0
                    )
                except RemoteError as error:
                    log.error("the sum of %s round %d was refused: %s", report.run, report.round, error)
                    return
                except EdgewiseError as error:
                    log.info("the cloud is away, the sum waits: %s", error)
                    await asyncio.sleep(RETRY_S[min(attempt, len(RETRY_S) - 1)])
                else:
                    log.info("sum of %s round %d: %s", report.run, report.round, ack.reason or "accepted")
                    await self._driver.dispatch(SumAcknowledged(report.run, report.assignment))
                    return
        finally:
            self._forwarding.discard(key)
