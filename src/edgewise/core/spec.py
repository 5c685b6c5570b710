"""Describes parts by name and parameters, and builds them from that. A part never travels; its spec does."""

from __future__ import annotations

import ast
import inspect
import json
import numbers
import re
from collections.abc import Callable, Mapping
from functools import cache
from importlib.metadata import entry_points
from typing import Any, TypeVar

import msgspec

from edgewise.core.errors import InputError, nearest
from edgewise.core.ids import Digest, digest_of

P = TypeVar("P")
_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
_SPEC_TYPE = re.compile(r"\bSpec\b")
_MOST_DEEP = 32
"""Parts inside one another."""
_PLAIN_TYPES: dict[str, type | tuple[type, ...]] = {
    "bool": bool,
    "int": numbers.Integral,
    "float": numbers.Real,
    "str": str,
    "None": type(None),
}


class Spec(msgspec.Struct, frozen=True):
    """Holds a part's name and parameters, e.g. `top_k(fraction=0.1)`.

    Attributes:
        name: The registry's word.
        params: Keyword arguments; values are TOML values, specs, or tables of them: `{"model": top_k(fraction=0.1)}`.
    """

    name: str
    params: dict[str, Any] = {}

    def __str__(self) -> str:
        inner = ", ".join(f"{k}={_text(v)}" for k, v in self.params.items())
        return f"{self.name}({inner})"

    def to_dict(self) -> dict[str, Any]:
        """Returns the spec as a TOML or msgpack table: `{"name": "top_k", "fraction": 0.1}`."""
        return {"name": self.name, **{k: _plain(v) for k, v in self.params.items()}}

    @staticmethod
    def of(value: Any) -> Spec:
        """Reads a spec from a name, a table with `name`, or a spec; text with parameters is read by `parse`.

        Args:
            value: `"int8"`, `{"name": "top_k", "fraction": 0.1}` or a Spec.

        Returns:
            The spec; nested tables with a `name` become specs too, those without stay tables.

        Raises:
            InputError: If it is none of these.
        """
        if isinstance(value, Spec):
            return value
        if isinstance(value, str):
            if "(" in value:
                raise InputError(f"{value!r} is text with parameters, needed is a name or a table. {_cure(value)}")
            return Spec(value)
        if isinstance(value, Mapping) and "name" in value:
            return _spec_of(value, 0)
        raise InputError(f"a part is written as a name or as a table with a 'name', found {value!r}.")

    @staticmethod
    def parse(text: str) -> Spec:
        """Parses the text that `str` writes: the form of codecs in a plan and of options of the command line.

        Args:
            text: `"int8"` or `"top_k(fraction=0.1)"`.

        Returns:
            The spec.

        Raises:
            InputError: If it is not such a text.

        Example:
            >>> Spec.parse("top_k(fraction=0.1)").to_dict()
            {'name': 'top_k', 'fraction': 0.1}
        """
        if "(" not in text:
            return Spec(text)
        try:
            call = _from_syntax(ast.parse(text, mode="eval").body)
            if not isinstance(call, Spec):
                raise ValueError(text)
        except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:  # as literal_eval says
            raise InputError(
                f"{text!r} is not a part's text. Write it like 'top_k(fraction=0.1)' or 'int8'."
            ) from error
        return call

    @property
    def digest(self) -> Digest:
        """Returns the digest that names what the spec builds."""
        return digest_of(msgspec.msgpack.encode(self.to_dict(), order="deterministic"))


def _from_syntax(node: ast.AST) -> Any:
    if (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and not node.args
        and all(k.arg for k in node.keywords)
    ):
        return Spec(node.func.id, {str(k.arg): _from_syntax(k.value) for k in node.keywords})
    if isinstance(node, ast.List):
        return tuple(_from_syntax(element) for element in node.elts)
    if isinstance(node, ast.Dict) and None not in node.keys:
        return {_from_syntax(k): _from_syntax(v) for k, v in zip(node.keys, node.values, strict=True) if k}
    return ast.literal_eval(node)


def _cure(text: str) -> str:
    """Says how the text that 0.1.0 took in a job file is written now."""
    try:
        return f"Write it as {_inline_toml(Spec.parse(text).to_dict())}, or read it with Spec.parse."
    except InputError:
        return "Write it as a table with a 'name', e.g. { name = \"top_k\", fraction = 0.1 }."


def _inline_toml(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{k} = {_inline_toml(v)}" for k, v in value.items()) + " }"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_inline_toml(v) for v in value) + "]"
    return json.dumps(value, ensure_ascii=False)  # TOML writes text, numbers and truth as JSON does


