"""Training runs at the coordinator: submitted, driven, resumed after a crash, each ended in one state with its cause."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Callable, Iterable
from typing import Any

import msgspec
import numpy as np

from edgewise.core.errors import EdgewiseError, IdentityRefused, InputError
from edgewise.core.ids import Digest, Epoch, NodeId, RunId, Tier
from edgewise.core.layout import Layout
from edgewise.fleet.membership.watch import Watch
from edgewise.fleet.messages import (
    Ack,
    BlobRef,
    EdgeSum,
    NodeInfo,
    RoundRecord,
    RunStatus,
    SubmitRun,
    TrainFailed,
    UpdateReport,
)
from edgewise.fleet.node.node import Node
from edgewise.fleet.serving.versions import VersionStore
from edgewise.fleet.store.events import EventLog
from edgewise.fleet.training.live_run import LiveRun, Registered, RoundTold, Submitted, record_of
from edgewise.fleet.training.round_intake import (
    SUM_BYTES_PER_ENTRY,
    BlobMapping,
    RunDriver,
    answer_to,
    check_client,
    fetch_from,
    update_event,
)
from edgewise.fleet.training.run_orders import RunOrders, clients_of
from edgewise.fleet.training.run_presence import Presence
from edgewise.training.algorithms import make_algorithm
from edgewise.training.protocols import hierarchical, synchronous
from edgewise.training.protocols import messages as m
from edgewise.training.protocols import regions as r
from edgewise.training.protocols.event_log import decode_event, encode_event
from edgewise.transport.frame import Frame

log = logging.getLogger("edgewise.fleet")
INDEX = RunId("runs")
"""Log of what was submitted and what became of it; each run has a log of its own beside."""
DISMISSED_RUNS = 1000
"""Ended runs an edge is told of when it is back."""


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
        self._orders = RunOrders(node, watch)
        self._presence = Presence(node, watch, self._perform)

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
        wish = self._with_teacher(wish)
        if len(model) != 4 * layout.size:
            raise InputError(
                f"the start has {len(model) // 4:,} entries, the task's model {layout.size:,}. "
                "The task does not match the fleet's version; install the same task file everywhere."
            )
        clients = wish.clients or tuple(sorted(clients_of(self._watch, wish.task)))
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
        template_digest = await asyncio.to_thread(blobs.put, template)
        first = self._first_event(wish, config)
        submitted = Submitted(config.run, wish, template_digest, config, wish.start_version, encode_event(first))
        await asyncio.to_thread(self._events.append, INDEX, "submitted", msgspec.msgpack.encode(submitted))
        live = self._add(submitted)
        await live.driver.dispatch(first)
        await self._presence.catch_up(live)
        return config.run

    def _with_teacher(self, wish: SubmitRun) -> SubmitRun:
        if wish.hard_examples is None or not wish.teacher_version:
            return wish
        version = self._versions.get(wish.teacher_version)
        graph = BlobRef(version.graph, self._versions.graph_size(version.number), self._node.name)
        return msgspec.structs.replace(wish, hard_examples=msgspec.structs.replace(wish.hard_examples, teacher=graph))

    def replay(self) -> None:
        """After a restart: folds every run's log to where it was. Call it before the watch begins."""
        for entry in self._events.read(INDEX):
            if entry.kind == "submitted":
                live = self._add(msgspec.msgpack.decode(entry.payload, type=Submitted))
                live.driver.replay()
                summaries = live.state.rounds if live.state is not None else ()
                live.rounds = [
                    record_of(s, accuracy=float("nan"), seconds=0.0, uplink_bytes=0, downlink_bytes=0)
                    for s in summaries
                ]
            elif entry.kind == "round":
                told = msgspec.msgpack.decode(entry.payload, type=RoundTold)
                live = self._runs[told.run]
                live.rounds = [told.record if r.round == told.record.round else r for r in live.rounds]
            else:
                registered = msgspec.msgpack.decode(entry.payload, type=Registered)
                live = self._runs[registered.run]
                live.version, live.failure, live.registered = registered.version, registered.failure, True

    async def resume(self) -> None:
        """After a restart: unfinished runs go on where they were."""
        unfinished = [live for live in self._runs.values() if not live.registered]
        for live in unfinished:
            if live.state is None:
                await live.driver.dispatch(decode_event(live.submitted.first))
            else:
                await self._go_on(live)
            await self._presence.catch_up(live)
        if unfinished:
            self._node.spawn(self._presence.miss_absent(unfinished), "whoever did not come back")

    def status(self, run: RunId) -> RunStatus:
        """How a run stands.

        Raises:
            InputError: If there is no such run.
        """
        return self._live(run).status

    def had_hard_examples(self, run: RunId) -> bool:
        """Whether a run learned, or learns, from hard examples beside the clients' own; False for an unknown run."""
        return run in self._runs and self._runs[run].submitted.wish.hard_examples is not None

    async def cancel(self, run: RunId) -> None:
        """Stops a run; what is done stays."""
        await self._live(run).driver.dispatch(m.RunCancelled(run, "cancelled by an operator"))

    async def update_arrived(self, report: UpdateReport, frame: Frame, sender: NodeInfo) -> Ack:
        """A client's update, in a flat run."""
        live = self._live(report.run)
        await check_client(self._node, live.driver, sender, frame.epoch, report)
        event = await update_event(self._node, report, frame, sender, live.submitted.config.num_entries)
        live.uplink_bytes += report.payload.size_bytes if report.payload else sum(t.array.nbytes for t in frame.tensors)
        actions = await live.driver.dispatch(event)
        self._expect()
        return answer_to(actions, report.client)

    async def training_failed(self, report: TrainFailed, frame: Frame, sender: NodeInfo) -> Ack:
        """A client says that it cannot do a round."""
        live = self._live(report.run)
        await check_client(self._node, live.driver, sender, frame.epoch, report)
        event = m.ClientFailed(report.run, report.round, report.client, frame.epoch, report.cause)
        await live.driver.dispatch(event)
        self._expect()
        return Ack()

    async def sum_arrived(self, message: EdgeSum, frame: Frame, sender: NodeInfo) -> Ack:
        """An edge's sum, in a hierarchical run."""
        if message.report.edge != sender.node:
            self._node.count_refusal(f"a sum of {sender.node} in the name of {message.report.edge}")
            log.warning("%s forwards a sum in the name of %s", sender.node, message.report.edge)
            raise IdentityRefused(
                f"{sender.node!r} forwards a sum in the name of {message.report.edge!r}. Each edge forwards its own.",
                node=sender.node,
            )
        live = self._live(message.report.run)
        if not live.hierarchical:
            raise InputError(f"run {message.report.run!r} is not hierarchical; it takes no sums. Send updates.")
        most = SUM_BYTES_PER_ENTRY * live.submitted.config.num_entries
        await fetch_from(self._node, message.sum, sender.node, most)
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
        await self._presence.is_here(self._open_runs(), info)
        if info.tier is Tier.EDGE:
            self._dismiss(info.node, info.epoch)
        self._expect()

    async def node_lost(self, node: NodeId, cause: str) -> None:
        """A node is gone or hangs."""
        info = self._watch.members.members[node].info
        if info is not None:
            await self._presence.is_lost(self._open_runs(), info, cause)
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

    def _first_event(self, wish: SubmitRun, config: m.RunConfig) -> m.Event:
        infos = clients_of(self._watch, wish.task)
        present = {c: i.epoch for c, i in infos.items() if c in config.clients}
        if wish.protocol != "hierarchical":
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
                    self._node.spawn(
                        self._orders.ask_client(live, action, client), f"ask {client} for round {action.round}"
                    )
                self._expect()
            case r.OpenRegion():
                self._node.spawn(self._orders.ask_edge(live, action.order), f"ask {action.order.edge}")
            case m.SetRoundDeadline():
                self._set_deadline(live, action)
            case m.AnnounceRound():
                self._close_round(live, action.summary)
            case m.AnnounceWaiting():
                live.waiting = action.sentence
                self._told("run_waiting", {"run": run, "round": action.round, "sentence": action.sentence})
                self._node.spawn(self._orders.ask_missing(live, action.round), f"ask the missing of {run} again")
            case m.Quarantine():
                self._told("quarantined", {"run": run, "client": action.client, "reason": action.reason})
            case m.EndRun():
                self._node.spawn(self._end(live, action.outcome), f"end of {run}")
            case _:
                pass  # answers to senders are given where their reports arrived; blobs are stored by the driver

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
        """Notes what the round took; its model is evaluated beside, the next round does not wait for that."""
        record = record_of(
            summary, accuracy=float("nan"), seconds=time.monotonic() - live.opened_s,
            uplink_bytes=live.uplink_bytes, downlink_bytes=live.downlink_bytes,
        )  # fmt: skip
        live.waiting, live.retries, live.uplink_bytes, live.downlink_bytes = "", 0, 0, 0
        name = f"record of round {summary.round} of {live.submitted.run}"
        live.recording = self._node.spawn(self._record(live, summary, record, live.recording), name)

    async def _record(
        self, live: LiveRun, summary: m.RoundSummary, record: RoundRecord, before: asyncio.Task[None] | None
    ) -> None:
        if before is not None:  # records keep the order of rounds
            await asyncio.wait({before})
        accuracy = await asyncio.to_thread(self._accuracy, live, summary.model)
        record = msgspec.structs.replace(record, accuracy=accuracy)
        live.rounds.append(record)
        told = msgspec.msgpack.encode(RoundTold(live.submitted.run, record))
        await asyncio.to_thread(self._events.append, INDEX, "round", told)
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
        if live.recording is not None:
            await asyncio.wait({live.recording})
        if outcome.kind is m.OutcomeKind.COMPLETED and submitted.wish.register and not live.version:
            try:
                live.version = await asyncio.to_thread(self._register, live, outcome)
            except EdgewiseError as error:
                log.error("run %s is complete but makes no version: %s", run, error)
                live.failure = f"the run is complete but makes no version: {error.message}"
        registered = Registered(run, live.version, live.failure)
        await asyncio.to_thread(self._events.append, INDEX, "registered", msgspec.msgpack.encode(registered))
        live.registered = True
        self._expect()
        status = live.status
        self._told("run_ended", {"run": run, "state": status.state, "cause": status.cause, "version": live.version})
        if live.hierarchical:
            for edge in self._watch.members.alive(Tier.EDGE):
                self._dismiss(edge.node, edge.epoch)

    def _dismiss(self, edge: NodeId, epoch: Epoch) -> None:
        """Tells an edge which runs it may forget."""
        over = [run for run, live in self._runs.items() if live.registered and live.hierarchical][-DISMISSED_RUNS:]
        if over:
            self._node.spawn(self._orders.dismiss(edge, epoch, tuple(over)), f"dismiss runs of {edge}")

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
        return [live for live in self._runs.values() if live.is_open]

    def _expect(self) -> None:
        outstanding = {
            c for live in self._open_runs() if not live.hierarchical for c in live.state.gathering.outstanding
        }
        infos = {m.info.client: m.node for m in self._watch.members.alive(Tier.DEVICE) if m.info is not None}
        self._watch.expect(node for client, node in infos.items() if client in outstanding)

    def _live(self, run: RunId) -> LiveRun:
        live = self._runs.get(run)
        if live is None:
            raise InputError(f"there is no run {run!r}. Known: {', '.join(self._runs) or 'none'}.")
        return live

    def _name(self, wish: SubmitRun) -> RunId:
        if wish.name:
            if wish.name in self._runs:
                raise InputError(f"there is a run {wish.name!r} already. Choose another name, or none.")
            return RunId(wish.name)
        return next(name for n in itertools.count(1) if (name := RunId(f"{wish.task}-{n}")) not in self._runs)
