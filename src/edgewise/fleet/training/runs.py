"""Training runs at the coordinator: submitted, resumed after a crash, each ended in one state with its cause.

What drives a run is `run_roles.py`; here is what a coordinator does around it: the request, the records of rounds, the
version that comes of it.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec

from edgewise.core.errors import EdgewiseError, InputError, StoreDamaged, StoreUnavailable
from edgewise.core.ids import ClientId, Digest, NodeId, RunId
from edgewise.core.layout import Layout, Vector
from edgewise.fleet.membership.watch import Watch
from edgewise.fleet.messages import (
    BlobRef,
    NodeInfo,
    ResumeRun,
    RoundRecord,
    RunStatus,
    SubmitRun,
    TrainedModel,
    hard_examples_of,
    with_hard_examples,
)
from edgewise.fleet.node.node import Node
from edgewise.fleet.serving.versions import VersionStore
from edgewise.fleet.store.events import EventLog
from edgewise.fleet.store.patience import until_taken
from edgewise.fleet.store.retention import Hold
from edgewise.fleet.training.live_run import LiveRun, Registered, RoundClosed, Submitted, record_of, with_former
from edgewise.fleet.training.local_worker import LocalWorker
from edgewise.fleet.training.role_driver import RoleDriver
from edgewise.fleet.training.run_blobs import mapped_model
from edgewise.fleet.training.run_roles import RunRoles
from edgewise.models.task_code import TASK_CODE, difference
from edgewise.training.algorithm import Candidate
from edgewise.training.algorithms import make_algorithm
from edgewise.training.local import own_patterns
from edgewise.training.protocols import messages as m
from edgewise.training.protocols.event_log import decode_event, encode_event
from edgewise.training.protocols.opening import quorum_of
from edgewise.training.protocols.protocol import COORDINATOR, check_carries
from edgewise.training.unsent import without_unsent

log = logging.getLogger("edgewise.fleet")
INDEX = RunId("runs")
"""Log of what was submitted and what became of it; each run has a log of its own beside."""
RETRY_BASE_S = 0.5
RETRY_MOST_S = 30.0
CANCEL_S = 2.0
"""How long the store may take to take the end of a run that is cancelled; then the run ends without it."""
TEMPLATE_BYTES_PER_ENTRY = 8
"""Bound of a template graph per entry of its model, beside `TEMPLATE_SPARE_BYTES`."""
TEMPLATE_SPARE_BYTES = 64 * 2**20


class Runs:
    """All runs of a coordinator.

    Args:
        node: The coordinator's node.
        events: Its log.
        versions: Where what was trained goes.
        watch: Its eyes.
        on_event: Publishes an event with its fields.
        worker: Where a task is installed on this node, too.
    """

    def __init__(
        self,
        node: Node,
        events: EventLog,
        versions: VersionStore,
        watch: Watch,
        on_event: Callable[[str, dict[str, Any]], None],
        worker: LocalWorker | None = None,
    ) -> None:
        self._node = node
        self._events = events
        self._versions = versions
        self._on_event = on_event
        self._runs: dict[RunId, LiveRun] = {}
        self.roles = RunRoles(
            node, events, watch=watch, worker=worker, on_action=self._on_action, also_held=versions.digests
        )
        node.holders["events.db"] = self.held
        self._watch = watch

    async def submit(self, request: SubmitRun, sender: NodeId) -> RunId:
        """Starts a run.

        Args:
            request: What to train; its graph and model are pulled from whoever sends it.
            sender: Who that is.

        Returns:
            Its id.

        Raises:
            InputError: If spec, layout or model do not fit, nobody holds data of the task, or its code differs somewhere.
            MisfitError: If the protocol does not carry the algorithm.
        """
        layout = msgspec.msgpack.decode(request.layout, type=Layout)
        self._check(request)
        start, size_bytes = self._start_of(request)
        if size_bytes != 4 * layout.size:
            raise InputError(
                f"the start has {size_bytes // 4:,} entries, the task's model {layout.size:,}. "
                "The task does not match the fleet's version; install the same task file everywhere."
            )
        most_bytes = TEMPLATE_BYTES_PER_ENTRY * layout.size + TEMPLATE_SPARE_BYTES
        pull, template = self._node.pull_announced, Digest("")
        if request.template is not None or request.register:
            template = await pull(request.template, sender, "the run's graph", most_bytes=most_bytes)
        if request.model is not None and not request.start_version:
            await pull(request.model, sender, "the run's first model", most_bytes=size_bytes)
        return await self._begin(request, layout, template, start)

    async def go_on(self, order: ResumeRun) -> RunId:
        """Goes on with a run that ended early, as a new run from its last closed round.

        Args:
            order: Which, and the new run's name.

        Returns:
            The new run's name.

        Raises:
            InputError: If there is no such run, it has not ended or is complete, or what it needs is not here any more.
        """
        live = self._live(order.run)
        request, start, former = live.going_on(order.name)
        self._check(request)
        needed = [(start, "the model of its last round"), (live.submitted.template, "its graph")]
        needed += [(s.blob.digest, f"{s.name!r} of its server") for s in (former.sections.values() if former else ())]
        for digest, what in needed:
            if digest and not self._node.blobs.claim(digest):
                raise InputError(f"run {order.run!r} cannot go on: {what} is not here any more. Start it anew.")
        return await self._begin(request, live.submitted.layout, live.submitted.template, start, former)

    def _check(self, request: SubmitRun) -> None:
        """Refuses what no node could carry out."""
        from edgewise.training.protocols import make_protocol

        check_carries(make_protocol(request.spec.protocol), make_algorithm(request.spec.algorithm))
        held = self._holders(request.task)
        clients = request.clients or tuple(sorted(held))
        if not clients:
            raise InputError(
                f"no node of the fleet holds data of task {request.task!r}. Start devices with --task, see `edgewise nodes`."
            )
        there = {held[c].node: held[c].task_code for c in clients if c in held}
        if cause := difference(request.task, request.task_code, there):
            raise InputError(cause)

    async def _begin(
        self, request: SubmitRun, layout: Layout, template: Digest, start: Digest, former: m.FormerRun | None = None
    ) -> RunId:
        from edgewise.training.protocols import make_protocol

        algorithm = without_unsent(make_algorithm(request.spec.algorithm), layout)
        protocol = make_protocol(request.spec.protocol)
        held = self._holders(request.task)
        clients = request.clients or tuple(sorted(held))
        spec = msgspec.structs.replace(
            request.spec,
            run=self._name(request),
            algorithm=algorithm.spec.to_dict(),
            protocol=protocol.spec.to_dict(),
            layout=layout.digest,
            num_entries=layout.size,
            extra={**request.spec.extra, TASK_CODE: request.task_code} if request.task_code else request.spec.extra,
            buffers=layout.buffers,
        )
        request = msgspec.structs.replace(request, spec=self._with_teacher(spec, request.teacher_version))
        candidates = [Candidate(client, held[client].num_examples if client in held else 0) for client in clients]
        config = m.RunConfig(
            spec=request.spec,
            clients=clients,
            num_rounds=request.num_rounds,
            quorum=quorum_of(algorithm, candidates, request.spec.seed, request.quorum),
            initial_model=start,
            round_deadline_s=request.round_deadline_s,
            former=former,
        )
        first = self._first_event(config, held)
        submitted = Submitted(
            request=request, config=config, template=template, parent=request.start_version, first=encode_event(first)
        )
        live = self._add(submitted)  # the name is taken from here on
        try:
            await asyncio.to_thread(self._events.append, INDEX, "submitted", msgspec.msgpack.encode(submitted))
        except BaseException:
            del self._runs[submitted.run]
            raise
        await live.driver.dispatch(first)
        assert self.roles.presence is not None
        await self.roles.presence.catch_up(live.driver)
        return submitted.run

    def replay(self) -> None:
        """After a restart: folds every run's log to where it was. Call it before the watch begins."""
        damaged: list[str] = []
        for entry in self._events.read(INDEX, damaged=damaged):
            if entry.kind == "submitted":
                live = self._add(msgspec.msgpack.decode(entry.payload, type=Submitted))
                live.submitted_s = entry.time_s
                self._replay(live)
                rounds = live.view.rounds if live.view is not None else ()
                live.rounds = with_former(rounds, live.rounds, live.driver.moved)
            elif entry.kind == "round":
                closed = msgspec.msgpack.decode(entry.payload, type=RoundClosed)
                if (known := self._runs.get(closed.run)) is not None:
                    others = [r for r in known.rounds if r.round != closed.record.round]
                    known.rounds = sorted([*others, closed.record], key=lambda record: record.round)
            else:
                registered = msgspec.msgpack.decode(entry.payload, type=Registered)
                if (known := self._runs.get(registered.run)) is not None:
                    known.version, known.failure, known.registered = registered.version, registered.failure, True
        for sentence in damaged:
            log.error("%s: what it says of a run is not known any more: %s", self._node.name, sentence)
        for live in self._runs.values():
            live.settle()
        self.roles.replay()

    def _replay(self, live: LiveRun) -> None:
        """Folds a run's log; one that cannot be read stops that run alone."""
        try:
            live.driver.replay()
        except StoreUnavailable:
            raise
        except Exception as error:  # whatever a step makes of bytes that are not what was written
            known = isinstance(error, EdgewiseError)
            live.damage = error.message if isinstance(error, EdgewiseError) else f"{type(error).__name__}: {error}."
            live.lost = Digest(error.fields.get("digest", "")) if isinstance(error, EdgewiseError) else Digest("")
            live.driver.state = None
            run = live.submitted.run
            self.roles.set_aside(run, f"the record of run {run!r} cannot be read: {live.damage}")
            log.error("%s cannot read run %s: %s", self._node.name, run, live.damage, exc_info=None if known else error)

    async def _mend(self, live: LiveRun) -> None:
        """Looks for the blob that a run lost, until a node has it; then the run goes on."""
        attempt = 0
        while live.damage:
            if not await self.roles.stores.find(live.lost):
                await asyncio.sleep(min(RETRY_BASE_S * 2.0**attempt, RETRY_MOST_S))
                attempt += 1
                continue
            live.driver, live.damage = self.roles.add(COORDINATOR, live.submitted.config.spec), ""
            self._replay(live)
            if live.damage and not live.lost:
                return
        self.roles.go_on(live.driver)
        assert self.roles.presence is not None
        await self.roles.presence.catch_up(live.driver)

    async def resume(self) -> None:
        """After a restart: unfinished runs go on where they were, whoever was not told of an end is told."""
        self.roles.resume()
        for live in self._runs.values():
            if live.damage:
                if live.lost and not live.registered:
                    self._node.spawn(self._mend(live), f"mend {live.submitted.run}")
                continue
            if live.driver.state is None:
                await live.driver.dispatch(decode_event(live.submitted.first))
            if live.view is not None and live.view.outcome is None and self.roles.presence is not None:
                await self.roles.presence.catch_up(live.driver)

    def held(self) -> list[Hold]:
        """What all runs hold; on the event loop.

        Raises:
            StoreDamaged: If the record of a run cannot be read: what it needs is not known.
        """
        for live in self._runs.values():
            if live.damage and not live.registered:
                raise StoreDamaged(f"the record of run {live.submitted.run!r} cannot be read: {live.damage}")
        return [*self.roles.held(), *(live.held for live in self._runs.values())]

    def all(self) -> tuple[LiveRun, ...]:
        """All runs, oldest first."""
        return tuple(self._runs.values())

    def status(self, run: RunId) -> RunStatus:
        """How a run stands.

        Raises:
            InputError: If there is no such run.
        """
        return self._live(run).status

    def trained(self, run: RunId) -> TrainedModel:
        """The model of a run's last closed round, however it ended; InputError if there is no such run or model."""
        return self._live(run).trained(self._node.blobs, self._node.name)

    def had_hard_examples(self, run: RunId) -> bool:
        """Whether a run learned, or learns, from hard examples beside the clients' own; False for an unknown run."""
        return run in self._runs and hard_examples_of(self._runs[run].submitted.config.spec) is not None

    async def cancel(self, run: RunId) -> None:
        """Stops a run; what is done stays. Where a store takes nothing it ends all the same, and is written down later."""
        live = self._live(run)
        if live.damage:
            return
        cause = self.roles.stores.of(run)
        reason = f"cancelled by an operator while it waited: {cause}" if cause else "cancelled by an operator"
        cancelled = live.driver.dispatch(m.RunCancelled(run, reason), is_urgent=True)
        task = self._node.spawn(cancelled, f"cancel {run}")
        done, _ = await asyncio.wait({task}, timeout=CANCEL_S)
        if done:
            await task
        elif live.view is None or live.view.outcome is None:
            live.ending = (
                f"cancelled by an operator; {self.roles.stores.of(run) or cause}. Its end is written down when the store "
                "takes it; a coordinator that is started again before that goes on with the run."
            )
            self._say_ended(live)

    def _with_teacher(self, spec: Any, version: int) -> Any:
        hard = hard_examples_of(spec)
        if hard is None or not version:
            return spec
        graph = BlobRef(self._versions.kept(version).graph, self._versions.graph_size(version), self._node.name)
        return with_hard_examples(spec, msgspec.structs.replace(hard, teacher=graph))

    def _start_of(self, request: SubmitRun) -> tuple[Digest, int]:
        """Digest and bytes of the first model."""
        if request.start_version:
            weights = self._versions.kept(request.start_version).weights
            if not weights:
                raise InputError(
                    f"version {request.start_version} was imported: its weights are not known apart from its graph. "
                    "Start from a version that was trained here, or from a new model."
                )
            return weights, self._node.blobs.size(weights)
        if request.model is None:
            raise InputError("a run without a start version brings its first model. Say --start-version, or send it.")
        return request.model.digest, request.model.size_bytes

    def _holders(self, task: str) -> dict[ClientId, NodeInfo]:
        """Clients that are here and hold data of a task."""
        alive = (member.info for member in self._watch.members.alive() if member.info is not None)
        return {info.client: info for info in alive if info.client and info.task == task}

    def _first_event(self, config: m.RunConfig, held: dict[ClientId, NodeInfo]) -> m.Event:
        assert self.roles.presence is not None
        seen = self.roles.presence.clients()
        present = {client: seen[client] for client in config.clients if client in held and client in seen}
        return m.RunStarted(config, present, self.roles.presence.edges())

    def _add(self, submitted: Submitted) -> LiveRun:
        live = self._runs[submitted.run] = LiveRun(submitted, self.roles.add(COORDINATOR, submitted.config.spec))
        live.stores = partial(self.roles.stores.of, submitted.run)
        for former in submitted.config.spec.extra.get(m.FORMER_RUNS, ())[:1]:
            live.rounds = list(self._runs[former].records)
        return live

    def _on_action(self, driver: RoleDriver, action: m.Action) -> None:
        live = self._runs.get(driver.run)
        if live is None or driver is not live.driver or live.damage:
            return
        match action:
            case m.AnnounceRound():
                self._close_round(live, action.summary)
            case m.AnnounceWaiting():
                live.waiting = action.sentence
                self._on_event("run_waiting", {"run": driver.run, "round": action.round, "sentence": action.sentence})
                self._node.spawn(self._ask_missing(live, action.round), f"ask the missing of {driver.run} again")
            case m.Quarantine():
                self._on_event("quarantined", {"run": driver.run, "client": action.client, "reason": action.reason})
            case m.EndRun(outcome=outcome) if outcome is not None and not live.registered:
                self._node.spawn(self._end(live, outcome), f"end of {driver.run}")
            case _:
                pass

    async def _ask_missing(self, live: LiveRun, number: int) -> None:
        """A round below its quorum asks those again who are missing but there: a late worker, a lost order."""
        live.retries += 1
        await asyncio.sleep(min(RETRY_BASE_S * 2.0**live.retries, RETRY_MOST_S))
        view, presence = live.view, self.roles.presence
        if view is None or view.outcome is not None or view.round != number or presence is None:
            return
        seen = presence.clients()
        for client in [c for c in view.missing if c in seen]:
            await live.driver.dispatch(m.ClientReturned(client, seen[client]))

    def _close_round(self, live: LiveRun, summary: m.RoundSummary) -> None:
        """Notes what the round took; its model is evaluated beside, the next round does not wait for that."""
        now, moved = asyncio.get_running_loop().time(), live.driver.moved.of(summary.round)
        record = record_of(summary, accuracy=float("nan"), seconds=now - live.opened_s, moved=moved)
        live.waiting, live.retries, live.opened_s = "", 0, now
        name = f"record of round {summary.round} of {live.submitted.run}"
        evaluated = mapped_model(self._node.blobs, summary.model) if live.submitted.template else None
        live.recording = self._node.spawn(self._record(live, evaluated, record, live.recording), name)

    async def _record(
        self, live: LiveRun, model: Vector | None, record: RoundRecord, before: asyncio.Task[None] | None
    ) -> None:
        if before is not None:  # records keep the order of rounds
            await asyncio.wait({before})
        if model is not None:
            of, judge = live.submitted, self._versions.calibration_scores
            try:
                accuracy, metrics = await asyncio.to_thread(judge, of.template, of.layout, model, of.request.task)
                record = msgspec.structs.replace(record, accuracy=accuracy, metrics=metrics)
            except EdgewiseError as error:  # what it would be judged with is damaged: the round has closed all the same
                log.error("round %d of %s cannot be judged: %s", record.round, of.run, error)
        live.rounds.append(record)
        await self._written(live, "round", RoundClosed(live.submitted.run, record))
        self._on_event("round_closed", {"run": live.submitted.run, "round": record.round, "loss": record.loss})

    async def _end(self, live: LiveRun, outcome: m.Outcome) -> None:
        submitted, run = live.submitted, live.submitted.run
        if live.recording is not None:
            await asyncio.wait({live.recording})
        if outcome.kind is m.OutcomeKind.COMPLETED and submitted.request.register and not live.version:
            try:
                live.version = await until_taken(partial(self._register, live, outcome), self._met(live))
            except EdgewiseError as error:
                log.error("run %s is complete but makes no version: %s", run, error)
                live.failure = f"the run is complete but makes no version: {error.message}"
        registered = Registered(run, live.version, live.failure)
        await self._written(live, "registered", registered)
        live.registered = True
        live.settle()
        self._node.spare.set()
        if not live.ending:
            self._say_ended(live)

    def _say_ended(self, live: LiveRun) -> None:
        status = live.status
        fields = {"run": status.run, "state": status.state, "cause": status.cause, "version": live.version}
        self._on_event("run_ended", fields)

    def _met(self, live: LiveRun) -> Callable[[StoreUnavailable], None]:
        return partial(self.roles.stores.met, live.driver)

    async def _written(self, live: LiveRun, kind: str, entry: msgspec.Struct) -> None:
        """Writes what is kept beside a run's own events, as soon as the store takes it."""
        data = msgspec.msgpack.encode(entry)
        await until_taken(partial(self._events.append, INDEX, kind, data), self._met(live))

    def _register(self, live: LiveRun, outcome: m.Outcome) -> int:
        submitted = live.submitted
        known = [v for v in self._versions.registry.versions() if v.run == submitted.run]
        if known:  # registered before a crash, its entry in the log was not written
            return known[0].number
        num_examples = live.view.rounds[-1].num_examples if live.view is not None and live.view.rounds else {}
        version = self._versions.register_vector(
            submitted.template,
            submitted.layout,
            mapped_model(self._node.blobs, outcome.model),
            task=submitted.request.task,
            run=submitted.run,
            parent=submitted.parent,
            data={str(c): n for c, n in num_examples.items()},
            own=own_patterns(make_algorithm(submitted.config.spec.algorithm).exchanges[-1].local),
        )
        if version.own:
            log.warning("%s", version.caution)
        return version.number

    def _live(self, run: RunId) -> LiveRun:
        live = self._runs.get(run)
        if live is None:
            raise InputError(f"there is no run {run!r}. Known: {', '.join(self._runs) or 'none'}.")
        return live

    def _name(self, request: SubmitRun) -> RunId:
        if request.spec.run:
            if request.spec.run in self._runs:
                raise InputError(f"there is a run {request.spec.run!r} already. Choose another name, or none.")
            return request.spec.run
        return next(name for n in itertools.count(1) if (name := RunId(f"{request.task}-{n}")) not in self._runs)
