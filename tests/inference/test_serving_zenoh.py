"""The same serving over real Zenoh sessions on loopback."""

from __future__ import annotations

import asyncio

import pytest

from edgewise.core.ids import Generation, NodeId, Revision, Tier
from edgewise.inference.peers import Target
from edgewise.inference.session import AnswerSource
from edgewise.inference.stage_messages import STAGE
from edgewise.inference.stage_server import StageHost
from edgewise.inference.stages import make_session
from edgewise.transport.keys import Keys
from edgewise.transport.zenoh.zenoh_transport import ZenohSettings, open_zenoh
from tests.inference.tiny import active, close, images, model_server, split_plan, two_exit_graph

GRAPH = two_exit_graph()
KEYS = Keys("zen")


@pytest.mark.live
def test_a_split_over_zenoh_is_exact_and_survives_the_loss_of_its_edge() -> None:
    async def run() -> None:
        plan = active(split_plan(GRAPH))
        host = StageHost(NodeId("edge-1"), Tier.EDGE)
        await host.prepare(plan, GRAPH)
        edge = await open_zenoh(
            ZenohSettings(node=NodeId("edge-1"), generation=Generation(1), mode="router", listen=("tcp/127.0.0.1:0",))
        )
        await edge.serve_sync(KEYS.service("edge-1", STAGE), host.handle)
        device = await open_zenoh(
            ZenohSettings(node=NodeId("device-1"), generation=Generation(1), connect=edge.endpoints)
        )
        server = model_server("device-1")
        await server.prepare(plan, GRAPH)
        server.activate(Revision(1))
        server.set_targets([Target(NodeId("edge-1"), device, KEYS.service("edge-1", STAGE))])
        x = images()
        served = await server.infer({"x": x})
        assert served.observation.source is AnswerSource.PLAN
        assert served.outputs["end"].tobytes() == make_session(GRAPH.whole).run(["end"], {"x": x})[0].tobytes()
        await edge.close()
        alone = await server.infer({"x": x}, deadline_s=1.0)
        assert alone.observation.source is AnswerSource.DEVICE_EXIT
        assert alone.observation.latency_s <= 1.0
        await device.close()
        await close(server)
        await host.close()

    asyncio.run(run())
