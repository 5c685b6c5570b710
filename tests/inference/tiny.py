"""Small ONNX graphs made by hand, and plans that cut them; no torch."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgewise.core.ids import NodeId, Revision, Tier
from edgewise.inference.model_server import ModelServer
from edgewise.inference.serving_node import ServingNode
from edgewise.models.graph.graph import Graph, graph_from
from edgewise.planning.plan import EXIT, INPUT, ActivePlan, Gate, Handover, Plan, Site, Stage

D, E, C = Tier.DEVICE, Tier.EDGE, Tier.CLOUD


def two_exit_graph(seed: int = 0, *, width: int = 8, named: bool = True) -> Graph:
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
    model = _model(nodes, weights, {"x": (1, 8, 8)}, {"early": (10,), "end": (10,)})
    return graph_from(model, exits=("early", "end") if named else ())


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


def stage(graph: Graph, inputs: str, outputs: str, site: Site | Tier, name: str = "") -> Stage:
    """`stage(graph, "x", "a early", D)`."""
    site = site if isinstance(site, Site) else Site(site)
    return Stage(name or str(site), graph.digest, tuple(inputs.split()), tuple(outputs.split()), site)


def exit_gate(index: int, tensor: str, at: str, threshold: float = 0.0, end_fraction: float = 1.0) -> Gate:
    return Gate(EXIT, at, threshold, 1.0, end_fraction, (tensor,), index)


def split_plan(graph: Graph, *, codec: str = "none", threshold: float = 2.0, exit_on_device: bool = True) -> Plan:
    """Device up to `a` (with exit 0 if wanted), edge the rest; a threshold above 1 never lets anybody leave."""
    outputs = "a early" if exit_on_device else "a"
    exits = (exit_gate(0, "early", "device", threshold, 0.0),) if exit_on_device else ()
    return Plan(
        "split",
        graph.digest,
        (stage(graph, "x", outputs, D), stage(graph, "a", "end", E)),
        (Handover("device", "edge", ("a",), codec, payload_bytes=1024),),
        (*exits, exit_gate(1, "end", "edge")),
    )


def raw_plan(graph: Graph) -> Plan:
    """The device sends its input; the edge runs everything."""
    return Plan(
        "raw to edge",
        graph.digest,
        (stage(graph, "x", "end", E),),
        (Handover(INPUT, "edge", ("x",), "none", payload_bytes=256, carries_raw=True),),
        (exit_gate(1, "end", "edge"),),
    )


def three_tier_plan(graph: Graph, *, edge_threshold: float = 2.0) -> Plan:
    """Device to `a`, edge decides exit 0 and goes on to `b`, cloud to the end; `a` itself is not needed beyond."""
    return Plan(
        "three tiers",
        graph.digest,
        (stage(graph, "x", "a", D), stage(graph, "a", "early b", E), stage(graph, "b", "end", C)),
        (Handover("device", "edge", ("a",), "none"), Handover("edge", "cloud", ("b",), "none")),
        (exit_gate(0, "early", "edge", edge_threshold, 0.0), exit_gate(1, "end", "cloud")),
    )


def active(plan: Plan, revision: int = 1, version: int = 1) -> ActivePlan:
    return ActivePlan(Revision(revision), plan, version)


def model_server(node: str = "device-1", *, name: str = "model", **settings: Any) -> ModelServer:
    """A device's only model."""
    own = {key: settings.pop(key) for key in ("dilation", "max_in_flight") if key in settings}
    return ServingNode(NodeId(node), **own).deploy(name, **settings)


async def close(server: ModelServer) -> None:
    """Ends what `model_server` began."""
    server.retire()
    await asyncio.to_thread(server.worker.close)
