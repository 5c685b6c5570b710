"""A node's serving role: installs versions and plans, profiles, answers stage requests or, on a device, clients.

What is installed is kept in the state folder: after a restart a node serves it again before it is seen, and without being
told. The HTTP door is given from outside (`open_door`), so that this layer imports no web framework.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from math import ceil
from pathlib import Path
from typing import Any, Protocol

import msgspec

from edgewise.core.errors import EdgewiseError, TransportError, Unreachable
from edgewise.core.files import write_atomic
from edgewise.core.ids import Epoch, NodeId, Tier
from edgewise.core.process import keep_for_good
from edgewise.fleet.messages import (
    Ack,
    BlobRef,
    Feedback,
    HardExamples,
    Health,
    HealthRequest,
    Held,
    HeldRequest,
    InstallOrder,
    ProfileAnswer,
    ProfileOrder,
)
from edgewise.fleet.messages.events import event_frame, event_of
from edgewise.fleet.node.node import Node
from edgewise.fleet.node.probe import PROBE, answer_probe, probe_link, probe_once
from edgewise.fleet.node.settings import AgentSettings
from edgewise.fleet.serving.drift_watch import CollectOrder, Confidences
from edgewise.fleet.serving.example_collector import StayingGood
from edgewise.fleet.serving.labelling import label_help
from edgewise.fleet.serving.replanner import Adapting
from edgewise.inference.observation import Observation
from edgewise.inference.peers import Target
from edgewise.inference.request_driver import Served
from edgewise.inference.serving_node import Server
from edgewise.inference.stage_messages import STAGE
from edgewise.inference.stage_server import StageHost
from edgewise.inference.stages import Tensors
from edgewise.models.graph.graph import Graph
from edgewise.models.task import Examples
from edgewise.planning.plan import ActivePlan
from edgewise.planning.policy import Policy
from edgewise.transport.frame import Frame

log = logging.getLogger("edgewise.fleet")
KEPT_OBSERVATIONS = 2000


class ServingEndpoint(Protocol):
    """An open inference endpoint."""

    port: int

    async def close(self) -> None:
        """Stops taking requests."""
        ...

    async def overhead_s(self, graph: Graph, gap_s: float = 0.0) -> float:
        """Seconds a request for a model spends in the door itself."""
        ...


class Kept(msgspec.Struct, frozen=True):
    """What a node serves, as it is on disk.

    Attributes:
        order: What was installed.
        coordinator: Who ordered it.
    """

    order: InstallOrder
    coordinator: NodeId


OpenDoor = Callable[[Server, str, int], Awaitable[ServingEndpoint]]
"""(server, host, port) -> the open door."""


class Serving:
    """Stage host on every node but devices; on a device the server behind its door.

    Attributes:
        http_port: Port of the door; 0 without one.
        observations: The last requests, newest last.
    """

    def __init__(self, node: Node, settings: AgentSettings, open_door: OpenDoor | None = None) -> None:
        self.node = node
        self.http_port = 0
        self.observations: list[Observation] = []
        self.compute_s = 0.0
        self._settings = settings
        self._open_door = open_door
        self._door: ServingEndpoint | None = None
        self._graphs: dict[str, Graph] = {}
        self._installed: InstallOrder | None = None
        self.host: StageHost | None = None
        self.server: Server | None = None
        self.good = StayingGood(node.name, settings.buffer_bytes)
        self.adapting: Adapting | None = None
        self._probing: asyncio.Task[Any] | None = None
        self._kept = Path(settings.state) / "serving.msgpack"
        if settings.tier is Tier.DEVICE:
            self.server = Server(
                node.name, name=settings.model_name, dilation=settings.dilation, on_observation=self._observed,
                on_served=self._served, on_feedback=self.good.label,
            )  # fmt: skip
        else:
            self.host = StageHost(node.name, settings.tier, dilation=settings.dilation, keep=16)

    @property
    def version(self) -> int:
        """Model version in force; 0 if none."""
        return self._installed.version if self._installed is not None else 0

    @property
    def plan_epoch(self) -> int:
        """Plan in force; 0 if none."""
        if self.server is not None and self.server.active is not None:
            return int(self.server.active.epoch)
        return int(self._installed.epoch) if self._installed is not None else 0

    @property
    def deployed(self) -> str:
        """What is installed, by name; "" if nothing."""
        return self._installed.digest if self._installed is not None else ""

    async def open(self) -> None:
        """Registers routes and opens the door."""
        self.node.route("control", InstallOrder, self.install, Tier.CLOUD)
        self.node.route("control", ProfileOrder, self._profile, Tier.CLOUD)
        self.node.route("control", HealthRequest, self._health, Tier.CLOUD)
        if self.host is not None:
            self.node.extra_services[PROBE] = answer_probe
            self.node.sync_services[STAGE] = self.host.hear
        if self.server is not None:
            self.node.route("control", Feedback, self._feedback, Tier.CLOUD)
            self.node.route("control", CollectOrder, self._collect, Tier.CLOUD)
            self.node.route("control", HeldRequest, self._held, Tier.CLOUD)
            if self._settings.http and self._open_door is not None:
                host, _, port = self._settings.http.rpartition(":")
                self._door = await self._open_door(self.server, host or "127.0.0.1", int(port))
                self.http_port = self._door.port

    async def resume(self, home: NodeId | None = None) -> None:
        """Serves again what was served before a restart, if all of it is here; the coordinator may order otherwise.

        Args:
            home: The edge it is connected to now, which may be another than before; it is asked first.
        """
        try:
            kept = msgspec.msgpack.decode(await asyncio.to_thread(self._kept.read_bytes), type=Kept)
            if self.node.blobs.has(kept.order.graph.digest):
                await self._serve(_at_home(kept.order, home))
                self.node.coordinator = kept.coordinator
                log.info("%s serves version %d again", self.node.name, kept.order.version)
        except FileNotFoundError:
            pass
        except (OSError, msgspec.MsgspecError, EdgewiseError) as error:
            log.warning(
                "%s cannot serve what it served before, it waits for its coordinator: %s", self.node.name, error
            )

    async def close(self) -> None:
        """Closes door and workers."""
        if self._door is not None:
            await self._door.close()
        for part in (self.server, self.host):
            if part is not None:
                await part.close()

    def peer_changed(self, name: NodeId, there: bool) -> None:
        """A node further out appeared or vanished."""
        part = self.server or self.host
        assert part is not None
        (part.peer_returned if there else part.peer_lost)(name)

    async def labelled(self, wanted: HardExamples) -> Examples | None:
        """Hard examples of this device with the labels a source gives them; they stay here.

        Args:
            wanted: Which source, and its teacher.

        Returns:
            The examples; None without any.

        Raises:
            EdgewiseError: If the source cannot label here.
        """
        if self.server is None:
            return None
        graph = None if wanted.teacher is None else await self._load(wanted.teacher)
        inputs = None if self._installed is None else self._installed.inputs
        policy = Policy() if inputs is None else inputs.policy
        policy = msgspec.structs.replace(policy, raw_may_reach=self._settings.raw_may_reach)
        help = label_help(self.server, wanted.labels, policy, graph, asyncio.get_running_loop())
        return await asyncio.to_thread(self.good.labelled, wanted.labels, help)

    async def install(self, order: InstallOrder, frame: Frame | None = None, _: Any = None) -> Ack:
        """Prepares a version and its plans, then switches; requests in flight finish on the epoch they began with.

        Args:
            order: What.
            frame: Its frame; its sender is the coordinator. None on the coordinator's own node.

        Returns:
            Yes, with version and epoch.
        """
        await self._serve(order)
        if frame is not None:
            self.node.coordinator = frame.sender
            kept = msgspec.msgpack.encode(Kept(order, frame.sender))
            await asyncio.to_thread(write_atomic, self._kept, kept)
        return Ack(details={"version": order.version, "epoch": int(order.epoch)})

    async def _serve(self, order: InstallOrder) -> None:
        graph = await self._load(order.graph)
        for index, plan in enumerate(order.plans):
            active = ActivePlan(Epoch(order.epoch + index), plan, order.version)
            await (self.server or self.host).prepare(active, graph)  # type: ignore[union-attr]
        targets = self._targets(order)
        if self.host is not None:
            self.host.set_targets(targets)
        if self.server is not None:
            self.server.default_deadline_s = order.deadline_s
            self.server.set_targets(targets)
            epochs = [Epoch(order.epoch + index) for index in range(len(order.plans))]
            self.server.activate(epochs[0], keep=epochs)
            self._adapt(order, graph)
        self._installed = order
        keep_for_good()  # graphs and sessions of these plans: looked through in the middle of a request they took 20 ms

    def ways_changed(self) -> None:
        """Another uplink leads to a node now, or it is known which does."""
        if self._installed is not None:
            (self.server or self.host).set_targets(self._targets(self._installed))  # type: ignore[union-attr]

    def _targets(self, order: InstallOrder) -> list[Target]:
        key = self.node.keys.service
        return [Target(name, self.node.uplink_to(name), key(name, STAGE)) for name in order.stage_nodes]

    def _adapt(self, order: InstallOrder, graph: Graph) -> None:
        if self._probing is not None:
            self._probing.cancel()
        self.adapting = self._probing = None
        if order.inputs is None or self.server is None:
            return

        async def probe(size_bytes: int) -> float:
            if not order.stage_nodes:
                raise Unreachable("no stage node to probe.")
            home = order.stage_nodes[0]
            return await probe_once(self.node.uplink_to(home), self.node.keys.service(home, PROBE), size_bytes)

        self.adapting = Adapting(self.server, order, order.inputs, graph, probe, self._switched)
        self._probing = self.node.spawn(self.adapting.keep_probing(), "link probes")

    async def _load(self, graph: BlobRef) -> Graph:
        digest = graph.digest
        if digest not in self._graphs:
            data = await self.node.fetch(graph)
            self._graphs = {**dict(list(self._graphs.items())[-3:]), digest: await asyncio.to_thread(Graph.load, data)}
        return self._graphs[digest]

    async def _profile(self, order: ProfileOrder, *_: Any) -> ProfileAnswer:
        from edgewise.inference.profiler import profile_graph

        graph = await self._load(order.graph)
        door_s = order.door_overhead_s
        if door_s == 0.0 and self._door is not None:
            door_s = await self._door.overhead_s(graph, order.cadence_s)
        profile = await asyncio.to_thread(
            profile_graph, graph, self.node.name, self._settings.tier, dilation=self._settings.dilation,
            cadence_s=order.cadence_s, budget_s=order.budget_s, active_power_w=self._settings.active_power_w,
            door_overhead_s=door_s, measures_memory=order.measures_memory,
        )  # fmt: skip
        link = None
        if order.link_to:
            link = await probe_link(
                self.node.uplink_to(order.link_to), self.node.keys.service(order.link_to, PROBE), gap_s=order.cadence_s
            )
        return ProfileAnswer(profile, link)

    async def _feedback(self, feedback: Feedback, *_: Any) -> Ack:
        taken = self.good.label(feedback.labels)
        return Ack(details={"taken": taken})

    async def _collect(self, order: CollectOrder, *_: Any) -> Ack:
        return Ack(details={"kept": self.good.collect(order.last)})

    async def _held(self, *_: Any) -> Held:
        return Held(self.good.num_hard, self.good.num_labelled)

    async def _health(self, request: HealthRequest, *_: Any) -> Health:
        rows = [o for o in self.observations if o.version == request.version][-request.last :]
        latencies = sorted(o.latency_s for o in rows)  # numpy's first quantile would hold requests up for 20 ms
        return Health(
            self.node.name, request.version, len(rows), sum(o.source == "none" for o in rows),
            latencies[ceil(0.95 * len(rows)) - 1] if rows else 0.0, time.monotonic(),
        )  # fmt: skip

    def _switched(self, epoch: Epoch, why: str) -> None:
        log.warning("%s switches to plan epoch %d: %s", self.node.name, epoch, why)
        self.node.spawn(self._tell("plan_switched", {"revision": int(epoch), "why": why}), "tell of a plan switch")

    def _observed(self, observation: Observation) -> None:
        self.observations.append(observation)
        del self.observations[:-KEPT_OBSERVATIONS]
        self.compute_s += sum(s for name, s in observation.stages if name.startswith(f"{self._settings.tier} "))
        if self.adapting is not None:
            self.adapting.observed(observation)

    def _served(self, inputs: Tensors, served: Served) -> None:
        told = self.good.served(inputs, served)
        if told is not None and self.node.coordinator is not None:
            self.node.spawn(self._tell_confidences(self.node.coordinator, told), "tell confidences")

    async def _tell_confidences(self, coordinator: NodeId, told: Confidences) -> None:
        try:
            await self.node.ask(coordinator, "report", told, Ack)
        except TransportError as error:
            log.info("%s could not tell its confidences, they are dropped: %s", self.node.name, error)

    async def _tell(self, kind: str, fields: dict[str, Any]) -> None:
        frame = event_frame(event_of(kind, {"node": self.node.name, **fields}))
        await self.node.transport.publish(self.node.keys.event(self.node.name), frame)


def _at_home(order: InstallOrder, home: NodeId | None) -> InstallOrder:
    """The same with the edge a device is connected to now as the first that is asked."""
    if home is None or not any(Tier.EDGE in plan.tiers for plan in order.plans):
        return order
    return msgspec.structs.replace(order, stage_nodes=(home, *(name for name in order.stage_nodes if name != home)))
