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

from edgewise.core.backoff import Backoff
from edgewise.core.errors import EdgewiseError
from edgewise.core.ids import ClientId, Generation, NodeId, Tier
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
from edgewise.fleet.node.node import Node
from edgewise.fleet.node.recent_log import RecentLog
from edgewise.fleet.node.settings import AgentSettings
from edgewise.fleet.node.sole_process import StateLock, first_of, refuse_second, successor_of, take_place_of
from edgewise.fleet.serving.serving_role import OpenEndpoint, Serving
from edgewise.fleet.training.local_worker import LocalWorker
from edgewise.ledger.resources import read_resources
from edgewise.transport.frame import Frame
from edgewise.transport.keys import Keys
from edgewise.transport.zenoh.session_config import zenoh_id
from edgewise.transport.zenoh.zenoh_transport import ZenohTransport

if TYPE_CHECKING:  # a device starts sooner without what only an edge or the coordinator needs
    from edgewise.fleet.coordinator import Coordinator
    from edgewise.fleet.training.node_training import NodeTraining
    from edgewise.models.task import Examples

log = logging.getLogger("edgewise.fleet")
ATTACH_RETRY = Backoff(0.1, factor=3.0, most_s=5.0)
ATTACH_RETRIES = 5
PARENT_WAIT_S = 3.0
"""How long a starting node waits for its parent's token, to name it in its info."""


