"""An edge's part in hierarchical training: takes the cloud's order, asks its devices, folds, forwards one sum.

Everything it acknowledged is in its own log: killed between receiving and forwarding, it replays, forwards the same sum, and
the cloud counts it once.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import msgspec

from edgewise.core.errors import EdgewiseError
from edgewise.core.ids import ClientId, Epoch, NodeId, RunId, Tier
from edgewise.fleet.membership.membership import NodeState
from edgewise.fleet.membership.watch import Watch
from edgewise.fleet.messages import (
    INLINE_BYTES,
    Ack,
    BlobRef,
    DismissOrder,
    EdgeSum,
    FoldOrder,
    NodeInfo,
    TrainFailed,
    UpdateReport,
)
from edgewise.fleet.node.delivery import deliver, give_order
from edgewise.fleet.node.node import Node
from edgewise.fleet.store.events import EventLog
from edgewise.fleet.training.round_intake import (
    BlobMapping,
    RunDriver,
    answer_to,
    asked,
    check_client,
    train_order,
    update_event,
)
from edgewise.fleet.training.run_presence import RETURN_GRACE_S
from edgewise.ledger.entry import Purpose
from edgewise.training.protocols.messages import (
    ClientFailed,
    ClientLost,
    ClientReturned,
    RequestUpdate,
    RoundTimedOut,
    SetRoundDeadline,
)
from edgewise.training.protocols.regional import EdgeState, Region, make_edge_step
from edgewise.training.protocols.regions import ForwardSum, RegionOpened, RunDismissed, SumAcknowledged
from edgewise.transport.frame import Frame

log = logging.getLogger("edgewise.fleet")
LOG = "edge"
FETCH_AGAIN_S = 1.0
SUM_TIMEOUT_S = 600.0
"""Longest a cloud may take to fetch a sum."""


class EdgeRole:
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
        self._forwarding: dict[tuple[RunId, int], asyncio.Event] = {}
        node.route("control", FoldOrder, self._fold, Tier.CLOUD)
        node.route("control", DismissOrder, self._dismiss, Tier.CLOUD)
        node.route("report", UpdateReport, self._update, Tier.DEVICE)
        node.route("report", TrainFailed, self._failed, Tier.DEVICE)

    async def start(self) -> None:
        """Replays the log, begins to watch devices, goes on with what was interrupted."""
        replayed = self._driver.replay()
        await self.watch.start()
        # What is outstanding is repeated when the cloud repeats its order: it sees this incarnation and asks anew.
        if replayed and self._driver.state.regions:
            self.node.spawn(self._miss_absent(), "whoever did not come back")

    async def close(self) -> None:
        """Closes the log."""
        self.events.close()

    async def _fold(self, order: FoldOrder, frame: Frame, _: NodeInfo) -> Ack:
        order = await self._with_teacher(order)
        run = order.region.run
        self._orders[run], self._cloud[run] = order, frame.sender
        await self._begin_to_fetch(order)
        if self._orders.get(run) is not order:
            return Ack()  # said again meanwhile, or over; whoever took its place opens the region
        # Nobody waits for the round here: the order is durable, the sum comes by its own report.
        await self._driver.dispatch(RegionOpened(order.region, self._present()))
        for member in self.watch.members.members.values():
            client = member.info.client if member.info is not None else ""
            if member.cause and client in order.region.clients:  # not just "not connected": gone or hung, and why
                await self._driver.dispatch(ClientLost(ClientId(client), member.cause))
        self._expect()
        return Ack()

    async def _begin_to_fetch(self, order: FoldOrder) -> None:
        """Fetches a model, once over the WAN; a large one is passed on to devices from its first bytes on."""
        model = order.model
        if model.size_bytes <= INLINE_BYTES or self.node.blobs.has(model.digest):
            await self.node.fetch(model)
            return
        begun: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        run, what = order.region.run, f"the model of {order.region.run} round {order.region.round}"

        def wanted() -> bool:
            return self._orders.get(run) is order

        def moved(*_: int) -> None:
            if not begun.done():
                begun.set_result(None)

        async def fetch() -> None:
            while wanted():
                try:
                    await deliver(lambda: self.node.fetch(model, progress=moved), what=what, wanted=wanted)
                    break
                except (EdgewiseError, OSError) as error:  # refused, spoiled on its way, or no room for it
                    if not begun.done():  # the order is refused with this
                        return begun.set_exception(error)
                    log.error("%s broke off, it is fetched again: %s", what, error)
                    await asyncio.sleep(FETCH_AGAIN_S)
            moved()

        self.node.spawn(fetch(), f"fetch {what}")
        await begun

    async def _with_teacher(self, order: FoldOrder) -> FoldOrder:
        hard = order.hard_examples
        if hard is None or hard.teacher is None:
            return order
        await self.node.fetch(hard.teacher)
        here = msgspec.structs.replace(hard.teacher, holder=self.node.name)
        return msgspec.structs.replace(order, hard_examples=msgspec.structs.replace(hard, teacher=here))

    async def _dismiss(self, order: DismissOrder, *_: Any) -> Ack:
        for kept in (self._orders, self._cloud, self._uplink_bytes):
            for run in order.runs:
                kept.pop(run, None)
        for run in {r.order.run for r in self._driver.state.regions.values()} & set(order.runs):
            await self._driver.dispatch(RunDismissed(run))
        self._expect()
        return Ack()

    async def _update(self, report: UpdateReport, frame: Frame, sender: NodeInfo) -> Ack:
        await check_client(self.node, self._driver, sender, frame.epoch, report)
        sizes = [r.order.num_entries for r in self._driver.state.regions.values() if r.order.run == report.run]
        if not sizes:  # late, or meant for another edge; nothing is kept of it
            return Ack(False, f"{self.node.name} has no part in run {report.run}; the update does not count")
        event = await update_event(self.node, report, frame, sender, max(sizes))
        size = report.payload.size_bytes if report.payload else sum(t.array.nbytes for t in frame.tensors)
        self._uplink_bytes[report.run] = self._uplink_bytes.get(report.run, 0) + size
        actions = await self._driver.dispatch(event)
        self._expect()
        return answer_to(actions, report.client)

    async def _failed(self, report: TrainFailed, frame: Frame, sender: NodeInfo) -> Ack:
        await check_client(self.node, self._driver, sender, frame.epoch, report)
        await self._driver.dispatch(ClientFailed(report.run, report.round, report.client, frame.epoch, report.cause))
        self._expect()
        return Ack()

    def _ready(self, info: NodeInfo) -> None:
        if info.client and self._driver.state.regions:
            self.node.spawn(self._returned(info), f"{info.node} is back")

    def _lost(self, node: NodeId, cause: str) -> None:
        info = self.watch.members.members[node].info
        if info is not None and info.client and self._driver.state.regions:
            self.node.spawn(self._gone(info.client, cause), f"{node} is lost")

    async def _returned(self, info: NodeInfo) -> None:
        actions = await self._driver.dispatch(ClientReturned(info.client, info.epoch))
        if not asked(actions, info.client):
            # Known as present all the time, as after this edge came back: the order may never have reached it.
            for region in [r for r in self._driver.state.regions.values() if self._awaits(r, info.client)]:
                order = region.order
                await self._perform(RequestUpdate(order.run, order.round, (info.client,), order.model))
        self._expect()

    async def _gone(self, client: ClientId, cause: str) -> None:
        await self._driver.dispatch(ClientLost(client, cause))
        self._expect()

    async def _miss_absent(self) -> None:
        """Gives up who was there before a restart and is not since: there was no token whose end could be seen."""
        await asyncio.sleep(RETURN_GRACE_S)
        for region in tuple(self._driver.state.regions.values()):
            for client in region.gathering.outstanding:
                if client not in self._present():
                    await self._gone(client, f"not seen since {self.node.name} was started again")

    @staticmethod
    def _awaits(region: Region, client: ClientId) -> bool:
        return region.report is None and client in region.gathering.outstanding

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
        """Where each client is or was; one that is coming back is asked when it has told who it is."""
        told = [m for m in self.watch.members.members.values() if m.state is not NodeState.JOINING]
        return {m.info.client: m.node for m in told if m.info is not None and m.info.client}

    async def _perform(self, action: Any) -> None:
        match action:
            case RequestUpdate():
                for client in action.clients:
                    self.node.spawn(self._ask(action, client), f"ask {client} for round {action.round}")
            case ForwardSum():
                self._forward_once(action)
            case SetRoundDeadline(run, number, deadline_s) if deadline_s is not None:
                timed_out = RoundTimedOut(run, number)
                asyncio.get_running_loop().call_later(
                    deadline_s, lambda: self.node.spawn(self._driver.dispatch(timed_out), "round deadline")
                )
            case _:
                pass  # accepted and refused updates are answered where they arrived

    async def _ask(self, request: RequestUpdate, client: ClientId) -> None:
        wish, node = self._orders.get(request.run), self._nodes().get(client)
        if wish is None or node is None:
            return  # asked when the cloud repeats its order after a restart, or when the device is here
        epoch = self.watch.members.members[node].epoch
        order, tensors = train_order(
            self.node, request, algorithm=wish.region.algorithm, seed=wish.region.seed, layout=wish.layout,
            num_entries=wish.region.num_entries, hard_examples=wish.hard_examples,
        )  # fmt: skip

        def wanted() -> bool:
            regions = [r for r in self._driver.state.regions.values() if r.order.run == request.run]
            is_awaited = any(r.order.round == request.round and self._awaits(r, client) for r in regions)
            return is_awaited and self.watch.members.has(node, epoch)

        refusal = await give_order(self.node, node, order, tensors, run=request.run, wanted=wanted)
        if refusal:
            await self._driver.dispatch(ClientFailed(request.run, request.round, client, epoch, refusal))
            self._expect()

    def _forward_once(self, action: ForwardSum) -> None:
        """Forwards a sum; one that is on its way already is tried again at once."""
        key = (action.report.run, action.report.assignment)
        if key in self._forwarding:
            self._forwarding[key].set()
            return
        self._forwarding[key] = asyncio.Event()
        self.node.spawn(self._forward(action, key), f"forward the sum of round {action.report.round}")

    async def _forward(self, action: ForwardSum, key: tuple[RunId, int]) -> None:
        report, what = action.report, f"the sum of {action.report.run} round {action.report.round}"
        digest = await asyncio.to_thread(self.node.blobs.put, action.data)
        taken = self._uplink_bytes.pop(report.run, 0)
        message = EdgeSum(report, BlobRef(digest, len(action.data), self.node.name), taken)

        async def ask() -> Ack:
            cloud = self._cloud[report.run]
            return await self.node.ask(
                cloud, "report", message, Ack, purpose=Purpose.TRAINING, run=report.run, timeout_s=SUM_TIMEOUT_S
            )

        try:
            ack = await deliver(ask, what=what, wanted=lambda: report.run in self._cloud, poke=self._forwarding[key])
        except EdgewiseError as error:
            log.error("%s was refused: %s", what, error)
        else:
            if ack is not None:
                log.info("%s: %s", what, ack.reason or "accepted")
                await self._driver.dispatch(SumAcknowledged(report.run, report.assignment))
        finally:
            del self._forwarding[key]
