"""The node that decides: takes wishes of operators, drives runs, keeps versions, deploys. Its log survives it.

What it decides is decided by pure steps (protocols, membership, rollout); this file only joins them to the wire.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edgewise.core.ids import NodeId, Tier
from edgewise.fleet.membership.watch import Watch
from edgewise.fleet.messages import (
    Ack,
    CancelRun,
    Deploy,
    FleetAnswer,
    FleetRequest,
    GraphRequest,
    ListVersions,
    NodeInfo,
    NodeRow,
    RegisterVersion,
    Rollback,
    RunRequest,
    RunStatus,
    RunSubmitted,
    SubmitRun,
    Versions,
)
from edgewise.fleet.node.node import Node
from edgewise.fleet.node.settings import AgentSettings
from edgewise.fleet.serving.deployments import Deployments
from edgewise.fleet.serving.drift_watch import CollectOrder, Confidences, DriftWatch
from edgewise.fleet.serving.versions import Holdout, VersionStore
from edgewise.fleet.store.events import EventLog, Registry
from edgewise.fleet.training.local_worker import LocalWorker
from edgewise.fleet.training.runs import Runs
from edgewise.transport.frame import Frame

log = logging.getLogger("edgewise.fleet")


class Coordinator:
    """The coordinator's role.

    Args:
        node: Its node.
        settings: How it was started.
        install_here: Installs a plan on its own stage host.
        worker: Where a task is installed on this node, too.
    """

    def __init__(
        self, node: Node, settings: AgentSettings, install_here: Any, worker: LocalWorker | None = None
    ) -> None:
        self.node = node
        state = Path(settings.state)
        holdout = Holdout.load(settings.holdout) if settings.holdout else None
        self.events = EventLog.open(state / "events.db", crash_after=settings.crash_after)
        self.registry = Registry.open(state / "registry.db")
        self.versions = VersionStore(self.registry, node.blobs, holdout)
        self.watch = Watch(node, ready=self._ready, lost=self._lost)
        self.runs = Runs(node, self.events, self.versions, self.watch, self._told, worker)
        self.deployments = Deployments(node, self.versions, self.watch, self.events, install_here, self._told)
        self.drift = DriftWatch(
            self._in_force, self._answers_drift, self.versions.confidences, self._devices, self._collect, self._told
        )  # fmt: skip
        self._routes()

    async def start(self) -> None:
        """Replays the log, begins to watch, goes on with what was interrupted."""
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

    def _routes(self) -> None:
        node, cloud = self.node, Tier.CLOUD
        node.route("control", FleetRequest, self._fleet, cloud)
        node.route("control", SubmitRun, self._submit, cloud)
        node.route("control", RunRequest, self._status, cloud)
        node.route("control", CancelRun, self._cancel, cloud)
        node.route("control", ListVersions, self._versions, cloud)
        node.route("control", GraphRequest, self._graph, cloud)
        node.route("control", RegisterVersion, self._register, cloud)
        node.route("control", Deploy, self._deploy, cloud)
        node.route("control", Rollback, self._rollback, cloud)
        node.route("report", Confidences, self.drift.arrived, Tier.DEVICE)

    def _ready(self, info: NodeInfo) -> None:
        if _is_operator(info):
            return
        self._told("node_ready", {"node": info.node, "tier": str(info.tier)})
        self.runs.roles.node_ready(info)
        self.node.spawn(self.deployments.returned(info), f"install on {info.node}")

    def _lost(self, node: NodeId, cause: str) -> None:
        info = self.watch.members.members[node].info
        if info is None or _is_operator(info):
            return
        self._told("node_lost", {"node": node, "cause": cause})
        self.runs.roles.node_lost(info, cause)

    def _told(self, kind: str, fields: dict[str, Any]) -> None:
        log.info("%s %s", kind, fields)
        frame = Frame(kind, msgspec.msgpack.encode(fields), run=str(fields.get("run", "")))
        self.node.spawn(self.node.transport.publish(self.node.keys.event(self.node.name), frame), f"tell {kind}")

    async def _fleet(self, *_: Any) -> FleetAnswer:
        members = self.watch.members.members.values()
        rows = [NodeRow(m.info, str(m.state), m.cause) for m in members if m.info is not None]
        own = NodeRow(self.node.describe(), "alive")
        rows = [r for r in rows if not _is_operator(r.info)]
        rows.sort(key=lambda r: r.info.node)
        return FleetAnswer((own, *rows), dict(self.node.refused), self.drift.sentence)

    async def _submit(self, request: SubmitRun, _: Frame, sender: NodeInfo) -> RunSubmitted:
        return RunSubmitted(await self.runs.submit(request, sender.node))

    async def _status(self, request: RunRequest, *_: Any) -> RunStatus:
        return self.runs.status(request.run)

    async def _cancel(self, order: CancelRun, *_: Any) -> Ack:
        await self.runs.cancel(order.run)
        return Ack()

    async def _versions(self, *_: Any) -> Versions:
        current = self.deployments.current
        return Versions(tuple(self.registry.versions()), current.deploy.version if current is not None else 0)

    async def _graph(self, request: GraphRequest, *_: Any) -> Any:
        version = self.versions.get(request.version)
        return Ack(), {"graph": np.frombuffer(self.versions.blobs.read(version.graph), np.uint8)}

    async def _register(self, wish: RegisterVersion, frame: Frame, _: NodeInfo) -> Ack:
        graph = frame.array("graph").tobytes()
        version = await asyncio.to_thread(
            self.versions.register_graph, graph, task=wish.task, origin=wish.origin, parent=wish.parent
        )
        self._told(
            "version_registered", {"version": version.number, "passed": version.gate is None or version.gate.passed}
        )
        return Ack(details={"version": version.number, "gate": msgspec.to_builtins(version.gate)})

    async def _deploy(self, wish: Deploy, *_: Any) -> Ack:
        return await self.deployments.deploy(wish)

    async def _rollback(self, *_: Any) -> Ack:
        return await self.deployments.rollback()

    def _answers_drift(self, version: int) -> bool:
        return self.runs.had_hard_examples(self.versions.get(version).run)

    def _in_force(self) -> int:
        now = self.deployments.current
        return 0 if now is None else now.deploy.version

    def _devices(self) -> list[NodeId]:
        return [m.node for m in self.watch.members.alive(Tier.DEVICE)]

    async def _collect(self, device: NodeId, order: CollectOrder) -> None:
        self.node.spawn(self.node.ask(device, "control", order, Ack), f"collect on {device}")


def _is_operator(info: NodeInfo) -> bool:
    """Whether a session only gives orders; it comes and goes, and is no part of the fleet."""
    return not info.capability.cores
