"""From ONNX bytes to a `PlainGraph`: every refusal a user can meet, and what is turned into a form that can be served."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewise.core.errors import EdgewiseError, GraphError
from edgewise.core.ids import digest_of
from edgewise.models.graph.class_labels import labels_of, without_zip_maps
from edgewise.models.graph.flow import constants_of, flowing_nodes, initial_names, reads, with_flops
from edgewise.models.graph.infer_shapes import Examples, Shapes, settle_tensors
from edgewise.models.graph.named_exits import exits_of, name_exits
from edgewise.models.graph.optional_inputs import leave_out_optional, left_out
from edgewise.models.graph.plain import PlainGraph, PlainTensor
from edgewise.models.graph.runtime import OPSET_SURE, first_line, probe_session, refusal_of, runtime_opset
from edgewise.models.graph.widen import brain_floats_of, has_brain_floats, widen, widen_brain_floats

_DOMAINS = {"", "ai.onnx", "ai.onnx.ml", "com.microsoft"}
_ELEMENTS = {"BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64"}
_ELEMENTS |= {"FLOAT16", "FLOAT", "DOUBLE", "BFLOAT16", "STRING"}
_OVERRIDABLE_SINCE = 4
"""Version of the format from which an initializer that is also an input is a default; before, it is a constant."""


def load_graph(
    source: bytes | str | Path, input_shapes: Shapes, exits: tuple[str, ...] = (), examples: Examples | None = None
) -> PlainGraph:
    """What `Graph.load` does; see there."""
    model, changed, where = _read(source)
    try:
        return _plain(source, model, changed, where, input_shapes, exits, examples)
    except MemoryError as error:
        raise GraphError(
            f"{where} declares tensors larger than there is memory: {first_line(error)}. Export it with smaller fixed sizes."
        ) from error
    except EdgewiseError:
        raise
    except Exception as error:  # boundary: a file may contradict itself wherever it is read
        raise GraphError(
            f"{where} contradicts itself: {type(error).__name__}: {first_line(error)}. Export it again."
        ) from error


def _plain(
    source: bytes | str | Path,
    model: Any,
    changed: bool,
    where: str,
    input_shapes: Shapes,
    exits: tuple[str, ...],
    examples: Examples | None,
) -> PlainGraph:
    _check(model, where)
    model, is_servable = _servable(model, where)
    changed = name_exits(model, exits, where) or is_servable or changed
    constants, fixed = _fixed(model, where)
    if all(output.name in constants for output in model.graph.output):
        constants = initial_names(model.graph) | {
            ""
        }  # nothing flows: what is computed at all is computed at each request
    nodes = flowing_nodes(model, constants)
    given, tensors, unmeasured = settle_tensors(model, input_shapes, examples or {}, nodes, where)
    tensors = _declared(tensors, brain_floats_of(model))
    outputs = tuple(tensors[o.name] for o in model.graph.output if o.name in tensors and o.name not in given)
    if not outputs:
        raise GraphError(
            f"{where} computes nothing: its outputs are stored constants or its inputs. Export it with its logits as outputs."
        )
    nodes = tuple(with_flops(node, tensors) for node in nodes)
    original = source if isinstance(source, bytes) else Path(source).read_bytes()
    kept = model.SerializeToString() if changed else original
    return PlainGraph(
        name=model.graph.name or "graph",
        digest=digest_of(kept),
        model_bytes=kept,
        inputs=tuple(tensors[i] for i in given),
        outputs=outputs,
        nodes=nodes,
        tensors=tensors,
        input_shapes=dict(given),
        exits=exits_of(model, [tensor.name for tensor in outputs]),
        constants=fixed,
        optional=_optional_inputs(model),
        labels=labels_of(model),
        examples=dict(examples or {}),
        unmeasured=unmeasured,
    )


def _read(source: bytes | str | Path) -> tuple[Any, bool, str]:
    import onnx

    where = "the ONNX bytes" if isinstance(source, bytes) else f"ONNX file {str(source)!r}"
    if not isinstance(source, bytes) and not Path(source).is_file():
        what = "is no file" if Path(source).exists() else "does not exist"
        raise GraphError(f"{where} {what}. Give the path of a model exported to ONNX.")
    try:
        if isinstance(source, bytes):
            model = onnx.load_model_from_string(source)
        else:
            model = onnx.load_model(str(source), load_external_data=False)
    except Exception as error:  # protobuf raises its own classes, which differ between its back ends
        raise GraphError(f"{where} is not readable as ONNX: {error}. Export or download it again.") from error
    if not model.graph.node and not model.graph.output:
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
    if version > OPSET_SURE and version > runtime_opset():
        raise GraphError(
            f"{where} needs ONNX opset {version}, the installed runtime knows up to {runtime_opset()}. Export it "
            f"with opset_version={min(17, runtime_opset())}, or install a newer onnxruntime."
        )
    try:
        onnx.checker.check_model(model)
    except Exception as error:
        if refusal_of(model):  # the runtime is less strict, e.g. about inputs without a shape
            first = str(error).strip().splitlines()[0]
            raise GraphError(f"{where} is not a valid model: {first}. Export it again.") from error


def _servable(model: Any, where: str) -> tuple[Any, bool]:
    """The model with what no protocol or processor knows turned into what they know, and whether anything was."""
    import onnx

    changed = any([_free_negative_sizes(model), without_zip_maps(model), leave_out_optional(model)])
    _check_kinds(model, where)
    wide = onnx.ModelProto()
    wide.CopyFrom(model)
    if has_brain_floats(model) and (brain_floats_of(model, is_declared=True) or refusal_of(model)):
        widen_brain_floats(wide)
        widen(wide)
        return wide, True
    if widen(wide) and not refusal_of(wide):
        return wide, True
    return model, changed


def _free_negative_sizes(model: Any) -> bool:
    """Turns sizes below 0, as older exporters write where any will do, into axes without a size."""
    values = [*model.graph.input, *model.graph.output, *model.graph.value_info]
    found = [dim for value in values for dim in value.type.tensor_type.shape.dim if dim.dim_value < 0]
    for dim in found:
        dim.ClearField("dim_value")
    return bool(found)


def _check_kinds(model: Any, where: str) -> None:
    """Refuses inputs and outputs that no inference protocol carries, with the reason."""
    import onnx

    initial = initial_names(model.graph)
    sides = {"input": [v for v in model.graph.input if v.name not in initial], "output": list(model.graph.output)}
    for side, values in sides.items():
        for value in values:
            kind = value.type.WhichOneof("value") or "no type"
            if kind != "tensor_type":
                what = {"sequence_type": "a sequence", "map_type": "a map", "optional_type": "an optional sequence"}
                raise GraphError(
                    f"{where} has the {side} {value.name!r}, which is {what.get(kind, kind.replace('_', ' '))}; an inference "
                    "endpoint carries tensors. Export the model with tensors there, e.g. stacked by ConcatFromSequence, "
                    "or by skl2onnx with zipmap=False."
                )
            word = onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type)
            if word not in _ELEMENTS:
                raise GraphError(
                    f"{where} has the {side} {value.name!r} of element type {word}, for which the Open Inference Protocol "
                    f"has no word. Cast it in the model to one of {', '.join(sorted(_ELEMENTS))}."
                )


def _declared(tensors: Mapping[str, PlainTensor], brain_floats: tuple[str, ...]) -> dict[str, PlainTensor]:
    import msgspec

    narrow = {
        name: msgspec.structs.replace(tensors[name], declared="bfloat16") for name in brain_floats if name in tensors
    }
    return {**tensors, **narrow}


def _optional_inputs(model: Any) -> tuple[PlainTensor, ...]:
    """Inputs that have a default in the file, or may be absent."""
    import onnx

    found = [_optional_tensor(name, kind, outside) for name, (kind, outside) in left_out(model).items()]
    if model.ir_version < _OVERRIDABLE_SINCE:
        return tuple(found)
    initial = {i.name: i for i in model.graph.initializer}
    for value in model.graph.input:
        default = initial.get(value.name)
        if default is not None:
            dtype = str(onnx.helper.tensor_dtype_to_np_dtype(default.data_type))
            dims = list(value.type.tensor_type.shape.dim) or [None] * len(default.dims)
            free = tuple(axis for axis, dim in enumerate(dims) if dim is None or dim.dim_value <= 0)
            found.append(PlainTensor(value.name, tuple(default.dims), dtype, False, free))
    return tuple(found)


def _optional_tensor(name: str, kind: Any, outside: str) -> PlainTensor:
    import onnx

    dtype, dims = str(onnx.helper.tensor_dtype_to_np_dtype(kind.tensor_type.elem_type)), kind.tensor_type.shape.dim
    free = tuple(axis for axis, dim in enumerate(dims) if dim.dim_value <= 0)
    shape, has_rank = tuple(dim.dim_value or 1 for dim in dims), kind.tensor_type.HasField("shape")
    declared = outside if outside != dtype else ""
    return PlainTensor(name, shape, dtype, False, free, declared=declared, has_any_rank=not has_rank)


def _fixed(model: Any, where: str) -> tuple[set[str], dict[str, NDArray[Any]]]:
    """What no input changes, and the outputs among it."""
    constants = constants_of(model.graph)
    try:
        return constants, _constant_outputs(model, constants)
    except Exception as error:
        absent = left_out(model)
        if not absent:
            raise GraphError(f"{where} cannot be run: {first_line(error)}. Export it again.") from error
    # It cannot be run without an optional input: that is said to each request, as the runtime says it.
    constants = constants_of(model.graph, absent)
    return constants, _constant_outputs(model, constants)


def _constant_outputs(model: Any, constants: set[str]) -> dict[str, NDArray[Any]]:
    """Outputs that no input changes, computed once."""
    import onnx

    names = [output.name for output in model.graph.output if output.name in constants]
    if not names:
        return {}
    part = onnx.ModelProto()
    part.CopyFrom(model)
    part.ir_version = max(model.ir_version, _OVERRIDABLE_SINCE)
    kept = [node for node in model.graph.node if set(node.output) <= constants and set(reads(node)) <= constants]
    wanted = [output for output in model.graph.output if output.name in names]
    for field in (part.graph.node, part.graph.input, part.graph.output, part.graph.value_info):
        del field[:]
    part.graph.node.extend(kept)
    part.graph.output.extend(wanted)
    values = probe_session(part.SerializeToString()).run(names, {})
    return {name: np.asarray(value) for name, value in zip(names, values, strict=True)}
