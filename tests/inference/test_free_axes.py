"""Axes other than the batch may be free: such a model loads and serves, split too; a plan asks for its sizes."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgewise.core.errors import GraphError, InputError
from edgewise.core.ids import NodeId, Tier
from edgewise.inference.profiler import profile_graph
from edgewise.inference.serving_node import device_only_plan, local_server
from edgewise.inference.stages import make_session
from edgewise.models.graph.graph import Graph, graph_from
from edgewise.planning.choose import plan as plan_chain
from edgewise.planning.plan import Handover, Plan
from edgewise.planning.policy import Policy
from edgewise.service.open_inference_format import describe
from tests.inference.loopback_world import world
from tests.inference.tiny import D, E, exit_gate, stage


def text_model(shapes: dict[str, tuple[int, ...]] | None = None) -> Graph:
    """words int64[n, length] ─ embedding ─ product `h` float32[n, length, 8] ─ relu ─ product `tags` [n, length, 3]; their
    mean over the words is `topic` [n, 1, 3]."""
    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(rng.normal(size=s).astype(np.float32), n)
        for n, s in (("table", (50, 6)), ("w", (6, 8)), ("v", (8, 3)))
    ]
    nodes = [
        helper.make_node("Gather", ["table", "words"], ["e"]),
        helper.make_node("MatMul", ["e", "w"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "v"], ["tags"]),
        helper.make_node("ReduceMean", ["tags"], ["topic"], axes=[1]),
    ]
    graph = helper.make_graph(
        nodes,
        "text",
        [helper.make_tensor_value_info("words", TensorProto.INT64, ["n", "length"])],
        [
            helper.make_tensor_value_info("tags", TensorProto.FLOAT, ["n", "length", 3]),
            helper.make_tensor_value_info("topic", TensorProto.FLOAT, ["n", 1, 3]),
        ],
        weights,
    )
    return graph_from(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), shapes)


GRAPH = text_model()


def sentence(length: int, num: int = 1) -> dict[str, np.ndarray]:
    return {"words": np.random.default_rng(length).integers(0, 50, (num, length))}


def whole(words: dict[str, np.ndarray]) -> list[np.ndarray]:
    return list(make_session(GRAPH.model_bytes).run(["tags", "topic"], words))


def test_a_model_with_a_free_length_serves_every_length_and_answers_every_output() -> None:
    async def run() -> None:
        node = await local_server(GRAPH)
        for length, num in ((1, 1), (7, 2), (300, 1), (4, 0), (0, 1)):
            served = await node.infer(sentence(length, num))
            tags, topic = whole(sentence(length, num))
            assert served.outputs["tags"].tobytes() == tags.tobytes()
            assert np.array_equal(served.outputs["topic"], topic, equal_nan=True)  # the mean of no words
        with pytest.raises(InputError, match=r"has shape \[1, 7, 1\], the model takes \[n, \?\]"):
            await node.infer({"words": np.zeros((1, 7, 1), np.int64)})
        await node.close()

    asyncio.run(run())


def test_a_split_hands_over_tensors_of_every_length() -> None:
    plan = Plan(
        "split",
        GRAPH.digest,
        (stage(GRAPH, "words", "h", D), stage(GRAPH, "h", "tags topic", E)),
        (Handover("device", "edge", ("h",), "none"),),
        (exit_gate(0, "topic", "edge"),),
    )

    async def run() -> None:
        async with world("edge-1") as made:
            await made.install(plan, graph=GRAPH)
            for length in (2, 50):
                served = await made.server.infer(sentence(length))
                assert served.outputs["topic"].tobytes() == whole(sentence(length))[1].tobytes()
                assert served.observation.source == "plan"

    asyncio.run(run())


def test_metadata_says_which_axes_are_free() -> None:
    assert [d["shape"] for d in describe((*GRAPH.inputs, *GRAPH.outputs))] == [[-1, -1], [-1, -1, 3], [-1, 1, 3]]


def test_a_plan_asks_for_the_sizes_and_works_with_them() -> None:
    with pytest.raises(GraphError, match=r"no fixed size in dimension 1.* Give it: --input-shape words=1,224"):
        profile_graph(GRAPH, NodeId("d"), Tier.DEVICE)
    with pytest.raises(GraphError, match="to measure and plan it a size is needed"):
        plan_chain(GRAPH, {}, [], Policy())
    settled = text_model({"words": (1, 12)})
    known = profile_graph(settled, NodeId("d"), Tier.DEVICE, budget_s=0.1, measures_memory=False)
    found = plan_chain(settled, {Tier.DEVICE: known}, [], Policy())
    assert found.exits[-1].tensors == ("tags", "topic")


def test_the_device_only_plan_answers_what_the_model_has() -> None:
    assert device_only_plan(GRAPH).exits[-1].tensors == ("tags", "topic")


def finding_graph() -> Graph:
    """x float32[1, 6] ─ the positions of what is positive, int64[2, k] ─ `found` int64[k, 2], `where` float32[k, 2]."""
    nodes = [
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("NonZero", ["r"], ["at"]),
        helper.make_node("Transpose", ["at"], ["found"], perm=[1, 0]),
        helper.make_node("Cast", ["found"], ["number"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["number", "w"], ["where"]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 6])
    found = helper.make_tensor_value_info("found", TensorProto.INT64, ["k", 2])
    where = helper.make_tensor_value_info("where", TensorProto.FLOAT, ["k", 2])
    weight = numpy_helper.from_array(np.eye(2, dtype=np.float32), "w")
    graph = helper.make_graph(nodes, "finding", [x], [found, where], [weight])
    return graph_from(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def test_sizes_that_depend_on_the_data_are_free_where_they_are_cut_and_in_the_metadata() -> None:
    graph = finding_graph()
    assert [d["shape"] for d in describe((*graph.inputs, *graph.outputs))] == [[1, 6], [-1, 2], [-1, 2]]
    for cut in ("r", "at", "found"):
        plan = Plan(
            "split",
            graph.digest,
            (stage(graph, "x", cut, D), stage(graph, cut, "found where" if cut != "found" else "where", E)),
            (Handover("device", "edge", (cut,), "none"),),
            (exit_gate(0, "where", "edge"),),
        )

        async def run(plan: Plan = plan) -> None:
            async with world("edge-1") as made:
                await made.install(plan, graph=graph)
                for num in (0, 1, 4):
                    x = np.float32([[1.0] * num + [-1.0] * (6 - num)])
                    served = await made.server.infer({"x": x})
                    assert (served.observation.source, served.observation.cause) == ("plan", "")
                    assert served.outputs["where"].tolist() == [[0.0, float(n)] for n in range(num)]

        asyncio.run(run())
