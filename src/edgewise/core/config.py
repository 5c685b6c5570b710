"""Reads TOML files into typed values; an error names file, line and dotted key and suggests a spelling.

    examples/train.toml:12 training.server.learning_rat is not a setting. Did you mean 'learning_rate'?
    examples/train.toml:12 training.server.learning_rate must be > 0.0, got -1.

The types are frozen `msgspec.Struct`s with `forbid_unknown_fields`; ranges are `Annotated[float, msgspec.Meta(gt=0)]`.
"""

from __future__ import annotations

import copy
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec import inspect

from edgewise.core.errors import ConfigError, nearest
from edgewise.core.spec import Spec

T = TypeVar("T")
Table = dict[str, Any]
Steps = tuple[str | int, ...]
_ERROR = re.compile(r"(?P<what>.*?)(?: - at `\$(?P<path>.*)`)?", re.DOTALL)
_STEP = re.compile(r"\.([^.\[]+)|\[(\d+|\.\.\.)\]")
_ANY = "..."
MOST_DEEP = 32
"""Tables and lists inside one another in a file; settings need a quarter of it."""
_HEADER = re.compile(r"\s*\[{1,2}\s*([^\]]+?)\s*\]{1,2}\s*(?:#.*)?$")
_KEY = re.compile(r"""\s*((?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*'))*)\s*=""")


def load_toml(path: str | Path, as_type: type[T], overrides: Iterable[str] = ()) -> T:
    """Reads a TOML file into a struct.

    Args:
        path: The file.
        as_type: A frozen msgspec struct.
        overrides: Arguments of `--set`, e.g. `training.server.learning_rate=0.1`; they win over the file.

    Returns:
        The value.

    Raises:
        ConfigError: If the file cannot be read, is not TOML, or a key or value is wrong.
    """
    table, lines = read_table(path)
    given = list(overrides)
    return convert(apply_overrides(table, given), as_type, source=str(path), lines=lines, overridden=given)


def read_table(path: str | Path) -> tuple[Table, dict[str, int]]:
    """Reads a TOML file as it is.

    Args:
        path: The file.

    Returns:
        The table, and the line of each dotted key.

    Raises:
        ConfigError: If the file cannot be read or is not TOML.
    """
    path = Path(path)
    text = _read(path)
    try:
        table = tomllib.loads(text)
        _check_depth(table, str(path))
        return table, key_lines(text)
    except RecursionError:
        raise _too_deep(str(path)) from None
    except (tomllib.TOMLDecodeError, ValueError) as error:  # a number with thousands of digits is a ValueError
        raise ConfigError(
            f"{path} is not TOML: {error}. Compare it with a file in examples/.", file=str(path)
        ) from None


def convert(
    table: Mapping[str, Any],
    as_type: type[T],
    *,
    source: str = "",
    lines: Mapping[str, int] | None = None,
    overridden: Iterable[str] = (),
) -> T:
    """Turns a table into a struct; errors are as those of `load_toml`.

    Args:
        table: As tomllib gives it.
        as_type: A frozen msgspec struct.
        source: Where it comes from, for messages.
        lines: Line of each dotted key.
        overridden: Arguments of `--set` that are in the table.

    Returns:
        The value.

    Raises:
        ConfigError: If a key or value is wrong.
    """
    _check_depth(table, source)
    try:
        return msgspec.convert(table, as_type)
    except msgspec.ValidationError as error:
        match = _ERROR.fullmatch(str(error))
        assert match is not None
        steps, message = _find(table, as_type, _steps(match["path"] or "")), match["what"]
        key, sentence = _explain(table, as_type, steps, message)
        raise ConfigError(f"{_place(source, key, lines or {}, overridden)}{sentence}", file=source, key=key) from None


