"""Training runs at the coordinator: submitted, driven, resumed after a crash, each ended in one state with its cause."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np

from edgewise.core.errors import EdgewiseError, InputError
from edgewise.core.ids import ClientId, Digest, NodeId, RunId, Tier
from edgewise.core.layout import Layout
from edgewise.fleet.messages import (
    Ack,
    BlobRef,
    DismissOrder,
    EdgeSum,
    FoldOrder,
    NodeInfo,
    RoundRecord,
    RunStatus,
    SubmitRun,
    TrainFailed,
    UpdateReport,
)
from edgewise.fleet.node import Node
from edgewise.fleet.rounds import BlobMapping, RunDriver, answer_to, check_client, train_order, update_event
from edgewise.fleet.store import EventLog
from edgewise.fleet.versions import VersionStore
from edgewise.fleet.watch import Watch
from edgewise.ledger.entry import Purpose
from edgewise.training.algorithms import make_algorithm
from edgewise.training.protocols import hierarchical, synchronous
from edgewise.training.protocols import messages as m
from edgewise.training.protocols import regions as r
from edgewise.transport.frame import Frame

log = logging.getLogger("edgewise.fleet")
INDEX = RunId("runs")
"""Log of what was submitted and what became of it; each run has a log of its own beside."""


RETRY_BASE_S = 0.5
RETRY_MOST_S = 30.0


class Submitted(msgspec.Struct, frozen=True):
    """A run as the log keeps it."""

    run: RunId
    wish: SubmitRun
    template: Digest
    config: m.RunConfig
    parent: int


class Registered(msgspec.Struct, frozen=True):
    """A run's terminal state, and the version it made."""

    run: RunId
    version: int


@dataclass(slots=True)
class LiveRun:
    """A run with its driver.

    Attributes:
        submitted: What was asked for.
        driver: Folds its events.
        rounds: Closed rounds, for people.
        version: The version it made; 0 if none yet.
        opened_s: When the current round began.
        uplink_bytes, downlink_bytes: Payloads of the current round.
        timer: Of the round's deadline.
        waiting: What the round waits for; "" while it goes on.
        retries: How often missing clients were asked again in this round.
    """

    submitted: Submitted
    driver: RunDriver
    rounds: list[RoundRecord] = field(default_factory=list)
    version: int = 0
    opened_s: float = field(default_factory=time.monotonic)
    uplink_bytes: int = 0
    downlink_bytes: int = 0
    timer: asyncio.TimerHandle | None = None
    waiting: str = ""
    retries: int = 0

    @property
    def hierarchical(self) -> bool:
        """Whether edges fold."""
        return self.submitted.wish.protocol == "hierarchical"

    @property
    def state(self) -> Any:
        """The protocol's `RunState`, whichever protocol it is."""
        return self.driver.state.run if self.hierarchical and self.driver.state else self.driver.state


