"""A serving fleet in one process and event loop: coordinator, edges and devices with their serving roles as they are.

    async with ServingFleet(folder, edges=("edge-1",), devices={"device-1": "edge-1"}) as fleet:
        version = await fleet.register(graph, "digits")
        ack = await fleet.operator.deploy(Deploy(version, (plan,)))
        served = await fleet.infer("device-1", "digits", {"x": image})

Identities, signatures, logs and blobs are real, frames go over a `LoopbackFabric`; nothing is trained. Requests come in
where an endpoint would hand them over.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec
from numpy.typing import NDArray

from edgewise.core.errors import InputError, Unreachable
from edgewise.core.ids import Generation, NodeId, Tier
from edgewise.fleet.coordinator import Coordinator
from edgewise.fleet.messages import Capability, NodeInfo
from edgewise.fleet.node.node import Node
from edgewise.fleet.node.settings import AgentSettings
from edgewise.fleet.node.upkeep import GRACE_S, Upkeep
from edgewise.fleet.operator.operator import Operator
from edgewise.fleet.serving.serving_role import Serving
from edgewise.inference.request_driver import Served
from edgewise.ledger.entry import FrameCounter
from edgewise.security.authority import create_authority
from edgewise.security.data_policy import DataPolicy
from edgewise.security.identity import Identity
from edgewise.transport.bulk.blobs import FolderBlobs
from edgewise.transport.keys import Keys
from edgewise.transport.loopback import LoopbackFabric

_CLOUD, _OPERATOR, _NOBODY = NodeId("cloud"), NodeId("operator"), NodeId("")
_CAPABILITY = Capability(1, 2**30, 1e9, 1.0, 1.0, "")
_NO_CORES = Capability(0, 0, 0.0, 1.0, 0.0, "")
_START_TIMEOUT_S = 20.0


class ServingFleet:
    """One coordinator, edges, and devices that answer requests; an `async with` block.

    Attributes:
        fabric: `cut` and `heal` nodes here.
        nodes: By name.
        serving: Their serving roles, by name.
        coordinator: The deciding role.
        operator: Speaks to it.
        upkeep: What keeps each node's disk small, by name.
        events: What the coordinator published, as (kind, fields).
    """

    coordinator: Coordinator
    operator: Operator

    def __init__(
        self,
        folder: Path,
        *,
        edges: Sequence[str] = ("edge-1",),
        devices: Mapping[str, str] | None = None,
        holdout: str = "",
        http_ports: Mapping[str, int] | None = None,
        grace_s: float = GRACE_S,
        **settings: Any,
    ) -> None:
        """Says what the fleet is made of; nothing runs yet.

        Args:
            folder: For identities, logs and blobs.
            edges: Names.
            devices: Edge by device; `device-1` at the first edge if None.
            holdout: As `AgentSettings.holdout`, of the coordinator.
            http_ports: Port of its inference endpoint that a device tells, by device; nothing listens there.
            grace_s: As in `Upkeep`.
            **settings: Other fields of every device's `AgentSettings`, e.g. `dilation`.
        """
        self.fabric = LoopbackFabric()
        self.nodes: dict[NodeId, Node] = {}
        self.serving: dict[str, Serving] = {}
        self.events: list[tuple[str, dict[str, Any]]] = []
        self._folder, self._edges = folder, edges
        self._devices = {"device-1": edges[0]} if devices is None else devices
        self._holdout, self._settings = holdout, settings
        self._http_ports, self._grace_s = dict(http_ports or {}), grace_s
        self.upkeep: dict[NodeId, Upkeep] = {}

    async def __aenter__(self) -> ServingFleet:
        """Starts it; the coordinator knows everybody when this returns."""
        self._authority = create_authority(self._folder / "authority", "loopback")
        try:
            await self._start_coordinator()
            for edge in self._edges:
                await self._start(NodeId(edge), Tier.EDGE, _CLOUD)
            for device, edge in self._devices.items():
                await self._start(NodeId(device), Tier.DEVICE, NodeId(edge), **self._settings)
            self.operator = Operator(self._node(_OPERATOR, Tier.CLOUD, _NOBODY, Generation(1)), _CLOUD)
            await self.operator.node.attach(0)
            await self._known(len(self._edges) + len(self._devices))
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
        for role in self.serving.values():
            await role.close()
        if hasattr(self, "coordinator"):
            await self.coordinator.close()

    async def register(self, graph: bytes, model: str, *, parent: int = 0) -> int:
        """Brings a version of a model to the fleet, as `edgewise serve --connect` does.

        Args:
            graph: ONNX bytes.
            model: Its name.
            parent: Version that the gate compares it with; 0 for none.

        Returns:
            The version's number.

        Raises:
            InputError: If it was refused.
        """
        ack = await self.operator.register(graph, task=model, parent=parent)
        if not ack.accepted:
            raise InputError(ack.reason)
        return ack.version

    async def infer(
        self, device: str, model: str, inputs: Mapping[str, NDArray[Any]], *, deadline_s: float | None = None
    ) -> Served:
        """Serves one request on a device, as its endpoint does."""
        return await self.serving[device].models[model].served.infer(inputs, deadline_s=deadline_s)

    def versions(self, device: str) -> dict[str, int]:
        """Version in force on a node, by model."""
        return {name: now.version for name, now in self.serving[device].in_force().items()}

    async def restart(self, device: str) -> None:
        """Ends a device's node and starts it again from its folder, as the next incarnation of its name."""
        name = NodeId(device)
        before = self.nodes.pop(name)
        await before.close()
        await self.upkeep[name].close()
        await self.serving.pop(device).close()
        edge = NodeId(self._devices[device])
        await self._start(name, Tier.DEVICE, edge, incarnation=before.generation + 1, **self._settings)

    async def _start_coordinator(self) -> None:
        node = self._node(_CLOUD, Tier.CLOUD, _NOBODY, Generation(1))
        settings = AgentSettings(
            name=_CLOUD,
            tier=Tier.CLOUD,
            identity="",
            state=str(self._state(_CLOUD)),
            coordinator=True,
            holdout=self._holdout,
        )
        serving = self.serving[_CLOUD] = Serving(node, settings)
        self.coordinator = Coordinator(node, settings, serving.host_here)
        serving.monitors = self.coordinator.monitors
        await serving.open()
        await node.attach(0)
        await node.transport.subscribe(node.keys.event(_CLOUD), self._on_message)
        await self.coordinator.start()
        self.upkeep[_CLOUD].begin()

    async def _start(self, name: NodeId, tier: Tier, parent: NodeId, *, incarnation: int = 1, **settings: Any) -> None:
        node = self._node(name, tier, parent, Generation(incarnation))
        state = str(self._state(name))
        serving = self.serving[name] = Serving(
            node, AgentSettings(name=name, tier=tier, identity="", state=state, **settings)
        )
        await serving.open()
        await serving.resume()
        if tier is Tier.DEVICE:
            serving.ask_first(parent)
        await node.attach(0)
        self.upkeep[name].begin()

    def _node(self, name: NodeId, tier: Tier, parent: NodeId, generation: Generation) -> Node:
        identity = Identity.load(self._authority.issue(name, tier).write(self._folder / "identities" / name))
        counter = FrameCounter(name)
        node = Node(
            identity=identity,
            generation=generation,
            keys=Keys("loopback"),
            uplinks=[],
            policy=DataPolicy(raw=self._grant(name)),
            blobs=FolderBlobs(self._state(name) / "blobs"),
            verifier=identity.verifier(),
            counter=counter,
            describe=lambda: self._describe(node, parent),
        )
        node.uplinks.append(self.fabric.open(name, generation, counter=counter, sign=identity.sign, allow=node.allow))
        self.nodes[name] = node
        self.upkeep[name] = Upkeep(node, self._state(name), grace_s=self._grace_s)
        return node

    def _describe(self, node: Node, parent: NodeId) -> NodeInfo:
        serving = self.serving.get(node.name)
        return NodeInfo(
            node=node.name,
            tier=node.identity.tier,
            generation=node.generation,
            certificate=node.identity.certificate_pem.decode(),
            parent=parent,
            capability=_NO_CORES if serving is None else _CAPABILITY,
            coordinator=node.name == _CLOUD,
            models={} if serving is None else serving.in_force(),
            raw_may_reach=self._grant(node.name),
            http_port=self._http_ports.get(node.name, 0),
        )

    def _grant(self, name: NodeId) -> Tier:
        return Tier(self._settings.get("raw_may_reach", Tier.DEVICE)) if name in self._devices else Tier.DEVICE

    def _on_message(self, _: str, frame: Any) -> None:
        self.events.append((frame.kind, msgspec.msgpack.decode(frame.message)))

    def _state(self, name: NodeId) -> Path:
        return self._folder / "state" / name

    async def _known(self, number: int) -> None:
        watch = self.coordinator.watch
        if not await watch.wait_for(lambda members: len(members.alive()) >= number, _START_TIMEOUT_S):
            there = sorted(watch.members.members)
            raise Unreachable(f"the fleet is not complete after {_START_TIMEOUT_S:.0f} s; there: {there}.")

    async def until(self, holds: Any, timeout_s: float = 10.0) -> None:
        """Waits until something holds.

        Args:
            holds: Tells.
            timeout_s: Deadline.

        Raises:
            Unreachable: If it does not by then.
        """
        end = asyncio.get_running_loop().time() + timeout_s
        while not holds():
            if asyncio.get_running_loop().time() > end:
                raise Unreachable(f"it did not come about within {timeout_s:g} s.")
            await asyncio.sleep(0.01)
