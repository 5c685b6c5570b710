"""What is written is run, generated or compared."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"(?:<!-- (?P<how>.+?) -->\n)?```(?P<language>bash|python)\n(?P<code>.*?)\n```", re.S)

STOPPED = "trap 'jobs -p | xargs -r kill 2>/dev/null || true' EXIT\n"
"""What a block leaves in the background ends with it, also where it fails."""


class Block(NamedTuple):
    """A fenced block; `how` is the comment before it: `run by PATH` names what runs it instead of this file."""

    page: Path
    language: str
    code: str
    how: str


def blocks() -> Iterator[Block]:
    for page in PAGES:
        for match in FENCE.finditer(page.read_text()):
            yield Block(page, match["language"], match["code"], match["how"] or "")


BLOCKS = list(blocks())
HERE = [block for block in BLOCKS if not block.how.startswith("run by ")]
ELSEWHERE = [block for block in BLOCKS if block.how.startswith("run by ")]


def name_of(block: Block) -> str:
    line = block.page.read_text().split(block.code)[0].count("\n") + 1
    return f"{block.page.relative_to(ROOT)}:{line}"


@pytest.mark.slow
@pytest.mark.timeout(900)  # a page trains a model; on a machine that does other things too it takes its time
@pytest.mark.parametrize("page", sorted({block.page for block in HERE}), ids=lambda page: str(page.relative_to(ROOT)))
def test_the_blocks_of_a_page_run_one_after_the_other(page: Path, tmp_path: Path, free_port: int) -> None:
    for folder in ("examples", "docs"):
        if (ROOT / folder).exists():
            shutil.copytree(ROOT / folder, tmp_path / folder)
    printed = ""
    paths = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    for block in (block for block in HERE if block.page == page):
        code = block.code.replace("8000", str(free_port))
        command = [sys.executable, "-c", code] if block.language == "python" else ["bash", "-euc", STOPPED + code]
        done = subprocess.run(
            command, cwd=tmp_path, env={**os.environ, "PATH": paths}, stdin=subprocess.DEVNULL, capture_output=True,
            text=True, timeout=400,
        )  # fmt: skip
        assert done.returncode == 0, f"{name_of(block)}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
        printed += done.stdout
    if page.name == "README.md":  # it promises more than 90 % on digits that no client holds
        assert float(re.findall(r"accuracy (0\.\d+|1)", printed)[-1]) >= 0.9


@pytest.mark.parametrize("block", ELSEWHERE, ids=name_of)
def test_a_block_run_elsewhere_names_what_runs_it(block: Block) -> None:
    assert (ROOT / block.how.removeprefix("run by ")).exists()


def generator() -> Any:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs/reference/generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["cli.md", "python.md", "parts.md", "errors.md", "settings.md", "live-campaigns.md"])
def test_a_generated_page_is_what_the_code_says(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    assert generator().PAGES[name]() == (ROOT / "docs/reference" / name).read_text(), "run: make docs"


def test_readme_fits_on_a_few_screens() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 130


def test_readme_names_the_version_and_python_floor_of_pyproject() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    readme = (ROOT / "README.md").read_text()
    assert f"version {project['version']}" in readme
    assert f"Python {project['requires-python'].removeprefix('>=')}" in readme


def test_the_package_and_pyproject_agree_on_the_version() -> None:
    import edgewise

    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == edgewise.__version__


def test_the_layers_on_the_page_are_those_that_are_enforced() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    page = (ROOT / "docs/architecture.md").read_text()
    shown = page.split("```layers\n")[1].split("\n```")[0].splitlines()
    assert shown == [layer.strip("()") for layer in contracts[0]["layers"]]


def test_every_layer_has_its_folder_named_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    folders = [path.parent.name for path in (ROOT / "src/edgewise").glob("*/__init__.py")]
    assert [folder for folder in folders if f"{folder}/" not in readme] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_inside_the_repository_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)", page.read_text())
    broken = [target for target in targets if "://" not in target and not (page.parent / target).exists()]
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_named_in_backticks_exist(page: Path) -> None:
    named = re.findall(r"`((?:src|tests|docs|examples|benchmarks)/[\w./-]+\.\w+)`", page.read_text())
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_every_attack_on_the_page_has_its_test() -> None:
    table = (
        (ROOT / "docs" / "security.md").read_text().partition("## Each attack, and its test")[2].partition("\n## ")[0]
    )
    rows = [line.strip(" |").split(" | ") for line in table.splitlines() if line.startswith("| ")][1:]
    assert len(rows) >= 10
    for attack, *_, tests in rows:
        named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", tests)
        assert named, f"{attack}: no test is named"
        for file, name in named:
            assert re.search(rf"^(async )?def {name}\(", (ROOT / file).read_text(), re.M), (
                f"{attack}: {file} has no {name}"
            )


def test_every_make_target_named_in_the_pages_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    named = {name for page in PAGES for name in re.findall(r"(?:`|^)make ([a-z-]+)", page.read_text(), re.M)}
    assert named <= targets
