"""`from edgewise import …`: the names, where they are, and that a type checker sees the same."""

from __future__ import annotations

import ast
import importlib
import inspect
from pathlib import Path

import pytest

import edgewise

NAMES = sorted(set(edgewise.__all__) - {"__version__"})


def for_a_type_checker() -> dict[str, str]:
    """Name -> module, as the `if TYPE_CHECKING` block says."""
    body = ast.parse(Path(edgewise.__file__).read_text()).body
    block = next(node for node in body if isinstance(node, ast.If))
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    return {alias.name: str(node.module) for node in imports for alias in node.names}


def test_a_type_checker_sees_the_names_that_there_are() -> None:
    assert for_a_type_checker() == edgewise._PLACES
    assert sorted(edgewise._PLACES) == NAMES
    assert set(NAMES) <= set(dir(edgewise))


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_what_its_module_has_and_is_documented(name: str) -> None:
    value = getattr(edgewise, name)
    assert value is getattr(importlib.import_module(edgewise._PLACES[name]), name)
    assert inspect.getdoc(value)


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'simulat'"):
        edgewise.simulat  # noqa: B018
