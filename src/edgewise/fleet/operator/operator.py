"""An operator's connection to a fleet: what the command line and the demo speak through."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np

from edgewise.core.backoff import Backoff
from edgewise.core.errors import DeadlineExceeded, EdgewiseError, InputError, RemoteError, Unreachable
from edgewise.core.ids import NodeId, RunId, Tier
from edgewise.core.layout import Vector
from edgewise.fleet.membership.watch import Watch
from edgewise.fleet.messages import (
    BLOB,
    SLOWEST_BYTES_PER_S,
    Ack,
    AdmissionAck,
    AdmissionRequest,
    BlobRef,
    CancelRun,
    Capability,
    Deploy,
    DeployAck,
    ExampleCounts,
    ExampleCountsRequest,
    Feedback,
    FeedbackAck,
    FleetAnswer,
    FleetRequest,
    FormerAnswer,
    FormerRequest,
    GraphAnswer,
    GraphRequest,
    LedgerAnswer,
    LedgerRequest,
    ListRuns,
    ListVersions,
    LogAnswer,
    LogRequest,
    Message,
    NodeInfo,
    NodeRow,
    ProfileAnswer,
    ProfileOrder,
    RegisterAck,
    RegisterVersion,
    ResumeRun,
    Rollback,
    RollbackAck,
    RunList,
    RunRequest,
    RunStatus,
    RunSubmitted,
    StateAnswer,
    StateRequest,
    SubmitRun,
    TrainedModel,
    TrainedModelRequest,
    Versions,
)
from edgewise.fleet.node.connect import open_node
from edgewise.fleet.node.node import Node
from edgewise.fleet.node.settings import AgentSettings
from edgewise.fleet.node.sole_process import LOCK, first_of, refuse_second
from edgewise.fleet.node.upkeep import RECORDS
from edgewise.ledger.entry import Purpose
from edgewise.security.identity import Identity
from edgewise.transport.bulk.blobs import FolderBlobs
from edgewise.transport.frame import Frame

M = TypeVar("M", bound=Message)
A = TypeVar("A")
FIND_TIMEOUT_S = 3.5
LONG_TIMEOUT_S = 120.0
ROLLOUT_TIMEOUT_S = 3600.0
"""A rollout goes device by device, each of which pulls the graph and may have to serve some requests first."""
STATUS_TIMEOUT_S = 5.0
FRESH_TIMEOUT_S = 2.0
FRESH_AT_ONCE = 64
RETRY = Backoff(0.1, factor=3.0, most_s=1.0)
RETRIES = 3
"""Waits before a question is asked again that an operator's second session got in the way of, or a node's moving."""
OFFERED_S = 86_400.0
"""What an operator offered stays so long where the next session would find it."""
STALE = "stale_generation"
"""Refusal of a frame whose sender has appeared again under the same name."""


@dataclass(frozen=True, slots=True)
class RunFiles:
    """What a run begins with.

    Attributes:
        template: ONNX graph whose initializers are the layout's slots; their content does not matter. None if there is none.
        model: First model, float32[d]; None where the run goes on from a version.
        no_template: Why there is no graph, where it is left out.
    """

    template: bytes | None
    model: Vector | None = None
    no_template: str = ""


class Operator:
    """Orders and questions to a fleet; made by `connect_operator`.

    Two operators may use one certificate, in two terminals: the fleet hears the newer incarnation of a name only, so one
    that was overtaken is refused, opens its session anew and asks again.

    Attributes:
        node: Its own session.
        coordinator: The node that decides.
    """

    def __init__(self, node: Node, coordinator: NodeId, reopen: Callable[[], Awaitable[Node]] | None = None) -> None:
        self.node = node
        self.coordinator = coordinator
        self._reopen = reopen

    async def nodes(self, *, fresh: bool = False) -> FleetAnswer:
        """The coordinator's view of the fleet.

        Args:
            fresh: Ask every live node again who it is; the coordinator remembers what a node said when it joined,
                and the version it serves has changed since.

        Returns:
            The view.
        """
        answer = await self._ask(FleetRequest(), FleetAnswer)
        if not fresh:
            return answer
        gate = asyncio.Semaphore(FRESH_AT_ONCE)

        async def renewed(row: NodeRow) -> NodeRow:
            if row.state != "alive":
                return row
            with suppress(EdgewiseError, TimeoutError):
                async with gate, asyncio.timeout(FRESH_TIMEOUT_S):
                    return msgspec.structs.replace(row, info=await self.node.info_of(row.info.node, fresh=True))
            return row

        return msgspec.structs.replace(answer, nodes=tuple(await asyncio.gather(*map(renewed, answer.nodes))))

    async def wait_for_nodes(self, ready: Callable[[list[NodeRow]], bool], timeout_s: float) -> list[NodeRow]:
        """Waits until the fleet meets a condition, also while its coordinator is away.

        Args:
            ready: Tells from the rows.
            timeout_s: Deadline.

        Returns:
            The rows.

        Raises:
            Unreachable: If it does not by then; says who is there.
        """
        end = asyncio.get_running_loop().time() + timeout_s
        while True:
            is_late = asyncio.get_running_loop().time() > end
            try:
                rows = list((await self.nodes()).nodes)
            except Unreachable:  # it may be starting
                if is_late:
                    raise
                await asyncio.sleep(0.1)
                continue
            if ready(rows):
                return rows
            if is_late:
                there = ", ".join(f"{r.info.node} ({r.state})" for r in rows) or "nobody"
                raise Unreachable(
                    f"the fleet is not complete after {timeout_s:.0f} s; there: {there}. Look at the missing nodes' logs."
                )
            await asyncio.sleep(0.1)

    async def submit(self, request: SubmitRun, files: RunFiles) -> RunId:
        """Starts a run; the coordinator pulls graph and model from here before it answers.

        Args:
            request: What to train.
            files: What travels beside it.

        Returns:
            Its id.
        """
        template = None if files.template is None else self.offer(files.template)
        model = None if files.model is None else self.offer(np.ascontiguousarray(files.model, "<f4").data.cast("B"))
        size_bytes = sum(ref.size_bytes for ref in (template, model) if ref is not None)
        request = msgspec.structs.replace(request, template=template, model=model)
        return (await self._ask(request, RunSubmitted, timeout_s=_timeout_s(size_bytes))).run

    async def status(self, run: RunId) -> RunStatus:
        """How a run stands."""
        return await self._ask(RunRequest(run), RunStatus)

    async def runs(self) -> RunList:
        """All runs, oldest first."""
        return await self._ask(ListRuns(), RunList)

    async def resume(self, run: RunId, name: str = "") -> RunId:
        """Goes on with a run that ended early, as a new run from its last closed round.

        Args:
            run: Which.
            name: Of the new run; "" lets the coordinator name it.

        Returns:
            The new run's name.
        """
        return (await self._ask(ResumeRun(run, name), RunSubmitted)).run

    async def cancel(self, run: RunId) -> None:
        """Stops a run; what is done stays."""
        await self._ask(CancelRun(run), Ack)

    async def watch(
        self, run: RunId, *, patience_s: float = 60.0, on_unreachable: Callable[[str], None] = lambda _: None
    ) -> AsyncIterator[RunStatus]:
        """Yields the run's status whenever a round closes, last its terminal state.

        Args:
            run: Its id.
            patience_s: How long the coordinator may be away; it goes on with the run when it is back.
            on_unreachable: Takes why there is no answer, each time.

        Yields:
            The status.

        Raises:
            Unreachable: If the coordinator is away for longer.
        """
        changed = asyncio.Event()

        def on_message(_: str, frame: Frame) -> None:
            if frame.run == run:
                changed.set()

        node, answered_s = None, asyncio.get_running_loop().time()
        while True:
            if node is not self.node:  # at first, and after another incarnation took over
                node = self.node
                await node.transport.subscribe(node.keys.event(self.coordinator), on_message)
            changed.clear()
            try:
                status = await self._ask(RunRequest(run), RunStatus, timeout_s=STATUS_TIMEOUT_S)
            except (Unreachable, DeadlineExceeded) as error:
                on_unreachable(error.message)
                if asyncio.get_running_loop().time() - answered_s > patience_s:
                    raise
            else:
                answered_s = asyncio.get_running_loop().time()
                yield status
                if status.state != "running":
                    return
            with suppress(TimeoutError):
                async with asyncio.timeout(2.0):  # a publication may be lost; the status is the truth
                    await changed.wait()

    async def versions(self) -> Versions:
        """The registry."""
        return await self._ask(ListVersions(), Versions)

    async def graph(self, version: int) -> bytes:
        """A version's ONNX bytes."""
        answer = await self._ask(GraphRequest(version), GraphAnswer)
        return await self._renewed(lambda: self.node.fetch(answer.graph))

    async def trained(self, run: RunId) -> tuple[TrainedModel, Vector]:
        """The model of a run's last closed round, float32[d], and what is known of it; also where the run ended early."""
        answer = await self._ask(TrainedModelRequest(run), TrainedModel)
        data = await self._renewed(lambda: self.node.fetch(answer.model))
        return answer, np.frombuffer(data, "<f4")

    async def register(self, graph: bytes, *, task: str, origin: str = "imported", parent: int = 0) -> RegisterAck:
        """Offers a model version; the gate decides."""
        ref = self.offer(graph)
        order = RegisterVersion(task, ref, origin, parent)
        return await self._ask(order, RegisterAck, timeout_s=_timeout_s(ref.size_bytes))

    async def refusals(self, graphs: Mapping[str, bytes], *, task: str) -> dict[str, str]:
        """Which graphs the gate would refuse; nothing is registered.

        Args:
            graphs: ONNX by name.
            task: Of which model.

        Returns:
            A sentence by name; those that may serve are left out, and those that can be compared with nothing.
        """
        found = {}
        for name, graph in graphs.items():
            ref = self.offer(graph)
            order = RegisterVersion(task, ref, is_trial=True)
            gate = (await self._ask(order, RegisterAck, timeout_s=_timeout_s(ref.size_bytes))).gate
            if gate is not None and not gate.passed:
                found[name] = f"{name} is no candidate, its gate would refuse it: {gate.reason}"
        return found

    async def profile(self, node: NodeId, order: ProfileOrder) -> ProfileAnswer:
        """Lets a node measure a graph and its home link."""
        timeout_s = _timeout_s(order.graph.size_bytes) + order.budget_s
        return await self._ask(order, ProfileAnswer, to=node, timeout_s=timeout_s)

    async def admission(self, version: int, *, force: bool = False, ungated: bool = False) -> AdmissionAck:
        """Whether a version may serve in place of the one in force; nothing is changed.

        Args:
            version: Which.
            force: As `Deploy.force`.
            ungated: As `Deploy.ungated`.

        Returns:
            The answer, and the comparison behind it.
        """
        return await self._ask(AdmissionRequest(version, force, ungated), AdmissionAck)

    async def former(self, model: str, besides: Iterable[int] = ()) -> FormerAnswer:
        """A version that served before and is better on the fresh labelled examples of the devices.

        Args:
            model: Of which model.
            besides: Versions that are not tried.

        Returns:
            The version, 0 for none, and a sentence.
        """
        return await self._ask(FormerRequest(model, tuple(besides)), FormerAnswer, timeout_s=ROLLOUT_TIMEOUT_S)

    async def deploy(self, deploy: Deploy) -> DeployAck:
        """Serves a version along plans, device by device; answers when it is done or halted."""
        return await self._ask(deploy, DeployAck, timeout_s=ROLLOUT_TIMEOUT_S)

    async def rollback(self, model: str = "") -> RollbackAck:
        """Restores the version of a model that served before; a rollout in progress is taken back.

        Args:
            model: Which; "" for the only one in force.

        Returns:
            Yes with the version that serves again, or why not.
        """
        return await self._ask(Rollback(model), RollbackAck, timeout_s=ROLLOUT_TIMEOUT_S)

    async def ledger(self, node: NodeId) -> LedgerAnswer:
        """What a node counted."""
        return await self._ask(LedgerRequest(), LedgerAnswer, to=node)

    async def logs(self, node: NodeId, request: LogRequest) -> LogAnswer:
        """The last lines that a node's process logged."""
        return await self._ask(request, LogAnswer, to=node)

    async def state(self, node: NodeId, request: StateRequest) -> StateAnswer:
        """What a node keeps on its disk; it may let go of what nobody needs."""
        return await self._ask(request, StateAnswer, to=node)

    async def example_counts(self, node: NodeId, model: str) -> ExampleCounts:
        """How many hard examples of a model a device has collected."""
        return await self._ask(ExampleCountsRequest(model), ExampleCounts, to=node)

    async def feedback(self, node: NodeId, feedback: Feedback) -> FeedbackAck:
        """Gives a device labels of what it answered."""
        return await self._ask(feedback, FeedbackAck, to=node)

    async def order(self, node: NodeId, message: Message) -> Ack:
        """Any order to any node."""
        return await self._ask(message, Ack, to=node)

    def offer(self, data: bytes | memoryview) -> BlobRef:
        """Puts bytes where nodes can pull them from this operator."""
        digest = self.node.blobs.put(data)
        if self.node.blobs.path(digest).exists():  # also what was offered long ago is new again
            self.node.blobs.path(digest).touch()
        return BlobRef(digest, len(data), self.node.name, self.node.blob_service)

    async def close(self) -> None:
        """Leaves the fleet."""
        await self.node.close()

    async def _ask(
        self,
        message: Message,
        answer: type[M],
        tensors: Any = (),
        *,
        to: NodeId | None = None,
        timeout_s: float = LONG_TIMEOUT_S,
    ) -> M:
        async def ask() -> M:
            whom = to or self.coordinator
            return await self.node.ask(
                whom, "control", message, answer, tensors, purpose=Purpose.CONTROL, timeout_s=timeout_s
            )

        return await self._renewed(ask, may_be_moving=to is not None)

    async def _renewed(self, ask: Callable[[], Awaitable[A]], *, may_be_moving: bool = False) -> A:
        """Asks; again if another session of our name came between, or the node may be moving to another uplink.

        Overtaken, we open a new incarnation; if the other one was asked who we are just as it left, we ask once more.
        """
        for attempt in range(RETRIES):
            try:
                return await ask()
            except Unreachable:
                if not may_be_moving:
                    raise
                await asyncio.sleep(RETRY.delay_s(attempt))
            except RemoteError as error:
                unproven = error.fields.get("remote_code") == Unreachable.code
                if error.fields.get("reason") == STALE and self._reopen is not None:
                    await self.node.close()
                    self.node = await self._reopen()
                elif unproven and error.fields.get("node") == self.node.name:
                    await asyncio.sleep(RETRY.delay_s(attempt))
                else:
                    raise
        return await ask()


