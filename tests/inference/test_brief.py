"""Work that is usually brief runs where it is asked; what may take longer must not hold the event loop up."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from edgewise.inference.serving_node import local_server
from edgewise.inference.stages import LoadedStage
from edgewise.models.graph.graph import Graph, graph_from
from tests.inference.tiny import images, two_exit_graph


def looping_graph() -> Graph:
    """x float32[n, 4], times int64[1]: so many sines of x."""
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [helper.make_node("Identity", ["on"], ["go"]), helper.make_node("Sin", ["v"], ["w"])],
        "body",
        [value("i", TensorProto.INT64, []), value("on", TensorProto.BOOL, []), value("v", TensorProto.FLOAT, ["n", 4])],
        [value("go", TensorProto.BOOL, []), value("w", TensorProto.FLOAT, ["n", 4])],
    )
    nodes = [
        helper.make_node("Squeeze", ["times"], ["m"]),
        helper.make_node("Loop", ["m", "", "x"], ["y"], body=body),
    ]
    given = [value("x", TensorProto.FLOAT, ["n", 4]), value("times", TensorProto.INT64, [1])]
    graph = helper.make_graph(nodes, "looping", given, [value("y", TensorProto.FLOAT, ["n", 4])])
    return graph_from(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


@pytest.mark.parametrize(
    ("graph", "usual", "larger"),
    [
        (two_exit_graph(), {"x": images()}, {"x": images(3000)}),
        (
            looping_graph(),
            {"x": np.ones((1, 4), np.float32), "times": np.array([1])},
            {"x": np.ones((1, 4), np.float32), "times": np.array([1000])},
        ),
    ],
    ids=["a large batch", "a loop"],
)
def test_what_may_take_long_runs_in_the_computing_thread(
    graph: Graph, usual: dict[str, NDArray[Any]], larger: dict[str, NDArray[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    threads, run = list[int](), LoadedStage.run

    def seen(stage: LoadedStage, feeds: Any) -> Any:
        threads.append(threading.get_ident())
        return run(stage, feeds)

    async def scene() -> None:
        node = await local_server(graph)
        node.model()._active.usual_stage_s = 1e-5  # type: ignore[union-attr]
        monkeypatch.setattr(LoadedStage, "run", seen)
        for inputs in (usual, larger):
            await node.infer(inputs)
        await node.close()

    asyncio.run(scene())
    assert threads[-1] != threading.get_ident()
    assert (threads[0] == threading.get_ident()) == ("times" not in usual)
