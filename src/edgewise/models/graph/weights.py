"""Weights in and out of a template ONNX graph, by layout. Needs no torch."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from edgewise.core.errors import GraphError
from edgewise.core.layout import Layout, Vector


def with_weights(graph: bytes, layout: Layout, vector: Vector) -> bytes:
    """A graph with other weights; equal arguments give equal bytes.

    Args:
        graph: ONNX bytes of a template.
        layout: Its slots are names of initializers.
        vector: float32[d].

    Returns:
        ONNX bytes.

    Raises:
        GraphError: If the bytes are no ONNX graph, or a slot is no initializer of that shape.
        InputError: If the vector is not as long as the layout.
    """
    model = _load(graph)
    tensors = layout.unflatten(np.ascontiguousarray(vector, np.float32))
    found = _slots(model, layout)
    for name, tensor in tensors.items():
        found[name].CopyFrom(numpy_helper.from_array(np.ascontiguousarray(tensor), name))
    return bytes(model.SerializeToString(deterministic=True))


def without_weights(graph: bytes, layout: Layout) -> bytes:
    """A template without the content of its slots: shapes stay, `with_weights` fills them.

    Args:
        graph: ONNX bytes of a template.
        layout: Its slots are names of initializers.

    Returns:
        ONNX bytes, small however large the model is; no session can run them.

    Raises:
        GraphError: As in `with_weights`.
    """
    model = _load(graph)
    for name, tensor in _slots(model, layout).items():
        tensor.CopyFrom(onnx.TensorProto(name=name, dims=tensor.dims, data_type=tensor.data_type))
    return bytes(model.SerializeToString(deterministic=True))


def weights_of(graph: bytes, layout: Layout) -> Vector:
    """The vector inside a graph.

    Args:
        graph: ONNX bytes of a template or version.
        layout: Its slots are names of initializers.

    Returns:
        float32[d].

    Raises:
        GraphError: As in `with_weights`.
    """
    found = _slots(_load(graph), layout)
    return layout.flatten({name: numpy_helper.to_array(tensor) for name, tensor in found.items()})


def _load(graph: bytes) -> onnx.ModelProto:
    try:
        return onnx.load_from_string(graph)
    except Exception as error:  # protobuf's DecodeError, which is not importable by a stable name
        raise GraphError(f"{len(graph):,} bytes are not an ONNX graph: {error}. Export the model again.") from error


def _slots(model: onnx.ModelProto, layout: Layout) -> dict[str, onnx.TensorProto]:
    found = {tensor.name: tensor for tensor in model.graph.initializer}
    for slot in layout.slots:
        if slot.name not in found or tuple(found[slot.name].dims) != slot.shape:
            shape = tuple(found[slot.name].dims) if slot.name in found else "nothing"
            raise GraphError(
                f"the graph has no initializer {slot.name!r} of shape {slot.shape}, found {shape}. "
                "Use the layout that was exported with this graph."
            )
    return {slot.name: found[slot.name] for slot in layout.slots}
