"""The Open Inference Protocol's words: requests and answers as bytes, JSON or with the binary tensor extension. Pure.

https://github.com/kserve/open-inference-protocol and Triton's `extension_binary_data.md`. No web framework here; the
routes are in `open_inference.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgewise.core.dtypes import DTYPES, dtype_name
from edgewise.core.errors import InputError, nearest
from edgewise.core.provenance import RAW, traced
from edgewise.inference.streams import StreamStep
from edgewise.models.graph.graph import PlainTensor

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
    "float32": "FP32",
    "float64": "FP64",
}
_DTYPES = {datatype: DTYPES[name] for name, datatype in DATATYPES.items()}


class _InputHeader(msgspec.Struct, frozen=True):
    name: str
    shape: tuple[int, ...]
    datatype: str
    parameters: dict[str, Any] | None = None
    data: Any = None


class _OutputHeader(msgspec.Struct, frozen=True):
    name: str
    parameters: dict[str, Any] | None = None


class _BinaryHeader(msgspec.Struct, frozen=True):
    inputs: tuple[_InputHeader, ...]
    id: str | None = None
    parameters: dict[str, Any] | None = None
    outputs: tuple[_OutputHeader, ...] | None = None


_decoder = msgspec.json.Decoder(_BinaryHeader)


@dataclass(frozen=True, slots=True)
class InferRequest:
    """A request as read.

    Attributes:
        id: The client's name for it; "" if none.
        inputs: Arrays by name, traced as raw data.
        outputs: Names wanted; () for all.
        is_binary: Per output name, and "" for those not named: whether it is wanted as bytes.
        stream: From `parameters.sequence_id`, `sequence_start` and `sequence_end`, as `tritonclient` sends them; None
            without.
        deadline_s: From `parameters.timeout` (µs, as `tritonclient` sends it) or `parameters.deadline_ms`; None without.
    """

    id: str
    inputs: dict[str, NDArray[Any]]
    outputs: tuple[str, ...]
    is_binary: dict[str, bool]
    deadline_s: float | None
    stream: StreamStep | None = None


def read_request(body: bytes, header_length: int | None) -> InferRequest:
    """Reads the body of an `infer` call.

    Args:
        body: JSON, or JSON followed by the tensors' bytes.
        header_length: Length of the JSON, from `Inference-Header-Content-Length`; None if all is JSON.

    Returns:
        The request.

    Raises:
        InputError: If anything in it is wrong; the message names it.
    """
    cut = len(body) if header_length is None else header_length
    if not 0 <= cut <= len(body):
        raise InputError(
            f"Inference-Header-Content-Length is {header_length}, the body has {len(body)} bytes. "
            "It must be the length of the JSON part."
        )
    try:
        header = _decoder.decode(memoryview(body)[:cut])
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise InputError(f"the request's JSON is not an inference request: {error}.") from error
    offset, inputs = cut, dict[str, NDArray[Any]]()
    for item in header.inputs:
        if item.name in inputs:
            raise InputError(f"input {item.name!r} is given twice. Send it once.")
        array, offset = _read_input(item, body, offset)
        inputs[item.name] = traced(array, RAW)
    if offset != len(body):
        raise InputError(f"{len(body) - offset} bytes follow the last input; binary_data_size does not add up.")
    parameters, outputs = header.parameters or {}, header.outputs or ()
    if not isinstance(parameters.get("binary_data_output", False), bool):
        raise InputError("parameters.binary_data_output must be true or false.")
    is_binary = {"": parameters.get("binary_data_output") is True}
    for wanted in outputs:
        given = wanted.parameters or {}
        if given.get("classification"):
            raise InputError("the classification extension is not offered. Ask for the scores and sort them.")
        is_binary[wanted.name] = bool(given.get("binary_data", is_binary[""]))
    names = tuple(o.name for o in outputs)
    return InferRequest(header.id or "", inputs, names, is_binary, _deadline_s(parameters), _stream(parameters))


def _stream(parameters: Mapping[str, Any]) -> StreamStep | None:
    name = parameters.get("sequence_id", 0)
    begins, ends = (parameters.get(key, False) for key in ("sequence_start", "sequence_end"))
    if (
        not isinstance(name, (str, int))
        or isinstance(name, bool)
        or not isinstance(begins, bool)
        or not isinstance(ends, bool)
    ):
        raise InputError("parameters.sequence_id must be a text or a number, sequence_start and _end true or false.")
    return StreamStep(str(name), 0 if begins else 1, ends) if name else None


def _deadline_s(parameters: Mapping[str, Any]) -> float | None:
    for key, scale in (("timeout", 1e-6), ("deadline_ms", 1e-3)):
        value = parameters.get(key)
        if value is None or value == 0:
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value * scale < 3600:
            raise InputError(f"parameters.{key} is {value!r}, it must be a positive time below one hour.")
        return float(value) * scale
    return None


def _read_input(item: _InputHeader, body: bytes, offset: int) -> tuple[NDArray[Any], int]:
    dtype = _DTYPES.get(item.datatype)
    if dtype is None:
        raise InputError(f"input {item.name!r} has datatype {item.datatype!r}.{nearest(item.datatype, _DTYPES)}")
    if any(n < 0 for n in item.shape):
        raise InputError(f"input {item.name!r} has shape {list(item.shape)}, sizes cannot be negative.")
    size = (item.parameters or {}).get("binary_data_size")
    if size is None:
        return _read_json(item, dtype), offset
    needed = prod(item.shape) * dtype.itemsize
    if size != needed or offset + needed > len(body):
        raise InputError(
            f"input {item.name!r} of shape {list(item.shape)} and datatype {item.datatype} needs {needed} bytes, "
            f"binary_data_size is {size!r} and {len(body) - offset} bytes are left in the body."
        )
    array = np.frombuffer(body, dtype, prod(item.shape), offset).reshape(item.shape)
    return array, offset + needed


def _read_json(item: _InputHeader, dtype: np.dtype[Any]) -> NDArray[Any]:
    if item.data is None:
        raise InputError(f"input {item.name!r} has neither data nor binary_data_size. Send one of them.")
    try:
        values = np.asarray(item.data)
        if values.dtype.kind not in ("b" if dtype.kind == "b" else "iuf" if dtype.kind == "f" else "iu"):
            raise ValueError(f"found {values.dtype} values")
        array = np.array(item.data, dtype)
        return array.reshape(item.shape)
    except (ValueError, TypeError, OverflowError) as error:
        raise InputError(
            f"data of input {item.name!r} is not {item.datatype} of shape {list(item.shape)}: {error}."
        ) from error


def write_answer(
    model: str,
    version: str,
    request: InferRequest,
    outputs: Mapping[str, NDArray[Any]],
    parameters: Mapping[str, Any],
) -> tuple[bytes, int | None]:
    """Writes the body of an answer.

    Args:
        model: Model name.
        version: Model version.
        request: What was asked; decides which outputs travel, and how.
        outputs: Arrays by name.
        parameters: Response parameters.

    Returns:
        The body, and the length of its JSON part; None if all is JSON.

    Raises:
        InputError: If an output is wanted that there is not.
    """
    headers, parts = [], []
    for name in request.outputs or tuple(outputs):
        if name not in outputs:
            raise InputError(f"the model has no output {name!r}.{nearest(name, outputs)}")
        array = np.asarray(outputs[name], order="C")
        header: dict[str, Any] = {"name": name, "datatype": DATATYPES[dtype_name(array.dtype)], "shape": array.shape}
        if request.is_binary.get(name, request.is_binary[""]):
            header["parameters"] = {"binary_data_size": array.nbytes}
            parts.append(array.tobytes())
        else:
            header["data"] = array.ravel().tolist()
        headers.append(header)
    answer: dict[str, Any] = {
        "model_name": model,
        "model_version": version,
        "parameters": parameters,
        "outputs": headers,
    }
    if request.id:
        answer["id"] = request.id
    head = msgspec.json.encode(answer)
    return (head + b"".join(parts), len(head)) if parts else (head, None)


def describe(tensors: Sequence[PlainTensor]) -> list[dict[str, Any]]:
    """Tensors as the protocol's metadata says them; −1 for a free axis.

    Args:
        tensors: Inputs or outputs of a model.

    Returns:
        One `{"name", "datatype", "shape"}` each.
    """
    return [
        {
            "name": t.name,
            "datatype": DATATYPES[t.dtype],
            "shape": [-1 if size is None else size for size in t.open_shape],
        }
        for t in tensors
    ]


class FeedbackBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """True classes by request id."""

    labels: dict[str, int]


def read_feedback(body: bytes) -> dict[str, int]:
    """Reads what was right.

    Args:
        body: JSON, `{"labels": {request id: class}}`.

    Returns:
        Classes by request id.

    Raises:
        InputError: If it is something else.
    """
    try:
        return msgspec.json.decode(body, type=FeedbackBody).labels
    except msgspec.MsgspecError as error:
        raise InputError(f'feedback is {{"labels": {{request id: class}}}}: {error}.') from error
