"""Changes of valid inputs: of bytes wherever they are, and of trees where the format is known."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import msgspec

NUMBERS = (0, 1, -1, 2, 7, 127, 128, 255, 256, 32767, 65535, 65536, 2**24, 2**28, 2**31 - 1, 2**31, 2**32 - 1, 2**32)
NUMBERS += (2**53, 2**61, 2**62, 2**63 - 1, 2**63, 2**64 - 1, -(2**31), -(2**63))
REALS = (0.0, -0.0, 0.5, 1e-320, 1e300, -1e300, math.inf, -math.inf, math.nan)
TEXTS = ("", "x", "a/b", "../../etc/passwd", "/", "*", "**", "\0", "é", "💡", "0" * 64, "f" * 63, "nan", "-1", "1e999")
TEXTS += ("float32", "int8", "error", "A" * 5000, "{", "%s%n", "\u202e")
MOST_DEEP = 3000


def mutated_bytes(rng: Random, seeds: Sequence[bytes]) -> bytes:
    """A seed with one to eight changes that know nothing of its format.

    Args:
        rng: Decides.
        seeds: Valid inputs.
    """
    data = bytearray(rng.choice(seeds))
    for _ in range(1 + int(rng.expovariate(0.7)) % 8):
        rng.choice(_BYTE_CHANGES)(rng, data, seeds)
    return bytes(data)


def overwritten(rng: Random, data: bytes) -> bytes:
    """The same length with one to four places changed."""
    changed = bytearray(data)
    for _ in range(rng.randrange(1, 5)):
        rng.choice((_flip, _set, _number))(rng, changed, ())
    return bytes(changed)


def mutated_tree(rng: Random, tree: Any, others: Sequence[Any] = ()) -> Any:
    """A copy of nested lists, tables and values with one to four changes.

    Args:
        rng: Decides.
        tree: As decoded.
        others: Trees that parts may be taken from.
    """
    holder = [copy.deepcopy(tree)]
    for _ in range(1 + int(rng.expovariate(1.0)) % 4):
        places = _places(holder)
        where, key = rng.choice(places)
        _change(rng, where, key, others)
    return holder[0]


def any_value(rng: Random) -> Any:
    """A value of any type, often an extreme one."""
    kind = rng.randrange(9)
    if kind < 3:
        return rng.choice(NUMBERS)
    if kind == 3:
        return rng.choice(REALS)
    if kind == 4:
        return rng.choice(TEXTS)
    if kind == 5:
        return rng.choice((None, True, False))
    if kind == 6:
        return [rng.choice(NUMBERS) for _ in range(rng.randrange(12))]
    if kind == 7:
        return {rng.choice(TEXTS): rng.choice(NUMBERS) for _ in range(rng.randrange(4))}
    return rng.randbytes(rng.randrange(40))


def mutated_msgpack(rng: Random, seeds: Sequence[bytes]) -> bytes:
    """A msgpack seed with its tree changed, sometimes its bytes."""
    if rng.random() < 0.2:
        return mutated_bytes(rng, seeds)
    if rng.random() < 0.01:
        return deep(rng, b"\x91", b"\xc0")
    trees = [msgspec.msgpack.decode(seed) for seed in rng.sample(list(seeds), min(2, len(seeds)))]
    return packed(mutated_tree(rng, trees[0], trees))


def mutated_json(rng: Random, seeds: Sequence[bytes]) -> bytes:
    """A JSON seed with its tree changed, sometimes its bytes."""
    if rng.random() < 0.3:
        return mutated_bytes(rng, seeds)
    if rng.random() < 0.01:
        return deep(rng, b"[", b"") if rng.random() < 0.5 else deep(rng, b'{"a":', b"1")
    trees = [json.loads(seed) for seed in rng.sample(list(seeds), min(2, len(seeds)))]
    try:
        return json.dumps(mutated_tree(rng, trees[0], trees), default=lambda data: data.decode("latin-1")).encode()
    except RecursionError:
        return b"[" * MOST_DEEP


def deep(rng: Random, opening: bytes, inner: bytes) -> bytes:
    """The same bracket again and again."""
    return opening * rng.choice((10, 100, 999, 1001, 5000, 100_000)) + inner


def packed(tree: Any) -> bytes:
    """A tree in msgpack; what it has no form for, as the nearest that it has."""
    try:
        return msgspec.msgpack.encode(tree)
    except RecursionError:
        return b"\x91" * MOST_DEEP + b"\xc0"
    except (OverflowError, msgspec.MsgspecError, UnicodeEncodeError):
        return b"\xcf" + b"\xff" * 8  # as a number as large as there is


def _places(tree: Any) -> list[tuple[Any, Any]]:
    found: list[tuple[Any, Any]] = []
    waiting = [tree]
    while waiting and len(found) < 4000:
        node = waiting.pop()
        inner = list(node.items()) if isinstance(node, dict) else list(enumerate(node))
        found += [(node, key) for key, _ in inner]
        waiting += [value for _, value in inner if isinstance(value, (dict, list)) and value]
    return found


def _change(rng: Random, where: Any, key: Any, others: Sequence[Any]) -> None:
    """One change at one place of a tree."""
    value = where[key]
    kind = rng.randrange(10)
    if kind == 0:
        del where[key]
        if not where and isinstance(where, list):
            where.append(None)
    elif kind == 1 and isinstance(where, list):
        where.insert(key, value)
    elif kind == 1:
        where[rng.choice(TEXTS)] = where.pop(key)
    elif kind == 2 and others:
        where[key] = copy.deepcopy(_part_of(rng, rng.choice(others)))
    elif kind == 3 and isinstance(value, int):
        where[key] = value + rng.choice((-1, 1, 2, -value * 2, value))
    elif kind == 4 and isinstance(value, (str, bytes)) and value:
        where[key] = value[: rng.randrange(len(value))] if rng.random() < 0.5 else value * rng.choice((2, 50))
    elif kind == 5 and rng.random() < 0.05:
        nested: Any = value
        for _ in range(rng.choice((20, 600, MOST_DEEP))):
            nested = [nested]
        where[key] = nested
    elif kind == 6 and isinstance(value, list) and value:
        where[key] = value * rng.choice((2, 9)) if len(value) < 200 else value[:1]
    else:
        where[key] = any_value(rng)


def _part_of(rng: Random, tree: Any) -> Any:
    places = _places([tree])
    where, key = rng.choice(places)
    return where[key]


def _flip(rng: Random, data: bytearray, _: Sequence[bytes]) -> None:
    if data:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _set(rng: Random, data: bytearray, _: Sequence[bytes]) -> None:
    if data:
        data[rng.randrange(len(data))] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))


def _number(rng: Random, data: bytearray, _: Sequence[bytes]) -> None:
    """Writes a number of 2, 4 or 8 bytes, of either order, over what is there."""
    size = rng.choice((2, 4, 8))
    if len(data) >= size:
        at = rng.randrange(len(data) - size + 1)
        value = rng.choice(NUMBERS) % 256**size
        data[at : at + size] = value.to_bytes(size, rng.choice(("little", "big")))


def _cut(rng: Random, data: bytearray, _: Sequence[bytes]) -> None:
    if data:
        at = rng.randrange(len(data))
        del data[at : at + (len(data) if rng.random() < 0.3 else rng.randrange(1, 17))]


def _insert(rng: Random, data: bytearray, _: Sequence[bytes]) -> None:
    at = rng.randrange(len(data) + 1)
    data[at:at] = rng.randbytes(rng.randrange(1, 17)) if rng.random() < 0.7 else bytes(rng.choice((100, 5000)))


def _splice(rng: Random, data: bytearray, seeds: Sequence[bytes]) -> None:
    other = rng.choice(seeds)
    at, start = rng.randrange(len(data) + 1), rng.randrange(len(other) + 1)
    data[at:] = other[start:]


def _repeat(rng: Random, data: bytearray, _: Sequence[bytes]) -> None:
    if data:
        at = rng.randrange(len(data))
        piece = bytes(data[at : at + rng.randrange(1, 33)])
        data[at:at] = piece * rng.choice((1, 2, 100))


_BYTE_CHANGES: tuple[Callable[[Random, bytearray, Sequence[bytes]], None], ...] = (
    _flip, _flip, _set, _number, _number, _cut, _insert, _splice, _repeat,
)  # fmt: skip
