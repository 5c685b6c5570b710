"""The node that decides: takes requests of operators, drives runs, keeps versions, deploys. Its log survives it.

What it decides is decided by pure steps (protocols, membership, rollout); this file only joins them to the wire.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import msgspec

from edgewise.core.ids import NodeId, Tier
from edgewise.fleet.fleet_metrics import node_state_metrics, run_metrics, version_metrics
from edgewise.fleet.membership.watch import PROVE_EVERY_S, Watch
from edgewise.fleet.messages import (
    Ack,
    AdmissionAck,
    AdmissionRequest,
    BlobRef,
    CancelRun,
    Deploy,
    DeployAck,
    DriftStatus,
    FleetAnswer,
    FleetRequest,
    FormerAnswer,
    FormerRequest,
    GraphAnswer,
    GraphRequest,
    ListRuns,
    ListVersions,
    MonitorsAnswer,
    MonitorsRequest,
    NodeInfo,
    NodeRow,
    PutInForce,
    RegisterAck,
    RegisterVersion,
    ResumeRun,
    Rollback,
    RollbackAck,
    RunList,
    RunRequest,
    RunStatus,
    RunSubmitted,
    SubmitRun,
    TrainedModel,
    TrainedModelRequest,
    Versions,
)
from edgewise.fleet.messages.fleet_events import event_frame, event_of
from edgewise.fleet.node.node import Node
from edgewise.fleet.node.settings import AgentSettings
from edgewise.fleet.serving.deploy_checks import admission_of
from edgewise.fleet.serving.deployments import Deployments
from edgewise.fleet.serving.drift_reference import drift_reference
from edgewise.fleet.serving.drift_watch import CollectOrder, Confidences, DriftWatch, Judged
from edgewise.fleet.serving.former_trial import FormerTrial
from edgewise.fleet.serving.holdout import load_holdouts, load_judge
from edgewise.fleet.serving.versions import VersionStore
from edgewise.fleet.store.events import EventLog, Registry
from edgewise.fleet.training.local_worker import LocalWorker
from edgewise.fleet.training.runs import Runs
from edgewise.ledger.metric import Metric
from edgewise.transport.frame import Frame

log = logging.getLogger("edgewise.fleet")
NOT_IN_FORCE = Ack(False, "no version of this model is in force")
MOST_GRAPH_BYTES = 2**31
"""What ONNX can be in one piece: protobuf's own bound."""


