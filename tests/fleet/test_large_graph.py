"""A graph larger than a frame may be: registered, given back, measured and served, over the same orders as any other."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
from onnx import helper, numpy_helper

from edgewise.core.errors import InputError, RemoteError
from edgewise.core.ids import Digest, NodeId
from edgewise.fleet.messages import Ack, BlobRef, Deploy, ProfileOrder, RegisterVersion
from edgewise.inference.serving_node import device_only_plan
from edgewise.models.graph.graph import Graph, graph_from
from edgewise.testing.serving_fleet import ServingFleet
from edgewise.transport.frame import MAX_FRAME_BYTES
from tests.inference.tiny import _model

SIDE = 4200


def large_graph() -> Graph:
    """`y = x · w`, 70 MB; a row of `w` holds a one at its own place."""
    weight = numpy_helper.from_array(np.eye(SIDE, dtype=np.float32), "w")
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    return graph_from(_model(nodes, [weight], {"x": (SIDE,)}, {"y": (SIDE,)}))


def test_a_graph_larger_than_a_frame_is_registered_given_back_measured_and_served(tmp_path: Path) -> None:
    graph, device = large_graph(), NodeId("device-1")
    assert len(graph.model_bytes) > MAX_FRAME_BYTES

    async def scene() -> np.ndarray:
        async with ServingFleet(tmp_path) as fleet, asyncio.timeout(60.0):
            version = await fleet.register(graph.model_bytes, "large")
            assert await fleet.operator.graph(version) == graph.model_bytes
            order = ProfileOrder(fleet.operator.offer(graph.model_bytes), budget_s=0.1, measures_memory=False)
            assert (await fleet.operator.profile(device, order)).profile.fingerprint.graph == graph.digest
            ack = await fleet.operator.deploy(Deploy(version, (device_only_plan(graph),), deadline_s=5.0))
            assert ack.accepted, ack.reason
            rows = np.arange(SIDE, dtype=np.float32)[None]
            served = await fleet.infer(device, "large", {"x": rows})
            return served.outputs["y"] - rows

    assert not asyncio.run(scene()).any()


@pytest.mark.parametrize(("holder", "size_bytes"), [("cloud", 8), ("operator", 2**31 + 1), ("operator", 0)])
def test_a_graph_of_somebody_else_or_without_bounds_is_not_pulled(tmp_path: Path, holder: str, size_bytes: int) -> None:
    async def scene() -> None:
        async with ServingFleet(tmp_path, edges=(), devices={}) as fleet:
            order = RegisterVersion("tiny", BlobRef(Digest("0" * 64), size_bytes, NodeId(holder)))
            with pytest.raises(RemoteError, match="to announce a graph as a blob of its own of at most") as refused:
                await fleet.operator.node.ask(NodeId("cloud"), "control", order, Ack)
            assert refused.value.fields["remote_code"] == InputError.code

    asyncio.run(scene())
