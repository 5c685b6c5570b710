"""The shape of the source tree: layers, light imports, docstrings, file lengths."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "src" / "edgewise"
FILES = sorted(SOURCE.rglob("*.py"))
HEAVY = {
    "torch",
    "scipy",
    "sklearn",
    "matplotlib",
    "igraph",
    "litestar",
    "uvicorn",
    "sqlalchemy",
    "onnxruntime",
    "zenoh",
    "pandas",
}
LONG_LINES, MOST_LINES = 400, 600
LONG_FILES: dict[str, str] = {
    "fleet/agent.py": "one idea: the process of a node, from opening its roles to its stop",
    "fleet/node/node.py": "one idea: what a node serves and how it asks, from opening to closing",
    "fleet/operator/operator.py": "one idea: what an operator may ask of a fleet, a method each",
    "fleet/serving/deployments.py": "one idea: what serves where, from a deployment to a node that returns",
    "fleet/serving/serving_role.py": "one idea: the serving role of a node, order by order",
    "fleet/training/local_worker.py": "one idea: an order's way over the user's task to a stored result",
    "fleet/training/role_driver.py": "one idea: an event's way from the queue over the step to the log, also while a store waits",
    "fleet/training/run_roles.py": "one idea: a node's part in all runs, from a letter to what is kept of it",
    "fleet/training/runs.py": "one idea: a coordinator's runs, from the request to the version",
    "inference/model_server.py": "one idea: a model that serves, from its first plan over requests and streams to its end",
    "simulation/virtual_run.py": "one idea: every action of a role carried out in virtual time",
    "training/protocols/buffered.py": "one idea: what each event does where rounds overlap, beside its table",
    "training/protocols/hierarchical/cloud.py": "one idea: what each event does on the cloud, beside its table",
    "transport/bulk/blobs.py": "one idea: a blob's file, from its first byte to its check",
}
"""Path below src/edgewise -> why it may be longer than 400 lines. Length alone is no reason to part a file with one idea."""
MOST_UNFORMATTED = 20
"""Literal tables read better in columns; everything else is the formatter's."""
FORBIDDEN = re.compile("|".join(("/" + "work/", r"\." + r"library\b", "/" + "root/", "/" + r"home/\w+/")))
"""Paths of one machine say nothing to a reader on another."""


def name_of(file: Path) -> str:
    return file.relative_to(SOURCE).as_posix()


def modules_after(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    return {name.partition(".")[0] for name in done.stdout.split()}


def test_arrows_between_packages_point_one_way() -> None:
    import_linter = Path(sys.executable).parent / "lint-imports"
    done = subprocess.run(
        [import_linter, "--no-cache"], cwd=SOURCE.parents[1], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.parametrize("code", ["import edgewise", "from edgewise.cli.main import run; run(['--help'])"])
def test_importing_edgewise_pulls_nothing_heavy(code: str) -> None:
    assert not modules_after(code) & HEAVY


@pytest.mark.parametrize("module", ["edgewise.fleet.agent", "edgewise.fleet.coordinator"])
def test_a_node_that_only_infers_or_decides_starts_without_the_heavy_libraries(module: str) -> None:
    # numpy, onnx and the fabric are what every node works with; the rest is imported where a node does that work.
    assert modules_after(f"import {module}") & HEAVY <= {"zenoh"}


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_a_module_says_what_lives_in_it(file: Path) -> None:
    assert ast.get_docstring(ast.parse(file.read_text()))


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_a_file_is_short_enough_to_read(file: Path) -> None:
    lines = len(file.read_text().splitlines())
    listed = lines <= LONG_LINES or LONG_FILES.get(name_of(file))
    assert listed, f"{lines} lines: part it if it has two ideas; if it has one, say which in LONG_FILES"
    assert lines <= MOST_LINES, f"{lines} lines are too many for one idea. Part it."


def test_long_files_are_listed_only_while_they_are_long() -> None:
    listed = {name: len((SOURCE / name).read_text().splitlines()) for name in LONG_FILES}
    assert all(lines > LONG_LINES for lines in listed.values()), listed


def twice(found: Iterable[tuple[str, Path]]) -> dict[str, list[str]]:
    places: dict[str, list[str]] = {}
    for name, file in found:
        places.setdefault(name, []).append(name_of(file))
    return {name: files for name, files in places.items() if len(files) > 1}


def test_a_file_is_found_by_its_name_alone() -> None:
    # A verb of the command line is called after what it does, as the package that does it is.
    files = [file for file in FILES if file.name != "__init__.py" and not name_of(file).startswith("cli/")]
    assert twice((file.name, file) for file in files) == {}


def test_a_class_is_found_by_its_name_alone() -> None:
    classes = [
        (node.name, file)
        for file in FILES
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    ]
    assert twice(classes) == {}


def test_the_formatter_is_seldom_told_to_look_away() -> None:
    found = {name_of(file): times for file in FILES if (times := file.read_text().count("# fmt: skip"))}
    assert sum(found.values()) <= MOST_UNFORMATTED, found


def public_definitions(file: Path) -> Iterator[tuple[str, str | None]]:
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node.name, ast.get_docstring(node)


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_every_public_name_has_a_docstring(file: Path) -> None:
    assert [name for name, text in public_definitions(file) if not text] == []


def test_no_module_is_called_by_a_word_that_says_nothing() -> None:
    vague = {"utils", "util", "helpers", "common", "misc", "base", "manager"}
    assert [name_of(file) for file in FILES if file.stem in vague] == []


def tracked_text(root: Path) -> Iterator[tuple[str, str]]:
    listing = subprocess.run(["git", "ls-files"], cwd=root, capture_output=True, text=True, check=True, timeout=60)
    for name in listing.stdout.splitlines():
        file = root / name
        if file.is_file() and file.suffix not in {".png", ".npz", ".onnx", ".gz"}:
            yield name, file.read_text()


def test_nothing_names_the_path_of_one_machine(repository: Path) -> None:
    if not (repository / ".git").exists():
        pytest.skip("not a git checkout")
    found = [name for name, text in tracked_text(repository) if FORBIDDEN.search(text)]
    assert found == []


def test_no_pickle_anywhere() -> None:
    calls = re.compile(r"\bimport (pickle|dill|cloudpickle|marshal)\b|allow_pickle=True|weights_only=False")
    assert [name_of(file) for file in FILES if calls.search(file.read_text())] == []