class Runs:
    """All runs of a coordinator."""

    def __init__(
        self,
        node: Node,
        events: EventLog,
        versions: VersionStore,
        watch: Watch,
        told: Callable[[str, dict[str, Any]], None],
    ) -> None:
        self._node = node
        self._events = events
        self._versions = versions
        self._watch = watch
        self._told = told
        self._runs: dict[RunId, LiveRun] = {}

    async def submit(self, wish: SubmitRun, template: bytes, model: bytes | None) -> RunId:
        """Starts a run.

        Args:
            wish: What to train.
            template: ONNX bytes whose initializers are the layout's slots.
            model: float32[d] as bytes, for a new model; None starts from `wish.start_version`.

        Returns:
            Its id.

        Raises:
            InputError: If words, layout or model do not fit, or nobody holds data of the task.
        """
        layout = msgspec.msgpack.decode(wish.layout, type=Layout)
        algorithm = make_algorithm(wish.algorithm)
        if wish.protocol not in ("synchronous", "hierarchical"):
            raise InputError(f"there is no protocol {wish.protocol!r}. Say synchronous or hierarchical.")
        if model is None:
            model = self._node.blobs.read(self._versions.get(wish.start_version).weights)
        if len(model) != 4 * layout.size:
            raise InputError(
                f"the start has {len(model) // 4:,} entries, the task's model {layout.size:,}. "
                "The task does not match the fleet's version; install the same task file everywhere."
            )
        clients = wish.clients or tuple(sorted(self._clients(wish.task)))
        if not clients:
            raise InputError(
                f"no node of the fleet holds data of task {wish.task!r}. Start devices with --task, see `edgewise nodes`."
            )
        blobs = self._node.blobs
        config = m.RunConfig(
            run=self._name(wish), algorithm=algorithm.spec.to_dict(), clients=clients, num_rounds=wish.num_rounds,
            quorum=max(1, round(wish.quorum_fraction * len(clients))), layout=layout.digest, num_entries=layout.size,
            initial_model=await asyncio.to_thread(blobs.put, model), seed=wish.seed, round_deadline_s=wish.round_deadline_s,
        )  # fmt: skip
        submitted = Submitted(
            config.run, wish, await asyncio.to_thread(blobs.put, template), config, wish.start_version
        )
        await asyncio.to_thread(self._events.append, INDEX, "submitted", msgspec.msgpack.encode(submitted))
        live = self._add(submitted)
        await live.driver.dispatch(self._first_event(live))
        return config.run

    async def resume(self) -> None:
        """After a restart: replays every run; an unfinished one goes on where it was."""
        made: dict[str, int] = {}
        found: list[Submitted] = []
        for entry in self._events.read(INDEX):
            if entry.kind == "submitted":
                found.append(msgspec.msgpack.decode(entry.payload, type=Submitted))
            else:
                registered = msgspec.msgpack.decode(entry.payload, type=Registered)
                made[registered.run] = registered.version
        for submitted in found:
            live = self._add(submitted)
            live.driver.replay()
            live.version = made.get(submitted.run, 0)
            if live.state is None:
                await live.driver.dispatch(self._first_event(live))
            else:
                live.rounds = [_record(s, 0.0, 0, 0) for s in live.state.rounds]
                if submitted.run not in made:
                    await self._go_on(live)

    def status(self, run: RunId) -> RunStatus:
        """How a run stands.

        Raises:
            InputError: If there is no such run.
        """
        live = self._runs.get(run)
        if live is None:
            raise InputError(f"there is no run {run!r}. Known: {', '.join(self._runs) or 'none'}.")
        state = live.state
        outcome = state.outcome if state is not None else None
        done = outcome is not None and (
            live.version or not live.submitted.wish.register or outcome.kind is not m.OutcomeKind.COMPLETED
        )
        return RunStatus(
            run, str(outcome.kind) if outcome is not None and done else "running",
            f"{outcome.sentence} {outcome.cure}".strip() if outcome is not None else _waiting_for(live),
            tuple(live.rounds), live.version, state.model if state is not None else "",
        )  # fmt: skip

    async def cancel(self, run: RunId) -> None:
        """Stops a run; what is done stays."""
        self.status(run)
        await self._runs[run].driver.dispatch(m.RunCancelled(run, "cancelled by an operator"))

    async def update_arrived(self, report: UpdateReport, frame: Frame, sender: NodeInfo) -> Ack:
        """A client's update, in a flat run."""
        live = self._live(report.run)
        event = await update_event(self._node, report, frame, sender)
        live.uplink_bytes += report.payload.size_bytes if report.payload else sum(t.array.nbytes for t in frame.tensors)
        actions = await live.driver.dispatch(event)
        self._expect()
        return answer_to(actions, report.client)

    async def training_failed(self, report: TrainFailed, frame: Frame, sender: NodeInfo) -> Ack:
        """A client says that it cannot do a round."""
        check_client(sender, report.client)
        event = m.ClientFailed(report.run, report.round, report.client, frame.epoch, report.cause)
        await self._live(report.run).driver.dispatch(event)
        self._expect()
        return Ack()

    async def sum_arrived(self, message: EdgeSum, frame: Frame, sender: NodeInfo) -> Ack:
        """An edge's sum, in a hierarchical run."""
        if message.report.edge != sender.node:
            raise InputError(
                f"{sender.node} forwards a sum in the name of {message.report.edge}; each edge forwards its own."
            )
        live = self._live(message.report.run)
        await self._node.fetch(message.sum)
        if not live.hierarchical:
            raise InputError(f"run {message.report.run!r} is not hierarchical; it takes no sums.")
        live.uplink_bytes += message.uplink_bytes
        actions = await live.driver.dispatch(r.SumReceived(message.report, frame.epoch))
        for action in actions:
            if isinstance(action, r.AcceptSum) and action.assignment == message.report.assignment:
                return Ack()
            if isinstance(action, r.RefuseSum) and action.assignment == message.report.assignment:
                return Ack(action.reason is m.Refusal.DUPLICATE, action.text)
        return Ack(False, "the run has ended; the sum does not count")

    async def node_ready(self, info: NodeInfo) -> None:
        """A node is here (again)."""
        for live in self._open_runs():
            if info.tier is Tier.EDGE and live.hierarchical:
                await live.driver.dispatch(r.EdgeReturned(info.node, info.epoch))
            elif info.client in live.submitted.config.clients:
                if live.hierarchical and info.parent and live.driver.state.homes.get(info.client) != info.parent:
                    await live.driver.dispatch(r.ClientHomed(info.client, info.parent))
                await live.driver.dispatch(m.ClientReturned(info.client, info.epoch))
        self._expect()

    async def node_lost(self, node: NodeId, cause: str) -> None:
        """A node is gone or hangs."""
        info = self._watch.members.members[node].info
        for live in self._open_runs():
            if info is None:
                continue
            if info.tier is Tier.EDGE and live.hierarchical:
                await live.driver.dispatch(r.EdgeLost(node, cause))
            elif info.client in live.submitted.config.clients:
                await live.driver.dispatch(m.ClientLost(info.client, cause))
        self._expect()

    def _add(self, submitted: Submitted) -> LiveRun:
        algorithm = make_algorithm(submitted.config.algorithm)
        blobs = BlobMapping(self._node.blobs)
        make = hierarchical.make_cloud_step if submitted.wish.protocol == "hierarchical" else synchronous.make_step
        step: Any = make(algorithm, blobs)

        async def perform(action: Any) -> None:
            await self._perform(live, action)

        live = LiveRun(submitted, RunDriver(submitted.run, step, self._events, self._node.blobs, perform))
        self._runs[submitted.run] = live
        return live

    def _first_event(self, live: LiveRun) -> m.Event:
        config = live.submitted.config
        infos = self._clients(live.submitted.wish.task)
        present = {c: i.epoch for c, i in infos.items() if c in config.clients}
        if not live.hierarchical:
            return m.RunStarted(config, present)
        edges = {e.node: e.epoch for e in self._watch.members.alive(Tier.EDGE)}
        homes = {c: infos[c].parent for c in present}
        return r.HierarchyStarted(config, present, homes, edges)

    async def _go_on(self, live: LiveRun) -> None:
        actions = hierarchical.resume_cloud(live.driver.state) if live.hierarchical else synchronous.resume(live.state)
        for action in actions:
            await self._perform(live, action)

    async def _perform(self, live: LiveRun, action: Any) -> None:
        run = live.submitted.run
        match action:
            case m.RequestUpdate():
                for client in action.clients:
                    self._node.spawn(self._ask_client(live, action, client), f"ask {client} for round {action.round}")
                self._expect()
            case r.OpenRegion():
                self._node.spawn(self._ask_edge(live, action.order), f"ask {action.order.edge}")
            case m.SetRoundDeadline():
                self._set_deadline(live, action)
            case m.AnnounceRound():
                self._close_round(live, action.summary)
            case m.AnnounceWaiting():
                live.waiting = action.sentence
                self._told("run_waiting", {"run": run, "round": action.round, "sentence": action.sentence})
                self._node.spawn(self._ask_missing(live, action.round), f"ask the missing of {run} again")
            case m.Quarantine():
                self._told("quarantined", {"run": run, "client": action.client, "reason": action.reason})
            case m.EndRun():
                self._node.spawn(self._end(live, action.outcome), f"end of {run}")
            case _:
                pass  # answers to senders are given where their reports arrived; blobs are stored by the driver

    async def _ask_client(self, live: LiveRun, request: m.RequestUpdate, client: ClientId) -> None:
        info = self._clients(live.submitted.wish.task).get(client)
        if info is None:
            return
        wish, config = live.submitted.wish, live.submitted.config
        order, tensors = train_order(
            self._node,
            request,
            algorithm=config.algorithm,
            seed=config.seed,
            layout=config.layout,
            collected=wish.collected,
        )
        live.downlink_bytes += 4 * config.num_entries
        try:
            ack = await self._node.ask(
                info.node, "control", order, Ack, tensors, purpose=Purpose.TRAINING, run=request.run
            )
        except EdgewiseError as error:
            log.warning("%s could not be asked for round %d: %s", info.node, request.round, error)
            return
        if not ack.accepted:
            await live.driver.dispatch(m.ClientFailed(request.run, request.round, client, info.epoch, ack.reason))

    async def _ask_edge(self, live: LiveRun, region: r.RegionOrder) -> None:
        config = live.submitted.config
        model = BlobRef(region.model, 4 * config.num_entries, self._node.name)
        order = FoldOrder(region, config.layout, model, live.submitted.wish.collected)
        live.downlink_bytes += 4 * config.num_entries * len(region.clients)
        try:
            await self._node.ask(
                region.edge, "control", order, Ack, purpose=Purpose.TRAINING, run=region.run, timeout_s=600.0
            )
        except EdgewiseError as error:
            log.warning("%s could not be asked for round %d: %s", region.edge, region.round, error)

    async def _ask_missing(self, live: LiveRun, number: int) -> None:
        """A round below its quorum asks those again who are missing but there: a late worker, a lost order."""
        live.retries += 1
        await asyncio.sleep(min(RETRY_BASE_S * 2.0**live.retries, RETRY_MOST_S))
        state = live.state
        if state is None or state.outcome is not None or state.gathering.round != number:
            return
        there = self._clients(live.submitted.wish.task)
        for client in [c for c in state.gathering.missing if c in there]:
            await live.driver.dispatch(m.ClientReturned(client, there[client].epoch))

    def _set_deadline(self, live: LiveRun, action: m.SetRoundDeadline) -> None:
        live.opened_s = time.monotonic()
        if live.timer is not None:
            live.timer.cancel()
        if action.deadline_s is not None:
            event = m.RoundTimedOut(action.run, action.round)
            live.timer = asyncio.get_running_loop().call_later(
                action.deadline_s, lambda: self._node.spawn(live.driver.dispatch(event), "round deadline")
            )

    def _close_round(self, live: LiveRun, summary: m.RoundSummary) -> None:
        record = _record(summary, time.monotonic() - live.opened_s, live.uplink_bytes, live.downlink_bytes)
        accuracy = self._accuracy(live, summary.model)
        live.waiting, live.retries = "", 0
        live.rounds.append(msgspec.structs.replace(record, accuracy=accuracy))
        live.uplink_bytes = live.downlink_bytes = 0
        self._told("round_closed", {"run": live.submitted.run, "round": summary.round, "loss": record.loss})

    def _accuracy(self, live: LiveRun, model: Digest) -> float:
        """Accuracy of a round's model on the calibration data; NaN without held-out data."""
        if self._versions.holdout is None:
            return float("nan")
        vector = np.frombuffer(self._node.blobs.read(model), np.float32)
        layout = msgspec.msgpack.decode(live.submitted.wish.layout, type=Layout)
        return self._versions.calibration_accuracy(live.submitted.template, layout, vector)

    async def _end(self, live: LiveRun, outcome: m.Outcome) -> None:
        submitted, run = live.submitted, live.submitted.run
        if live.timer is not None:
            live.timer.cancel()
        if outcome.kind is m.OutcomeKind.COMPLETED and submitted.wish.register and not live.version:
            live.version = await asyncio.to_thread(self._register, live, outcome)
        await asyncio.to_thread(
            self._events.append, INDEX, "registered", msgspec.msgpack.encode(Registered(run, live.version))
        )
        self._expect()
        self._told(
            "run_ended", {"run": run, "state": str(outcome.kind), "cause": outcome.sentence, "version": live.version}
        )
        if live.hierarchical:
            for edge in self._watch.members.alive(Tier.EDGE):
                self._node.spawn(self._node.ask(edge.node, "control", DismissOrder(run), Ack), f"dismiss {run}")

    def _register(self, live: LiveRun, outcome: m.Outcome) -> int:
        submitted = live.submitted
        known = [v for v in self._versions.registry.versions() if v.run == submitted.run]
        if known:  # registered before a crash, its entry in the log was not written
            return known[0].number
        layout = msgspec.msgpack.decode(submitted.wish.layout, type=Layout)
        vector = np.frombuffer(self._node.blobs.read(outcome.model), np.float32)
        weights = live.state.rounds[-1].weights if live.state.rounds else {}
        version = self._versions.register_vector(
            submitted.template, layout, vector, task=submitted.wish.task, run=submitted.run, parent=submitted.parent,
            data={str(c): w for c, w in weights.items()},
        )  # fmt: skip
        return version.number

    def _open_runs(self) -> Iterable[LiveRun]:
        return [live for live in self._runs.values() if live.state is not None and live.state.outcome is None]

    def _expect(self) -> None:
        outstanding = {
            c for live in self._open_runs() if not live.hierarchical for c in live.state.gathering.outstanding
        }
        infos = {m.info.client: m.node for m in self._watch.members.alive(Tier.DEVICE) if m.info is not None}
        self._watch.expect(node for client, node in infos.items() if client in outstanding)

    def _clients(self, task: str) -> dict[ClientId, NodeInfo]:
        alive = (m.info for m in self._watch.members.alive() if m.info is not None)
        return {i.client: i for i in alive if i.client and i.task == task}

    def _live(self, run: RunId) -> LiveRun:
        self.status(run)
        return self._runs[run]

    def _name(self, wish: SubmitRun) -> RunId:
        if wish.name:
            if wish.name in self._runs:
                raise InputError(f"there is a run {wish.name!r} already. Choose another name, or none.")
            return RunId(wish.name)
        return next(name for n in itertools.count(1) if (name := RunId(f"{wish.task}-{n}")) not in self._runs)


def _record(summary: m.RoundSummary, seconds: float, uplink_bytes: int, downlink_bytes: int) -> RoundRecord:
    missing = {str(c): cause for c, cause in summary.missing.items()}
    return RoundRecord(
        summary.round, summary.metrics.get("loss", float("nan")), float("nan"), len(summary.weights), missing, seconds,
        uplink_bytes, downlink_bytes,
    )  # fmt: skip


def _waiting_for(live: LiveRun) -> str:
    if live.state is None or live.waiting:
        return live.waiting or "not started"
    outstanding = live.state.gathering.outstanding
    return f"round {live.state.gathering.round} waits for {', '.join(outstanding)}" if outstanding else ""
