"""An LSTM whose state goes in and out, step by step, and the same unrolled over a whole sequence."""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgewise.core.ids import Tier
from edgewise.models.graph.graph import Graph, graph_from
from edgewise.planning.plan import EXIT, INPUT, Gate, Handover, Plan, Site, Stage

KEEPS = (("h0", "hn"), ("c0", "cn"))
WIDTH = 8


def lstm(steps: int = 1) -> onnx.ModelProto:
    """x float32[steps, 4] ─ product ─ relu `r` ─ LSTM ─ product ─ y float32[steps, 3]; state h0, c0 -> hn, cn."""
    rng = np.random.default_rng(0)

    def constant(name: str, *shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array(rng.normal(0, 0.4, shape).astype(np.float32), name)

    weights = [
        constant("w", 4, 6),
        constant("W", 1, 4 * WIDTH, 6),
        constant("R", 1, 4 * WIDTH, WIDTH),
        constant("B", 1, 8 * WIDTH),
        constant("v", WIDTH, 3),
        numpy_helper.from_array(np.int64([1]), "axis"),
        numpy_helper.from_array(np.int64([steps, WIDTH]), "rows"),
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"]),
        helper.make_node("Relu", ["m"], ["r"]),
        helper.make_node("Unsqueeze", ["r", "axis"], ["s"]),
        helper.make_node("LSTM", ["s", "W", "R", "B", "", "h0", "c0"], ["all", "hn", "cn"], hidden_size=WIDTH),
        helper.make_node("Reshape", ["all", "rows"], ["flat"]),
        helper.make_node("MatMul", ["flat", "v"], ["y"]),
    ]
    shapes = {"x": [steps, 4], "h0": [1, 1, WIDTH], "c0": [1, 1, WIDTH]}
    made = {"y": [steps, 3], "hn": [1, 1, WIDTH], "cn": [1, 1, WIDTH]}
    graph = helper.make_graph(
        nodes,
        "lstm",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in shapes.items()],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in made.items()],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def lstm_graph() -> Graph:
    return graph_from(lstm())


def samples(num: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(num, 4)).astype(np.float32)


def unrolled(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """What the model unrolled over the whole sequence answers, from a state of zeros."""
    import onnxruntime

    session = onnxruntime.InferenceSession(lstm(len(x)).SerializeToString(), providers=["CPUExecutionProvider"])
    zero = np.zeros((1, 1, WIDTH), np.float32)
    answer: NDArray[np.float32] = session.run(["y"], {"x": x, "h0": zero, "c0": zero})[0]
    return answer


def split_lstm(graph: Graph, tier: Tier = Tier.EDGE) -> Plan:
    """The device makes `r`; the LSTM and its state stay at the edge. Or all of it on the device."""
    end = Gate(EXIT, str(tier), 0.0, 1.0, 1.0, ("y",), 0)
    outputs = ("y", "hn", "cn")
    if tier is Tier.DEVICE:
        stage = Stage("device", graph.digest, ("x", "h0", "c0"), outputs, Site(tier), keeps=KEEPS)
        return Plan("whole", graph.digest, (stage,), (), (end,))
    head = Stage("device", graph.digest, ("x",), ("r",), Site(Tier.DEVICE))
    tail = Stage("edge", graph.digest, ("r", "h0", "c0"), outputs, Site(tier), keeps=KEEPS)
    return Plan("lstm at the edge", graph.digest, (head, tail), (Handover("device", "edge", ("r",), "none"),), (end,))


def raw_lstm(graph: Graph) -> Plan:
    """The edge runs all of it."""
    tail = Stage("edge", graph.digest, ("x", "h0", "c0"), ("y", "hn", "cn"), Site(Tier.EDGE), keeps=KEEPS)
    end = Gate(EXIT, "edge", 0.0, 1.0, 1.0, ("y",), 0)
    return Plan("all at the edge", graph.digest, (tail,), (Handover(INPUT, "edge", ("x",), "none"),), (end,))