@asynccontextmanager
async def connect_operator(identity: Path, endpoint: str, state: Path, fleet: str = "main") -> AsyncIterator[Operator]:
    """Joins a fleet as its operator.

    Args:
        identity: Folder of a certificate of tier cloud; its name is the operator's.
        endpoint: A router of the fleet.
        state: Folder for blobs.
        fleet: Fleet name.

    Yields:
        The operator.

    Raises:
        InputError: If the certificate is of another tier: orders are taken from the cloud's only.
        Unreachable: Within seconds, with the cause, if the endpoint or the coordinator is not there.
    """
    own = Identity.load(identity)
    if own.tier is not Tier.CLOUD:
        raise InputError(
            f"the certificate in {str(identity)!r} is of {own.node!r} ({own.tier}); a fleet takes orders from tier cloud "
            "only. Make one with: edgewise ca issue operator --tier cloud"
        )
    settings = AgentSettings(
        name=own.node, tier=own.tier, identity=str(identity), state=str(state), fleet=fleet, connect=(endpoint,)
    )

    blob_service = f"{BLOB}-{time.time_ns()}"  # another session of this name has not what this one offers

    async def open_session() -> Node:
        node = await open_node(settings, lambda: _operator_info(node))
        node.blob_service = blob_service
        if (other := await first_of(node)) is not None:
            try:
                refuse_second(other, operator=True)
            except InputError:
                await node.close()
                raise
        await node.attach(0)
        return node

    node = await open_session()
    try:
        _forget_offered(node.blobs, state)
        operator = Operator(node, await _find_coordinator(node, endpoint, fleet), open_session)
    except BaseException:
        await node.close()
        raise
    try:
        yield operator
    finally:
        await operator.close()


