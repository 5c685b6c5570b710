"""The process every node runs: opens the node, gives it its roles, serves until it is asked to stop.

device   local worker (if a task is installed) · serving with an inference endpoint · uplinks with a standby
edge     its part in runs · stage host
cloud    stage host · coordinator (if asked to decide)
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgewise.core.errors import EdgewiseError, InputError, Unreachable
from edgewise.core.ids import ClientId, Generation, NodeId, Tier
from edgewise.core.units import parse_duration
from edgewise.fleet.messages import (
    Ack,
    Capability,
    Displaced,
    HardExamples,
    LedgerAnswer,
    LedgerRequest,
    LogAnswer,
    LogRequest,
    NodeInfo,
    Progress,
    StopOrder,
    TakeOver,
)
from edgewise.fleet.node import uplink
from edgewise.fleet.node.capability import measure_capability
from edgewise.fleet.node.connect import open_node
from edgewise.fleet.node.link_watch import direct
from edgewise.fleet.node.node import Node
from edgewise.fleet.node.node_status import NodeStatus, Phase
from edgewise.fleet.node.parents import Parents
from edgewise.fleet.node.recent_log import RecentLog
from edgewise.fleet.node.settings import AgentSettings
from edgewise.fleet.node.sole_process import StateLock, first_of, refuse_second, successor_of, take_place_of
from edgewise.fleet.node.upkeep import Upkeep
from edgewise.fleet.serving.serving_role import OpenEndpoint, Serving
from edgewise.fleet.training.local_worker import LocalWorker
from edgewise.ledger.resources import read_resources
from edgewise.transport.frame import Frame
from edgewise.transport.late_transport import LateTransport

if TYPE_CHECKING:  # a device starts sooner without what only an edge or the coordinator needs
    from edgewise.fleet.coordinator import Coordinator
    from edgewise.fleet.training.node_training import NodeTraining
    from edgewise.models.task import Examples

log = logging.getLogger("edgewise.fleet")
STATUS_EVERY_S = 5.0
"""How often the status file is looked at: what is served changes by itself."""
PARENT_WAIT_S = 3.0
"""How long a starting node waits for its parent's token, to name it in its info."""


