"""The Open Inference Protocol's words: requests and answers as bytes, JSON or with the binary tensor extension. Pure.

https://github.com/kserve/open-inference-protocol and Triton's `extension_binary_data.md`. No web framework here; the
routes are in `open_inference.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgewise.core.errors import InputError, nearest
from edgewise.core.provenance import RAW, traced
from edgewise.inference.streams import StreamStep
from edgewise.models.graph.graph import PlainTensor
from edgewise.service.classification import best_classes
from edgewise.service.json_tensors import check_num_inputs, deadline_of
from edgewise.service.tensor_data import (
    DATATYPES,
    Body,
    datatype_of,
    from_bytes,
    from_json,
    num_elements,
    size_of,
    to_bytes,
    to_json,
)

_DATATYPES = frozenset(DATATYPES.values())
_LONGEST_ID = 1024
_SIZES_SHOWN = 10


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
        num_classes: Of outputs that are wanted as their best classes: how many.
        absent: Inputs that are named with `null` for data.
    """

    id: str
    inputs: dict[str, NDArray[Any]]
    outputs: tuple[str, ...]
    is_binary: dict[str, bool]
    deadline_s: float | None
    stream: StreamStep | None = None
    num_classes: Mapping[str, int] = field(default_factory=dict)
    absent: tuple[str, ...] = ()


def read_request(body: Body, header_length: int | None) -> InferRequest:
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
    header = _header(memoryview(body)[:cut])
    check_num_inputs(len(header.inputs))
    if len(header.id or "") > _LONGEST_ID:
        raise InputError(f"the request's id has more than {_LONGEST_ID:,} characters. Choose a shorter one.")
    offset, inputs, absent = cut, dict[str, NDArray[Any]](), dict[str, None]()
    for item in header.inputs:
        if item.name in inputs or item.name in absent:
            raise InputError(f"input {item.name!r} is given twice. Send it once.")
        if item.data is None and "binary_data_size" not in _given(item.parameters):
            absent[item.name] = None
            continue
        array, offset = _read_input(item, body, offset)
        inputs[item.name] = traced(array, RAW)
    if offset != len(body):
        raise InputError(f"{len(body) - offset} bytes follow the last input; binary_data_size does not add up.")
    parameters, outputs = _given(header.parameters), header.outputs or ()
    if not isinstance(parameters.get("binary_data_output", False), bool):
        raise InputError("parameters.binary_data_output must be true or false.")
    is_binary, num_classes = {"": parameters.get("binary_data_output") is True}, {}
    for wanted in outputs:
        given = _given(wanted.parameters)
        num = given.get("classification") or 0
        if isinstance(num, bool) or not isinstance(num, int) or num < 0:
            raise InputError(
                f"parameters.classification of output {wanted.name!r} is {num!r}, it must be a number of classes."
            )
        if num:
            num_classes[wanted.name] = num
        is_binary[wanted.name] = bool(given.get("binary_data", is_binary[""]))
    names = tuple(dict.fromkeys(o.name for o in outputs))
    deadline_s, stream = deadline_of(parameters), _stream(parameters)
    return InferRequest(header.id or "", inputs, names, is_binary, deadline_s, stream, num_classes, tuple(absent))


def check_absent(request: InferRequest, optional: Iterable[PlainTensor]) -> None:
    """Refuses a request that leaves out what the model needs.

    Args:
        request: As read.
        optional: Inputs of the model that may be absent.

    Raises:
        InputError: If an input without data is none of them.
    """
    known = {tensor.name for tensor in optional}
    for name in request.absent:
        if name not in known:
            raise InputError(f"input {name!r} has neither data nor binary_data_size. Send one of them.")


def _given(parameters: Mapping[str, Any] | None) -> dict[str, Any]:
    """Parameters without those that are null, which are absent."""
    return {name: value for name, value in (parameters or {}).items() if value is not None}


