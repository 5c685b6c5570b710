"""From a torch task to a template: an ONNX graph with named exits whose initializers can be exchanged.

A template is made once, where torch is; versions are then made from vectors by `weights.with_weights`, which
needs no torch. Read `weights.py` next.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import numpy_helper

from edgewise.core.errors import TaskError
from edgewise.core.layout import Layout, Vector
from edgewise.models.flat import layout_of, load_vector, vector_of
from edgewise.models.forward import INPUT, as_numpy, call, example_inputs, named_outputs, same_outputs
from edgewise.models.graph.weights import with_weights
from edgewise.models.task import Task, user_code

if TYPE_CHECKING:
    from torch import Tensor, nn

OPSET = 17
BATCH = "batch"
TOLERANCE = 1e-3
"""Largest difference between the graph and the module, relative to the largest output; more than kernels differ by."""
_KEEP = "Or train it all the same and keep the weights alone: --weights FILE.npz."


def export_template(task: Task) -> tuple[bytes, Layout]:
    """Exports the task's model.

    Initializers are the layout's slots, as they are: where torch's constant folding would transform them (a recurrent layer's
    weights, those of a linear layer over sequences) it is left out, and the runtime that serves folds them instead.

    Args:
        task: Its model's forward returns one tensor, one logits tensor per exit, or a dict.

    Returns:
        ONNX bytes with input `input` and outputs `exit_0`, `exit_1`, … (or named as the model's arguments and keys are) whose
        first axis is the dynamic `batch`, and the layout; every slot of it, parameter or buffer, is an initializer of that
        name, also what forward does not use. Batch norm is a node of its own that uses its running statistics.

    Raises:
        TaskError: If torch cannot export the model, a tensor does not survive the export under its name, or the graph
            answers otherwise than the module.
    """
    with user_code(f"task {task.name!r} makes no model"):
        module = task.model().eval()
    layout = layout_of(module)
    start = vector_of(module)
    example = example_inputs(task, module)
    # Exporters merge initializers of equal content, e.g. zero biases; distinct values keep every name.
    load_vector(module, np.random.default_rng(0).standard_normal(layout.size, np.float32))
    # Otherwise batch norm is folded into the layer before it, and neither's tensors can be exchanged any more.
    keeps_norm = any(slot.name.endswith("running_mean") for slot in layout.slots)
    graph = _exported(task, module, example, folds=True, preserves=keeps_norm)
    if _lacking(graph, layout):
        graph = _exported(task, module, example, folds=False, preserves=keeps_norm)
    _add_unused(task, module, example, graph, layout)
    onnx.checker.check_model(graph)
    data = graph.SerializeToString()
    _check_answers(task, load_vector(module, start), start, data, layout)
    return data, layout


def _exported(task: Task, module: nn.Module, example: Any, *, folds: bool, preserves: bool) -> onnx.ModelProto:
    import torch

    modes, file = torch.onnx.TrainingMode, io.BytesIO()
    inputs = list(example) if isinstance(example, Mapping) else [INPUT]
    with torch.no_grad():
        outputs = list(named_outputs(call(module, example)))
    names = [*inputs, *outputs]
    if len(set(names)) < len(names):
        raise TaskError(f"inputs and outputs of task {task.name!r} share names: {names}. Give each a name of its own.")
    try:
        with warnings.catch_warnings(), torch.no_grad(), _traceable(module, inputs), _silent():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                module,
                tuple(example.values()) if isinstance(example, Mapping) else (example,),
                file,
                dynamo=False,
                opset_version=OPSET,
                input_names=inputs,
                output_names=outputs,
                dynamic_axes={name: {0: BATCH} for name in names},
                training=modes.PRESERVE if preserves else modes.EVAL,
                do_constant_folding=folds,
            )
    except Exception as error:  # torch raises many kinds here, all of them meaning this
        text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        raise TaskError(
            f"the model of task {task.name!r} cannot be exported to ONNX: {type(error).__name__}: {text.rstrip('.')}. "
            f"Use operations that torch.onnx.export supports. {_KEEP}"
        ) from error
    return onnx.load_from_string(file.getvalue())


@contextmanager
def _silent() -> Iterator[None]:
    """Where an export fails torch prints the whole graph, past `sys.stdout` into what a program reads as our answer."""
    import torch

    place: Any = torch._C
    before = getattr(place, "_jit_onnx_log", None)  # its own switch does not turn it off
    if before is None:
        yield
        return
    place._jit_onnx_log = lambda *_: None
    try:
        yield
    finally:
        place._jit_onnx_log = before


@contextmanager
def _traceable(module: nn.Module, names: list[str]) -> Iterator[None]:
    """A module as the exporter takes it: positional tensors in, a tuple out, no fused attention, batch statistics in words."""
    import torch

    def forward(*tensors: Tensor) -> Any:
        made = whole(**dict(zip(names, tensors, strict=True))) if names != [INPUT] else whole(*tensors)
        found = tuple(named_outputs(made).values())
        return found if len(found) > 1 else found[0]

    whole, before = module.forward, torch.backends.mha.get_fastpath_enabled()
    # Batch norm that keeps no running statistics: the exporter needs sizes that it does not know.
    normed = [m for m in module.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    patched = [(m, _batch_statistics(m)) for m in normed if m.running_mean is None and m is not module]
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        for each, replaced in [*patched, (module, forward)]:
            each.forward = replaced
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
        for each, _ in [*patched, (module, forward)]:
            del each.forward


def _batch_statistics(norm: Any) -> Any:
    def forward(x: Tensor) -> Tensor:
        axes = [0, *range(2, x.dim())]
        mean = x.mean(axes, keepdim=True)
        scaled = (x - mean) / (((x - mean) ** 2).mean(axes, keepdim=True) + norm.eps).sqrt()
        if norm.weight is None:
            return scaled
        shape = (1, -1) + (1,) * (x.dim() - 2)
        return scaled * norm.weight.view(shape) + norm.bias.view(shape)

    return forward


def _lacking(graph: onnx.ModelProto, layout: Layout) -> list[tuple[Any, Any]]:
    """Slots that are no initializers of their name and shape, and the shape that was found."""
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.graph.initializer}
    return [(slot, shapes.get(slot.name)) for slot in layout.slots if shapes.get(slot.name) != slot.shape]


def _add_unused(task: Task, module: nn.Module, example: Any, graph: onnx.ModelProto, layout: Layout) -> None:
    """Makes what forward does not use an initializer, too: it travels and is kept; refuses what it transforms."""
    import torch

    flat, rng = vector_of(module), np.random.default_rng(1)
    for slot, found in _lacking(graph, layout):
        place = slice(slot.offset, slot.offset + slot.size)
        moved = flat.copy()
        moved[place] = rng.standard_normal(slot.size, np.float32)
        with torch.no_grad():
            answers = [call(load_vector(module, vector), example) for vector in (flat, moved)]
        if found is not None or not same_outputs(*answers):
            raise TaskError(
                f"{slot.kind} {slot.name!r} of task {task.name!r} is not in the exported graph under its name and shape "
                f"{slot.shape}, found {found}. Every tensor must be used by forward as it is; do not transform weights inside "
                f"forward, and do not leave torch there (.numpy(), .item()). {_KEEP}"
            )
        tensor = np.ascontiguousarray(flat[place]).reshape(slot.shape)
        graph.graph.initializer.append(numpy_helper.from_array(tensor, slot.name))


def _check_answers(task: Task, module: nn.Module, start: Vector, graph: bytes, layout: Layout) -> None:
    """Refuses a graph that answers otherwise than the module, on more rows than were traced."""
    import onnxruntime
    import torch

    inputs = example_inputs(task, module, rows=3)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    with torch.no_grad():
        wanted = {name: value.numpy() for name, value in named_outputs(call(module, inputs)).items()}
    try:
        weighted = with_weights(graph, layout, start)
        session = onnxruntime.InferenceSession(weighted, options, providers=["CPUExecutionProvider"])
        takes = {each.name for each in session.get_inputs()}  # an input that forward does not use is none of the graph
        given = {name: array for name, array in as_numpy(inputs).items() if name in takes}
        found = dict(zip(wanted, session.run(list(wanted), given), strict=True))
    except Exception as error:  # onnxruntime raises many kinds; all mean that the graph cannot serve
        text = str(error).splitlines()[0]
        raise TaskError(
            f"the model of task {task.name!r} exports to a graph that cannot run on 3 examples after it was traced on 2: "
            f"{text}. Take sizes from the input, x.shape[0] or -1, in forward. {_KEEP}"
        ) from error
    for name, array in wanted.items():
        gap = _gap(array, found[name])
        if gap > TOLERANCE:
            raise TaskError(
                f"the exported graph of task {task.name!r} gives another {name!r} than the model, by {gap:.1e} of its largest "
                "entry: forward depends on values or on the number of examples in a way that tracing loses (an if, a loop, "
                f"int(…), random numbers while it serves). Write it with tensor operations. {_KEEP}"
            )


def _gap(wanted: Any, found: Any) -> float:
    if wanted.shape != found.shape:
        return float("inf")
    if not wanted.size:
        return 0.0
    wide, other = np.nan_to_num(wanted.astype(np.float64)), np.nan_to_num(found.astype(np.float64))
    return float(np.abs(wide - other).max() / max(1.0, np.abs(wide).max()))
