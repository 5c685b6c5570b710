"""From ONNX bytes to a `PlainGraph`: every refusal a user can meet, shape inference, constants told from flow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

from edgewise.core.errors import GraphError
from edgewise.core.ids import digest_of
from edgewise.models.graph.named_exits import exits_of, name_exits
from edgewise.models.graph.plain import PlainGraph, PlainNode, PlainTensor
from edgewise.models.graph.widen import widen

_DOMAINS = {"", "ai.onnx", "ai.onnx.ml", "com.microsoft"}
_OPSET_SURE = 21
_SIZES = (16, 64, 224)
"""Sizes tried for free axes: small enough for sequences, the last large enough for images."""
_KEEPS_SIZE = {"DequantizeLinear", "Identity", "Cast", "Transpose", "Reshape", "Squeeze", "Unsqueeze"}
Shapes = Mapping[str, tuple[int, ...]]


def load_graph(source: bytes | str | Path, input_shapes: Shapes, exits: tuple[str, ...] = ()) -> PlainGraph:
    """What `Graph.load` does; see there."""
    model, took_in, where = _read(source)
    _check(model, where)
    changed = widen(model) or took_in
    changed = name_exits(model, exits, where) or changed
    nodes = _flow(model, _constants(model.graph))
    given, tensors = _settled(model, input_shapes, nodes, where)
    outputs = tuple(tensors[o.name] for o in model.graph.output if o.name in tensors)
    if not outputs:
        raise GraphError(f"{where} has no output that depends on its input. Export it with its logits as outputs.")
    nodes = tuple(_with_flops(node, tensors) for node in nodes)
    original = source if isinstance(source, bytes) else Path(source).read_bytes()
    kept = model.SerializeToString() if changed else original
    name = model.graph.name or "graph"
    inputs = tuple(tensors[i] for i in given)
    ends = exits_of(model, [tensor.name for tensor in outputs])
    return PlainGraph(name, digest_of(kept), kept, inputs, outputs, nodes, tensors, dict(given), ends)


def _read(source: bytes | str | Path) -> tuple[Any, bool, str]:
    import onnx

    where = "the ONNX bytes" if isinstance(source, bytes) else f"ONNX file {str(source)!r}"
    if not isinstance(source, bytes) and not Path(source).is_file():
        raise GraphError(f"{where} does not exist. Give the path of a model exported to ONNX.")
    try:
        if isinstance(source, bytes):
            model = onnx.load_model_from_string(source)
        else:
            model = onnx.load_model(str(source), load_external_data=False)
    except Exception as error:  # protobuf raises its own classes, which differ between its back ends
        raise GraphError(f"{where} is not readable as ONNX: {error}. Export or download it again.") from error
    if not model.graph.node:
        raise GraphError(f"{where} has no nodes: it is empty or not an ONNX model. Export or download it again.")
    return model, _take_in_external(model, source, where), where


def _take_in_external(model: Any, source: bytes | str | Path, where: str) -> bool:
    import onnx

    external = [i.name for i in model.graph.initializer if i.data_location == onnx.TensorProto.EXTERNAL]
    if not external:
        return False
    try:
        if isinstance(source, bytes):
            raise FileNotFoundError("bytes have no folder beside them")
        onnx.load_external_data_for_model(model, str(Path(source).parent))
    except Exception as error:
        raise GraphError(
            f"{where} keeps {len(external)} tensors (first {external[0]!r}) in a file beside it that is not there: "
            f"{error}. Keep the data file beside the model and give its path, or export it as a single file."
        ) from error
    return True


def _check(model: Any, where: str) -> None:
    import onnx

    local = {(f.domain, f.name) for f in model.functions}
    for node in model.graph.node:
        if node.domain not in _DOMAINS and (node.domain, node.op_type) not in local:
            raise GraphError(
                f"{where} uses the custom operator {node.domain}::{node.op_type} (node {node.name!r}), which ONNX "
                "Runtime does not have. Export the model with standard ONNX operators."
            )
    version = max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=0)
    if version > _OPSET_SURE and version > runtime_opset():
        raise GraphError(
            f"{where} needs ONNX opset {version}, the installed runtime knows up to {runtime_opset()}. Export it "
            f"with opset_version={min(17, runtime_opset())}, or install a newer onnxruntime."
        )
    try:
        onnx.checker.check_model(model)
    except Exception as error:
        first = str(error).strip().splitlines()[0]
        raise GraphError(f"{where} is not a valid model: {first}. Export it again.") from error


@cache
def runtime_opset() -> int:
    """The newest ONNX opset that the installed runtime loads; found by asking it.

    Returns:
        The opset number.
    """
    import onnx
    import onnxruntime
    from onnx import helper

    value = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1]) for n in "xy"]
    for version in range(onnx.defs.onnx_opset_version(), _OPSET_SURE, -1):
        graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "probe", value[:1], value[1:])
        probe = helper.make_model(graph, opset_imports=[helper.make_opsetid("", version)], ir_version=8)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        try:
            onnxruntime.InferenceSession(probe.SerializeToString(), options, providers=["CPUExecutionProvider"])
        except Exception:
            continue
        return version
    return _OPSET_SURE


def _settled(
    model: Any, input_shapes: Shapes, nodes: tuple[PlainNode, ...], where: str
) -> tuple[dict[str, tuple[int, ...]], dict[str, PlainTensor]]:
    """The inputs' shapes and every tensor; free axes have the first size with which the shapes work out."""
    for size in _SIZES:
        given, has_free = _settle_inputs(model, input_shapes, where, size)
        try:
            return given, _tensors(model, given, nodes, has_free)
        except GraphError as error:
            if not has_free:
                raise
            failed = error
    names = ", ".join(name for name in given if name not in input_shapes)
    example = "; ".join(f"--input-shape {name}={','.join(map(str, given[name]))}" for name in given)
    raise GraphError(
        f"{where} has axes without a fixed size in its inputs {names}, and runs with none of the sizes "
        f"{', '.join(map(str, _SIZES))} there. Give the sizes, e.g. {example}. The last try: {failed.message}"
    ) from failed


