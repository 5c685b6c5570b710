"""The notebook is run, cell by cell, and is as short as it says."""

from __future__ import annotations

import ast
import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

CODE = ("train", 15), ("plan", 5)
"""Cell -> lines of code it may have: own model on federated data, a plan with a plot."""


def cells(repository: Path) -> dict[str, str]:
    notebook = json.loads((repository / "examples/own_model.ipynb").read_text())
    assert (notebook["nbformat"], notebook["metadata"]["language_info"]["name"]) == (4, "python")
    assert not any(cell.get("outputs") for cell in notebook["cells"])  # what is shown is made anew by whoever runs it
    return {cell["id"]: "".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"}


def run_cell(source: str, names: dict[str, Any]) -> Any:
    """Runs a cell as a notebook does: the value of a last expression is what it shows."""
    body = ast.parse(source)
    shown = body.body.pop() if isinstance(body.body[-1], ast.Expr) else None
    exec(compile(body, "<cell>", "exec"), names)
    return eval(compile(ast.Expression(shown.value), "<cell>", "eval"), names) if isinstance(shown, ast.Expr) else None


@pytest.mark.parametrize(("name", "most"), CODE)
def test_a_cell_is_as_short_as_promised(repository: Path, name: str, most: int) -> None:
    assert len([line for line in cells(repository)[name].splitlines() if line.strip()]) <= most


def test_the_notebook_runs(repository: Path) -> None:
    names: dict[str, Any] = {"__name__": "__main__"}

    async def kernel() -> dict[str, Any]:  # a notebook's cells run while its kernel's event loop does
        return {name: run_cell(source, names) for name, source in cells(repository).items()}

    shown = asyncio.run(kernel())
    assert names["run"].metrics["accuracy"] >= 0.9  # 0.1 is guessing
    assert "training loss" in shown["train"]._repr_html_()
    assert all(shown[name]._repr_png_().startswith(b"\x89PNG") for name in ("learning", "plan"))
    assert "all on device" in shown["table"]._repr_html_()
    assert isinstance(shown["other"], str)
    predicted, right = shown["serve"]
    assert (predicted == right).sum() >= 4
