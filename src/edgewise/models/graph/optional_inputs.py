"""Inputs of an optional type: absent unless a request brings them, as ONNX Runtime alone has it.

What is planned and cut is the model without them: a node `Optional` of no input stands for each, so that all that only they
decide is constant. A request that brings one is computed by the whole model, in which they are inputs again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from edgewise.models.graph.metadata import read_metadata

KEY = "edgewise.optional"
"""Of the ONNX model's metadata: JSON, the element type of each such input to the outside, numpy's word."""


def leave_out_optional(model: Any) -> bool:
    """Turns inputs that are optional tensors into values that are absent, in place, and writes down which they were.

    Args:
        model: An `onnx.ModelProto`.

    Returns:
        Whether there was one.
    """
    from onnx import helper

    found = [value for value in model.graph.input if is_optional_tensor(value.type)]
    types = {}
    for value in reversed(found):
        kind = value.type.optional_type.elem_type
        types[value.name] = str(helper.tensor_dtype_to_np_dtype(kind.tensor_type.elem_type))
        absent = helper.make_node("Optional", [], [value.name], name=f"{value.name}__absent", type=kind)
        model.graph.node.insert(0, absent)
        model.graph.input.remove(value)
    if types:
        model.metadata_props.add(key=KEY, value=json.dumps(dict(reversed(types.items())), ensure_ascii=False))
    return bool(types)


def is_optional_tensor(kind: Any) -> bool:
    """Whether a type is that of an optional tensor.

    Args:
        kind: An `onnx.TypeProto`.
    """
    return bool(kind.HasField("optional_type") and kind.optional_type.elem_type.HasField("tensor_type"))


def left_out(model: Any) -> dict[str, tuple[Any, str]]:
    """The inputs that were left out: type inside the model, and element type to the outside.

    Args:
        model: An `onnx.ModelProto`.

    Returns:
        (an `onnx.TypeProto` of a tensor, numpy's word) by name.
    """
    outside = _written(model)
    types = {n.output[0]: a.tp for n in model.graph.node if n.op_type == "Optional" for a in n.attribute}
    return {name: (types[name], word) for name, word in outside.items() if name in types}


def with_optional(model: bytes) -> bytes:
    """A model in which what was left out is an input again.

    Args:
        model: ONNX bytes.

    Returns:
        The same bytes if nothing was.
    """
    import onnx

    whole = onnx.load_model_from_string(model)
    names = left_out(whole)
    if not names:
        return model
    for node in [node for node in whole.graph.node if node.op_type == "Optional" and node.output[0] in names]:
        whole.graph.node.remove(node)
    for name, (kind, _) in names.items():
        value = whole.graph.input.add(name=name)
        value.type.optional_type.elem_type.CopyFrom(kind)
    written: bytes = whole.SerializeToString()
    return written


def _written(model: Any) -> Mapping[str, str]:
    return read_metadata(model, KEY, dict[str, str], '{"mask": "float32"}') or {}
