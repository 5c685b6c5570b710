"""One tensor's data on the Open Inference Protocol's wire: as JSON, or as bytes of the binary tensor extension. Pure.

Strings are BYTES: UTF-8, in front of each its length in four bytes. NaN and infinities are written into JSON as `NaN`,
`Infinity` and `-Infinity`, as Triton and Python's `json` do, and read so.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from math import prod
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgewise.core.dtypes import DTYPES, dtype_name
from edgewise.core.errors import InputError, nearest
from edgewise.core.texts import pack_texts, unpack_texts

Body = bytes | bytearray | memoryview
"""Of a request, or a part of it."""
DATATYPES = {
    "bool": "BOOL",
    "uint8": "UINT8",
    "uint16": "UINT16",
    "uint32": "UINT32",
    "uint64": "UINT64",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "float16": "FP16",
    "bfloat16": "BF16",
    "float32": "FP32",
    "float64": "FP64",
    "object": "BYTES",
}
"""The protocol's word by numpy's; strings are `object` there."""
MAX_TEXTS = 2**16
"""Strings of one tensor: each is an object, made while nobody else is answered."""
MAX_AXES = 32
_MAX_SIZE = 2**40
_NAMES = {datatype: name for name, datatype in DATATYPES.items()}


def dtype_of(datatype: str) -> np.dtype[Any]:
    """What the elements of a datatype are here; of BF16 `float32`, which holds each of them.

    Args:
        datatype: The protocol's word.

    Raises:
        InputError: If it is none.
    """
    if datatype not in _NAMES:
        raise InputError(f"datatype {datatype!r} is not the protocol's.{nearest(datatype, _NAMES)}")
    return {"BF16": DTYPES["float32"], "BYTES": np.dtype(object)}.get(datatype) or DTYPES[_NAMES[datatype]]


def num_elements(shape: Sequence[int], datatype: str) -> int:
    """How many elements a shape has, before anything is made of it.

    Args:
        shape: Sizes, as a client gave them.
        datatype: The protocol's word.

    Raises:
        ValueError: If no tensor may have it: too many axes, a negative size, sizes beyond what an array can hold, or more
            than `MAX_TEXTS` strings.
    """
    if len(shape) > MAX_AXES:
        raise ValueError(f"it has {len(shape):,} axes, the bound is {MAX_AXES}")
    if any(size < 0 for size in shape):
        raise ValueError("sizes cannot be negative")
    if prod(max(1, size) for size in shape) > _MAX_SIZE:
        raise ValueError(f"its sizes multiply to more than {_MAX_SIZE:,}")
    num = prod(shape)
    if datatype == "BYTES" and num > MAX_TEXTS:
        raise ValueError(f"it has {num:,} strings, the bound is {MAX_TEXTS:,}")
    return num


def from_json(data: Any, shape: Sequence[int], datatype: str) -> NDArray[Any]:
    """Reads a tensor from the values of its JSON.

    Args:
        data: Flat or nested lists.
        shape: Its sizes.
        datatype: The protocol's word.

    Returns:
        The array; `null` among floats is NaN.

    Raises:
        ValueError: If they are no such tensor; also `TypeError`, `OverflowError`.
    """
    dtype = dtype_of(datatype)
    if dtype.kind == "O":
        return _texts(data).reshape(shape)
    values = np.asarray(data)
    if not values.size:
        return np.zeros(0, dtype).reshape(shape)
    if values.dtype.kind == "O" and dtype.kind == "f" and all(_is_number(value) for value in values.ravel()):
        values = values.astype(np.float64)
    if (
        dtype.kind != "f"
        and values.dtype.kind == "f"
        and not (np.isfinite(values) & (np.trunc(values) == values)).all()
    ):
        raise ValueError("found fractions")
    if values.dtype.kind not in ("biuf" if dtype.kind == "b" else "iuf"):
        raise ValueError(f"found {'text' if values.dtype.kind in 'US' else values.dtype} values")
    if dtype.kind == "b" and not np.isin(values, (0, 1)).all():
        raise ValueError("found other numbers than 0 and 1")
    with np.errstate(over="ignore"):
        array = np.array(data, dtype)
    if dtype.kind == "f" and not (np.isfinite(array) == np.isfinite(values)).all():
        raise ValueError("a value is out of range")
    return array.reshape(shape)


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))


def _texts(data: Any) -> NDArray[Any]:
    flat, todo = list[str](), [data]
    while todo:
        value = todo.pop()
        if isinstance(value, list):
            todo.extend(reversed(value))
        elif isinstance(value, str):
            flat.append(value)
        else:
            raise ValueError(f"found {value!r}, which is no text")
    return np.array(flat, object)


def from_bytes(data: memoryview, shape: Sequence[int], datatype: str) -> NDArray[Any]:
    """Reads a tensor from its bytes.

    Args:
        data: All of them; arrays of numbers share the memory.
        shape: Its sizes.
        datatype: The protocol's word.

    Returns:
        The array.

    Raises:
        ValueError: If they are no such tensor.
    """
    if datatype == "BYTES":
        return np.array(unpack_texts(data, num_elements(shape, datatype)), object).reshape(shape)
    if datatype == "BF16":
        return (np.frombuffer(data, "<u2").astype("<u4") << 16).view(np.float32).reshape(shape)
    return np.frombuffer(data, dtype_of(datatype)).reshape(shape)


def size_of(shape: Sequence[int], datatype: str) -> int | None:
    """Bytes that a tensor takes; None for strings, whose lengths vary.

    Args:
        shape: Its sizes.
        datatype: The protocol's word.
    """
    if datatype == "BYTES":
        return None
    return prod(shape) * (2 if datatype == "BF16" else dtype_of(datatype).itemsize)


def to_bytes(array: NDArray[Any], datatype: str) -> bytes:
    """Writes a tensor as bytes.

    Args:
        array: Any that the datatype can hold; of BF16 float32, which is rounded.
        datatype: The protocol's word.
    """
    if datatype == "BYTES":
        return pack_texts(array.ravel().tolist())
    if datatype == "BF16":
        return _rounded(array).tobytes()
    return np.asarray(array, array.dtype.newbyteorder("<"), order="C").tobytes()


def to_json(array: NDArray[Any], datatype: str) -> Any:
    """Writes a tensor as what `msgspec.json.encode` turns into its JSON.

    Args:
        array: As `to_bytes`.
        datatype: The protocol's word.
    """
    if datatype == "BF16":
        array = (_rounded(array).astype("<u4") << 16).view(np.float32)
    values = array.ravel().tolist()
    if array.dtype.kind != "f" or np.isfinite(array).all():
        return values
    return msgspec.Raw(json.dumps(values).encode())  # msgspec would write null


def _rounded(array: NDArray[Any]) -> NDArray[np.uint16]:
    """The upper halves of float32, rounded to the nearest, ties to even."""
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
    nearest_half = (bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(array), (bits >> 16) | 0x40, nearest_half).astype("<u2").reshape(array.shape)


def datatype_of(array: NDArray[Any], declared: str = "") -> str:
    """The protocol's word for an array.

    Args:
        array: Any.
        declared: numpy's word where the model says another than the array's own.

    Raises:
        InputError: If there is none.
    """
    name = declared or dtype_name(array.dtype.newbyteorder("=") if array.dtype.byteorder == ">" else array.dtype)
    name = "object" if array.dtype.kind in "US" else name
    if name not in DATATYPES:
        raise InputError(f"arrays of {array.dtype} cannot be sent. Convert them to one of {', '.join(DATATYPES)}.")
    return DATATYPES[name]
