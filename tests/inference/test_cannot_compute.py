"""Inputs of the right names, dtypes and axes that the model cannot compute: the client's fault, nobody else's."""

from __future__ import annotations

import asyncio

import httpx
import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgewise.core.errors import InputError
from edgewise.core.ids import Tier
from edgewise.inference.serving_node import device_only_plan, local_server
from edgewise.inference.session import AnswerSource
from edgewise.inference.stages import CannotCompute, make_stage
from edgewise.models.graph.graph import Graph, graph_from
from edgewise.planning.plan import EXIT, INPUT, Gate, Handover, Plan, Site, Stage
from edgewise.service.open_inference import serve_http
from tests.inference.loopback_world import world


def table_graph() -> Graph:
    """ids int64[n, s] ─ row of a table of 5 ─ y float32[n, s, 3]."""
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["n", "s"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", "s", 3])
    table = numpy_helper.from_array(np.arange(15, dtype=np.float32).reshape(5, 3), "table")
    graph = helper.make_graph([helper.make_node("Gather", ["table", "ids"], ["y"])], "table", [ids], [y], [table])
    return graph_from(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


GRAPH = table_graph()
GOOD, BAD = np.array([[0, 4]]), np.array([[0, 99]])


def raw() -> Plan:
    """The edge runs everything, and there is a local tail."""
    stage = Stage("edge", GRAPH.digest, ("ids",), ("y",), Site(Tier.EDGE))
    gate = Gate(EXIT, "edge", 0.0, 1.0, 1.0, ("y",), 0)
    return Plan("raw", GRAPH.digest, (stage,), (Handover(INPUT, "edge", ("ids",), "none", carries_raw=True),), (gate,))


@pytest.mark.parametrize("plan", [device_only_plan(GRAPH), raw()], ids=lambda plan: plan.name)
def test_a_bad_request_is_refused_and_costs_the_next_ones_nothing(plan: Plan, caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        async with world("edge-1") as made:
            await made.install(plan, graph=GRAPH)
            for _ in range(3):
                bad = await made.server.infer({"ids": BAD})
                assert bad.observation.source is AnswerSource.NONE
                assert isinstance(bad.refused, InputError)
                assert "indices element out of data bounds" in bad.refused.message
                good = await made.server.infer({"ids": GOOD})
                assert (good.observation.source, good.refused) == (AnswerSource.PLAN, None)

    asyncio.run(run())
    assert "Traceback" not in caplog.text


def test_the_endpoint_says_400_and_the_cure() -> None:
    async def run() -> None:
        node = await local_server(GRAPH)
        endpoint = await serve_http(node)
        row = {"name": "ids", "shape": [1, 2], "datatype": "INT64", "data": BAD[0].tolist()}
        async with httpx.AsyncClient() as client:
            reply = await client.post(f"{endpoint.url}/v2/models/model/infer", json={"inputs": [row]})
        assert reply.status_code == 400
        assert "the model cannot compute what it was given (ids [1, 2])" in reply.json()["error"]
        await endpoint.close()
        await node.close()

    asyncio.run(run())


def test_a_stage_says_so() -> None:
    with pytest.raises(CannotCompute, match="belong together"):
        make_stage(GRAPH, ("ids",), ("y",)).run({"ids": BAD})
