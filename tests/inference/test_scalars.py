"""Tensors without axes, as inputs, where a model is cut, and as outputs."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgewise.core.ids import Tier
from edgewise.inference.serving_node import device_only_plan, local_server
from edgewise.inference.session import AnswerSource
from edgewise.models.graph.graph import Graph, graph_from
from edgewise.planning.plan import EXIT, Gate, Handover, Plan, Site, Stage
from edgewise.service.client import InferenceClient
from edgewise.service.open_inference import serve_http
from tests.inference.loopback_world import world


def scalar_graph() -> Graph:
    """x float32[n, 4], by float32[] ─ `mean` float32[], `count` int64[] ─ `energy` float32[]."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"]),
        helper.make_node("ReduceMean", ["m"], ["mean"], keepdims=0),
        helper.make_node("Size", ["m"], ["count"]),
        helper.make_node("Cast", ["count"], ["number"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["mean", "number"], ["sum"]),
        helper.make_node("Mul", ["sum", "by"], ["energy"]),
    ]
    weights = [numpy_helper.from_array(np.arange(12, dtype=np.float32).reshape(4, 3), "w")]
    values = {"x": ["n", 4], "by": [], "energy": []}
    x, by, energy = (helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in values.items())
    graph = helper.make_graph(nodes, "scalars", [x, by], [energy], weights)
    return graph_from(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


GRAPH = scalar_graph()
INPUTS = {"x": np.ones((1, 4), np.float32), "by": np.array(0.5, np.float32)}
RIGHT = np.array(33.0, np.float32)


def split() -> Plan:
    digest, edge = GRAPH.digest, Site(Tier.EDGE)
    stages = (
        Stage("device", digest, ("x",), ("mean", "count"), Site(Tier.DEVICE)),
        Stage("edge", digest, ("mean", "count", "by"), ("energy",), edge),
    )
    gate = Gate(EXIT, "edge", 0.0, 1.0, 1.0, ("energy",), 0)
    return Plan("split", digest, stages, (Handover("device", "edge", ("mean", "count", "by"), "none"),), (gate,))


@pytest.mark.parametrize("plan", [device_only_plan(GRAPH), split()], ids=lambda plan: plan.name)
def test_scalars_are_given_handed_over_and_answered_as_scalars(plan: Plan) -> None:
    async def run() -> None:
        async with world("edge-1") as made:
            await made.install(plan, graph=GRAPH)
            served = await made.server.infer(INPUTS)
            assert (served.observation.source, served.observation.cause) == (AnswerSource.PLAN, "")
            assert served.outputs["energy"].shape == ()
            assert served.outputs["energy"] == RIGHT

    asyncio.run(run())


def test_scalars_are_scalars_at_the_endpoint() -> None:
    async def run() -> None:
        node = await local_server(GRAPH)
        endpoint = await serve_http(node)
        async with InferenceClient(endpoint.host, endpoint.port) as client:
            outputs = (await client.infer("model", INPUTS)).outputs
        assert outputs["energy"].shape == ()
        assert outputs["energy"] == RIGHT
        await endpoint.close()
        await node.close()

    asyncio.run(run())