def _spec_of(table: Mapping[str, Any], depth: int) -> Spec:
    return Spec(str(table["name"]), {k: _nested(v, depth + 1) for k, v in table.items() if k != "name"})


def _nested(value: Any, depth: int) -> Any:
    if depth > _MOST_DEEP:
        raise InputError(f"parts are nested more than {_MOST_DEEP} deep. Write fewer inside one another.")
    if isinstance(value, Mapping):
        inner = {k: _nested(v, depth + 1) for k, v in value.items()} if "name" not in value else None
        return _spec_of(value, depth) if inner is None else inner
    if isinstance(value, (list, tuple)):
        return tuple(_nested(v, depth + 1) for v in value)
    return value


def _plain(value: Any) -> Any:
    if isinstance(value, Spec):
        return value.to_dict()
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value


def _text(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_text(v) for v in value) + "]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k!r}: {_text(v)}" for k, v in value.items()) + "}"
    return str(value) if isinstance(value, Spec) else repr(value)


@cache
def _plugins(kind: str) -> dict[str, Any]:
    return {entry.name: entry.load() for entry in entry_points(group=f"edgewise.{kind}")}


def build(kind: str, registry: Mapping[str, Callable[..., P]], value: Any) -> P:
    """Builds a part from its spec with the registry's builder or a plug-in's.

    Args:
        kind: What it is, for messages and the entry-point group: `codecs`, `algorithms`, …
        registry: Built-in builders by name.
        value: Anything `Spec.of` reads. Nested specs, also those in tables, are of the same kind and built first; a
            builder whose parameter's type names `Spec` gets that one as it is, for parts of another kind.

    Returns:
        The part.

    Raises:
        InputError: If the name or a parameter is unknown, where the nearest is suggested; if a parameter is missing, or a value is of
            another type than its parameter.
    """
    spec = Spec.of(value)
    builders: dict[str, Callable[..., P]] = {**_plugins(kind), **registry}
    if spec.name not in builders:
        raise InputError(f"{kind} has no {spec.name!r}.{nearest(spec.name, builders)}")
    builder = builders[spec.name]
    signature = inspect.signature(builder)
    accepted, made = signature.parameters, signature.return_annotation
    args: list[Any] = []
    params = dict(spec.params)
    variadic = next((p.name for p in accepted.values() if p.kind is p.VAR_POSITIONAL), None)
    open_ended = any(p.kind is p.VAR_KEYWORD for p in accepted.values())
    for key in params:
        if key not in accepted and not open_ended:
            raise InputError(f"{spec.name} takes no {key!r}.{nearest(key, accepted)}")
    if variadic is not None and variadic in params:
        if not isinstance(params[variadic], (list, tuple)):
            raise InputError(f"{spec.name} takes {variadic} as a list, found {params[variadic]!r}.")
        of_kind = accepted[variadic].annotation == made
        args = [
            _built(kind, registry, Spec(v) if isinstance(v, str) and (of_kind or v in builders) else v)
            for v in params.pop(variadic)
        ]
    for key, value in params.items():
        annotation = accepted[key].annotation if key in accepted else None
        if annotation == made and isinstance(value, str):
            params[key] = build(kind, registry, value)  # a part that wraps one of its kind, given by name
        elif key not in accepted or not _SPEC_TYPE.search(str(annotation)):
            params[key] = _built(kind, registry, value)
            if key in accepted:
                _check_type(spec, key, str(annotation), params[key])
    missing = [p.name for p in accepted.values() if p.default is p.empty and p.kind in _NAMED and p.name not in params]
    if missing and not args:
        words = ", ".join(f"{name} = …" for name in missing)
        raise InputError(f"{spec.name} needs {' and '.join(missing)}. Write it as {{ name = {spec.name!r}, {words} }}.")
    try:
        return builder(*args, **params)
    except (TypeError, ValueError, AttributeError, LookupError, ArithmeticError) as error:
        raise InputError(f"{spec} cannot be made: {error}. Look at what {spec.name} takes: {signature}.") from error


def _check_type(spec: Spec, key: str, annotation: str, value: Any) -> None:
    """Refuses a value of another type where the parameter's is plain: a number, text, true or false."""
    kinds = annotation.split(" | ")
    if any(kind not in _PLAIN_TYPES for kind in kinds):
        return
    is_truth = isinstance(value, bool)
    if not any(isinstance(value, _PLAIN_TYPES[kind]) and is_truth == (kind == "bool") for kind in kinds):
        raise InputError(f"{spec.name} takes {key} as {annotation}, found {value!r}.")


def _built(kind: str, registry: Mapping[str, Callable[..., Any]], value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _built(kind, registry, v) for k, v in value.items()}
    return build(kind, registry, value) if isinstance(value, Spec) else value
