"""What flows in an ONNX graph: the operators that depend on an input, told from constants, with their cost."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from math import prod
from typing import Any

import msgspec

from edgewise.models.graph.plain import PlainNode, PlainTensor

_KEEPS_SIZE = {"DequantizeLinear", "Identity", "Cast", "Transpose", "Reshape", "Squeeze", "Unsqueeze"}
_DRAWS = {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli"}
"""Operators that give something new each time, whatever they read."""


def constants_of(graph: Any, flowing: Container[str] = ()) -> set[str]:
    """Names that do not depend on any input: initializers and what is computed from them alone.

    Args:
        graph: An `onnx.GraphProto`.
        flowing: Names that are none, though no input is read for them.

    Returns:
        Names, "" for an absent input of a node among them.
    """
    constants = initial_names(graph) | {""}
    for node in graph.node:
        if set(reads(node)) <= constants and not draws(node) and not any(name in flowing for name in node.output):
            constants.update(node.output)
    return constants


def initial_names(graph: Any) -> set[str]:
    """Names of the initializers of an `onnx.GraphProto`."""
    return {i.name for i in graph.initializer} | {i.values.name for i in graph.sparse_initializer}


def draws(node: Any) -> bool:
    """Whether a node, or one inside its subgraphs, draws random numbers.

    Args:
        node: An `onnx.NodeProto`.
    """
    return node.op_type in _DRAWS or any(draws(sub) for inner in subgraphs(node) for sub in inner.node)


def subgraphs(node: Any) -> Iterator[Any]:
    """The graphs inside a node (If, Loop, Scan), not those inside them."""
    for attribute in node.attribute:
        yield from [attribute.g] if attribute.HasField("g") else attribute.graphs


def reads(node: Any) -> Iterator[str]:
    """Every name a node reads, also from inside its subgraphs (If, Loop).

    Args:
        node: An `onnx.NodeProto`.

    Yields:
        Names of the enclosing graph; absent optional inputs are left out.
    """
    yield from (name for name in node.input if name)
    for inner in subgraphs(node):
        own = {i.name for i in inner.input} | initial_names(inner)
        for sub in inner.node:
            yield from (name for name in reads(sub) if name not in own)
            own.update(sub.output)


def flowing_nodes(model: Any, constants: set[str]) -> tuple[PlainNode, ...]:
    """The nodes that are not constant, in the file's order, without their cost.

    Args:
        model: An `onnx.ModelProto`.
        constants: As from `constants_of`.
    """
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


def with_flops(node: PlainNode, tensors: Mapping[str, PlainTensor]) -> PlainNode:
    """A node with its estimated operations for one example.

    Args:
        node: As from `flowing_nodes`.
        tensors: Those whose shape is known.
    """
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
