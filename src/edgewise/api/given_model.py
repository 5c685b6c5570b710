"""From whatever a user has, a graph: a run, a torch module, an ONNX file, its bytes, or a `Graph`."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edgewise.api.source import plain_array
from edgewise.core.errors import InputError
from edgewise.models.graph.graph import Graph, graph_from


def graph_of(
    model: Any,
    example: Any | None = None,
    *,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    exits: Sequence[str] = (),
) -> Graph:
    """Takes a model in any of the forms a user has it in.

    Args:
        model: A path or bytes of ONNX, an `onnx.ModelProto`, a `Graph`, what `simulate` returned, or a torch module of
            one input.
        example: Inputs [n, ...], needed for a torch module alone.
        input_shapes: As in `Graph.load`; for a file.
        exits: As in `Graph.load`; for a file.

    Returns:
        The graph.

    Raises:
        InputError: If it is none of these, or a module comes without an example.
        GraphError: As `Graph.load`.
        TaskError: If a module cannot be exported.
    """
    if isinstance(model, Graph):
        return model
    if isinstance(model, str | bytes | os.PathLike):
        return Graph.load(model if isinstance(model, bytes) else os.fspath(model), input_shapes, exits)
    if isinstance(held := getattr(model, "graph", None), Graph):
        return held
    if type(model).__name__ == "ModelProto":
        return graph_from(model, input_shapes, exits)
    torch = sys.modules.get("torch")  # who holds a module has imported it
    if torch is not None and isinstance(model, torch.nn.Module):
        if example is None:
            raise InputError("a torch module says nothing of the shape of its input. Give example=inputs too.")
        return _exported(model, example)
    raise InputError(
        f"{type(model).__name__} is no model. Give the path of an ONNX file, a torch module, or what simulate returned."
    )


def _exported(module: Any, example: Any) -> Graph:
    from edgewise.api.in_memory_task import InMemoryTask
    from edgewise.models.export import export_template
    from edgewise.models.flat import vector_of
    from edgewise.models.graph.weights import with_weights

    if isinstance(example, Mapping):
        raise InputError("a torch module is exported with one input. Give an array, or export it to ONNX yourself.")
    one, name = plain_array(example)[:1], type(module).__name__
    task = InMemoryTask(module, {"example": (one, np.zeros(len(one), np.int64))}, name=name)
    template, layout = export_template(task)
    return Graph.load(with_weights(template, layout, vector_of(module)))
