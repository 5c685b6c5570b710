"""Valid values of any type that msgspec reads: the seeds of whatever is a struct, so that a new message is fuzzed by existing."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import inspect

MOST_DEEP = 6


def example_of(kind: Any, *, full: bool = True) -> Any:
    """A valid value of a type, as builtins.

    Args:
        kind: A type.
        full: With one entry in each list and table, and fields that have a default; else as little as is valid.
    """
    return _example(inspect.type_info(kind), full, 0)


def examples_in_msgpack(*kinds: Any) -> list[bytes]:
    """A full and a short example of each type, in msgpack."""
    return [msgspec.msgpack.encode(example_of(kind, full=full)) for kind in kinds for full in (True, False)]


def _example(info: Any, full: bool, depth: int) -> Any:
    full = full and depth < MOST_DEEP
    match info:
        case inspect.StructType():
            return _struct(info, full, depth)
        case inspect.UnionType(types=types):
            kinds = [t for t in types if not isinstance(t, inspect.NoneType)]
            return _example(kinds[depth % len(kinds)], full, depth + 1)
        case inspect.StrType(min_length=least):
            return "x" * (least or 1)
        case inspect.IntType(ge=ge, gt=gt):
            return int(ge if ge is not None else (gt + 1 if gt is not None else 3))
        case inspect.FloatType(ge=ge, gt=gt):
            return float(ge if ge is not None else (gt + 1 if gt is not None else 0.5))
        case inspect.BoolType():
            return True
        case inspect.BytesType():
            return b"bytes"
        case inspect.EnumType(cls=cls):
            return next(iter(cls)).value
        case inspect.LiteralType(values=values):
            return values[0]
        case inspect.DictType(key_type=key, value_type=value):
            return {_example(key, full, depth + 1): _example(value, full, depth + 1)} if full else {}
        case inspect.TupleType(item_types=items):
            return [_example(item, full, depth + 1) for item in items]
        case inspect.CollectionType(item_type=item):
            return [_example(item, full, depth + 1)] if full else []
        case inspect.AnyType():
            return 1
        case inspect.NoneType():
            return None
    raise TypeError(f"no example of {info} is known")


def _struct(info: inspect.StructType, full: bool, depth: int) -> Any:
    fields = [field for field in info.fields if full or field.required or info.array_like]
    values = {field.encode_name: _example(field.type, full, depth + 1) for field in fields}
    if info.array_like:
        return [*([info.tag] if info.tag is not None else []), *values.values()]
    return {**({info.tag_field: info.tag} if info.tag is not None else {}), **values}
