"""Reads a large JSON request and writes it with binary tensors: what the process behind `json_process.py` does.

    text      {"inputs": [{"name": "x", "shape": [2], "datatype": "FP32", "data": [1, 2]}]}
    binary    {"inputs": [{"name": "x", "shape": [2], "datatype": "FP32", "parameters": {"binary_data_size": 8}}]} + 8 bytes

Numbers as Python objects take ten times the room and hold the interpreter's lock; here nobody waits for it, and the
memory goes when the process does. What is not read here (`parameters`, `outputs`) is passed on as it is.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Sequence
from typing import IO, Any

import msgspec

from edgewise.core.errors import EdgewiseError, InputError
from edgewise.service.tensor_data import Body, from_json, num_elements, to_bytes

MAX_VALUES = 2**22
"""Values of a JSON request: numbers, texts, lists and objects in all."""
MAX_INPUTS = 1024
_LENGTH_BYTES = 8
_LEAST_S = 1e-3
_END_BYTES = 4096
_DEADLINE = re.compile(rb'(?<!\\)"(timeout|deadline_ms)"\s*:\s*([-+.0-9eE]+)')
_NICE = 5
"""Small requests go first where there is one processor."""


_NOTHING = msgspec.Raw(b"null")


class _Input(msgspec.Struct):
    name: str
    shape: tuple[int, ...]
    datatype: str
    parameters: dict[str, Any] | None = None
    data: msgspec.Raw = _NOTHING


class _Request(msgspec.Struct, omit_defaults=True):
    inputs: list[_Input]
    id: Any = None
    parameters: Any = None
    outputs: Any = None


_decoder = msgspec.json.Decoder(_Request)


class TooManyValues(InputError):
    """A JSON request with more values than are read."""

    code = "input.values"


def with_binary_tensors(
    body: Body, json_length: int, on_deadline: Callable[[float], None] = lambda seconds: None
) -> tuple[bytes, list[bytes]]:
    """Rewrites a request.

    Args:
        body: JSON, perhaps followed by tensors' bytes.
        json_length: Length of the JSON.
        on_deadline: Told the request's deadline in seconds, if it has one, before its tensors are read.

    Returns:
        The JSON of the same request with every tensor in bytes, and these.

    Raises:
        TooManyValues: If it has more than `MAX_VALUES`; counted before anything is read.
        InputError: If it is not a request.
    """
    text, parts, at = bytes(memoryview(body)[:json_length]), list[bytes](), json_length
    check_values(text)
    request = _read(text)
    check_num_inputs(len(request.inputs))
    if (deadline_s := deadline_of(request.parameters)) is not None:
        on_deadline(deadline_s)
    for item in request.inputs:
        size = (item.parameters or {}).get("binary_data_size")
        if size is not None:
            end = at + size if isinstance(size, int) and not isinstance(size, bool) and size >= 0 else at
            parts.append(bytes(memoryview(body)[at:end]))
            at, item.data = end, _NOTHING
        elif bytes(item.data) != b"null":
            parts.append(_as_bytes(item))
            item.parameters = {**(item.parameters or {}), "binary_data_size": len(parts[-1])}
            item.data = _NOTHING
    parts.append(bytes(memoryview(body)[at:]))
    return msgspec.json.encode(request), parts


def deadline_of(parameters: Any) -> float | None:
    """Seconds of a request's deadline: `timeout` (µs, as `tritonclient` sends it) or `deadline_ms`; None without.

    Args:
        parameters: Of the request.

    Raises:
        InputError: If it is no positive time.
    """
    for key, scale in (("timeout", 1e-6), ("deadline_ms", 1e-3)):
        value = parameters.get(key) if isinstance(parameters, dict) else None
        if value is None or value == 0:
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 3600 / scale:
            raise InputError(f"parameters.{key} is {value!r}, it must be a positive time below one hour.")
        return float(value) * scale
    return None


def likely_deadline_s(body: Body, json_length: int) -> float | None:
    """A request's deadline by how its JSON begins and ends, where clients write it; None if it is not seen there.

    What is wrong with it is said by whoever reads the whole. In a text the name cannot stand like this: its quotes are
    escaped there.

    Args:
        body: As `with_binary_tensors`.
        json_length: Likewise.
    """
    view = memoryview(body)
    ends = (view[: min(json_length, _END_BYTES)], view[max(0, json_length - _END_BYTES) : json_length])
    for name, value in _DEADLINE.findall(b" ".join(ends)):
        try:
            return deadline_of({name.decode(): float(value)})
        except (ValueError, InputError):
            continue
    return None


def check_values(text: bytes) -> None:
    """Refuses JSON with too many values, by its commas and brackets: an upper bound, for texts have them too.

    Args:
        text: JSON.

    Raises:
        TooManyValues: If there are more than `MAX_VALUES`.
    """
    num = sum(text.count(mark) for mark in (b",", b"[", b"{"))
    if num > MAX_VALUES:
        raise TooManyValues(
            f"the request's JSON has about {num:,} values, the bound is {MAX_VALUES:,}. Send tensors as bytes "
            "(binary_data_size), or fewer examples at once."
        )


def check_num_inputs(num: int) -> None:
    """Refuses more inputs than any model has.

    Args:
        num: Of a request.

    Raises:
        InputError: If there are more than `MAX_INPUTS`.
    """
    if num > MAX_INPUTS:
        raise InputError(f"the request has {num:,} inputs, the bound is {MAX_INPUTS:,}. Send examples as a batch.")


def _read(text: bytes) -> _Request:
    try:
        return _decoder.decode(text)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        if isinstance(error, msgspec.ValidationError) or (b"NaN" not in text and b"Infinity" not in text):
            raise InputError(f"the request's JSON is not an inference request: {error}.") from error
    try:  # Python's reader takes NaN and infinities as numbers
        found = json.loads(text)
        for item in found.get("inputs", ()) if isinstance(found, dict) else ():
            if isinstance(item, dict) and item.get("data") is not None:
                item["data"] = msgspec.Raw(json.dumps(item["data"]).encode())
        return msgspec.convert(found, _Request)
    except (ValueError, TypeError, RecursionError) as error:
        raise InputError(f"the request's JSON is not an inference request: {error}.") from error


def _as_bytes(item: _Input) -> bytes:
    raw = bytes(item.data)
    try:
        num_elements(item.shape, item.datatype)
        data = json.loads(raw) if b"NaN" in raw or b"Infinity" in raw else msgspec.json.decode(raw)
        return to_bytes(from_json(data, item.shape, item.datatype), item.datatype)
    except (ValueError, TypeError, OverflowError, RecursionError, msgspec.MsgspecError) as error:
        raise InputError(
            f"data of input {item.name!r} is not {item.datatype} of shape {list(item.shape)}: {error}."
        ) from error


def send(to: IO[bytes], head: Sequence[int], parts: Sequence[Body]) -> None:
    """Writes one message: numbers of eight bytes each, then bytes whose lengths they say."""
    to.write(b"".join(n.to_bytes(_LENGTH_BYTES, "little") for n in head))
    for part in parts:
        to.write(part)
    to.flush()


def receive(given: IO[bytes], num: int) -> list[int]:
    """Reads the numbers of one message; EOFError at the end of the stream."""
    head = given.read(num * _LENGTH_BYTES)
    if len(head) < num * _LENGTH_BYTES:
        raise EOFError
    return [int.from_bytes(head[i : i + _LENGTH_BYTES], "little") for i in range(0, len(head), _LENGTH_BYTES)]


def main() -> None:
    """Answers requests from standard input until it ends: (JSON length, length, µs waited), body -> (is right, length, JSON length), body.

    Whose deadline passes ends the process by `SIGALRM`: what it reads cannot be interrupted otherwise.
    """
    os.nice(_NICE)
    given, to = sys.stdin.buffer, sys.stdout.buffer
    while True:
        try:
            json_length, length, waited_us = receive(given, 3)
        except EOFError:
            return
        began_s = time.monotonic() - waited_us / 1e6
        body = given.read(length)

        def until(seconds: float, began_s: float = began_s) -> None:
            signal.setitimer(signal.ITIMER_REAL, max(_LEAST_S, began_s + seconds - time.monotonic()))

        try:
            head, parts = with_binary_tensors(body, json_length, until)
            signal.setitimer(signal.ITIMER_REAL, 0.0)
            send(to, (1, len(head) + sum(map(len, parts)), len(head)), (head, *parts))
        except EdgewiseError as error:
            told = error.message.encode()
            send(to, (2 if isinstance(error, TooManyValues) else 0, len(told), 0), (told,))
        except MemoryError:
            told = b"the request's JSON takes more memory than this machine has left. Send tensors as bytes."
            send(to, (2, len(told), 0), (told,))
        del body


if __name__ == "__main__":
    main()
