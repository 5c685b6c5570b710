"""An operator's connection to a fleet: what the command line and the demo speak through."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np

from edgewise.core.errors import RemoteError, Unreachable
from edgewise.core.ids import NodeId, RunId
from edgewise.fleet.connect import open_node
from edgewise.fleet.messages import (
    Ack,
    Deploy,
    FleetAnswer,
    FleetRequest,
    GraphRequest,
    LedgerAnswer,
    LedgerRequest,
    ListVersions,
    Message,
    NodeInfo,
    NodeRow,
    ProfileAnswer,
    ProfileOrder,
    RegisterVersion,
    Rollback,
    RunRequest,
    RunStatus,
    SubmitRun,
    Versions,
)
from edgewise.fleet.node import Node
from edgewise.fleet.settings import AgentSettings
from edgewise.fleet.watch import Watch
from edgewise.ledger.entry import Purpose
from edgewise.transport.frame import Frame

M = TypeVar("M", bound=Message)
FIND_TIMEOUT_S = 5.0
LONG_TIMEOUT_S = 120.0


class Operator:
    """Orders and questions to a fleet; made by `connect_operator`.

    Attributes:
        coordinator: The node that decides.
    """

    def __init__(self, node: Node, coordinator: NodeId) -> None:
        self.node = node
        self.coordinator = coordinator

    async def nodes(self) -> FleetAnswer:
        """The coordinator's view of the fleet."""
        return await self._ask(FleetRequest(), FleetAnswer)

    async def wait_for_nodes(self, ready: Callable[[list[NodeRow]], bool], timeout_s: float) -> list[NodeRow]:
        """Waits until the fleet meets a condition.

        Args:
            ready: Tells from the rows.
            timeout_s: Deadline.

        Returns:
            The rows.

        Raises:
            Unreachable: If it does not by then; says who is there.
        """
        end = time.monotonic() + timeout_s
        while True:
            rows = list((await self.nodes()).nodes)
            if ready(rows):
                return rows
            if time.monotonic() > end:
                there = ", ".join(f"{r.info.node} ({r.state})" for r in rows) or "nobody"
                raise Unreachable(
                    f"the fleet is not complete after {timeout_s:.0f} s; there: {there}. Look at the missing nodes' logs."
                )
            await asyncio.sleep(0.1)

    async def submit(self, run: SubmitRun, tensors: dict[str, np.ndarray[Any, Any]]) -> RunId:
        """Starts a run.

        Args:
            run: What to train.
            tensors: `graph` (template ONNX bytes as uint8) and `model` (float32[d]) for a new model.

        Returns:
            Its id.
        """
        ack = await self._ask(run, Ack, tensors)
        if not ack.accepted:
            raise RemoteError(ack.reason)
        return RunId(ack.details["run"])

    async def status(self, run: RunId) -> RunStatus:
        """How a run stands."""
        return await self._ask(RunRequest(run), RunStatus)

    async def watch(self, run: RunId) -> AsyncIterator[RunStatus]:
        """Yields the run's status whenever a round closes, last its terminal state."""
        changed = asyncio.Event()

        def heard(_: str, frame: Frame) -> None:
            if frame.run == run:
                changed.set()

        registration = await self.node.transport.subscribe(self.node.keys.event(self.coordinator), heard)
        try:
            while True:
                changed.clear()
                status = await self.status(run)
                yield status
                if status.state != "running":
                    return
                try:
                    async with asyncio.timeout(2.0):  # a publication may be lost; the status is the truth
                        await changed.wait()
                except TimeoutError:
                    continue
        finally:
            await registration.close()

    async def versions(self) -> Versions:
        """The registry."""
        return await self._ask(ListVersions(), Versions)

    async def graph(self, version: int) -> bytes:
        """A version's ONNX bytes."""
        frame = await self.node.send(self.coordinator, "control", GraphRequest(version), timeout_s=LONG_TIMEOUT_S)
        return frame.array("graph").tobytes()

    async def register(self, graph: bytes, *, task: str, origin: str = "imported", parent: int = 0) -> Ack:
        """Offers a model version; the gate decides. Details: version, gate."""
        array = np.frombuffer(graph, np.uint8)
        return await self._ask(RegisterVersion(task, origin, parent), Ack, {"graph": array})

    async def profile(self, node: NodeId, order: ProfileOrder) -> ProfileAnswer:
        """Lets a node measure a graph and its home link."""
        return await self.node.ask(node, "control", order, ProfileAnswer, timeout_s=LONG_TIMEOUT_S)

    async def deploy(self, deploy: Deploy) -> Ack:
        """Serves a version along plans, device by device; answers when it is done or halted."""
        return await self._ask(deploy, Ack)

    async def rollback(self) -> Ack:
        """Restores the version before."""
        return await self._ask(Rollback(), Ack)

    async def ledger(self, node: NodeId) -> LedgerAnswer:
        """What a node counted."""
        return await self.node.ask(node, "control", LedgerRequest(), LedgerAnswer)

    async def order(self, node: NodeId, message: Message) -> Ack:
        """Any order to any node."""
        return await self.node.ask(node, "control", message, Ack, timeout_s=LONG_TIMEOUT_S)

    async def _ask(self, message: Message, answer: type[M], tensors: Any = ()) -> M:
        return await self.node.ask(
            self.coordinator, "control", message, answer, tensors, purpose=Purpose.CONTROL, timeout_s=LONG_TIMEOUT_S
        )


@asynccontextmanager
async def connect_operator(identity: Path, endpoint: str, state: Path, fleet: str = "main") -> AsyncIterator[Operator]:
    """Joins a fleet as its operator.

    Args:
        identity: Folder of a certificate of tier cloud.
        endpoint: A router of the fleet.
        state: Folder for blobs.
        fleet: Fleet name.

    Yields:
        The operator.

    Raises:
        Unreachable: Within seconds, with the cause, if the endpoint or the coordinator is not there.
    """
    settings = AgentSettings(
        name="operator",
        tier=_tier(identity),
        identity=str(identity),
        state=str(state),
        connect=(endpoint,),
        fleet=fleet,
    )
    node = await open_node(settings, lambda: NodeInfo(**_operator_info(node)))
    try:
        await node.attach(0)
        watch = Watch(node)
        await watch.start()

        def coordinators() -> list[NodeId]:
            return [m.node for m in watch.members.alive() if m.info is not None and m.info.coordinator]

        if not await watch.wait_for(lambda _: bool(coordinators()), FIND_TIMEOUT_S):
            seen = ", ".join(sorted(watch.members.members)) or "no node"
            raise Unreachable(
                f"{endpoint} answers but no coordinator is in fleet {fleet!r} (seen: {seen}). Check --fleet, start `edgewise coordinator`."
            )
        yield Operator(node, coordinators()[0])
    finally:
        await node.close()


def _tier(identity: Path) -> Any:
    from edgewise.security.identity import Identity

    return Identity.load(identity).tier


def _operator_info(node: Node) -> dict[str, Any]:
    from edgewise.fleet.messages import Capability

    return {
        "node": node.name, "tier": node.identity.tier, "epoch": node.epoch, "parent": NodeId(""),
        "certificate": node.identity.certificate_pem.decode(), "capability": Capability(0, 0, 0.0, 1.0, 0.0, ""),
    }  # fmt: skip


def encode_layout(layout: Any) -> bytes:
    """msgpack of a layout, as `SubmitRun.layout` wants it."""
    return msgspec.msgpack.encode(layout)
