"""The same serving over real Zenoh sessions on loopback."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import msgspec
import pytest

from edgewise.core.errors import Unreachable
from edgewise.core.ids import Generation, NodeId, Revision, Tier
from edgewise.fleet.node.probe import PROBE, answer_probe, probe_link
from edgewise.inference.peers import Target
from edgewise.inference.session import AnswerSource
from edgewise.inference.stage_messages import STAGE
from edgewise.inference.stage_server import StageHost
from edgewise.inference.stages import make_session
from edgewise.planning.costs.cost import CostTable
from edgewise.simulation.links.link import LinkSpec, open_link
from edgewise.transport.keys import Keys
from edgewise.transport.zenoh.zenoh_transport import ZenohSettings, open_zenoh
from tests.inference.tiny import active, close, images, model_server, split_plan, two_exit_graph

GRAPH = two_exit_graph()
KEYS = Keys("zen")


def settings(name: str, **fields: Any) -> ZenohSettings:
    return ZenohSettings(node=NodeId(name), generation=Generation(2**60), **fields)


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


@pytest.mark.parametrize("codec", ["none", "int8"])
def test_every_byte_that_a_request_sends_over_a_link_is_predicted(codec: str) -> None:
    """At 64 kbit/s the frames around a hand-over were a third of what a request took, and were not in its prediction."""
    split = split_plan(GRAPH, codec=codec)
    (handover,) = split.handovers

    async def run() -> None:
        host = StageHost(NodeId("edge-1"), Tier.EDGE)
        await host.prepare(active(split), GRAPH)
        edge = await open_zenoh(settings("edge-1", mode="router", listen=("tcp/127.0.0.1:0",)))
        await edge.serve_sync(KEYS.service("edge-1", STAGE), host.handle)
        await edge.serve(KEYS.service("edge-1", PROBE), answer_probe)
        link = await open_link(LinkSpec(name="l", target=edge.endpoints[0].split("/")[1]))
        device = await open_zenoh(settings("device-1", connect=(f"tcp/127.0.0.1:{link.port}",)))
        server = model_server("device-1")
        await server.prepare(active(split), GRAPH)
        server.activate(Revision(1))
        server.set_targets([Target(NodeId("edge-1"), device, KEYS.service("edge-1", STAGE))])
        names = (NodeId("device-1"), NodeId("edge-1"))
        known = None
        while known is None:
            with suppress(Unreachable):  # until the way is known
                known = await probe_link(device, KEYS.service("edge-1", PROBE), names=names)
        table = CostTable(GRAPH, {}, (known,))
        payload = table.coded_bytes(codec, "a")
        sent = table.sent_bytes(msgspec.structs.replace(handover, payload_bytes=payload), 0)
        answered = table.answered_bytes(["end"]) + known.answer_overhead_bytes
        await server.infer({"x": images()})
        await asyncio.sleep(0.2)
        before, num = link.counters_dict(), 20
        for _ in range(num):
            await server.infer({"x": images()})
        await asyncio.sleep(0.2)
        after = link.counters_dict()
        up, down = ((after[way]["read_bytes"] - before[way]["read_bytes"]) / num for way in ("up", "down"))
        assert sent == pytest.approx(up, rel=0.04)
        assert answered == pytest.approx(down, rel=0.1)
        for each in (device, link, edge, host):
            await each.close()
        await close(server)

    asyncio.run(asyncio.wait_for(run(), 60.0))
