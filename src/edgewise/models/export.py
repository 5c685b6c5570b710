"""From a torch task to a template: an ONNX graph with named exits whose initializers can be exchanged.

A template is made once, where torch is; versions are then made from vectors by `weights.with_weights`, which
needs no torch. Read `weights.py` next.
"""

from __future__ import annotations

import io
import warnings
from typing import Any

import numpy as np
import onnx

from edgewise.core.errors import TaskError
from edgewise.core.layout import Layout
from edgewise.models.flat import layout_of, load_vector
from edgewise.models.task import Task

OPSET = 17
INPUT = "input"
BATCH = "batch"


def exit_name(index: int) -> str:
    """The graph output of an exit: `exit_0`, `exit_1`, …"""
    return f"exit_{index}"


def export_template(task: Task) -> tuple[bytes, Layout]:
    """Exports the task's model.

    Args:
        task: Its model's forward returns one tensor or one logits tensor per exit.

    Returns:
        ONNX bytes with input `input` and outputs `exit_0`, `exit_1`, … whose first axis is the dynamic `batch`,
        and the layout; every slot of it, parameter or buffer, is an initializer of that name. Batch norm is a node of its
        own that uses its running statistics.

    Raises:
        TaskError: If torch cannot export the model, or a tensor does not survive the export under its name.
    """
    import torch

    module = task.model().eval()
    layout = layout_of(module)
    # Exporters merge initializers of equal content, e.g. zero biases; distinct values keep every name.
    load_vector(module, np.random.default_rng(0).standard_normal(layout.size, np.float32))
    example = torch.zeros(2, *task.input_shape)
    names = [exit_name(index) for index in range(_num_exits(module, example))]
    # Otherwise batch norm is folded into the layer before it, and neither's tensors can be exchanged any more.
    modes = torch.onnx.TrainingMode
    mode = modes.EVAL if layout.num_trained == layout.size else modes.PRESERVE
    file = io.BytesIO()
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                module,
                (example,),
                file,
                dynamo=False,
                opset_version=OPSET,
                input_names=[INPUT],
                output_names=names,
                dynamic_axes={name: {0: BATCH} for name in (INPUT, *names)},
                training=mode,
            )
    except Exception as error:  # torch raises many kinds here, all of them meaning this
        raise TaskError(
            f"the model of task {task.name!r} cannot be exported to ONNX: {type(error).__name__}: {error}. "
            "Use operations that torch.onnx.export supports."
        ) from error
    graph = onnx.load_from_string(file.getvalue())
    _check_slots(task, graph, layout)
    onnx.checker.check_model(graph)
    return graph.SerializeToString(), layout


def _num_exits(module: Any, example: Any) -> int:
    import torch

    with torch.no_grad():
        outputs = module(example)
    return len(outputs) if isinstance(outputs, (tuple, list)) else 1


def _check_slots(task: Task, graph: onnx.ModelProto, layout: Layout) -> None:
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.graph.initializer}
    for slot in layout.slots:
        if shapes.get(slot.name) != slot.shape:
            raise TaskError(
                f"{slot.kind} {slot.name!r} of task {task.name!r} is not in the exported graph under its name and shape "
                f"{slot.shape}, found {shapes.get(slot.name)}. Every tensor must be used by forward as it is; "
                "remove unused ones and do not transform weights inside forward."
            )
