"""Half-precision models in single precision, as a CPU computes them anyway.

ONNX Runtime has no half-precision convolution on most processors: it casts up, and drops the casts between
neighbours, so a piece that ends in the middle would round where the whole does not. With float32 tensors inside and
float16 only at the model's own inputs and outputs, pieces and whole agree to the last bit.

A bfloat16 model it does not compute on a processor at all, nor does it take such arrays from Python: there the inputs and
outputs become float32 too, and the endpoint rounds what it answers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from edgewise.models.graph.flow import subgraphs

KEY = "edgewise.bfloat16"
"""Of the ONNX model's metadata: inputs and outputs that are bfloat16 to the outside, separated by commas."""
_TYPE_WORDS = {"to", "dtype", "output_dtype", "output_datatype", "softmax_precision"}
"""Attributes of operators that name an element type."""


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
        if value.name in initial:
            _widen_type(value.type, half)
    _widen_inside(model, half)
    _cast_at_both_ends(graph, [v.name for v in flowing], leaving)
    return True


def _needs_casts(graph: Any, inputs: set[str]) -> bool:
    """Whether a half-precision input is read by anything but a cast; after widening none is."""
    return any(node.op_type != "Cast" and inputs & set(node.input) for node in _all_nodes(graph))


def has_brain_floats(model: Any) -> bool:
    """Whether a model has bfloat16 in it.

    Args:
        model: An `onnx.ModelProto`.
    """
    import onnx

    brain = onnx.TensorProto.BFLOAT16
    values = [*model.graph.input, *model.graph.output]
    return (
        any(value.type.tensor_type.elem_type == brain for value in values)
        or any(tensor.data_type == brain for tensor in model.graph.initializer)
        or any(attribute.i == brain for node in _all_nodes(model.graph) for attribute in _naming(node))
    )


def widen_brain_floats(model: Any) -> None:
    """Turns bfloat16 into float32 everywhere in a model, in place, and writes down which inputs and outputs were.

    Args:
        model: An `onnx.ModelProto`.
    """
    import onnx

    names = brain_floats_of(model, is_declared=True)
    del model.graph.value_info[:]
    for value in [*model.graph.input, *model.graph.output]:
        _widen_type(value.type, onnx.TensorProto.BFLOAT16)
    _widen_inside(model, onnx.TensorProto.BFLOAT16)
    if names:
        model.metadata_props.add(key=KEY, value=",".join(names))


def brain_floats_of(model: Any, *, is_declared: bool = False) -> tuple[str, ...]:
    """Inputs and outputs that are bfloat16 to the outside.

    Args:
        model: An `onnx.ModelProto`.
        is_declared: Whether to ask the types of a model that is not widened yet, or what was written down of it.

    Returns:
        Names.
    """
    import onnx

    if not is_declared:
        return next((tuple(prop.value.split(",")) for prop in model.metadata_props if prop.key == KEY), ())
    values = [*model.graph.input, *model.graph.output]
    return tuple(v.name for v in values if v.type.tensor_type.elem_type == onnx.TensorProto.BFLOAT16)


def _all_nodes(graph: Any) -> Iterator[Any]:
    for node in graph.node:
        yield node
        for inner in subgraphs(node):
            yield from _all_nodes(inner)


def _naming(node: Any) -> Iterator[Any]:
    """Attributes of a node that name an element type."""
    yield from (attribute for attribute in node.attribute if attribute.name in _TYPE_WORDS)


def _widen_inside(model: Any, narrow: int) -> None:
    import onnx

    for tensor in model.graph.initializer:
        _widen_tensor(tensor, narrow)
    for sparse in model.graph.sparse_initializer:
        _widen_tensor(sparse.values, narrow)
    functions = [node for function in model.functions for node in function.node]
    for node in [*_all_nodes(model.graph), *functions]:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                _widen_tensor(attribute.t, narrow)
            if attribute.HasField("tp"):
                _widen_type(attribute.tp, narrow)
            if attribute.HasField("sparse_tensor"):
                _widen_tensor(attribute.sparse_tensor.values, narrow)
        for attribute in _naming(node):
            if attribute.i == narrow:
                attribute.i = onnx.TensorProto.FLOAT
        for inner in subgraphs(node):
            del inner.value_info[:]
            for value in [*inner.input, *inner.output]:
                _widen_type(value.type, narrow)
            for tensor in inner.initializer:
                _widen_tensor(tensor, narrow)


def _widen_type(kind: Any, narrow: int) -> None:
    import onnx

    match kind.WhichOneof("value"):
        case "tensor_type":
            if kind.tensor_type.elem_type == narrow:
                kind.tensor_type.elem_type = onnx.TensorProto.FLOAT
        case "sequence_type":
            _widen_type(kind.sequence_type.elem_type, narrow)
        case "optional_type":
            _widen_type(kind.optional_type.elem_type, narrow)


def _widen_tensor(tensor: Any, narrow: int) -> None:
    import numpy as np
    import onnx

    if tensor.data_type == narrow:
        array = onnx.numpy_helper.to_array(tensor).astype(np.float32)
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))


def _cast_at_both_ends(graph: Any, inputs: list[str], outputs: list[str]) -> None:
    import onnx

    inner = {name: f"{name}__float32" for name in (*inputs, *outputs)}
    for node in _all_nodes(graph):
        node.input[:] = [inner.get(name, name) for name in node.input]
        node.output[:] = [inner.get(name, name) for name in node.output]
        for sub in subgraphs(node):
            for value in sub.output:
                value.name = inner.get(value.name, value.name)
    half, single = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
    for name in reversed(inputs):
        graph.node.insert(0, onnx.helper.make_node("Cast", [name], [inner[name]], name=f"{name}__up", to=single))
    for name in outputs:
        graph.node.append(onnx.helper.make_node("Cast", [inner[name]], [name], name=f"{name}__down", to=half))
