"""A device, edges and a cloud over the loopback transport, in real time but without sleeping."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

from edgewise.core.ids import NodeId, Revision, Tier
from edgewise.inference.model_server import ModelServer
from edgewise.inference.observation import Observation
from edgewise.inference.peers import Target
from edgewise.inference.stage_messages import STAGE
from edgewise.inference.stage_server import StageHost
from edgewise.models.graph.graph import Graph
from edgewise.planning.plan import Plan
from edgewise.transport.frame import Frame
from edgewise.transport.guard import AllowOrigins
from edgewise.transport.keys import Keys
from edgewise.transport.loopback import LoopbackFabric
from edgewise.transport.transport import Registration
from tests.inference.tiny import active, close, model_server, two_exit_graph

KEYS = Keys("test")


@dataclass
class World:
    """A device and edges (and a cloud) on one fabric."""

    fabric: LoopbackFabric
    server: ModelServer
    hosts: dict[str, StageHost]
    rows: list[Observation]
    registrations: dict[str, Registration] = field(default_factory=dict)

    async def install(self, plan: Plan, revision: int = 1, version: int = 1, graph: Graph | None = None) -> None:
        graph = graph or two_exit_graph()
        for host in self.hosts.values():
            await host.prepare(active(plan, revision, version), graph)
        await self.server.prepare(active(plan, revision, version), graph)
        self.server.activate(Revision(revision))


def anything(origins: object, key: str) -> None:
    """A data policy that grants everything."""


@asynccontextmanager
async def world(*edges: str, cloud: bool = False, allow: AllowOrigins | None = anything) -> AsyncIterator[World]:
    fabric, rows = LoopbackFabric(), list[Observation]()
    async with AsyncExitStack() as stack:
        device = await stack.enter_async_context(fabric.open("device-1", allow=allow))
        server = model_server("device-1", on_observation=rows.append)
        made = World(fabric, server, {}, rows)
        names = [(name, Tier.EDGE) for name in edges] + ([("cloud-1", Tier.CLOUD)] if cloud else [])
        for name, tier in names:
            transport = await stack.enter_async_context(fabric.open(name, allow=allow))
            host = made.hosts[name] = StageHost(NodeId(name), tier)
            made.registrations[name] = await transport.serve_sync(KEYS.service(name, STAGE), host.handle)
            if cloud and tier is Tier.EDGE:
                host.set_targets([Target(NodeId("cloud-1"), transport, KEYS.service("cloud-1", STAGE))])
        server.set_targets([Target(NodeId(name), device, KEYS.service(name, STAGE)) for name in edges])
        yield made
        await close(server)
        for host in made.hosts.values():
            await host.close()


def hang(made: World, name: str) -> asyncio.Event:
    """Makes a host take questions and never answer."""
    asked = asyncio.Event()

    async def handle(frame: Frame) -> Frame:
        asked.set()
        await asyncio.Event().wait()
        return frame

    made.registrations[name].handler = handle  # type: ignore[attr-defined]
    return asked