def apply_overrides(table: Mapping[str, Any], overrides: Iterable[str]) -> Table:
    """Sets dotted keys in a copy of a table.

    Args:
        table: As tomllib gives it.
        overrides: `a.b=1`; the value is read as TOML, and as plain text if it is not TOML. A number in the key is
            a place in a list, from 0.

    Returns:
        The new table.

    Raises:
        ConfigError: If an override has no `=` or no key, or leads through a value that is no table.

    Example:
        >>> apply_overrides({"a": {"b": 1}}, ["a.b=2", "a.c=text", "d=[1, 2]"])
        {'a': {'b': 2, 'c': 'text'}, 'd': [1, 2]}
    """
    _check_depth(table, "--set")
    changed: Table = copy.deepcopy(dict(table))
    for override in overrides:
        key, equals, text = override.partition("=")
        names = [name.strip() for name in key.split(".")]
        if not equals or not all(names):
            raise ConfigError(f"--set {override!r} is not of the form key=value. Write it like 'training.rounds=5'.")
        holder: Any = changed
        for depth, name in enumerate(names):
            index: Any = int(name) if isinstance(holder, list) and name.isdigit() else name
            if not isinstance(holder, (dict, list)) or (isinstance(holder, list) and not _within(holder, index)):
                raise ConfigError(f"--set {override!r}: {'.'.join(names[:depth])} has no entry {name!r}.")
            if depth == len(names) - 1:
                holder[index] = _value(text.strip())
            else:
                holder = holder.setdefault(index, {}) if isinstance(holder, dict) else holder[index]
    return changed


