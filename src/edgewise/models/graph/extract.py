"""Exact pieces of an ONNX graph: the nodes between given and wanted tensors, with their constants, unchanged."""

from __future__ import annotations

from typing import Any

from edgewise.core.errors import GraphError
from edgewise.models.graph.flow import reads
from edgewise.models.graph.plain import PlainGraph, PlainTensor

_IR_WITH_CONSTANT_INITIALIZERS = 4


def extract_model(
    graph: PlainGraph, inputs: tuple[str, ...], outputs: tuple[str, ...], has_sizes: bool = True
) -> bytes:
    """What `Graph.extract` does; see there."""
    import onnx

    for name in (*inputs, *outputs):
        graph.tensor(name)
    if not outputs:
        raise GraphError(f"a piece of graph {graph.name!r} must have at least one output tensor.")
    kept, used = _backwards(graph, set(inputs), outputs)
    whole = graph.model
    piece = onnx.ModelProto()
    piece.CopyFrom(whole)
    piece.graph.Clear()
    # Initializers that are not listed as inputs are constants only from this version of the format on.
    piece.ir_version = max(whole.ir_version, _IR_WITH_CONSTANT_INITIALIZERS)
    piece.graph.name = whole.graph.name or "piece"
    piece.graph.node.extend(whole.graph.node[i] for i in kept)
    piece.graph.initializer.extend(i for i in whole.graph.initializer if i.name in used)
    piece.graph.sparse_initializer.extend(i for i in whole.graph.sparse_initializer if i.values.name in used)
    _keep_blocked_sums(piece.graph, graph, set(inputs))
    piece.graph.input.extend(_value_info(graph.tensors[name], has_sizes) for name in inputs)
    piece.graph.output.extend(_value_info(graph.tensors[name], has_sizes) for name in outputs)
    data: bytes = piece.SerializeToString()
    return data


def _backwards(graph: PlainGraph, given: set[str], outputs: tuple[str, ...]) -> tuple[list[int], set[str]]:
    """Indices of the nodes that `outputs` need when `given` is there, and every name they read."""
    nodes = graph.model.graph.node
    producer = {o: i for i, node in enumerate(nodes) for o in node.output if o}
    known = {i.name for i in graph.model.graph.initializer}
    known |= {i.values.name for i in graph.model.graph.sparse_initializer}
    kept, used, todo = set[int](), set[str](), [o for o in outputs if o not in given]
    while todo:
        name = todo.pop()
        if name in used or name in given:
            continue
        used.add(name)
        if name in producer:
            if producer[name] not in kept:
                kept.add(producer[name])
                todo.extend(reads(nodes[producer[name]]))
        elif name not in known:
            raise GraphError(
                f"the piece {sorted(given)} to {list(outputs)} of graph {graph.name!r} also needs {name!r}, which "
                "is not given. Add it to the inputs, or cut at tensors that separate the graph."
            )
    return sorted(kept), used


def _keep_blocked_sums(piece: Any, graph: PlainGraph, given: set[str]) -> None:
    """Lets a residual sum be fused in the piece as it is in the whole.

    The runtime adds the skip connection inside the convolution's kernel only where the skip is in its blocked
    layout, which a given tensor is not; the sum would then round in another order. A pooling of size one is the
    identity and asks for that layout.
    """
    from onnx import helper

    own_inputs = {t.name for t in graph.inputs}
    made_by = {o: node.op_type for node in piece.node for o in node.output}
    blocked = dict[str, str]()
    for node in list(piece.node):
        others = [made_by.get(i) for i in node.input]
        if node.op_type not in ("Add", "Sum") or "Conv" not in others:
            continue
        for place, name in enumerate(node.input):
            if name in given and name not in own_inputs and len(graph.tensors[name].shape) == 4:
                blocked[name] = f"{name}__blocked"
                node.input[place] = blocked[name]
    for name, new in blocked.items():
        pool = helper.make_node("MaxPool", [name], [new], name=new, kernel_shape=[1, 1])
        piece.node.insert(0, pool)


def _value_info(tensor: PlainTensor, has_sizes: bool) -> Any:
    import numpy as np
    from onnx import helper

    if tensor.has_any_rank:
        return helper.make_tensor_value_info(tensor.name, helper.np_dtype_to_tensor_dtype(np.dtype(tensor.dtype)), None)
    shape: list[int | str] = list(tensor.shape)
    if tensor.symbolic_batch:
        shape[0] = "batch"
    for axis in tensor.free if has_sizes else range(len(shape)):
        shape[axis] = f"{tensor.name}_{axis}"
    return helper.make_tensor_value_info(tensor.name, helper.np_dtype_to_tensor_dtype(np.dtype(tensor.dtype)), shape)
