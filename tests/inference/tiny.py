"""Small ONNX graphs made by hand, and plans that cut them; no torch."""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgewise.core.ids import Epoch, Tier
from edgewise.models.graph.graph import Graph, graph_from
from edgewise.planning.plan import ActivePlan, Cut, Exit, Plan, Segment

D, E, C = Tier.DEVICE, Tier.EDGE, Tier.CLOUD


def two_exit_graph(seed: int = 0, *, width: int = 8) -> Graph:
    """conv-relu `a` ─ exit 0 `early`; conv-relu `b` ─ conv-relu `c` ─ exit 1 `end`; input `x` float32[n, 1, 8, 8]."""
    rng = np.random.default_rng(seed)
    nodes, weights = [], []

    def constant(name: str, *shape: int) -> str:
        weights.append(numpy_helper.from_array(rng.normal(0, 0.4, shape).astype(np.float32), name))
        return name

    def conv(source: str, target: str, inner: int, outer: int) -> None:
        names = [source, constant(f"{target}.w", outer, inner, 3, 3), constant(f"{target}.b", outer)]
        nodes.append(helper.make_node("Conv", names, [f"{target}.raw"], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"{target}.raw"], [target]))

    def head(source: str, target: str, channels: int) -> None:
        nodes.append(helper.make_node("GlobalAveragePool", [source], [f"{target}.pool"]))
        nodes.append(helper.make_node("Flatten", [f"{target}.pool"], [f"{target}.flat"]))
        names = [f"{target}.flat", constant(f"{target}.w", channels, 10), constant(f"{target}.b", 10)]
        nodes.append(helper.make_node("Gemm", names, [target]))

    conv("x", "a", 1, 4)
    head("a", "early", 4)
    conv("a", "b", 4, width)
    conv("b", "c", width, width)
    head("c", "end", width)
    return graph_from(_model(nodes, weights, {"x": (1, 8, 8)}, {"early": (10,), "end": (10,)}))


def rescaling_graph() -> Graph:
    """`y = x · 2 + 1` and then a product with weights: the first part makes nothing new."""
    weights = [
        numpy_helper.from_array(np.float32([2.0]), "two"),
        numpy_helper.from_array(np.float32([1.0]), "one"),
        numpy_helper.from_array(np.eye(4, dtype=np.float32), "w"),
    ]
    nodes = [
        helper.make_node("Mul", ["x", "two"], ["m"]),
        helper.make_node("Add", ["m", "one"], ["y"]),
        helper.make_node("MatMul", ["y", "w"], ["z"]),
    ]
    return graph_from(_model(nodes, weights, {"x": (4,)}, {"z": (4,)}))


def _model(
    nodes: list[onnx.NodeProto],
    weights: list[onnx.TensorProto],
    inputs: dict[str, tuple[int, ...]],
    outputs: dict[str, tuple[int, ...]],
) -> onnx.ModelProto:
    def info(name: str, shape: tuple[int, ...]) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", *shape])

    graph = helper.make_graph(
        nodes, "tiny", [info(n, s) for n, s in inputs.items()], [info(n, s) for n, s in outputs.items()], weights
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def images(num: int = 1, seed: int = 1) -> NDArray[np.float32]:
    """float32[num, 1, 8, 8]."""
    return np.random.default_rng(seed).normal(size=(num, 1, 8, 8)).astype(np.float32)


def split_plan(graph: Graph, *, codec: str = "none", threshold: float = 2.0, exit_on_device: bool = True) -> Plan:
    """Device up to `a` (with exit 0 if wanted), edge the rest; a threshold above 1 never lets anybody leave."""
    outputs = ("a", "early") if exit_on_device else ("a",)
    exits = (Exit(0, "early", D, threshold, 1.0, 0.0),) if exit_on_device else ()
    return Plan(
        "split",
        graph.digest,
        (Segment(D, ("head",), ("x",), outputs), Segment(E, ("tail",), ("a",), ("end",))),
        (Cut(D, E, ("a",), codec, 1024),),
        (*exits, Exit(1, "end", E, 0.0, 1.0, 1.0)),
    )


def raw_plan(graph: Graph) -> Plan:
    """The device sends its input; the edge runs everything."""
    return Plan(
        "raw to edge",
        graph.digest,
        (Segment(D, (), ("x",), ("x",)), Segment(E, ("all",), ("x",), ("end",))),
        (Cut(D, E, ("x",), "none", 256, carries_raw=True),),
        (Exit(1, "end", E, 0.0, 1.0, 1.0),),
    )


def three_tier_plan(graph: Graph, *, edge_threshold: float = 2.0) -> Plan:
    """Device to `a`, edge decides exit 0 and goes on to `b`, cloud to the end; `a` itself is not needed beyond."""
    return Plan(
        "three tiers",
        graph.digest,
        (
            Segment(D, ("1",), ("x",), ("a",)),
            Segment(E, ("2",), ("a",), ("early", "b")),
            Segment(C, ("3",), ("b",), ("end",)),
        ),
        (Cut(D, E, ("a",), "none", 1024), Cut(E, C, ("b",), "none", 2048)),
        (Exit(0, "early", E, edge_threshold, 1.0, 0.0), Exit(1, "end", C, 0.0, 1.0, 1.0)),
    )


def active(plan: Plan, epoch: int = 1, version: int = 1) -> ActivePlan:
    return ActivePlan(Epoch(epoch), plan, version)
