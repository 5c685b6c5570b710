"""ONNX graphs: what `Graph.load` takes or refuses, field by field of the format and byte by byte."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from random import Random
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgewise.models.graph.graph import Graph
from tests.fuzz.mutate import NUMBERS, TEXTS, mutated_bytes
from tests.fuzz.target import Target, plainly

_OPERATORS = (
    "Relu",
    "Conv",
    "Gemm",
    "Reshape",
    "Concat",
    "Split",
    "Loop",
    "If",
    "Cast",
    "Gather",
    "Slice",
    "Pad",
    "Tile",
)
_OPERATORS += (
    "ConstantOfShape",
    "Resize",
    "LSTM",
    "ArgMax",
    "Identity",
    "Foo",
    "",
    "ZipMap",
    "Range",
    "Expand",
    "Scan",
)


def graphs() -> list[bytes]:
    """A branched network with exits, one that makes shapes, and one of integers and strings."""
    from tests.inference.tiny import rescaling_graph, two_exit_graph

    return [two_exit_graph(width=4).whole, rescaling_graph().whole, _shaping(), _gathering()]


def _shaping() -> bytes:
    """A graph whose shapes are computed: reshape, tile, slice."""
    size = numpy_helper.from_array(np.array([2, -1], np.int64), "size")
    times = numpy_helper.from_array(np.array([1, 3], np.int64), "times")
    nodes = [
        helper.make_node("Reshape", ["x", "size"], ["r"]),
        helper.make_node("Tile", ["r", "times"], ["t"]),
        helper.make_node("ReduceSum", ["t"], ["y"], keepdims=0),
    ]
    return _saved(nodes, [size, times], ("x", TensorProto.FLOAT, ["n", 4]), ("y", TensorProto.FLOAT, None))


def _gathering() -> bytes:
    """A table that integers look up."""
    table = numpy_helper.from_array(np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32), "table")
    nodes = [helper.make_node("Gather", ["table", "i"], ["g"]), helper.make_node("Softmax", ["g"], ["y"], axis=-1)]
    return _saved(nodes, [table], ("i", TensorProto.INT64, ["n", 5]), ("y", TensorProto.FLOAT, ["n", 5, 3]))


def _saved(nodes: list[Any], weights: list[Any], given: tuple[Any, ...], made: tuple[Any, ...]) -> bytes:
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info(*given)], [helper.make_tensor_value_info(*made)], weights
    )
    return bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    )


def mutated_graph(rng: Random, seeds: Sequence[bytes]) -> bytes:
    """A model with one to three fields changed wherever they are, or its bytes."""
    if rng.random() < 0.3:
        return mutated_bytes(rng, seeds)
    model = onnx.load_model_from_string(rng.choice(seeds))
    for _ in range(rng.randrange(1, 4)):
        _change(rng, _any_part(rng, model))
    return bytes(model.SerializeToString())


def _any_part(rng: Random, message: Any) -> Any:
    """A message somewhere inside a message, itself included."""
    while True:
        inner = []
        for field, value in message.ListFields():
            if field.type == field.TYPE_MESSAGE:
                inner += list(value) if field.is_repeated else [value]
        if not inner or rng.random() < 0.2:
            return message
        message = rng.choice(inner)


def _change(rng: Random, message: Any) -> None:
    """Changes a field that is set, or sets one that is not."""
    fields = [field for field, _ in message.ListFields()] or list(message.DESCRIPTOR.fields)
    field = rng.choice(fields if rng.random() < 0.8 else list(message.DESCRIPTOR.fields))
    is_many = field.is_repeated
    values = getattr(message, field.name)
    kind = rng.randrange(4)
    if kind == 0:
        message.ClearField(field.name)
    elif is_many and kind == 1 and len(values):
        del values[rng.randrange(len(values))]
    elif is_many and kind == 2 and 0 < len(values) < 500:
        values.append(values[rng.randrange(len(values))])
    elif field.type == field.TYPE_MESSAGE:
        if is_many and len(values) > 1:
            first, second = rng.sample(range(len(values)), 2)
            values[first].CopyFrom(values[second])
    else:
        _set(rng, message, field, values, is_many)


def _set(rng: Random, message: Any, field: Any, values: Any, is_many: bool) -> None:
    new: Any
    if field.type == field.TYPE_STRING:
        new = rng.choice(_OPERATORS if field.name == "op_type" else (*TEXTS, "x", "a.w", "size", "end"))
        new = new.replace("\u202e", "").replace("\0", "")
    elif field.type == field.TYPE_BYTES:
        new = mutated_bytes(rng, [(values[0] if is_many and len(values) else b"" if is_many else values) + b"\0"])
    elif field.type in (field.TYPE_FLOAT, field.TYPE_DOUBLE):
        new = rng.choice((0.0, -1.0, 1e30, float("nan"), float("inf")))
    else:
        new = rng.choice((0, 1, 2, 3, 7, 8, 9, 10, 11, 16, *NUMBERS))
    try:
        if not is_many:
            setattr(message, field.name, new)
        elif len(values):
            values[rng.randrange(len(values))] = new
        else:
            values.append(new)
    except (ValueError, TypeError):  # beyond what the format can hold
        message.ClearField(field.name)


def _loaded(data: bytes) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = Graph.load(data)
    _ = graph.inputs, graph.outputs
    return "loaded"


TARGETS = (Target("onnx", 0.4, graphs, plainly(_loaded), mutated_graph, seconds=20.0, memory_bytes=3 * 2**30),)