class Agent:
    """A running node with its roles. Open with `await Agent.open(settings)`."""

    node: Node
    serving: Serving
    parents: Parents
    _state_lock: StateLock

    def __init__(
        self,
        settings: AgentSettings,
        capability: Capability,
        open_endpoint: OpenEndpoint | None,
        stopped: asyncio.Event | None = None,
    ) -> None:
        self.settings = settings
        self._open_endpoint = open_endpoint
        self.capability = capability
        self.worker: LocalWorker | None = None
        self.training: NodeTraining | None = None
        self.coordinator: Coordinator | None = None
        self.upkeep: Upkeep | None = None
        self.stopped = stopped or asyncio.Event()
        self.is_joined = asyncio.Event()
        self.failure: EdgewiseError | None = None
        self._is_prepared = False
        self._cannot: Unreachable | None = None
        self.status = NodeStatus(Path(settings.state), settings.name, settings.tier)
        self.stop_cause = ""
        self.is_displaced, self.displaced_by = False, Generation(0)
        self.must_begin_anew = False
        self._log = RecentLog()

    @staticmethod
    async def open(
        settings: AgentSettings,
        open_endpoint: OpenEndpoint | None = None,
        *,
        stopped: asyncio.Event | None = None,
        newer_than: Generation | None = None,
    ) -> Agent:
        """Opens the node, registers its roles, serves.

        Args:
            settings: How.
            open_endpoint: Opens the inference endpoint of a device.
            stopped: Set by whoever ends the node, and by the agent when it is to end.
            newer_than: An incarnation of this name that was heard of.

        Returns:
            The agent, serving.

        Raises:
            StoreError: If another process uses the state folder.
            InputError: If another process runs under this name.
        """
        capability = measure_capability(dilation=settings.dilation, active_power_w=settings.active_power_w)
        agent = Agent(settings, capability, open_endpoint, stopped)
        try:
            agent._state_lock = await StateLock.take(Path(settings.state), take_over=settings.take_over)
            generation = agent._state_lock.next_generation()
            if newer_than is not None and generation <= newer_than:  # the clock of who had this name is ahead of ours
                generation = agent._state_lock.keep(Generation(newer_than + 1))
            agent.node = await agent._open_node(generation)
        except BaseException:
            agent._log.close()
            if hasattr(agent, "_state_lock"):
                agent._state_lock.close()
            raise
        try:
            await agent.node.tried.wait()
            if has_session := direct(agent.node.transport) is not None or agent.node.linked.is_set():
                await agent._be_the_only_one()
            await agent._prepare()
            if has_session:
                await agent._join()
            # A parent may have come while this node prepared itself: then it is linked, and has not joined.
            if not (agent.node.linked.is_set() and agent.is_joined.is_set()):
                agent.node.spawn(agent._join_later(), f"join of {settings.name}")
        except BaseException:
            await agent.close()
            raise
        return agent

    @property
    def is_ready(self) -> bool:
        """Whether it is seen by its fleet, or serves without it what it served before."""
        return self.is_joined.is_set() or bool(self.serving.in_force())

    @property
    def endpoint(self) -> str:
        """Where it listens; "" if it does not."""
        transport = direct(self.node.uplinks[0])
        return transport.endpoints[0] if transport is not None and transport.endpoints else ""

    async def close(self) -> None:
        """Ends tasks, roles and sessions, in this order: nothing is written to a log that is closed."""
        await self.node.quiet()
        for role in (self.upkeep, self.coordinator, self.training, getattr(self, "serving", None)):
            if role is not None:
                with contextlib.suppress(EdgewiseError):
                    await role.close()
        if self.worker is not None:
            self.worker.close()
        await self.node.close()
        self._log.close()
        self._state_lock.close()

    async def _be_the_only_one(self) -> None:
        """Refuses to start beside another process of this name, or takes its place."""
        first = await first_of(self.node)
        if first is None:
            return
        if not self.settings.take_over:
            refuse_second(first)
            return
        newer = successor_of(first, self.node.generation)
        if newer != self.node.generation:  # the other machine's clock is ahead
            await self.node.close()
            self.node = await self._open_node(newer)
            self._state_lock.keep(newer)
            await self.node.linked.wait()
        await take_place_of(first, self.node)

    async def _open_node(self, generation: Generation) -> Node:
        loop = asyncio.get_running_loop()
        return await open_node(
            self.settings,
            self.describe,
            generation=generation,
            status=self.status,
            cannot=self._cannot_link,
            panicked=lambda: loop.call_soon_threadsafe(self._begin_anew),
        )

    async def _prepare(self) -> None:
        """Registers routes and roles, and serves what was served: all that needs nobody else."""
        node, settings = self.node, self.settings
        node.progress = lambda: self.worker.progress() if self.worker else Progress(0, False)
        node.on_overtaken = self._overtaken
        node.route("control", LedgerRequest, self._ledger, Tier.CLOUD)
        node.route("control", StopOrder, self._stop, Tier.CLOUD)
        node.route("control", TakeOver, self._taken_over)
        node.route("control", Displaced, self._told_displaced)
        node.route("control", LogRequest, self._recent, Tier.CLOUD)
        self.serving = Serving(node, settings, self._open_endpoint)
        self.upkeep = Upkeep(node, Path(settings.state), keep_bytes=settings.keep_bytes)
        self.serving.more_metrics = self.status.metrics
        self.parents = Parents(node, settings.tier, self.serving, self.status)
        await self.serving.open()
        if not settings.coordinator:  # which knows from its log what is in force
            await self.serving.resume()
        if settings.task:
            self.worker = LocalWorker(
                node=node,
                task_source=settings.task,
                task_settings=settings.task_settings,
                client=ClientId(settings.client or settings.name),
                engine_name=settings.engine,
                labelled=self._labelled,
            )
            await self.worker.load()
        is_edge = settings.tier is Tier.EDGE and not settings.coordinator
        if is_edge or (self.worker is not None and not settings.coordinator):
            from edgewise.fleet.training.node_training import NodeTraining

            self.training = NodeTraining(
                node, Path(settings.state), worker=self.worker, is_edge=is_edge, crash_after=settings.crash_after
            )
        if settings.coordinator:
            from edgewise.fleet.coordinator import Coordinator

            coordinator = self.coordinator = Coordinator(node, settings, self.serving.host_here, self.worker)
            self.serving.more_metrics = lambda: [*coordinator.metrics(), *self.status.metrics()]
            self.serving.monitors = coordinator.monitors
        node.spawn(self._keep_status(), f"status of {settings.name}")
        self._is_prepared = True
        if self._cannot is not None:
            self._cannot_link(self._cannot)

    async def _join_later(self) -> None:
        """Joins once a parent is linked, or gives up when it was to."""
        wait_s = parse_duration(self.settings.wait) if self.settings.wait else None
        try:
            async with asyncio.timeout(wait_s):
                await self.node.linked.wait()
        except TimeoutError:
            waits = self.status.record.waits_for
            causes = " ".join(waits[endpoint].cause for endpoint in self.settings.connect if endpoint in waits)
            return self._fail(Unreachable(f"no parent was there within {self.settings.wait}: {causes}"))
        if self.is_joined.is_set():  # an edge serves its devices also without the cloud
            return
        try:
            if (first := await first_of(self.node)) is not None:
                await self._join_beside(first)
            await self._join()
        except EdgewiseError as error:
            self._fail(error)

    async def _join_beside(self, first: NodeInfo) -> None:
        """Another process came to this name while this one had no link."""
        if not self.settings.take_over:
            refuse_second(first)
        elif first.generation > self.node.generation:
            raise InputError(f"the clock of the process that runs as {first.node!r} is ahead. Start this one again.")
        else:
            await take_place_of(first, self.node)

    async def _join(self) -> None:
        """Follows the parents, is seen by the fleet, begins what needs it."""
        node, settings, parents = self.node, self.settings, self.parents
        transports = [direct(transport) for transport in node.uplinks]
        parents.uplinks = uplink.Uplinks(
            tuple(transport is not None for transport in transports),
            next(index for index, transport in enumerate(transports) if transport is not None),
        )
        for index, transport in enumerate(transports):
            if transport is None:
                node.spawn(self._watch_later(index), f"uplink {index} of {node.name}")
            elif settings.connect:
                await parents.watch(index, transport)
        if settings.connect and node.linked.is_set():
            with contextlib.suppress(TimeoutError):  # the parent may be about to return; it is named when it does
                async with asyncio.timeout(PARENT_WAIT_S):
                    await parents.is_known.wait()
        if settings.tier is Tier.DEVICE and parents.edge is not None:
            self.serving.ask_first(parents.edge)
        await parents.attach(parents.uplinks.attached)
        for role in (self.training, self.coordinator):
            if role is not None:
                await role.start()
        assert self.upkeep is not None
        self.upkeep.begin()
        self.serving.is_started = True
        self.is_joined.set()
        self._tell_status()

    async def _watch_later(self, index: int) -> None:
        late = self.node.uplinks[index]
        assert isinstance(late, LateTransport)
        await late.opened.wait()
        transport = direct(late)
        assert transport is not None
        await self.parents.watch(index, transport)

    def _cannot_link(self, error: Unreachable) -> None:
        """Waiting does not help; a node that serves goes on doing that."""
        self._cannot = error
        if not self._is_prepared:
            return  # whether it serves is not known yet
        if self.serving.in_force():
            log.error("%s serves on, and cannot join its fleet: %s", self.settings.name, error)
        else:
            self._fail(error)

    def _fail(self, error: EdgewiseError) -> None:
        self.failure = self.failure or error
        self.stop_cause = self.stop_cause or error.message
        self.stopped.set()

    def _begin_anew(self) -> None:
        """The network's library has panicked: this process can neither serve nor leave in order, one in its place can."""
        if not self.stopped.is_set() and not self.must_begin_anew:  # who is told to stop, stops
            self.must_begin_anew = True
            self.stopped.set()

    async def _keep_status(self) -> None:
        while True:
            self._tell_status()
            await asyncio.sleep(STATUS_EVERY_S)

    def _tell_status(self) -> None:
        models = {name: now.version for name, now in self.serving.in_force().items()}
        phase: Phase = "serving" if self.is_ready else "starting"
        self.status.becomes(phase, endpoint=self.endpoint, http_port=self.serving.http_port, models=models)

    def describe(self) -> NodeInfo:
        """Who this node is, at this moment."""
        worker = self.worker
        return NodeInfo(
            node=self.node.name,
            tier=self.node.identity.tier,
            generation=self.node.generation,
            certificate=self.node.identity.certificate_pem.decode(),
            parent=self.parents.parent,
            capability=self.capability,
            coordinator=self.settings.coordinator,
            client=worker.client if worker else ClientId(""),
            task=worker.task_name if worker else "",
            num_examples=worker.num_examples if worker else 0,
            label_counts=worker.label_counts if worker else {},
            data_notes=worker.notes if worker else (),
            http_port=self.serving.http_port,
            models=self.serving.in_force(),
            raw_may_reach=self.settings.raw_may_reach,
            task_code=worker.task_code if worker else "",
        )

    async def _labelled(self, wanted: HardExamples) -> Examples | None:
        """Hard examples of the model that is trained here, which is called after its task."""
        assert self.worker is not None
        return await self.serving.labelled(self.worker.task_name, wanted)

    async def _ledger(self, *_: Any) -> LedgerAnswer:
        used = read_resources(self.node.name, self.node.identity.tier)
        return LedgerAnswer(
            entries=self.node.counter.entries(),
            cpu_s=used.cpu_seconds,
            peak_memory_bytes=used.peak_memory_bytes,
            inference_s=self.serving.compute_s,
            training_s=self.worker.counted.seconds if self.worker else 0.0,
        )

    async def _stop(self, *_: Any) -> Ack:
        self.stopped.set()
        return Ack()

    async def _recent(self, request: LogRequest, *_: Any) -> LogAnswer:
        return self._log.answer(request)

    async def _taken_over(self, _: TakeOver, frame: Frame, sender: NodeInfo) -> Ack:
        if sender.node != self.node.name or frame.generation <= self.node.generation:
            return Ack(False, f"{self.node.name} is taken over by a newer process of its own certificate only.")
        self._give_way("another process of this name takes over")
        return Ack()

    async def _told_displaced(self, message: Displaced, _: Frame, sender: NodeInfo) -> Ack:
        """Whoever tells it, only the proof of the newer process counts."""
        if message.newer > self.node.generation:
            self.node.spawn(self._look_for_newer(sender.node), "look for a newer process")
        return Ack()

    async def _look_for_newer(self, told_by: NodeId) -> None:
        first = await first_of(self.node)
        if first is not None and first.generation > self.node.generation:
            self._displace(f"{told_by} hears a newer process of this name", first.generation)

    def _overtaken(self, by: NodeId, newest: Generation) -> None:
        """Another process of this name came while this one was frozen or cut off: nobody heeds this one any more."""
        if newest > self.node.generation:
            self._displace(f"{by} hears a newer process of this name", newest)

    def _displace(self, cause: str, newer: Generation) -> None:
        """Gives way until the newer process is gone; one that cannot ask anybody whether it is, ends."""
        if self.stopped.is_set():
            return
        self.is_displaced, self.displaced_by = bool(self.settings.connect), newer
        self._give_way(cause)

    def _give_way(self, cause: str) -> None:
        if not self.stop_cause:
            what = "is displaced and stands by until that one is gone" if self.is_displaced else "stops"
            log.warning("%s %s: %s", self.node.name, what, cause)
        self.stop_cause = self.stop_cause or cause
        self.stopped.set()