def _settle_inputs(model: Any, input_shapes: Shapes, where: str, size: int) -> tuple[dict[str, tuple[int, ...]], bool]:
    initial = {i.name for i in model.graph.initializer}
    real = [i for i in model.graph.input if i.name not in initial]
    unknown = sorted(set(input_shapes) - {i.name for i in real})
    if unknown:
        names = ", ".join(i.name for i in real)
        raise GraphError(f"{where} has no input {unknown[0]!r} to give a shape to. Its inputs: {names}.")
    given, has_free = {}, False
    for value in real:
        dims = [int(dim.dim_value) for dim in value.type.tensor_type.shape.dim]
        is_free = value.name not in input_shapes and any(n <= 0 for n in dims[1:])
        has_free = has_free or is_free
        shape = tuple(n if n > 0 else size if axis else 1 for axis, n in enumerate(dims))
        given[value.name] = input_shapes.get(value.name) or shape
    return given, has_free


def _constants(graph: Any) -> set[str]:
    """Names that do not depend on any input: initializers and what is computed from them alone."""
    constants = {i.name for i in graph.initializer} | {i.values.name for i in graph.sparse_initializer} | {""}
    for node in graph.node:
        if set(reads(node)) <= constants:
            constants.update(node.output)
    return constants


def reads(node: Any) -> Iterator[str]:
    """Every name a node reads, also from inside its subgraphs (If, Loop).

    Args:
        node: An `onnx.NodeProto`.

    Yields:
        PlainTensor names of the enclosing graph; absent optional inputs are left out.
    """
    yield from (name for name in node.input if name)
    for attribute in node.attribute:
        for inner in [attribute.g] if attribute.HasField("g") else list(attribute.graphs):
            own = {i.name for i in inner.input} | {i.name for i in inner.initializer}
            for sub in inner.node:
                yield from (name for name in reads(sub) if name not in own)
                own.update(sub.output)


def _flow(model: Any, constants: set[str]) -> tuple[PlainNode, ...]:
    shapes = _constant_shapes(model, constants)
    nodes, names = [], set[str]()
    for index, node in enumerate(model.graph.node):
        outputs = tuple(o for o in node.output if o)
        if set(outputs) <= constants:
            continue
        name = node.name if node.name and node.name not in names else f"{node.op_type}_{index}"
        names.add(name)
        read = list(dict.fromkeys(reads(node)))
        flowing = tuple(r for r in read if r not in constants)
        weights = tuple(shapes[r] for r in read if r in shapes)
        nodes.append(PlainNode(index, name, node.op_type, flowing, outputs, weights, 0.0))
    return tuple(nodes)


