"""Frames as a liar writes them: lengths and digest fit, so that every decoder behind them is reached."""

from __future__ import annotations

import hashlib
import random
from typing import Any

import msgspec

HUGE = 2**62
NESTED = b"\x91" * 20_000 + b"\xc0"
"""A list in a list, 20,000 deep."""


def frame_of(header: bytes, message: bytes = b"\xc0", rest: bytes = b"") -> bytes:
    """A frame with a right digest around any header.

    Args:
        header: In place of the msgpack header.
        message: In place of the message.
        rest: In place of the tensors.
    """
    content = b"EW\x01\x00" + len(header).to_bytes(4, "little") + header + message + rest
    return content + hashlib.blake2b(content, digest_size=16).digest()


def header_of(message: bytes = b"\xc0", *, kind: str = "note", tensors: Any = (), **fields: Any) -> bytes:
    """The header of a frame, with whatever in its fields."""
    known = {"purpose": "control", "sender": "hub", "generation": 1, "sequence": 0, "deadline_s": None, "run": ""}
    known |= fields
    return msgspec.msgpack.encode([kind, *known.values(), len(message), list(tensors)])


def error_with(fields: dict[Any, Any]) -> bytes:
    """An error answer that carries fields."""
    message = msgspec.msgpack.encode({"code": "input", "message": "no.", "fields": fields})
    return frame_of(header_of(message, kind="error"), message)


REPLIES: dict[str, bytes] = {
    "no bytes": b"",
    "no frame": b"EW\x01\x00" + b"\xff" * 40,
    "an axis of 0 beside a huge one": frame_of(header_of(tensors=[["x", "float32", [0, HUGE], []]])),
    "an axis of 0 and two huge ones": frame_of(header_of(tensors=[["x", "uint8", [HUGE, 0, HUGE], []]])),
    "a huge shape": frame_of(header_of(tensors=[["x", "float32", [HUGE, HUGE], []]])),
    "no such dtype": frame_of(header_of(tensors=[["x", "object", [0], []]])),
    "text that is none": frame_of(b"\x99\xa4\xff\xfe\xfd\xfc"),
    "a nested header": frame_of(NESTED),
    "a nested error": frame_of(header_of(NESTED, kind="error"), NESTED),
    "an error whose fields are nested": frame_of(
        header_of(b"\x83\xa4code\xa1x\xa7message\xa1y\xa6fields\x81\xa1z" + NESTED, kind="error"),
        b"\x83\xa4code\xa1x\xa7message\xa1y\xa6fields\x81\xa1z" + NESTED,
    ),
    "an error with our own words": error_with({"message": "m", "self": 1, "code": 2, "fields": 3, "node_id": [4]}),
    "an error with numbers for words": error_with({1: 2}),
    "an error without a message": frame_of(header_of(kind="error")),
}
"""Answers of a liar, by what is wrong with them; each is to be an `EdgewiseError` for who asked."""


def made_up(rng: random.Random) -> bytes:
    """A frame whose header, message and tensors are drawn; its digest is right."""
    shape = [rng.choice((0, 1, 2, 3, 255, 2**31, HUGE, 2**63 - 1, -1)) for _ in range(rng.randrange(10))]
    dtype = rng.choice(("float32", "uint8", "bool", "int64", "object", ""))
    tensors = [[rng.choice(("x", "", "x/texts")), dtype, shape, rng.choice(([], ["raw"], ["?"]))]]
    message = msgspec.msgpack.encode(_value(rng, 4))
    known = {"generation": rng.choice((0, -1, 2**63)), "deadline_s": rng.choice((None, -1.0, float("nan"), 1.0))}
    copies = rng.choice((0, 0, 1, 2))
    header = header_of(message, kind=rng.choice(("error", "note", "")), tensors=tensors * copies, **known)
    header = header if rng.random() < 0.8 else msgspec.msgpack.encode(_value(rng, 3))
    return frame_of(header, message, rng.choice((b"", rng.randbytes(8))))


def _value(rng: random.Random, depth: int) -> Any:
    if depth == 0 or rng.random() < 0.3:
        return rng.choice((None, True, -1, 2**63, 1e308, float("nan"), "message", b"\xff", ""))
    if rng.random() < 0.5:
        return [_value(rng, depth - 1) for _ in range(rng.randrange(4))]
    keys = ("code", "message", "fields", "exit_index", "stages", 0)
    return {rng.choice(keys): _value(rng, depth - 1) for _ in range(rng.randrange(4))}
