"""What a client sent, checked against the model and marked as raw data."""

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


def check_inputs(tensors: Iterable[PlainTensor], inputs: Mapping[str, NDArray[Any]]) -> Tensors:
    """Checks what a client sent against the model, and marks it as raw data.

    Args:
        tensors: What the model takes.
        inputs: Arrays by name.

    Returns:
        The same arrays, traced.

    Raises:
        InputError: If a name, dtype or shape is wrong.
    """
    wanted = {t.name: t for t in tensors}
    for name in inputs:
        if name not in wanted:
            raise InputError(f"the model has no input {name!r}.{nearest(name, wanted)}")
    batches = set()
    for name, tensor in wanted.items():
        if name not in inputs:
            raise InputError(
                f"input {name!r} is missing, given are {sorted(inputs)}. Send {tensor.dtype}{_shown(tensor)}."
            )
        array = inputs[name]
        if dtype_name(array.dtype) != tensor.dtype:
            raise InputError(f"input {name!r} has dtype {array.dtype}, the model takes {tensor.dtype}. Convert it.")
        if array.shape != tensor.shape and not _fits(array.shape, tensor):
            raise InputError(
                f"input {name!r} has shape {list(array.shape)}, the model takes {_shown(tensor)}. Reshape it."
            )
        if tensor.symbolic_batch:
            batches.add(array.shape[0])
    if len(batches) > 1:
        raise InputError(f"inputs have different batch sizes {sorted(batches)}. Send one batch.")
    return {name: _raw(array) for name, array in inputs.items()}


def _fits(shape: tuple[int, ...], tensor: PlainTensor) -> bool:
    if len(shape) != len(tensor.shape):
        return False
    return all(n == w or (w is None and n > 0) for n, w in zip(shape, tensor.open_shape, strict=True))


def _raw(array: NDArray[Any]) -> NDArray[Any]:
    is_so = isinstance(array, Traced) and RAW in array.origins and array.flags.c_contiguous
    return array if is_so else traced(array if array.ndim == 0 else np.ascontiguousarray(array), RAW)


def _shown(tensor: PlainTensor) -> str:
    sizes = ["?" if n is None else str(n) for n in tensor.open_shape]
    if tensor.symbolic_batch:
        sizes[0] = "n"
    return f"[{', '.join(sizes)}]"
