"""A pipeline over two edge processes on real Zenoh: exact, and answered by the deadline when either is killed."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from edgewise.core.ids import Generation, NodeId, Revision
from edgewise.inference.peers import Target
from edgewise.inference.session import AnswerSource
from edgewise.inference.stage_messages import STAGE
from edgewise.inference.stages import make_session
from edgewise.transport.keys import Keys
from edgewise.transport.zenoh.zenoh_transport import ZenohSettings, open_zenoh
from tests.inference.test_pipeline import FIRST, GRAPH, pipeline_plan
from tests.inference.tiny import active, close, images, model_server

KEYS = Keys("pipeline")
EDGE = """
import asyncio, json, sys
from edgewise.core.ids import Generation, NodeId, Tier
from edgewise.inference.peers import Target
from edgewise.inference.stage_messages import STAGE
from edgewise.inference.stage_server import StageHost
from edgewise.transport.zenoh.zenoh_transport import ZenohSettings, open_zenoh
from tests.inference.test_pipeline import GRAPH, SECOND, pipeline_plan
from tests.inference.tiny import active
from tests.live.test_pipeline_of_edges import KEYS

async def main(name, outward):
    host = StageHost(NodeId(name), Tier.EDGE)
    await host.prepare(active(pipeline_plan()), GRAPH)
    own = await open_zenoh(ZenohSettings(node=NodeId(name), generation=Generation(1), mode="router", listen=("tcp/127.0.0.1:0",)))
    await own.serve_sync(KEYS.service(name, STAGE), host.handle)
    if outward:
        other = await open_zenoh(ZenohSettings(node=NodeId(name + "-outward"), generation=Generation(1), connect=(outward,)))
        host.set_targets([Target(NodeId("edge-2"), other, KEYS.service("edge-2", STAGE))], SECOND)
    print(json.dumps(own.endpoints[0]), flush=True)
    await asyncio.Event().wait()

asyncio.run(main(*sys.argv[1:]))
"""


@contextmanager
def edge(name: str, outward: str = "") -> Iterator[tuple[int, str]]:
    """(process id, endpoint) of an edge's process."""
    command = [sys.executable, "-c", EDGE, name, outward]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.pid, json.loads(process.stdout.readline())
        finally:
            process.kill()


@pytest.mark.live
@pytest.mark.parametrize("victim", ["edge-1", "edge-2"])
def test_a_pipeline_of_two_processes_is_exact_and_survives_the_loss_of_either(victim: str) -> None:
    async def run(first: str, pids: dict[str, int]) -> None:
        device = await open_zenoh(ZenohSettings(node=NodeId("device-1"), generation=Generation(1), connect=(first,)))
        server = model_server()
        await server.prepare(active(pipeline_plan()), GRAPH)
        server.activate(Revision(1))
        server.set_targets([Target(NodeId("edge-1"), device, KEYS.service("edge-1", STAGE))], FIRST)
        for seed in range(3):
            x = images(2, seed)
            served = await server.infer({"x": x}, deadline_s=20.0)
            assert served.observation.served_by == ("device-1", "edge-1", "edge-2"), served.observation.cause
            assert served.outputs["end"].tobytes() == make_session(GRAPH.whole).run(["end"], {"x": x})[0].tobytes()
        os.kill(pids[victim], signal.SIGKILL)
        for _ in range(3):
            served = await server.infer({"x": images()}, deadline_s=1.0)
            assert served.observation.source is AnswerSource.LOCAL_TAIL
            assert served.observation.latency_s <= 1.0
            assert served.outputs["end"].shape == (1, 10)
        await device.close()
        await close(server)

    with edge("edge-2") as (second_pid, second), edge("edge-1", second) as (first_pid, first):
        asyncio.run(run(first, {"edge-1": first_pid, "edge-2": second_pid}))