def _constant_shapes(model: Any, constants: set[str]) -> dict[str, tuple[int, ...]]:
    """Shapes of the float constants of two or more entries, also behind Constant nodes and casts."""
    import onnx

    floating = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE, onnx.TensorProto.BFLOAT16}
    integral = {onnx.TensorProto.INT8, onnx.TensorProto.UINT8}
    found = {i.name: i for i in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant":
            found.update((node.output[0], a.t) for a in node.attribute if a.name == "value")
    shapes = {
        name: tuple(value.dims)
        for name, value in found.items()
        if value.data_type in floating | integral and prod(value.dims) >= 2
    }
    for node in model.graph.node:
        # Weights may come through a node of constants, e.g. DequantizeLinear or Transpose, which keeps their size.
        if node.op_type in _KEEPS_SIZE and node.input[0] in shapes and node.output[0] in constants:
            shapes[node.output[0]] = shapes[node.input[0]]
    return shapes


def _tensors(model: Any, given: Shapes, nodes: tuple[PlainNode, ...], has_free: bool) -> dict[str, PlainTensor]:
    import onnx

    batches = {i.name: _is_open(i) for i in model.graph.input}
    concrete = onnx.ModelProto()
    concrete.CopyFrom(model)
    for value in concrete.graph.input:
        if value.name in given:
            _fix_shape(value, given[value.name])
    for value in list(concrete.graph.output):
        value.type.tensor_type.ClearField("shape")
    del concrete.graph.value_info[:]
    known = _inferred(concrete)
    open_batch = _inferred(model)
    wanted = [*given, *(o for node in nodes for o in node.outputs)]
    missing = [name for name in wanted if has_free or name not in known or not known[name][2]]
    # In a model whose inputs all have sizes, these depend on the data: how many boxes are found.
    varies = {name: tuple(axis for axis, n in enumerate(known[name][0]) if n <= 0) for name in missing if name in known}
    known.update(_measured(concrete, missing) if missing else {})
    symbolic = any(batches[name] for name in given)
    tensors = {}
    for name in wanted:
        if name not in known:
            continue
        shape, dtype, _ = known[name]
        found = (
            open_batch[name][0] if name in open_batch and len(open_batch[name][0]) == len(shape) else (0,) * len(shape)
        )
        # Where an axis is free, any axis that inference does not know may follow it; 0 stands for one that is open.
        free = tuple(axis for axis in range(1, len(shape)) if found[axis] <= 0) if has_free else varies.get(name, ())
        first_axis = open_batch[name][0][:1] if name in open_batch else (0,)
        is_batch = symbolic and shape[:1] == (1,) and first_axis in ((), (0,))
        tensors[name] = PlainTensor(name, shape, dtype, is_batch or (has_free and found[:1] == (0,)), free)
    return tensors


def _is_open(value: Any) -> bool:
    dims = value.type.tensor_type.shape.dim
    return len(dims) > 0 and dims[0].dim_value <= 0


def _fix_shape(value: Any, shape: tuple[int, ...]) -> None:
    value.type.tensor_type.shape.ClearField("dim")
    for size in shape:
        value.type.tensor_type.shape.dim.add().dim_value = size


def _inferred(model: Any) -> dict[str, tuple[tuple[int, ...], str, bool]]:
    """(shape, dtype, complete) of every value that shape inference finds; 0 stands for an open axis."""
    import onnx

    try:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except Exception:  # inference gives up on some legal old models; the zero run below knows better
        inferred = model
    found = {}
    for value in [*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output]:
        kind = value.type.tensor_type
        if kind.elem_type == 0 or not kind.HasField("shape"):
            continue
        shape = tuple(int(d.dim_value) for d in kind.shape.dim)
        found[value.name] = (
            shape,
            str(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)),
            all(s > 0 for s in shape),
        )
    return found


def _measured(model: Any, names: list[str]) -> dict[str, tuple[tuple[int, ...], str, bool]]:
    """Shapes that inference cannot give, from one run with zeros."""
    import numpy as np
    import onnx
    import onnxruntime

    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    initial = {i.name for i in probe.graph.initializer}
    del probe.graph.output[:]
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    feeds = {
        i.name: np.zeros(
            [d.dim_value for d in i.type.tensor_type.shape.dim],
            onnx.helper.tensor_dtype_to_np_dtype(i.type.tensor_type.elem_type),
        )
        for i in probe.graph.input
        if i.name not in initial
    }
    try:
        session = onnxruntime.InferenceSession(probe.SerializeToString(), options, providers=["CPUExecutionProvider"])
        values = session.run(None, feeds)
    except Exception as error:
        first = str(error).strip().splitlines()[0]
        raise GraphError(
            f"the shape of tensor {names[0]!r} cannot be inferred and the model does not run on zeros: {first}. "
            "Export it with static shapes and standard operators."
        ) from error
    return {n: (tuple(v.shape), str(v.dtype), True) for n, v in zip(names, values, strict=True) if hasattr(v, "shape")}


def _with_flops(node: PlainNode, tensors: Mapping[str, PlainTensor]) -> PlainNode:
    import msgspec

    out = sum(tensors[o].num_entries for o in node.outputs if o in tensors)
    largest = max(node.weights, key=prod, default=())
    if node.op in ("Conv", "ConvInteger", "QLinearConv", "FusedConv") and len(largest) > 2:
        flops = 2.0 * out * prod(largest[1:])
    elif node.op == "ConvTranspose" and len(largest) > 2 and node.inputs[0] in tensors:
        flops = 2.0 * tensors[node.inputs[0]].num_entries * prod(largest[1:])
    elif node.op in ("Gemm", "MatMul", "MatMulInteger", "QLinearMatMul"):
        shared = tensors[node.inputs[0]].shape[-1:] if node.inputs and node.inputs[0] in tensors else (1,)
        flops = 2.0 * out * prod(shared)
    elif node.op in ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout", "Shape"):
        flops = 0.0
    else:
        flops = float(out)
    return msgspec.structs.replace(node, flops=flops)