class Agent:
    """A running node with its roles. Open with `await Agent.open(settings)`."""

    node: Node
    serving: Serving
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
        self.parent = NodeId("")
        self.worker: LocalWorker | None = None
        self.training: NodeTraining | None = None
        self.coordinator: Coordinator | None = None
        self.stopped = stopped or asyncio.Event()
        self.uplinks = uplink.Uplinks((True,))
        self._parents: dict[int, NodeId] = {}
        self._edge: NodeId | None = None
        self._parent_known = asyncio.Event()
        self._moving = asyncio.Lock()
        self._is_renewing = False
        self.stop_cause = ""
        self.is_displaced, self.displaced_by = False, Generation(0)
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
            if (
                newer_than is not None and generation <= newer_than
            ):  # the clock of whoever had this name is ahead of ours
                generation = agent._state_lock.keep(Generation(newer_than + 1))
            agent.node = await open_node(settings, agent.describe, generation=generation)
        except BaseException:
            agent._log.close()
            if hasattr(agent, "_state_lock"):
                agent._state_lock.close()
            raise
        try:
            await agent._be_the_only_one()
            await agent._start()
        except BaseException:
            await agent.close()
            raise
        return agent

    @property
    def endpoint(self) -> str:
        """Where it listens; "" if it does not."""
        transport = self.node.uplinks[0]
        listening = transport.endpoints if isinstance(transport, ZenohTransport) else ()
        return listening[0] if listening else ""

    async def close(self) -> None:
        """Ends tasks, roles and sessions, in this order: nothing is written to a log that is closed."""
        await self.node.quiet()
        for role in (self.coordinator, self.training, getattr(self, "serving", None)):
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
            self.node = await open_node(self.settings, self.describe, generation=newer)
            self._state_lock.keep(newer)
        await take_place_of(first, self.node)

    async def _start(self) -> None:
        node, settings = self.node, self.settings
        node.progress = lambda: self.worker.progress() if self.worker else Progress(0, False)
        node.on_overtaken = self._overtaken
        node.route("control", LedgerRequest, self._ledger, Tier.CLOUD)
        node.route("control", StopOrder, self._stop, Tier.CLOUD)
        node.route("control", TakeOver, self._taken_over)
        node.route("control", Displaced, self._told_displaced)
        node.route("control", LogRequest, self._recent, Tier.CLOUD)
        self.serving = Serving(node, settings, self._open_endpoint)
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

            self.coordinator = Coordinator(node, settings, self.serving.host_here, self.worker)
            self.serving.more_metrics = self.coordinator.metrics
            self.serving.monitors = self.coordinator.monitors
        await self.serving.open()
        self.uplinks = uplink.Uplinks((True,) * len(node.uplinks))
        for index in range(len(node.uplinks)):
            await self._watch_uplink(index)
        if settings.connect:
            with contextlib.suppress(TimeoutError):  # the parent may be about to return; it is named when it does
                async with asyncio.timeout(PARENT_WAIT_S):
                    await self._parent_known.wait()
        if not settings.coordinator:  # which knows from its log what is in force
            await self.serving.resume(self._edge if settings.tier is Tier.DEVICE else None)
        await node.attach(self.uplinks.attached)
        for role in (self.training, self.coordinator):
            if role is not None:
                await role.start()
        self.serving.is_started = True

    def describe(self) -> NodeInfo:
        """Who this node is, at this moment."""
        worker = self.worker
        return NodeInfo(
            node=self.node.name,
            tier=self.node.identity.tier,
            generation=self.node.generation,
            certificate=self.node.identity.certificate_pem.decode(),
            parent=self.parent,
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

    async def _watch_uplink(self, index: int) -> None:
        """Follows the token of the node an uplink leads to; names it by the router's Zenoh id."""
        node = self.node
        transport = node.uplinks[index]
        if not isinstance(transport, ZenohTransport) or not self.settings.connect:
            return
        routers = set(await transport.routers())
        newest: dict[NodeId, Generation] = {}
        beyond_away: set[NodeId] = set()

        def seen(key: str, there: bool) -> None:
            tier, name, generation = Keys.read_alive(key)
            if tier is Tier.DEVICE or name == self.node.name:
                return
            known = self._parents.get(index)
            if there and known is None and zenoh_id(name, generation) in routers:
                self._parents[index] = name
                node.set_parent(name, index)
                self.serving.ways_changed()
                if index == 0:
                    self.parent, self._edge = name, name if tier is Tier.EDGE else None
                    self._parent_known.set()
            if self._parents.get(index) == name:
                if generation < newest.get(name, Generation(0)):
                    return  # the end of a former incarnation, seen after the next one had begun
                newest[name] = generation
                self.serving.peer_changed(name, there)
                if there:
                    self.node.spawn(self._learn(name), f"who is {name}")
                self.node.spawn(self._uplink_changed(index, there), f"uplink {index} of {self.node.name}")
            elif tier is not Tier.CLOUD:
                pass  # another edge is not on the way from here to the cloud
            elif not there:
                beyond_away.add(name)
            elif name in beyond_away:
                beyond_away.discard(name)
                self.node.spawn(self._way_is_back(index, name), f"way of {self.node.name} to {name}")

        await transport.watch_presence(self.node.keys.alive("*", "*", "*"), seen)

    async def _learn(self, parent: NodeId) -> None:
        """Has a parent prove its tier, so that the data policy knows how far data sent to it goes."""
        with contextlib.suppress(EdgewiseError):  # not known, it counts as the cloud; asked again when it returns
            await self.node.info_of(parent)

    async def _way_is_back(self, index: int, name: NodeId) -> None:
        """Declares everything anew on an uplink whose parent has a link onward again.

        When a link between two routers comes back, Zenoh 1.10 announces the tokens of clients again, but not the
        queryables of those that were another router's before: they are seen, and nobody reaches them.
        """
        if self.settings.tier is not Tier.DEVICE:
            return
        try:
            is_node = (await self.node.info_of(name)).capability.cores > 0  # operators come and go as they like
        except EdgewiseError as error:
            log.info("%s cannot tell who is back beyond its parent: %s", self.node.name, error)
            is_node = True
        if not is_node or self._is_renewing:  # a whole part of the fleet comes back at once
            return
        self._is_renewing = True
        async with self._moving:
            self._is_renewing = False
            if self.uplinks.attached == index:
                log.info("%s serves anew on uplink %d: the way to %s is back", self.node.name, index, name)
                await self._attach(index)

    async def _uplink_changed(self, index: int, there: bool) -> None:
        async with self._moving:
            before = self.uplinks.attached
            self.uplinks, actions = uplink.step(self.uplinks, uplink.UplinkChanged(index, there))
            for action in actions:
                log.warning("%s moves from uplink %d to %d", self.node.name, before, action.index)
                await self._attach(action.index)

    async def _attach(self, index: int) -> None:
        """Serves on an uplink, however often it takes: a node that serves nowhere is lost to its fleet."""
        for attempt in range(ATTACH_RETRIES + 1):
            try:
                return await self.node.attach(index)
            except EdgewiseError as error:
                log.error("%s cannot serve on uplink %d: %s", self.node.name, index, error)
                if attempt == ATTACH_RETRIES:
                    raise
                await asyncio.sleep(ATTACH_RETRY.delay_s(attempt))
