"""Half-precision models in single precision, as a CPU computes them anyway.

ONNX Runtime has no half-precision convolution on most processors: it casts up, and drops the casts between
neighbours, so a piece that ends in the middle would round where the whole does not. With float32 tensors inside and
float16 only at the model's own inputs and outputs, pieces and whole agree to the last bit.
"""

from __future__ import annotations

from typing import Any


def widen(model: Any) -> bool:
    """Turns float16 into float32 inside a model, in place; its inputs and outputs keep their types.

    Args:
        model: An `onnx.ModelProto`.

    Returns:
        Whether there was anything to turn.
    """
    import onnx

    half = onnx.TensorProto.FLOAT16
    graph = model.graph
    initial = {i.name for i in graph.initializer}
    flowing = [v for v in graph.input if v.name not in initial and v.type.tensor_type.elem_type == half]
    if not any(i.data_type == half for i in graph.initializer) and not _needs_casts(graph, {v.name for v in flowing}):
        return False
    leaving = [v.name for v in graph.output if v.type.tensor_type.elem_type == half]
    del graph.value_info[:]
    for value in graph.input:
        if value.name in initial and value.type.tensor_type.elem_type == half:
            value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    _widen_constants(graph)
    _cast_at_both_ends(graph, [v.name for v in flowing], leaving)
    return True


def _needs_casts(graph: Any, inputs: set[str]) -> bool:
    """Whether a half-precision input is read by anything but a cast; after widening none is."""
    return any(node.op_type != "Cast" and inputs & set(node.input) for node in graph.node)


def _widen_constants(graph: Any) -> None:
    import onnx

    half, single = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
    for tensor in graph.initializer:
        _widen_tensor(tensor)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                _widen_tensor(attribute.t)
            if attribute.name == "to" and node.op_type == "Cast" and attribute.i == half:
                attribute.i = single
            for inner in [attribute.g] if attribute.HasField("g") else list(attribute.graphs):
                _widen_constants(inner)


def _widen_tensor(tensor: Any) -> None:
    import numpy as np
    import onnx

    if tensor.data_type == onnx.TensorProto.FLOAT16:
        array = onnx.numpy_helper.to_array(tensor).astype(np.float32)
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))


def _cast_at_both_ends(graph: Any, inputs: list[str], outputs: list[str]) -> None:
    import onnx

    inner = {name: f"{name}__float32" for name in (*inputs, *outputs)}
    for node in graph.node:
        node.input[:] = [inner.get(name, name) for name in node.input]
        node.output[:] = [inner.get(name, name) for name in node.output]
    half, single = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
    for name in reversed(inputs):
        graph.node.insert(0, onnx.helper.make_node("Cast", [name], [inner[name]], name=f"{name}__up", to=single))
    for name in outputs:
        graph.node.append(onnx.helper.make_node("Cast", [inner[name]], [name], name=f"{name}__down", to=half))
