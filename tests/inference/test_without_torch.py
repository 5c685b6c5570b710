"""A node that only infers never needs torch: profile and serve a user's model where importing torch fails."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.inference.tiny import images, two_exit_graph

SCRIPT = """
import asyncio, sys
sys.modules["torch"] = None
import numpy as np
from edgewise.core.ids import NodeId, Tier
from edgewise.inference.profiler import profile_graph
from edgewise.inference.serving_node import local_server
from edgewise.models.graph.graph import Graph
from edgewise.service.client import InferenceClient
from edgewise.service.open_inference import serve_http

graph, x = Graph.load(sys.argv[1]), np.load(sys.argv[2])

async def run():
    profile = await asyncio.to_thread(profile_graph, graph, NodeId("d"), Tier.DEVICE, budget_s=0.1, measures_memory=False)
    server = await local_server(graph, name="mine")
    endpoint = await serve_http(server)
    async with InferenceClient(endpoint.host, endpoint.port) as client:
        reply = await client.infer("mine", {"x": x})
    await endpoint.close()
    await server.close()
    print(len(profile.groups), reply.outputs["end"].shape)

asyncio.run(run())
"""


@pytest.mark.live
def test_a_users_model_is_profiled_and_served_without_torch(tmp_path: Path) -> None:
    import numpy as np

    graph = two_exit_graph()
    (tmp_path / "mine.onnx").write_bytes(graph.model_bytes)
    np.save(tmp_path / "x.npy", images(2))
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "mine.onnx"), str(tmp_path / "x.npy")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split(maxsplit=1) == [str(len(graph.condensed.groups)), "(2, 10)\n"]