def _forget_offered(blobs: FolderBlobs, state: Path) -> None:
    """What this operator's earlier sessions offered and fetched; not where a node of its name has its state."""
    if any((state / name).exists() for name in (*RECORDS, LOCK)):
        return
    for digest, _, stat in blobs.stored():
        if time.time() - stat.st_mtime > OFFERED_S:
            blobs.drop(digest)


async def _find_coordinator(node: Node, endpoint: str, fleet: str) -> NodeId:
    watch = Watch(node)
    await watch.start()

    def coordinators() -> list[NodeId]:
        return [m.node for m in watch.members.alive() if m.info is not None and m.info.coordinator]

    if not await watch.wait_for(lambda _: bool(coordinators()), FIND_TIMEOUT_S):
        seen = ", ".join(sorted(watch.members.members)) or "no node"
        raise Unreachable(
            f"{endpoint} answers but no coordinator is in fleet {fleet!r} (seen: {seen}). Check --fleet, start `edgewise coordinator`."
        )
    return coordinators()[0]


def _timeout_s(size_bytes: int) -> float:
    """For an order whose blobs its receiver pulls before it answers."""
    return LONG_TIMEOUT_S + size_bytes / SLOWEST_BYTES_PER_S


def _operator_info(node: Node) -> NodeInfo:
    return NodeInfo(
        node=node.name,
        tier=node.identity.tier,
        generation=node.generation,
        certificate=node.identity.certificate_pem.decode(),
        parent=NodeId(""),
        capability=Capability(cores=0, memory_bytes=0, flops=0.0, dilation=1.0, active_power_w=0.0, python=""),
    )
