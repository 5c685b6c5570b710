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
from edgewise.core.ids import ClientId, Epoch, NodeId, Tier
from edgewise.core.layout import Vector
from edgewise.core.seeds import Seeds
from edgewise.fleet.coordinator import Coordinator
from edgewise.fleet.messages import Ack, Capability, NodeInfo, RunStatus, SubmitRun, TrainOrder
from edgewise.fleet.node.node import Node
from edgewise.fleet.node.settings import AgentSettings
from edgewise.fleet.operator.operator import Operator, encode_layout
from edgewise.fleet.training.edge_role import EdgeRole
from edgewise.fleet.training.trainer import Trainer
from edgewise.ledger.entry import FrameCounter
from edgewise.models.export import export_template
from edgewise.models.flat import initial_vector
from edgewise.models.task import Task, load_task
from edgewise.security.authority import Authority, create_authority
from edgewise.security.data_policy import DataPolicy
from edgewise.security.identity import Identity
from edgewise.testing import tiny_task
from edgewise.transport.bulk.blobs import FolderBlobs
from edgewise.transport.guard import Tap
from edgewise.transport.keys import Keys
from edgewise.transport.loopback import LoopbackFabric

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
        coordinator: The deciding role.
        operator: Speaks to it.
    """

    coordinator: Coordinator
    operator: Operator

    def __init__(
        self,
        folder: Path,
        *,
        homes: Mapping[str, str],
        task_file: str | Path = tiny_task.__file__,
        settings: Mapping[str, Any] | None = None,
        engine: str = "sequential",
        tap: Tap | None = None,
    ) -> None:
        """Says what the fleet is made of; nothing runs yet.

        Args:
            folder: For identities, logs and blobs.
            homes: Edge by client.
            task_file: Task of every device.
            settings: Of the task.
            engine: Does every device's local work; "" lets each choose by a short timing.
            tap: Sees the bytes of every frame any node sends.
        """
        self.task: Task = load_task(task_file, **dict(settings or {}))
        self.fabric = LoopbackFabric()
        self.nodes: dict[NodeId, Node] = {}
        self._folder = folder
        self._homes = homes
        self._task_file = str(task_file)
        self._settings = dict(settings or {})
        self._engine = engine
        self._tap = tap
        self._authority: Authority | None = None
        self._trainers: list[Trainer] = []
        self._aggregators: list[EdgeRole] = []

    async def __aenter__(self) -> LoopbackFleet:
        """Starts it; everybody knows everybody when this returns."""
        self._authority = create_authority(self._folder / "authority", "loopback")
        try:
            await self._start_coordinator()
            for edge in dict.fromkeys(self._homes.values()):
                await self._start_edge(NodeId(edge))
            for client, edge in self._homes.items():
                await self._start_device(ClientId(client), NodeId(edge))
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
        for trainer in self._trainers:
            trainer.close()
        for aggregator in self._aggregators:
            await aggregator.close()
        if hasattr(self, "coordinator"):
            await self.coordinator.close()

    async def train(
        self,
        algorithm: Mapping[str, Any],
        *,
        num_rounds: int,
        seed: int = 0,
        on_status: Callable[[RunStatus], None] = lambda _: None,
        **wish: Any,
    ) -> RunStatus:
        """Submits a run as an operator does, and waits for its end.

        Args:
            algorithm: Words of the five parts.
            num_rounds: Rounds.
            seed: The job's seed; the start is the seed tree's.
            on_status: Told how the run stands whenever a round has closed.
            **wish: Other fields of `SubmitRun`.

        Returns:
            Its terminal state.

        Raises:
            InputError: If it ended otherwise than completed; with its cause.
        """
        graph, layout = export_template(self.task)
        fields = {"register": False, "quorum_fraction": 1.0, **wish}
        order = SubmitRun(self.task.name, dict(algorithm), num_rounds, seed, encode_layout(layout), **fields)
        start = initial_vector(self.task, Seeds(seed))
        run = await self.operator.submit(order, {"graph": np.frombuffer(graph, np.uint8), "model": start})
        async for status in self.operator.watch(run):
            on_status(status)
        if status.state != "completed":
            raise InputError(f"run {run!r} ended {status.state}: {status.cause}")
        return status

    def model(self, status: RunStatus) -> Vector:
        """The model of a run, float32[d]."""
        return np.frombuffer(self.nodes[CLOUD].blobs.read(status.model), np.float32)  # type: ignore[arg-type]

    async def _start_coordinator(self) -> None:
        node = self._node(CLOUD, Tier.CLOUD)
        settings = AgentSettings(
            name=CLOUD, tier=Tier.CLOUD, identity="", state=str(self._state(CLOUD)), coordinator=True
        )
        self.coordinator = Coordinator(node, settings, _serves_nothing)
        await node.attach(0)
        await self.coordinator.start()

    async def _start_edge(self, name: NodeId) -> None:
        node = self._node(name, Tier.EDGE, parent=CLOUD)
        aggregator = EdgeRole(node, self._state(name))
        self._aggregators.append(aggregator)
        await node.attach(0)
        await aggregator.start()

    async def _start_device(self, client: ClientId, edge: NodeId) -> None:
        node = self._node(NodeId(f"device-{client}"), Tier.DEVICE, parent=edge)
        trainer = Trainer(node, self._task_file, self._settings, client, self._engine)
        self._trainers.append(trainer)
        await trainer.load()
        node.describe = _describer(node, edge, trainer)
        node.progress = trainer.progress
        node.route("control", TrainOrder, trainer.take, Tier.EDGE, Tier.CLOUD)
        await node.attach(0)

    def _node(self, name: NodeId, tier: Tier, parent: NodeId = NOBODY) -> Node:
        assert self._authority is not None
        identity = Identity.load(self._authority.issue(name, tier).write(self._folder / "identities" / name))
        counter = FrameCounter(name)
        node = Node(
            identity=identity, epoch=Epoch(1), keys=Keys("loopback"), uplinks=[], policy=DataPolicy(),
            blobs=FolderBlobs(self._state(name) / "blobs"), verifier=identity.verifier(), counter=counter,
            describe=lambda: _info(node, parent),
        )  # fmt: skip
        node.uplinks.append(
            self.fabric.open(name, counter=counter, sign=identity.sign, allow=node.allow, tap=self._tap)
        )
        self.nodes[name] = node
        return node

    def _state(self, name: NodeId) -> Path:
        return self._folder / "state" / name

    async def _all_known(self) -> None:
        watches = [self.coordinator.watch, *(a.watch for a in self._aggregators)]
        known = [w.wait_for(lambda _, w=w: self._missing(w) == 0, START_TIMEOUT_S) for w in watches]  # type: ignore[misc]
        if not all(await asyncio.gather(*known)):
            there = sorted(self.coordinator.watch.members.members)
            raise Unreachable(f"the fleet is not complete after {START_TIMEOUT_S:.0f} s; there: {there}.")

    def _missing(self, watch: Any) -> int:
        ready = [m for m in watch.members.alive(Tier.DEVICE) if m.info is not None]
        return len(self._homes) - len(ready)


def _info(node: Node, parent: NodeId, **fields: Any) -> NodeInfo:
    certificate = node.identity.certificate_pem.decode()
    return NodeInfo(node.name, node.identity.tier, node.epoch, certificate, parent, _CAPABILITY, **fields)


def _describer(node: Node, parent: NodeId, trainer: Trainer) -> Any:
    return lambda: _info(
        node, parent, client=trainer.client, task=trainer.task_name, num_examples=trainer.num_examples
    )  # fmt: skip


async def _serves_nothing(*_: Any) -> Ack:
    return Ack(False, "a loopback fleet trains only")
