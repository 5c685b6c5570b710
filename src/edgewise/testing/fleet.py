"""A training fleet in one process and event loop: the roles of agents as they are, frames over a `LoopbackFabric`.

Identities, signatures, event logs and blobs are real; only sockets and processes are missing. Nothing is served.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from edgewise.core.errors import InputError, Unreachable
from edgewise.core.ids import ClientId, Generation, NodeId, Tier
from edgewise.core.layout import Vector
from edgewise.fleet.coordinator import Coordinator
from edgewise.fleet.messages import Ack, Capability, NodeInfo, RunStatus
from edgewise.fleet.node.node import Node
from edgewise.fleet.node.settings import AgentSettings
from edgewise.fleet.node.upkeep import GRACE_S, Upkeep
from edgewise.fleet.operator.operator import Operator, RunFiles
from edgewise.fleet.operator.submission import task_request
from edgewise.fleet.training.local_worker import LocalWorker
from edgewise.fleet.training.node_training import NodeTraining
from edgewise.ledger.entry import FrameCounter
from edgewise.models.task import Task, load_task
from edgewise.security.authority import Authority, create_authority
from edgewise.security.data_policy import DataPolicy
from edgewise.security.identity import Identity
from edgewise.security.verifier import Verifier
from edgewise.testing import tiny_task
from edgewise.transport.bulk.blobs import FolderBlobs
from edgewise.transport.guard import Sign, Tap
from edgewise.transport.keys import Keys
from edgewise.transport.loopback import Carrier, LoopbackFabric

CLOUD = NodeId("cloud")
OPERATOR = NodeId("operator")
NOBODY = NodeId("")
_CAPABILITY = Capability(1, 2**30, 1e9, 1.0, 1.0, "")
START_TIMEOUT_S = 20.0


class LoopbackFleet:
    """One coordinator, edges, and a device for each client; an `async with` block.

    Attributes:
        task: What is learned.
        fabric: `cut` and `heal` nodes here.
        nodes: By name; a device is called `device-CLIENT`.
        workers: The local worker of each client's device.
        upkeep: What keeps each node's disk small, by node.
        training: What each edge and device does in training, by node.
        coordinator: The deciding role.
        operator: Speaks to it.
    """

    coordinator: Coordinator
    operator: Operator

    def __init__(
        self,
        folder: Path,
        *,
        edge_of: Mapping[str, str] | None = None,
        task_file: str | Path = tiny_task.__file__,
        settings: Mapping[str, Any] | None = None,
        engine: str = "sequential",
        tap: Tap | None = None,
        holdout: str = "",
        judge: str = "",
        homes: Mapping[str, str] | None = None,
        keep_bytes: int = 0,
        grace_s: float = GRACE_S,
        link: Carrier | None = None,
    ) -> None:
        """Says what the fleet is made of; nothing runs yet.

        Args:
            folder: For identities, logs and blobs.
            edge_of: Edge by client; "" for a device that stands under the coordinator.
            task_file: Task of every device.
            settings: Of the task.
            engine: Does every device's local work; "" lets each choose by a short timing.
            tap: Sees the bytes of every frame any node sends.
            holdout: Held-out data of the coordinator, as in `AgentSettings`.
            judge: As in `AgentSettings`.
            homes: The former word for `edge_of`; taken in this release.
            keep_bytes: Budget of every node's blobs, as in `AgentSettings`.
            grace_s: As in `Upkeep`.
            link: Carries the frames; by default everything arrives at once.

        Raises:
            InputError: If nobody is named.
        """
        if homes is not None:
            edge_of = homes
        if not edge_of:
            raise InputError("a fleet has at least one client. Name each with its edge, e.g. edge_of={'a': 'edge-1'}.")
        self.task: Task = load_task(task_file, **dict(settings or {}))
        self.fabric = LoopbackFabric(link)
        self.nodes: dict[NodeId, Node] = {}
        self.workers: dict[ClientId, LocalWorker] = {}
        self.training: dict[NodeId, NodeTraining] = {}
        self.upkeep: dict[NodeId, Upkeep] = {}
        self._folder = folder
        self._edge_of = {ClientId(client): NodeId(edge) for client, edge in edge_of.items()}
        self._task_file = str(task_file)
        self._settings = dict(settings or {})
        self._engine = engine
        self._tap = tap
        self._holdout, self._judge = holdout, judge
        self._keep_bytes, self._grace_s = keep_bytes, grace_s
        self._authority: Authority | None = None
        self._generations: dict[NodeId, Generation] = {}

    async def __aenter__(self) -> LoopbackFleet:
        """Starts it; everybody knows everybody when this returns."""
        self._authority = create_authority(self._folder / "authority", "loopback")
        try:
            await self._start_coordinator()
            for edge in dict.fromkeys(edge for edge in self._edge_of.values() if edge):
                await self._start_edge(edge)
            for client in self._edge_of:
                await self._start_device(client)
            self.operator = Operator(self._node(OPERATOR, Tier.CLOUD), CLOUD)
            await self.operator.node.attach(0)
            await self._all_known()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Stops every node and closes the logs."""
        for node in reversed(self.nodes.values()):
            await node.close()
        for upkeep in self.upkeep.values():
            await upkeep.close()
        for worker in self.workers.values():
            worker.close()
        for training in self.training.values():
            await training.close()
        if hasattr(self, "coordinator"):
            await self.coordinator.close()

    async def train(
        self,
        algorithm: Any,
        *,
        num_rounds: int,
        seed: int = 0,
        on_status: Callable[[RunStatus], None] = lambda _: None,
        **request: Any,
    ) -> RunStatus:
        """Submits a run as an operator does, and waits for its end.

        Args:
            algorithm: Its spec, as text or table.
            num_rounds: Rounds.
            seed: The job's seed; the start is the seed tree's.
            on_status: Told how the run stands whenever a round has closed.
            **request: As for `submit`.

        Returns:
            Its terminal state.

        Raises:
            InputError: If it ended otherwise than completed; with its cause.
        """
        run = await self.submit(algorithm, num_rounds=num_rounds, seed=seed, **request)
        async for status in self.operator.watch(run):
            on_status(status)
        if status.state != "completed":
            raise InputError(f"run {run!r} ended {status.state}: {status.cause}")
        return status

    async def submit(self, algorithm: Any, *, model: Vector | None = None, **request: Any) -> Any:
        """Submits a run as an operator does.

        Args:
            algorithm: Its spec, as text or table.
            model: The first model; by default the seed tree's.
            **request: As for `task_request`; without a word of it the result does not become a version.

        Returns:
            Its name.
        """
        order, files = task_request(self.task, algorithm, **{"register": False, **request})
        if model is not None:
            files = RunFiles(files.template, model)
        return await self.operator.submit(order, files)

    async def until(self, holds: Callable[[], bool], timeout_s: float = START_TIMEOUT_S) -> None:
        """Waits until something holds that nobody tells.

        Args:
            holds: Looked at a hundred times a second.
            timeout_s: Deadline.

        Raises:
            TimeoutError: If it does not by then.
        """
        async with asyncio.timeout(timeout_s):
            while not holds():  # noqa: ASYNC110 - what is looked at has no event
                await asyncio.sleep(0.01)

    def model(self, status: RunStatus) -> Vector:
        """The model of a run, float32[d]."""
        return np.frombuffer(self.nodes[CLOUD].blobs.read(status.model), np.float32)  # type: ignore[arg-type]

    async def kill(self, name: str) -> None:
        """Ends a client's device, or another node, as SIGKILL does: what is not on its disk is gone.

        Args:
            name: The client, or the node.
        """
        node = self.nodes[self._node_of(name)]
        self.fabric.cut(node.name)
        node._is_quiet = True  # nothing is taken back, nothing is begun
        for task in tuple(node._tasks):
            task.cancel()
        await asyncio.gather(*node._tasks, return_exceptions=True)
        await self.upkeep[node.name].close()
        for transport in node.uplinks:
            await transport.close()
        training, worker = self.training.pop(node.name, None), self.workers.pop(ClientId(name), None)
        if worker is not None:
            worker.close()
        if training is not None:
            await training.close()
        elif node.name == CLOUD:
            await self.coordinator.close()

    async def restart(self, name: str) -> None:
        """Starts a node that was killed again from its disk, as a new incarnation.

        Args:
            name: The client, or the node.
        """
        node = self._node_of(name)
        self.fabric.heal(node)
        if node == CLOUD:
            await self._start_coordinator()
        elif node in self._edge_of.values():
            await self._start_edge(node)
        else:
            await self._start_device(ClientId(name))

    def _node_of(self, name: str) -> NodeId:
        return NodeId(name) if NodeId(name) in self.nodes else NodeId(f"device-{name}")

    async def _start_coordinator(self) -> None:
        node = self._node(CLOUD, Tier.CLOUD)
        settings = AgentSettings(
            name=CLOUD,
            tier=Tier.CLOUD,
            identity="",
            state=str(self._state(CLOUD)),
            coordinator=True,
            holdout=self._holdout,
            judge=self._judge,
        )
        upkeep = self._upkeep(node)
        self.coordinator = self._make_coordinator(node, settings)
        await node.attach(0)
        await self.coordinator.start()
        upkeep.begin()

    async def _start_edge(self, name: NodeId) -> None:
        node = self._node(name, Tier.EDGE, parent=CLOUD)
        upkeep = self._upkeep(node)
        training = self.training[name] = self._make_training(node, is_edge=True)
        await node.attach(0)
        await training.start()
        upkeep.begin()

    async def _start_device(self, client: ClientId) -> None:
        edge = self._edge_of[client] or CLOUD
        node = self._node(NodeId(f"device-{client}"), Tier.DEVICE, parent=edge)
        worker = self.workers[client] = self._worker(node, client)
        await worker.load()
        training = self.training[node.name] = self._make_training(node, worker=worker)
        node.describe = _describer(node, edge, worker)
        node.progress = worker.progress
        upkeep = self._upkeep(node)
        await node.attach(0)
        await training.start()
        upkeep.begin()

    def _upkeep(self, node: Node) -> Upkeep:
        made = self.upkeep[node.name] = Upkeep(
            node, self._state(node.name), keep_bytes=self._keep_bytes, grace_s=self._grace_s
        )
        return made

    def _node(self, name: NodeId, tier: Tier, parent: NodeId = NOBODY) -> Node:
        assert self._authority is not None
        folder = self._folder / "identities" / name
        if not folder.exists():
            self._authority.issue(name, tier).write(folder)
        identity = Identity.load(folder)
        return self._node_with(identity, identity.verifier(), identity.sign, parent)

    def _node_with(self, identity: Identity, verifier: Verifier, sign: Sign, parent: NodeId) -> Node:
        name, counter = identity.node, FrameCounter(identity.node)
        generation = self._generations[name] = Generation(self._generations.get(name, 0) + 1)
        node: Node = self._make_node(
            identity=identity, generation=generation, keys=Keys("loopback"), uplinks=[], policy=DataPolicy(),
            blobs=FolderBlobs(self._state(name) / "blobs"), verifier=verifier, counter=counter,
            describe=lambda: _info(node, parent),
        )  # fmt: skip
        node.uplinks.append(
            self.fabric.open(name, generation, counter=counter, sign=sign, allow=node.allow, tap=self._tap)
        )
        self.nodes[name] = node
        return node

    def _make_coordinator(self, node: Node, settings: AgentSettings) -> Coordinator:
        return Coordinator(node, settings, _serves_nothing)

    def _make_training(self, node: Node, **how: Any) -> NodeTraining:
        return NodeTraining(node, self._state(node.name), **how)

    def _make_node(self, **parts: Any) -> Node:
        return Node(**parts)

    def _worker(self, node: Node, client: ClientId) -> LocalWorker:
        return LocalWorker(node, self._task_file, self._settings, client, self._engine)

    def _state(self, name: NodeId) -> Path:
        return self._folder / "state" / name

    async def _all_known(self) -> None:
        edges = [training.watch for training in self.training.values() if training.watch is not None]
        known = [
            w.wait_for(lambda _, w=w: self._missing(w) == 0, START_TIMEOUT_S)  # type: ignore[misc]
            for w in (self.coordinator.watch, *edges)
        ]
        if not all(await asyncio.gather(*known)):
            there = sorted(self.coordinator.watch.members.members)
            raise Unreachable(f"the fleet is not complete after {START_TIMEOUT_S:.0f} s; there: {there}.")

    def _missing(self, watch: Any) -> int:
        ready = [m for m in watch.members.alive(Tier.DEVICE) if m.info is not None]
        return len(self._edge_of) - len(ready)


def _info(node: Node, parent: NodeId, **fields: Any) -> NodeInfo:
    certificate = node.identity.certificate_pem.decode()
    return NodeInfo(node.name, node.identity.tier, node.generation, certificate, parent, _CAPABILITY, **fields)


def _describer(node: Node, parent: NodeId, worker: LocalWorker) -> Any:
    return lambda: _info(
        node,
        parent,
        client=worker.client,
        task=worker.task_name,
        task_code=worker.task_code,
        num_examples=worker.num_examples,
    )


async def _serves_nothing(*_: Any) -> Ack:
    return Ack(False, "a loopback fleet trains only")
