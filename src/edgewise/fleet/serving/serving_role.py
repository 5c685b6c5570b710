"""A node's serving role: installs versions and plans, profiles, answers stage requests or, on a device, clients.

A node serves many models, each with its own version and plans. What is installed is kept in the state folder: after a
restart a node serves it again before it is seen, unasked. The endpoint is given from outside (`open_endpoint`), so that
this layer imports no web framework.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import msgspec

from edgewise.core.errors import EdgewiseError, StoreError, TransportError, Unreachable
from edgewise.core.ids import Digest, NodeId, Revision, Tier, digest_of
from edgewise.core.process import keep_for_good
from edgewise.fleet.messages import (
    Ack,
    BlobRef,
    DriftStatus,
    ExampleCounts,
    ExampleCountsRequest,
    Feedback,
    FeedbackAck,
    HardExamples,
    Health,
    HealthRequest,
    InForce,
    InstallOrder,
    MonitorsAnswer,
    MonitorsRequest,
    PairsAnswer,
    PairsOrder,
    ProfileAnswer,
    ProfileOrder,
    UninstallOrder,
)
from edgewise.fleet.messages.fleet_events import event_frame, event_of
from edgewise.fleet.node.node import Node
from edgewise.fleet.node.probe import PROBE, Crossing, answer_probe, probe_link, probe_once
from edgewise.fleet.node.settings import AgentSettings
from edgewise.fleet.serving.device_model import DeviceModel, EndpointModels
from edgewise.fleet.serving.drift_metrics import drift_metrics
from edgewise.fleet.serving.drift_watch import CollectOrder, Confidences, Judged
from edgewise.fleet.serving.installed import InstalledModels, edge_first
from edgewise.fleet.serving.labelling import label_help, pair_counts
from edgewise.inference.model_server import ModelServer
from edgewise.inference.observation import Observation
from edgewise.inference.peers import Target
from edgewise.inference.serving_metrics import host_metrics, worker_metrics
from edgewise.inference.serving_node import ServingNode
from edgewise.inference.stage_messages import STAGE
from edgewise.inference.stage_server import StageHost
from edgewise.ledger.metric import Metric, node_metrics
from edgewise.lifecycle.former import PairCounts
from edgewise.models.graph.graph import Graph
from edgewise.models.graph.input_hints import NO_HINTS, InputHints, load_with
from edgewise.models.model_choice import choose_model
from edgewise.models.task import Examples
from edgewise.planning.plan import ActivePlan, Site
from edgewise.planning.policy import Policy
from edgewise.security.http_port import LOOPBACK_HOST, PortSecurity, is_loopback
from edgewise.transport.frame import Frame

log = logging.getLogger("edgewise.fleet")
METRICS_TIMEOUT_S = 2.0
"""How long `/metrics` waits for the coordinator."""
INSTALLED = "serving.msgpack"
"""What a node serves, in its state folder."""
MAX_IN_FLIGHT = 64
"""Open requests of all models of a device; each may have its share of them."""


class ServingEndpoint(Protocol):
    """An open inference endpoint."""

    port: int

    async def close(self) -> None:
        """Stops taking requests."""
        ...

    async def overhead_s(self, graph: Graph, gap_s: float = 0.0) -> float:
        """Seconds a request for a model spends in the endpoint itself."""
        ...


OpenEndpoint = Callable[
    [
        Mapping[str, ModelServer],
        str,
        int,
        Callable[[], Awaitable[Iterable[Metric]]],
        Callable[[], bool] | None,
        PortSecurity,
    ],
    Awaitable[ServingEndpoint],
]
"""(models by name, host, port, the node's metrics, whether it is ready if models do not say it, TLS and tokens) -> the open endpoint."""


def security_of(settings: AgentSettings) -> PortSecurity:
    """TLS and tokens of a node's port: off loopback its own certificate where no other is given, but on a device."""
    given = PortSecurity.of(
        certificate=settings.http_certificate,
        key=settings.http_key,
        tokens=settings.tokens,
        insecure=settings.insecure,
    )
    return (
        given
        if is_loopback(settings.http.rpartition(":")[0] or LOOPBACK_HOST)
        else given.or_identity(settings.identity, settings.tier)
    )


class Serving:
    """Stage host on every node but devices; on a device all its models behind one endpoint.

    Attributes:
        http_port: Port of the endpoint; 0 without one.
        models: What a device serves, by name.
        host: Runs stages on another node.
        monitors: On the coordinator's own node, what the drift monitors know; others ask it.
        compute_s: Seconds this node has computed answers.
        is_started: Whether the node has begun its other roles; one without models of its own is ready then.
        more_metrics: What another role of this node adds to its metrics.
    """

    def __init__(self, node: Node, settings: AgentSettings, open_endpoint: OpenEndpoint | None = None) -> None:
        self.node = node
        self.http_port = 0
        self.compute_s = 0.0
        self.is_started = False
        self.more_metrics: Callable[[], Iterable[Metric]] = tuple
        self.models: dict[str, DeviceModel] = {}
        self.host: StageHost | None = None
        self.monitors: Callable[[], Mapping[str, DriftStatus]] | None = None
        self._settings = settings
        self._open_endpoint = open_endpoint
        self._endpoint: ServingEndpoint | None = None
        self._device: ServingNode | None = None
        self._graphs: dict[tuple[Digest, Digest], Graph] = {}
        self._changing = asyncio.Lock()
        self._away: set[NodeId] = set()
        self._installed = InstalledModels(
            node.name,
            Path(settings.state) / INSTALLED,
            max_models=settings.max_models,
            max_bytes=settings.models_bytes,
        )
        node.holders[INSTALLED] = self._installed.held
        if settings.tier is Tier.DEVICE:
            self._device = ServingNode(node.name, dilation=settings.dilation, max_in_flight=MAX_IN_FLIGHT)
        else:
            self.host = StageHost(node.name, settings.tier, dilation=settings.dilation, keep=16)

    def in_force(self) -> dict[str, InForce]:
        """What is served, by model."""
        if self.host is not None:
            return self._installed.in_force
        found = {name: model.in_force for name, model in sorted(self.models.items())}
        return {name: now for name, now in found.items() if now is not None}

    async def open(self) -> None:
        """Registers routes and opens the endpoint."""
        self.node.route("control", InstallOrder, self.install, Tier.CLOUD)
        self.node.route("control", UninstallOrder, self.uninstall, Tier.CLOUD)
        self.node.route("control", ProfileOrder, self._profile, Tier.CLOUD)
        self.node.route("control", HealthRequest, self._health, Tier.CLOUD)
        if self.host is not None:
            self.node.extra_services[PROBE] = answer_probe
            self.node.sync_services[STAGE] = self.host.handle
            await self._open_http({})
            return
        self.node.route("control", Feedback, self._feedback, Tier.CLOUD)
        self.node.route("control", CollectOrder, self._collect, Tier.CLOUD)
        self.node.route("control", ExampleCountsRequest, self._counts, Tier.CLOUD)
        self.node.route("control", PairsOrder, self._pairs, Tier.CLOUD)
        if self._device is not None:
            await self._open_http(EndpointModels(self._device.models, self._settings.model_name))

    async def _open_http(self, models: Mapping[str, ModelServer]) -> None:
        if self._settings.http and self._open_endpoint is not None:
            host, _, port = self._settings.http.rpartition(":")
            ready = None if self.host is None else lambda: self.is_started
            self._endpoint = await self._open_endpoint(
                models, host or LOOPBACK_HOST, int(port), self.metrics, ready, security_of(self._settings)
            )
            self.http_port = self._endpoint.port

    async def metrics(self) -> list[Metric]:
        """What this node's `/metrics` says beside its models' own."""
        node, settings = self.node, self._settings
        of_node = [
            *node_metrics(node.name, settings.tier, node.counter.entries(), settings.dilation),
            *drift_metrics(await self._drift()),
            *self.more_metrics(),
        ]
        if self.host is not None:
            return [*of_node, *host_metrics(self.host, {name: row.version for name, row in self.in_force().items()})]
        return [*of_node, *(worker_metrics(self._device.worker) if self._device is not None else ())]

    async def _drift(self) -> Mapping[str, DriftStatus]:
        """What the monitors know of the models served here; nothing while the coordinator is away."""
        if self.monitors is not None:
            return self.monitors()
        served = tuple(self.in_force())
        if self.node.coordinator is None or not served:
            return {}
        try:
            asked, timeout_s = MonitorsRequest(served), METRICS_TIMEOUT_S
            return (
                await self.node.ask(self.node.coordinator, "report", asked, MonitorsAnswer, timeout_s=timeout_s)
            ).monitors
        except EdgewiseError as error:
            log.info("%s tells nothing of drift: %s", self.node.name, error)
            return {}

    async def resume(self) -> None:
        """Serves again what was served before a restart, if all of it is here; the coordinator may order otherwise."""
        try:
            before = await self._installed.read()
        except FileNotFoundError:
            return
        except (OSError, msgspec.MsgspecError) as error:
            return self._cannot_resume(error)
        for order in before.orders.values():
            if self._device is not None:  # who asks for it until it is back is told to come again
                self.models[order.model] = self._new_model(order.model)
            try:
                if not self.node.blobs.has(order.graph.digest):
                    log.info("%s lacks the graph of %s, it waits for its coordinator", self.node.name, order.model)
                elif await self._is_whole(order.model, order.graph):
                    await self._serve(order)
                    self.node.coordinator = before.coordinator
                    log.info("%s serves version %d of %s again", self.node.name, order.version, order.model)
            except (OSError, EdgewiseError) as error:
                self._cannot_resume(error, order.model)

    def ask_first(self, edge: NodeId) -> None:
        """Has the edge it is connected to now, which may be another than before, asked before others."""
        orders = self._installed.orders
        orders.update({name: edge_first(order, edge) for name, order in orders.items()})
        self.ways_changed()

    def _cannot_resume(self, error: Exception, model: str = "what") -> None:
        text = "%s cannot serve %s as it did before, it waits for its coordinator: %s"
        log.warning(text, self.node.name, model, error)

    async def _is_whole(self, model: str, graph: BlobRef) -> bool:
        """Whether a stored graph is what its name says; one that is damaged is removed, to be fetched again."""
        if await asyncio.to_thread(self.node.blobs.is_whole, graph.digest):
            return True
        file = self.node.blobs.path(graph.digest)
        log.warning("%s: the graph of %s is damaged on disk and was removed: %s", self.node.name, model, file)
        self.node.blobs.drop(graph.digest)
        return False

    async def close(self) -> None:
        """Closes endpoint and worker."""
        if self._endpoint is not None:
            await self._endpoint.close()
        for model in self.models.values():
            model.stop_following()
        if self.host is not None:
            await self.host.close()
        if self._device is not None:
            await self._device.close()

    def peer_changed(self, name: NodeId, there: bool) -> None:
        """A node further out appeared or vanished."""
        (self._away.discard if there else self._away.add)(name)
        part = self._device or self.host
        assert part is not None
        (part.peer_returned if there else part.peer_lost)(name)

    async def labelled(self, model: str, wanted: HardExamples) -> Examples | None:
        """Hard examples of a model on this device with the labels a source gives them; they stay here.

        Args:
            model: Whose examples.
            wanted: Which source, and its teacher.

        Returns:
            The examples; None without any.

        Raises:
            EdgewiseError: If the source cannot label here.
        """
        served = self.models.get(model)
        if served is None:
            return None
        graph = None if wanted.teacher is None else await self._load(wanted.teacher)
        inputs = None if served.order is None else served.order.inputs
        policy = Policy() if inputs is None else inputs.policy
        policy = msgspec.structs.replace(policy, raw_may_reach=self._settings.raw_may_reach)
        help = label_help(served.served, wanted.labels, policy, graph, asyncio.get_running_loop())
        return await asyncio.to_thread(served.collector.labelled, wanted.labels, help)

    async def host_here(self, order: InstallOrder | UninstallOrder) -> Ack:
        """Carries out what this node's own coordinator role orders; it is not written down, for its log knows it."""
        if isinstance(order, UninstallOrder):
            return await self.uninstall(order)
        return await self.install(order)

    async def install(self, order: InstallOrder, frame: Frame | None = None, _: Any = None) -> Ack:
        """Prepares a version and its plans, then switches; other models are not touched.

        Args:
            order: What.
            frame: Its frame; its sender is the coordinator. None on the coordinator's own node.

        Returns:
            Yes, with model, version and revision; no if there is no room for another model.
        """
        async with self._changing:
            if cause := self._installed.refusal_of(order):
                return Ack(False, cause)
            await self._serve(order)
            await self._remember(frame)
        return Ack()

    async def uninstall(self, order: UninstallOrder, frame: Frame | None = None, _: Any = None) -> Ack:
        """Serves a model no longer; open requests finish.

        Args:
            order: Which.
            frame: As `install`.

        Returns:
            Yes, also if it was not served.
        """
        async with self._changing:
            self._installed.drop(order.model)
            if self.host is not None:
                self.host.remove(order.model)
            elif (model := self.models.pop(order.model, None)) is not None:
                model.stop_following()
                assert self._device is not None
                self._device.withdraw(order.model)
            await self._remember(frame)
        return Ack()

    async def _serve(self, order: InstallOrder) -> None:
        graph = await self._load(order.graph, order.model, order.hints)
        await self.node.pull(order.graph)  # it may be in memory only, e.g. since it was measured here
        targets = self._targets(order)
        if self.host is not None:
            for index, plan in enumerate(order.plans):
                active = ActivePlan(Revision(order.revision + index), plan, order.version)
                await self.host.prepare(active, graph, model=order.model, share=order.share)
            for site, nodes in targets.items():
                self.host.set_targets(nodes, site)
        else:
            model = self.models.get(order.model) or self._new_model(order.model)
            try:
                await model.install(order, graph, targets)
            except BaseException:
                self._drop(model)
                raise
            for name in self._away:
                model.served.peer_lost(name)
            self.models[order.model] = model
            model.stop_following()
            model.follow_link(graph, lambda size: self._probe(order.model, size), self._switched, self.node.spawn)
        self._installed.put(order)
        self.node.spare.set()
        keep_for_good()  # graphs and sessions of these plans: looked through in the middle of a request they took 20 ms

    async def _remember(self, frame: Frame | None) -> None:
        if frame is None:
            return
        self.node.coordinator = frame.sender
        await self._installed.write(frame.sender)

    def _drop(self, model: DeviceModel) -> None:
        """Gives up a model that could not be prepared, unless an earlier version serves, or served before a restart."""
        if model.order is None and self._device is not None and self.models.get(model.name) is not model:
            self._device.withdraw(model.name)

    def _new_model(self, name: str) -> DeviceModel:
        assert self._device is not None
        return DeviceModel(
            self._device,
            name,
            buffer_bytes=self._settings.buffer_bytes,
            on_observation=self._observed,
            on_report=self._report,
        )

    def ways_changed(self) -> None:
        """Another uplink leads to a node now, or it is known which does."""
        for name, order in self._installed.orders.items():
            part = self.host if self.host is not None else self.models[name].served
            for site, nodes in self._targets(order).items():
                part.set_targets(nodes, site)

    def _targets(self, order: InstallOrder) -> dict[Site, list[Target]]:
        def target(name: NodeId) -> Target:
            return Target(name, self.node.uplink_to(name), self.node.keys.service(name, STAGE))

        return {at.site: [target(name) for name in at.nodes] for at in order.nodes_at}

    async def _probe(self, model: str, size_bytes: int) -> Crossing:
        order = self._installed.orders.get(model)
        if order is None or not order.nodes_at or not order.nodes_at[0].nodes:
            raise Unreachable("no node beyond this one to probe.")
        first = order.nodes_at[0].nodes[0]
        return await probe_once(self.node.uplink_to(first), self.node.keys.service(first, PROBE), size_bytes)

    async def _load(self, graph: BlobRef, model: str = "a model", hints: InputHints = NO_HINTS) -> Graph:
        digest, key = graph.digest, _loaded_as(graph, hints)
        self.node.grants.open(digest)  # devices behind this node may fetch it here
        if key not in self._graphs:
            if (
                self.node.blobs.claim(digest)
                and not await self._is_whole(model, graph)
                and graph.holder == self.node.name
            ):
                raise StoreError(
                    f"the graph of {model!r} was damaged on the disk of {self.node.name}. It is fetched back from a node that "
                    "serves it; if none does, bring the model again, with `edgewise serve MODEL.onnx --connect …`, or deploy "
                    "another version."
                )
            data = await self.node.fetch(graph)
            served = {_loaded_as(order.graph, order.hints) for order in self._installed.orders.values()}
            others = [item for item in self._graphs.items() if item[0] not in served][-3:]
            self._graphs = {
                **{known: value for known, value in self._graphs.items() if known in served},
                **dict(others),
                key: await asyncio.to_thread(load_with, data, hints),
            }
        return self._graphs[key]

    async def _profile(self, order: ProfileOrder, *_: Any) -> ProfileAnswer:
        from edgewise.inference.profiler import profile_graph

        graph = await self._load(order.graph, hints=order.hints)
        overhead_s = order.endpoint_overhead_s
        if overhead_s == 0.0 and self._endpoint is not None:
            overhead_s = await self._endpoint.overhead_s(graph, order.cadence_s)
        profile = await asyncio.to_thread(
            profile_graph,
            graph,
            self.node.name,
            self._settings.tier,
            dilation=self._settings.dilation,
            cadence_s=order.cadence_s,
            budget_s=order.budget_s,
            active_power_w=self._settings.active_power_w,
            endpoint_overhead_s=overhead_s,
            measures_memory=order.measures_memory,
        )
        link = None
        if order.link_to:
            link = await probe_link(
                self.node.uplink_to(order.link_to),
                self.node.keys.service(order.link_to, PROBE),
                gap_s=order.cadence_s,
                names=(self.node.name, order.link_to),
            )
        return ProfileAnswer(profile, link)

    def _model(self, name: str) -> DeviceModel:
        return self.models[choose_model(self.models, name)]

    async def _feedback(self, feedback: Feedback, *_: Any) -> FeedbackAck:
        taken = self._model(feedback.model).collector.label(feedback.labels)
        return FeedbackAck(taken=taken)

    async def _collect(self, order: CollectOrder, *_: Any) -> Ack:
        self._model(order.model).collector.collect(order.last)
        return Ack()

    async def _counts(self, request: ExampleCountsRequest, *_: Any) -> ExampleCounts:
        return self._model(request.model).counts()

    async def _pairs(self, order: PairsOrder, *_: Any) -> PairsAnswer:
        model = self._model(order.model)
        examples, now = model.collector.judges(), model.served.graph
        if examples is None or now is None or model.order is None or model.order.version != order.in_force:
            return PairsAnswer(PairCounts())
        former = await self._load(order.graph, order.model)
        return PairsAnswer(await asyncio.to_thread(pair_counts, former, now, examples))

    async def _health(self, request: HealthRequest, *_: Any) -> Health:
        return self._model(request.model).health(request)

    def _switched(self, model: str, revision: Revision, why: str) -> None:
        log.warning("%s switches %s to plan revision %d: %s", self.node.name, model, revision, why)
        fields = {"model": model, "revision": int(revision), "why": why}
        self.node.spawn(self._publish("plan_switched", fields), "publish a plan switch")

    def _observed(self, observation: Observation) -> None:
        self.compute_s += sum(s for name, s in observation.stages if name.startswith(f"{self._settings.tier} "))

    def _report(self, report: Confidences | Judged) -> None:
        if self.node.coordinator is not None:
            self.node.spawn(self._report_to(self.node.coordinator, report), "report confidences")

    async def _report_to(self, coordinator: NodeId, report: Confidences | Judged) -> None:
        try:
            await self.node.ask(coordinator, "report", report, Ack)
        except TransportError as error:
            log.info("%s could not report its confidences, they are dropped: %s", self.node.name, error)

    async def _publish(self, kind: str, fields: dict[str, Any]) -> None:
        frame = event_frame(event_of(kind, {"node": self.node.name, **fields}))
        await self.node.transport.publish(self.node.keys.event(self.node.name), frame)


def _loaded_as(graph: BlobRef, hints: InputHints) -> tuple[Digest, Digest]:
    return graph.digest, digest_of(msgspec.msgpack.encode(hints))
