"""Shapes and types of the tensors that flow: inferred from the file, or measured by one run where they cannot be.

A model that runs neither on zeros nor on the examples given, e.g. because a zero takes a branch that fails, is still
served: what flows inside it is then known only as far as inference goes, and its pieces are no places to cut.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgewise.core.errors import GraphError
from edgewise.models.graph.flow import initial_names
from edgewise.models.graph.plain import PlainNode, PlainTensor
from edgewise.models.graph.runtime import first_line, probe_session

Shapes = Mapping[str, tuple[int, ...]]
Examples = Mapping[str, NDArray[Any]]
_SIZES = (16, 64, 224)
"""Sizes tried for free axes: small enough for sequences, the last large enough for images."""


class _TensorFacts(NamedTuple):
    shape: tuple[int, ...]
    dtype: str
    is_complete: bool


class Settled(NamedTuple):
    """What is known of the tensors of a model.

    Attributes:
        given: Shape of each input, free axes settled.
        tensors: The flowing tensors whose type and rank are known.
        unmeasured: Why not all are; "" if they are.
    """

    given: dict[str, tuple[int, ...]]
    tensors: dict[str, PlainTensor]
    unmeasured: str


def settle_tensors(
    model: Any, input_shapes: Shapes, examples: Examples, nodes: tuple[PlainNode, ...], where: str
) -> Settled:
    """The inputs' shapes and every tensor; free axes have the first size with which the shapes work out.

    Args:
        model: An `onnx.ModelProto`.
        input_shapes: Sizes that were given, by input.
        examples: Inputs to measure with, by input; zeros without.
        nodes: The nodes that flow.
        where: What the model is called in messages.

    Raises:
        GraphError: If a shape or an example is for no input.
    """
    failed = ""
    for size in _SIZES:
        given, has_free = _settle_inputs(model, input_shapes, examples, where, size)
        tensors, failed = _tensors(model, given, examples, nodes, has_free)
        if not failed:
            return Settled(given, tensors, "")
        if not has_free or all(name in examples for name in given):
            return Settled(given, tensors, failed)
    names = ", ".join(name for name, sizes in given.items() if sizes and name not in input_shapes)
    example = "; ".join(f"--input-shape {name}={','.join(map(str, sizes))}" for name, sizes in given.items() if sizes)
    failed = (
        f"it has axes without a fixed size in its inputs {names}, and runs with none of the sizes "
        f"{', '.join(map(str, _SIZES))} there. Give the sizes, e.g. {example}. The last try: {failed}"
    )
    return Settled(given, tensors, failed)


def _settle_inputs(
    model: Any, input_shapes: Shapes, examples: Examples, where: str, size: int
) -> tuple[dict[str, tuple[int, ...]], bool]:
    initial = initial_names(model.graph)
    real = [i for i in model.graph.input if i.name not in initial]
    for what, names in (("a shape", input_shapes), ("an example", examples)):
        unknown = sorted(set(names) - {i.name for i in real})
        if unknown:
            known = ", ".join(i.name for i in real)
            raise GraphError(f"{where} has no input {unknown[0]!r} to give {what} to. Its inputs: {known}.")
    given, has_free = {}, False
    for value in real:
        dims = [int(dim.dim_value) for dim in value.type.tensor_type.shape.dim]
        is_free = value.name not in input_shapes and (any(n <= 0 for n in dims[1:]) or not has_rank(value))
        has_free = has_free or is_free
        shape = tuple(n if n > 0 else size if axis else 1 for axis, n in enumerate(dims))
        shape = examples[value.name].shape if value.name in examples else shape
        given[value.name] = input_shapes.get(value.name) or shape
    return given, has_free


def has_rank(value: Any) -> bool:
    """Whether the file says how many axes a value has.

    Args:
        value: An `onnx.ValueInfoProto` of a tensor.
    """
    return bool(value.type.tensor_type.HasField("shape"))


def _tensors(
    model: Any, given: Shapes, examples: Examples, nodes: tuple[PlainNode, ...], has_free: bool
) -> tuple[dict[str, PlainTensor], str]:
    """The tensors, and why those that had to be measured were not."""
    import onnx

    concrete = onnx.ModelProto()
    concrete.CopyFrom(model)
    for value in concrete.graph.input:
        if value.name in given and (has_rank(value) or given[value.name]):
            _fix_shape(value, given[value.name])
    for value in concrete.graph.output:
        value.type.tensor_type.ClearField("shape")
    del concrete.graph.value_info[:]
    known, open_batch = _inferred(concrete), _inferred(model)
    wanted = [*given, *(o for node in nodes for o in node.outputs)]
    missing = [name for name in wanted if has_free or name not in known or not known[name].is_complete]
    measured, failed = _measured(concrete, missing, examples) if missing else ({}, "")
    varying = {name: _varying(name, known, measured) for name in missing}
    unranked = {name for name, (_, fixed) in measured.items() if fixed is None and name not in known}
    known.update({name: found for name, (found, _) in measured.items()})
    declared = _declared(model) if failed else {}
    declared = {
        n: found for n, found in declared.items() if n in wanted and (n not in known or not known[n].is_complete)
    }
    known.update(declared)
    known.update({name: _TensorFacts(given[name], known[name].dtype, True) for name in given if name in known})
    inputs = {value.name: value for value in model.graph.input}
    symbolic = any(_is_open(inputs[name]) for name in given)
    rankless = {value.name for value in concrete.graph.input if value.name in given and not has_rank(value)}
    outputs = {value.name: has_rank(value) for value in model.graph.output}
    symbols = {
        value.name: tuple(dim.dim_param for dim in value.type.tensor_type.shape.dim)
        for value in [*model.graph.input, *model.graph.output]
    }
    tensors = {}
    for name in wanted:
        if name not in known or (failed and not known[name].is_complete):
            continue
        if name in unranked and name not in outputs:
            continue  # what has another rank each time is no place to cut
        shape, dtype, _ = known[name]
        same_rank = name in open_batch and len(open_batch[name].shape) == len(shape)
        found = open_batch[name].shape if same_rank else (0,) * len(shape)
        # Where an axis is free, any axis that inference does not know may follow it; 0 stands for one that is open.
        free = tuple(axis for axis in range(1, len(shape)) if found[axis] <= 0) if has_free else varying.get(name, ())
        first_axis = open_batch[name].shape[:1] if name in open_batch else (0,)
        is_batch = symbolic and shape[:1] == (1,) and first_axis in ((), (0,))
        is_batch = is_batch or (has_free and found[:1] == (0,))
        has_any_rank = name in rankless or (bool(rankless) and name not in open_batch)
        has_any_rank = has_any_rank or (name in unranked and not outputs[name])
        tensors[name] = PlainTensor(
            name, shape, dtype, is_batch, free, symbols.get(name, ()), has_any_rank=has_any_rank
        )
    for name, value in declared.items():
        shape = tuple(max(1, n) for n in value.shape)
        free = tuple(axis for axis, n in enumerate(value.shape) if n <= 0)
        unknown = not outputs[name]
        tensors[name] = PlainTensor(name, shape, value.dtype, False, free, symbols.get(name, ()), has_any_rank=unknown)
    return tensors, failed


def _varying(
    name: str, known: Mapping[str, _TensorFacts], measured: Mapping[str, tuple[_TensorFacts, Any]]
) -> tuple[int, ...]:
    """Axes whose size depends on the data, e.g. how many boxes are found: neither inference nor the runtime knows them."""
    inferred = known[name].shape if name in known else None
    if name not in measured:
        return () if inferred is None else tuple(axis for axis, n in enumerate(inferred) if n <= 0)
    shape, fixed = measured[name][0].shape, measured[name][1] or frozenset()
    if inferred is not None and len(inferred) == len(shape):
        return tuple(axis for axis, n in enumerate(inferred) if n <= 0 and axis not in fixed)
    return tuple(axis for axis in range(len(shape)) if axis not in fixed)


def _declared(model: Any) -> dict[str, _TensorFacts]:
    """Outputs as the file describes them: all that is known of a model that could not be run."""
    import onnx

    found = {}
    for value in model.graph.output:
        kind = value.type.tensor_type
        shape = tuple(max(0, int(d.dim_value)) for d in kind.shape.dim)
        found[value.name] = _TensorFacts(shape, str(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)), True)
    return found


def _is_open(value: Any) -> bool:
    dims = value.type.tensor_type.shape.dim
    return len(dims) > 0 and dims[0].dim_value <= 0


def _fix_shape(value: Any, shape: Iterable[int]) -> None:
    value.type.tensor_type.shape.ClearField("dim")
    for size in shape:
        value.type.tensor_type.shape.dim.add().dim_value = size


def _inferred(model: Any) -> dict[str, _TensorFacts]:
    """Every value that shape inference finds; 0 stands for an open axis."""
    import onnx

    try:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except Exception:  # inference gives up on some legal old models; the run below knows better
        inferred = model
    found = {}
    for value in [*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output]:
        kind = value.type.tensor_type
        if kind.elem_type == 0 or not kind.HasField("shape"):
            continue
        shape = tuple(int(d.dim_value) for d in kind.shape.dim)
        dtype = str(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))
        found[value.name] = _TensorFacts(shape, dtype, all(s > 0 for s in shape))
    return found


def _measured(
    model: Any, names: list[str], examples: Examples
) -> tuple[dict[str, tuple[_TensorFacts, frozenset[int] | None]], str]:
    """Shapes from one run, with the axes whose size the runtime knew beforehand (None: not even how many); and why it failed."""
    import onnx

    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    initial = initial_names(probe.graph)
    del probe.graph.output[:]
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    feeds = {
        i.name: examples[i.name] if i.name in examples else _zeros_like(i)
        for i in probe.graph.input
        if i.name not in initial
    }
    try:
        try:
            session = probe_session(probe.SerializeToString())
        except Exception:  # with these sizes a branch that is not taken does not fit
            for value in probe.graph.input:
                for place, dim in enumerate(value.type.tensor_type.shape.dim):
                    dim.dim_param = f"{value.name}_{place}"
            session = probe_session(probe.SerializeToString())
        values = session.run(None, feeds)
    except Exception as error:
        what = "its examples" if examples else "zeros"
        return {}, (
            f"the shape of tensor {names[0]!r} cannot be inferred and the model does not run on {what}: "
            f"{first_line(error)}. Give examples that it can run on (--data), or export it with static shapes."
        )
    found = {}
    for said, value in zip(session.get_outputs(), values, strict=True):
        if not hasattr(value, "shape"):  # a sequence or a map
            continue
        is_ranked = len(said.shape) == value.ndim
        fixed = frozenset(axis for axis, n in enumerate(said.shape) if isinstance(n, int)) if is_ranked else None
        found[said.name] = _TensorFacts(tuple(value.shape), str(value.dtype), True), fixed
    return found, ""


def _zeros_like(value: Any) -> NDArray[Any]:
    import onnx

    kind = value.type.tensor_type
    return empty_array([d.dim_value for d in kind.shape.dim], onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))


def empty_array(shape: Iterable[int], dtype: Any) -> NDArray[Any]:
    """An array with nothing in it: zeros, or empty strings.

    Args:
        shape: Its sizes.
        dtype: numpy's; `object` for strings.
    """
    dtype = np.dtype(dtype)
    return np.full(tuple(shape), "", dtype) if dtype.kind == "O" else np.zeros(tuple(shape), dtype)