def _header(text: memoryview) -> _BinaryHeader:
    try:
        return _decoder.decode(text)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        if isinstance(error, msgspec.ValidationError) or (b"NaN" not in bytes(text) and b"Infinity" not in bytes(text)):
            raise InputError(f"the request's JSON is not an inference request: {error}.") from error
    try:  # Python's reader takes NaN and infinities as numbers
        return msgspec.convert(json.loads(bytes(text)), _BinaryHeader)
    except (ValueError, RecursionError) as error:
        raise InputError(f"the request's JSON is not an inference request: {error}.") from error


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


def _read_input(item: _InputHeader, body: Body, offset: int) -> tuple[NDArray[Any], int]:
    if item.datatype not in _DATATYPES:
        raise InputError(f"input {item.name!r} has datatype {item.datatype!r}.{nearest(item.datatype, _DATATYPES)}")
    try:
        num_elements(item.shape, item.datatype)
    except ValueError as error:
        raise InputError(f"input {item.name!r} has shape {_shown(item.shape)}, {error}.") from error
    size, left = _given(item.parameters).get("binary_data_size"), len(body) - offset
    needed = size if size is None else size_of(item.shape, item.datatype)
    is_size = isinstance(size, int) and not isinstance(size, bool) and 0 <= size <= left
    if size is not None and (not is_size or needed not in (size, None)):
        raise InputError(
            f"input {item.name!r} of shape {list(item.shape)} and datatype {item.datatype} needs "
            f"{'its strings' if needed is None else f'{needed} bytes'}, binary_data_size is {size!r} and {left} bytes are "
            "left in the body."
        )
    try:
        if size is None:
            return from_json(item.data, item.shape, item.datatype), offset
        return from_bytes(memoryview(body)[offset : offset + size], item.shape, item.datatype), offset + size
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise InputError(
            f"data of input {item.name!r} is not {item.datatype} of shape {list(item.shape)}: {error}."
        ) from error


def _shown(shape: Sequence[int]) -> str:
    return f"[{', '.join(map(str, shape[:_SIZES_SHOWN]))}{', …' if len(shape) > _SIZES_SHOWN else ''}]"


def write_answer(
    model: str,
    version: str,
    request: InferRequest,
    outputs: Mapping[str, NDArray[Any]],
    parameters: Mapping[str, Any],
    *,
    declared: Mapping[str, str] | None = None,
    labels: Mapping[str, Sequence[str]] | None = None,
    written: Mapping[str, msgspec.Raw] | None = None,
) -> tuple[bytes, int | None]:
    """Writes the body of an answer.

    Args:
        model: Model name.
        version: Model version.
        request: What was asked; decides which outputs travel, and how.
        outputs: Arrays by name.
        parameters: Response parameters.
        declared: Element type of outputs to which the model gives another than the array's own, e.g. `bfloat16`.
        labels: Names of the classes by output, for the classification extension.
        written: JSON of outputs that is there already.

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
        datatype = datatype_of(array, (declared or {}).get(name, ""))
        if name in request.num_classes:
            array = best_classes(array, request.num_classes[name], (labels or {}).get(name, ()))
            datatype = DATATYPES["object"]
        header: dict[str, Any] = {"name": name, "datatype": datatype, "shape": array.shape}
        if request.is_binary.get(name, request.is_binary[""]):
            parts.append(to_bytes(array, datatype))
            header["parameters"] = {"binary_data_size": len(parts[-1])}
        else:
            header["data"] = (written or {}).get(name) or to_json(array, datatype)
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
            "datatype": DATATYPES[t.declared or t.dtype],
            "shape": [-1] if t.has_any_rank else [-1 if size is None else size for size in t.open_shape],
        }
        for t in tensors
    ]


class FeedbackBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """True classes by request id."""

    labels: dict[str, int]


def read_feedback(body: Body) -> dict[str, int]:
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
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f'feedback is {{"labels": {{request id: class}}}}: {error}.') from error