def to_toml_dict(value: Any) -> Any:
    """Converts a struct to TOML values: tables, lists and plain values, without None.

    Args:
        value: A struct, or anything inside one.

    Returns:
        Plain values; `convert` reads them back.
    """
    if isinstance(value, Spec):
        return to_toml_dict(value.to_dict())
    if isinstance(value, msgspec.Struct):
        return to_toml_dict(msgspec.structs.asdict(value))
    if isinstance(value, Mapping):
        return {str(key): to_toml_dict(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [to_toml_dict(inner) for inner in value]
    return msgspec.to_builtins(value)


def key_lines(text: str) -> dict[str, int]:
    """Returns the line of each dotted key of a TOML text; keys of inline tables have the line of the table."""
    lines: dict[str, int] = {}
    header, counts = "", dict[str, int]()
    for number, line in enumerate(text.splitlines(), start=1):
        if (match := _HEADER.match(line)) and "=" not in match[1]:
            header = _dotted(match[1])
            if line.lstrip().startswith("[["):
                counts[header] = counts.get(header, -1) + 1
            header = _numbered(header, counts)
            lines.setdefault(header, number)
        elif match := _KEY.match(line):
            lines.setdefault(".".join(filter(None, (header, _dotted(match[1])))), number)
    return lines


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        near = [file.name for file in path.parent.glob("*.toml")] if path.parent.is_dir() else []
        hint = nearest(path.name, near) if near else " Give the path of a TOML file."
        raise ConfigError(f"{path} does not exist.{hint}", file=str(path)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}. Give a TOML file in UTF-8.", file=str(path)) from None


def _place(source: str, key: str, lines: Mapping[str, int], overridden: Iterable[str]) -> str:
    if any(key == override.partition("=")[0].strip() for override in overridden):
        return "--set "
    parts = key.split(".")
    known = (lines[".".join(parts[:n])] for n in range(len(parts), 0, -1) if ".".join(parts[:n]) in lines)
    line = next(known, None)
    return f"{source}:{line} " if source and line else f"{source} " if source else ""


def _explain(table: Any, as_type: Any, steps: Steps, message: str) -> tuple[str, str]:
    if match := re.fullmatch(r"Object contains unknown field `(.*)`", message):
        key = _join((*steps, match[1]))
        return key, f"{key} is not a setting.{nearest(match[1], _fields(as_type, steps))}"
    if match := re.fullmatch(r"Object missing required field `(.*)`", message):
        key = _join((*steps, match[1]))
        return _join(steps), f"{key} is missing; it has no default. Add it."
    key, found = _join(steps), _at(table, steps)
    if message.startswith("Invalid enum value"):
        return key, f"{key} is {found!r}.{nearest(str(found), _choices(as_type, steps))}"
    needed = message.removeprefix("Expected ").partition(", got ")[0].replace("`", "")
    if message.startswith("Expected "):
        bound = re.fullmatch(r"\w+ ([<>]=? .*)", needed)
        return key, f"{key} must be {bound[1] if bound else _article(needed)}, got {found!r}."
    return key, f"{key}: {message}" if key else message


def _article(needed: str) -> str:
    names = {
        "object": "a table",
        "array": "a list",
        "str": "text",
        "int": "a whole number",
        "float": "a number",
        "bool": "true or false",
    }
    return " or ".join(names.get(word, word) for word in needed.split(" | "))


def _steps(path: str) -> Steps:
    return tuple(name or (int(index) if index != _ANY else _ANY) for name, index in _STEP.findall(path))


def _find(table: Any, as_type: Any, steps: Steps) -> Steps:
    """Finds which key of a homogeneous table is wrong, because msgspec does not name it."""
    if _ANY not in steps:
        return steps
    at = steps.index(_ANY)
    inner = next((t.cls for t in _types(as_type, steps[: at + 1]) if isinstance(t, inspect.StructType)), None)
    for key, value in _at(table, steps[:at]).items():
        try:
            if inner is not None:
                msgspec.convert(value, inner)
        except msgspec.ValidationError:
            return _find(table, as_type, (*steps[:at], key, *steps[at + 1 :]))
    return steps


def _types(as_type: Any, steps: Steps) -> list[inspect.Type]:
    """Returns the types allowed at a path; several where the type is a union."""
    found = list(_flat(inspect.type_info(as_type)))
    for step in steps:
        found = [inner for outer in found for inner in _flat(_inner(outer, step))]
    return found


def _inner(outer: inspect.Type, step: str | int) -> inspect.Type | None:
    if isinstance(outer, inspect.StructType):
        return next((field.type for field in outer.fields if field.encode_name == step), None)
    if isinstance(outer, inspect.DictType):
        return outer.value_type
    return getattr(outer, "item_type", None)


def _flat(found: inspect.Type | None) -> Iterator[inspect.Type]:
    if isinstance(found, inspect.UnionType):
        yield from found.types
    elif isinstance(found, inspect.Metadata):
        yield from _flat(found.type)
    elif found is not None:
        yield found


def _fields(as_type: Any, steps: Steps) -> list[str]:
    return [f.encode_name for t in _types(as_type, steps) if isinstance(t, inspect.StructType) for f in t.fields]


def _choices(as_type: Any, steps: Steps) -> list[str]:
    choices: list[str] = []
    for found in _types(as_type, steps):
        if isinstance(found, inspect.LiteralType):
            choices += [str(value) for value in found.values]
        elif isinstance(found, inspect.EnumType):
            choices += [str(member.value) for member in found.cls]
    return choices


def _at(table: Any, steps: Steps) -> Any:
    for step in steps:
        table = table[step] if step != _ANY else next(iter(table.values()), None)
    return table


def _join(steps: Steps) -> str:
    return ".".join(str(step) for step in steps)


def _dotted(key: str) -> str:
    return ".".join(part.strip().strip("\"'") for part in key.split("."))


def _numbered(header: str, counts: Mapping[str, int]) -> str:
    parts: list[str] = []
    plain = ""
    for name in header.split("."):
        plain = f"{plain}.{name}" if plain else name
        parts.append(name)
        if plain in counts:
            parts.append(str(counts[plain]))
    return ".".join(parts)


def _within(holder: list[Any], index: str | int) -> bool:
    return isinstance(index, int) and index < len(holder)


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (tomllib.TOMLDecodeError, ValueError):
        return text
    except RecursionError:
        raise _too_deep("--set") from None


def _check_depth(table: Any, source: str) -> None:
    """Refuses what is nested so deep that whatever walks over it later would run out of stack."""
    level, depth = [table], 0
    while level:
        if depth > MOST_DEEP:
            raise _too_deep(source)
        inner = [value.values() if isinstance(value, Mapping) else value for value in level]
        level = [one for values in inner for one in values if isinstance(one, (Mapping, list, tuple)) and one]
        depth += 1


def _too_deep(source: str) -> ConfigError:
    return ConfigError(
        f"{source or 'the table'} has tables or lists nested more than {MOST_DEEP} deep, which no setting is. Write it flat.",
        file=source,
    )
