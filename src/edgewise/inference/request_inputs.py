"""What a client sent, checked against the model, converted where that loses nothing, and marked as raw data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewise.core.dtypes import dtype_name
from edgewise.core.errors import InputError, nearest
from edgewise.core.provenance import RAW, Traced, traced
from edgewise.inference.stages import Tensors
from edgewise.models.graph.graph import PlainTensor


def check_inputs(
    tensors: Iterable[PlainTensor], inputs: Mapping[str, NDArray[Any]], optional: Iterable[PlainTensor] = ()
) -> Tensors:
    """Checks what a client sent against the model, and marks it as raw data.

    Args:
        tensors: What the model takes.
        inputs: Arrays by name.
        optional: What it takes if it is given.

    Returns:
        The same arrays, traced, each in the model's dtype.

    Raises:
        InputError: If a name, dtype or shape is wrong.
    """
    wanted = {t.name: t for t in tensors}
    may_be_given = {t.name: t for t in optional}
    inputs = {n: array for n, array in inputs.items() if array is not None or n not in may_be_given}
    offered = {n: t for n, t in may_be_given.items() if n in inputs}
    for name in inputs:
        if name not in wanted and name not in offered:
            raise InputError(f"the model has no input {name!r}.{nearest(name, (*wanted, *may_be_given))}")
    found: Tensors = {}
    for name, tensor in {**wanted, **offered}.items():
        if name not in inputs:
            raise InputError(
                f"input {name!r} is missing, given are {sorted(inputs)}. Send {_type_of(tensor)}{_shown(tensor)}."
            )
        array = inputs[name]
        if array.shape != tensor.shape and not _fits(array.shape, tensor):
            raise InputError(
                f"input {name!r} has shape {list(array.shape)}, the model takes {_shown(tensor)}. Reshape it."
            )
        found[name] = _raw(array if dtype_name(array.dtype) == tensor.dtype else _converted(array, tensor))
    _check_batches(wanted.values(), found)
    return found


def _check_batches(tensors: Iterable[PlainTensor], found: Mapping[str, NDArray[Any]]) -> None:
    """Inputs whose batch axis has one name are of one batch; those without a name may differ, as the runtime lets them."""
    sizes: dict[str, set[int]] = {}
    for tensor in tensors:
        if tensor.batch_symbol:
            sizes.setdefault(tensor.batch_symbol, set()).add(found[tensor.name].shape[0])
    for symbol, batches in sizes.items():
        if len(batches) > 1:
            raise InputError(
                f"inputs have different batch sizes {sorted(batches)}, the model calls them all {symbol!r}. Send one batch."
            )


def _converted(array: NDArray[Any], tensor: PlainTensor) -> NDArray[Any]:
    """The same numbers in the model's dtype: whole numbers stay what they are, floats may round but stay in range."""
    dtype = np.dtype(tensor.dtype)
    if "O" in (array.dtype.kind, dtype.kind) or not _keeps(array, dtype):
        found = "strings" if array.dtype.kind == "O" else f"dtype {array.dtype}"
        lost = "" if "O" in (array.dtype.kind, dtype.kind) else "; its values do not all fit"
        raise InputError(f"input {tensor.name!r} has {found}, the model takes {_type_of(tensor)}{lost}. Convert it.")
    return array.astype(dtype)


def _keeps(array: NDArray[Any], dtype: np.dtype[Any]) -> bool:
    """Whether every value is the same number in another dtype, or in a narrower float the nearest one in its range."""
    plain = np.asarray(array)
    if not plain.size or np.can_cast(plain.dtype, dtype):
        return True
    with np.errstate(all="ignore"):
        if dtype.kind == "f":
            narrow = plain.astype(dtype)
            if plain.dtype.kind == "f":
                return bool((np.isfinite(narrow) == np.isfinite(plain)).all())
            return bool(np.isfinite(narrow).all() and (narrow.astype(plain.dtype) == plain).all())
        if plain.dtype.kind == "f" and not bool((np.isfinite(plain) & (np.trunc(plain) == plain)).all()):
            return False
        lowest, highest = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
        return bool(lowest <= plain.min().item() and plain.max().item() <= highest)


def _fits(shape: tuple[int, ...], tensor: PlainTensor) -> bool:
    if tensor.has_any_rank:
        return True
    if len(shape) != len(tensor.shape):
        return False
    return all(w is None or n == w for n, w in zip(shape, tensor.open_shape, strict=True))


def _raw(array: NDArray[Any]) -> NDArray[Any]:
    is_so = isinstance(array, Traced) and RAW in array.origins and array.flags.c_contiguous
    return array if is_so else traced(array if array.ndim == 0 else np.ascontiguousarray(array), RAW)


def _type_of(tensor: PlainTensor) -> str:
    return "strings " if tensor.dtype == "object" else tensor.declared or tensor.dtype


def _shown(tensor: PlainTensor) -> str:
    if tensor.has_any_rank:
        return "[any]"
    sizes = ["?" if n is None else str(n) for n in tensor.open_shape]
    if tensor.symbolic_batch:
        sizes[0] = "n"
    return f"[{', '.join(sizes)}]"