class Coordinator:
    """The coordinator's role.

    Args:
        node: Its node.
        settings: How it was started.
        host_here: Installs on, and uninstalls from, its own stage host.
        worker: Where a task is installed on this node, too.
    """

    def __init__(self, node: Node, settings: AgentSettings, host_here: Any, worker: LocalWorker | None = None) -> None:
        self.node = node
        state = Path(settings.state)
        self.events = EventLog.open(state / "events.db", crash_after=settings.crash_after)
        self.registry = Registry.open(state / "registry.db")
        self.versions = VersionStore(
            self.registry, node.blobs, load_holdouts(settings.holdout), load_judge(settings.judge)
        )
        node.grants.is_graph = self.versions.is_graph
        self.watch = Watch(
            node, ready=self._ready, lost=self._lost, prove_every_s=PROVE_EVERY_S, proved=self._proved_again
        )
        self.runs = Runs(node, self.events, self.versions, self.watch, self._on_event, worker)
        self.deployments = Deployments(node, self.versions, self.watch, self.events, host_here, self._on_event)
        self.drift: dict[str, DriftWatch] = {}
        node.holders["registry.db"] = lambda: self.versions.held(self.deployments.serving())
        self._routes()

    async def start(self) -> None:
        """Replays the log, begins to watch, goes on with what was interrupted."""
        for sentence in self.registry.damaged.values():
            log.error("%s: %s", self.node.name, sentence)
        self.runs.replay()
        self.deployments.replay()
        await self.deployments.resume()
        await self.watch.start()
        await self.runs.resume()

    async def close(self) -> None:
        """Closes log and registry; nothing is lost."""
        await self.runs.roles.close()
        self.events.close()
        self.registry.close()

    def metrics(self) -> list[Metric]:
        """What `/metrics` says of the fleet: runs, versions in force, nodes."""
        members = [m for m in self.watch.members.members.values() if m.info is None or not _is_operator(m.info)]
        in_force = {name: now.deploy.version for name, now in self.deployments.in_force().items()}
        return [*run_metrics(self.runs.all()), *version_metrics(in_force), *node_state_metrics(members)]

    def _routes(self) -> None:
        node, cloud = self.node, Tier.CLOUD
        node.route("control", FleetRequest, self._fleet, cloud)
        node.route("control", SubmitRun, self._submit, cloud)
        node.route("control", RunRequest, self._status, cloud)
        node.route("control", TrainedModelRequest, self._trained, cloud)
        node.route("control", ListRuns, self._runs_there, cloud)
        node.route("control", ResumeRun, self._resume, cloud)
        node.route("control", CancelRun, self._cancel, cloud)
        node.route("control", ListVersions, self._versions, cloud)
        node.route("control", GraphRequest, self._graph, cloud)
        node.route("control", RegisterVersion, self._register, cloud)
        node.route("control", AdmissionRequest, self._admission, cloud)
        node.route("control", Deploy, self._deploy, cloud)
        node.route("control", Rollback, self._rollback, cloud)
        node.route("control", FormerRequest, self._former, cloud)
        node.route("report", Confidences, self._confidences, Tier.DEVICE)
        node.route("report", Judged, self._judged, Tier.DEVICE)
        node.route("report", MonitorsRequest, self._monitors_asked)

    def _ready(self, info: NodeInfo) -> None:
        if _is_operator(info):
            return
        self._on_event("node_ready", {"node": info.node, "tier": str(info.tier)})
        self.runs.roles.node_ready(info)
        self.node.spawn(self.deployments.returned(info), f"install on {info.node}")

    def _proved_again(self, info: NodeInfo) -> None:
        if not _is_operator(info):
            self.deployments.proved(info)

    def _lost(self, node: NodeId, cause: str) -> None:
        info = self.watch.members.members[node].info
        if info is None or _is_operator(info):
            return
        self._on_event("node_lost", {"node": node, "cause": cause})
        self.deployments.lost(node)
        self.runs.roles.node_lost(info, cause)

    def _on_event(self, kind: str, fields: dict[str, Any]) -> None:
        log.info("%s %s", kind, fields)
        frame = event_frame(event_of(kind, fields))
        self.node.spawn(self.node.transport.publish(self.node.keys.event(self.node.name), frame), f"publish {kind}")

    async def _fleet(self, *_: Any) -> FleetAnswer:
        members = self.watch.members.members.values()
        rows = [NodeRow(m.info, str(m.state), m.cause or self._unserved(m.node)) for m in members if m.info is not None]
        own = NodeRow(self.node.describe(), "alive")
        rows = [r for r in rows if not _is_operator(r.info)]
        rows.sort(key=lambda r: r.info.node)
        drift = {name: watch.sentence for name, watch in sorted(self.drift.items()) if watch.sentence}
        return FleetAnswer((own, *rows), dict(self.node.refused), drift, self.monitors())

    def monitors(self) -> dict[str, DriftStatus]:
        """What the drift monitors know, by model; without those that know nothing yet."""
        found = {name: watch.status for name, watch in sorted(self.drift.items())}
        return {name: status for name, status in found.items() if status is not None}

    async def _monitors_asked(self, request: MonitorsRequest, *_: Any) -> MonitorsAnswer:
        return MonitorsAnswer({name: status for name, status in self.monitors().items() if name in request.models})

    def _unserved(self, node: NodeId) -> str:
        """Why an alive node does not serve what is in force as it was planned; "" if it does."""
        in_force = self.deployments.in_force()
        refusals = self.deployments.refusals.items()
        return " ".join(cause for (refusing, model), cause in refusals if refusing == node and model in in_force)

    async def _submit(self, request: SubmitRun, _: Frame, sender: NodeInfo) -> RunSubmitted:
        return RunSubmitted(await self.runs.submit(request, sender.node))

    async def _status(self, request: RunRequest, *_: Any) -> RunStatus:
        return self.runs.status(request.run)

    async def _trained(self, request: TrainedModelRequest, *_: Any) -> TrainedModel:
        return self.runs.trained(request.run)

    async def _runs_there(self, *_: Any) -> RunList:
        return RunList(tuple(live.row for live in self.runs.all()))

    async def _resume(self, order: ResumeRun, *_: Any) -> RunSubmitted:
        return RunSubmitted(await self.runs.go_on(order))

    async def _cancel(self, order: CancelRun, *_: Any) -> Ack:
        await self.runs.cancel(order.run)
        return Ack()

    async def _versions(self, *_: Any) -> Versions:
        now = self.deployments.in_force()
        versions = tuple(self.registry.versions())
        lines = [line for model in dict.fromkeys(v.task for v in versions) for line in self.registry.history(model)]
        lines.sort(key=lambda line: line.time_s)
        return Versions(
            versions,
            {name: of.deploy.version for name, of in now.items()},
            {name: of.policy for name, of in now.items()},
            {name: of.deploy.share for name, of in now.items()},
            tuple(PutInForce(line.task, line.number, line.time_s, line.note) for line in lines),
            self.registry.damaged,
            self.deployments.changing(),
        )

    async def _graph(self, request: GraphRequest, *_: Any) -> GraphAnswer:
        version = self.versions.get(request.version)
        return GraphAnswer(BlobRef(version.graph, self.versions.graph_size(version.number), self.node.name))

    async def _register(self, request: RegisterVersion, _: Frame, sender: NodeInfo) -> RegisterAck:
        digest = await self.node.pull_announced(request.graph, sender.node, "a graph", most_bytes=MOST_GRAPH_BYTES)
        graph = await asyncio.to_thread(self.node.blobs.read, digest)
        if request.is_trial:
            return RegisterAck(gate=await asyncio.to_thread(self.versions.judge, graph, request.task))
        version = await asyncio.to_thread(
            self.versions.register_graph, graph, task=request.task, origin=request.origin, parent=request.parent
        )
        self._on_event(
            "version_registered",
            {
                "model": version.task,
                "version": version.number,
                "passed": version.gate is None or version.gate.passed,
            },
        )
        return RegisterAck(version=version.number, gate=version.gate)

    async def _admission(self, request: AdmissionRequest, *_: Any) -> AdmissionAck:
        serves = self.deployments.version_of(self.versions.get(request.version).task)
        found, gate = await asyncio.to_thread(
            admission_of, self.versions, request.version, serves, force=request.force, ungated=request.ungated
        )
        return AdmissionAck(not found.refusal, found.refusal, serves, gate, found.overridden, found.note)

    async def _deploy(self, request: Deploy, *_: Any) -> DeployAck:
        return await self.deployments.deploy(request)

    async def _former(self, request: FormerRequest, *_: Any) -> FormerAnswer:
        in_force = self.deployments.version_of(request.model)
        return await FormerTrial(self.node, self.versions).find(request, in_force, self._devices())

    async def _rollback(self, request: Rollback, *_: Any) -> RollbackAck:
        return await self.deployments.rollback(request.model)

    async def _confidences(self, report: Confidences, frame: Frame, sender: NodeInfo) -> Ack:
        watch = self._watch_of(report.model)
        return NOT_IN_FORCE if watch is None else await watch.arrived(report, frame, sender)

    async def _judged(self, report: Judged, frame: Frame, sender: NodeInfo) -> Ack:
        watch = self._watch_of(report.model)
        return NOT_IN_FORCE if watch is None else await watch.judged(report, frame, sender)

    def _watch_of(self, model: str) -> DriftWatch | None:
        if not self.deployments.version_of(model):
            return None
        if model not in self.drift:
            self.drift[model] = self._drift_watch(model)
        return self.drift[model]

    def _drift_watch(self, model: str) -> DriftWatch:
        async def collect(device: NodeId, order: CollectOrder) -> None:
            named = msgspec.structs.replace(order, model=model)
            self.node.spawn(self.node.ask(device, "control", named, Ack), f"collect on {device}")

        def on_event(kind: str, fields: dict[str, Any]) -> None:
            self._on_event(kind, {"model": model, **fields})

        return DriftWatch(
            in_force=lambda: self.deployments.version_of(model),
            answers_drift=self._answers_drift,
            reference=lambda version, exits: drift_reference(self.versions, version, exits),
            exits=lambda revision: self.deployments.exits_of(model, revision),
            devices=self._devices,
            order=collect,
            told=on_event,
        )

    def _answers_drift(self, version: int) -> bool:
        return self.runs.had_hard_examples(self.versions.get(version).run)

    def _devices(self) -> list[NodeId]:
        return [m.node for m in self.watch.members.alive(Tier.DEVICE)]


def _is_operator(info: NodeInfo) -> bool:
    """Whether a session only gives orders; it comes and goes, and is no part of the fleet."""
    return not info.capability.cores
