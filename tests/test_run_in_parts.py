"""`make test` over a few made-up tests: a part that fails does not keep the other from running, and the last line says it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.run_in_parts import PARTS, Result, command_of, exit_code_of, lines_of

ROOT = Path(__file__).resolve().parents[1]
CODE = """
import pytest

def test_right(): ...

def test_wrong(): assert False

@pytest.mark.skip
def test_left_out(): ...

@pytest.mark.live
def test_started(tmp_path): open("started", "w").close()
"""
RIGHT = Result("right", 0, {"a": 1.0, "b": 2.0}, (), 1)


def test_a_failure_is_named_at_the_end_and_the_live_part_runs_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "test_few.py").write_text(CODE)
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "tests.run_in_parts", "./test_few.py", "-p", "xdist.plugin", "-p", "no:cacheprovider"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": paths, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert done.returncode == 1
    assert (tmp_path / "started").exists()
    assert lines[-2] == "FAILED test_few.py::test_wrong"
    assert lines[-1].startswith("make test: FAILED: 2 passed, 1 failed, 1 skipped in 0 min ")


@pytest.mark.parametrize(
    ("arguments", "selects", "paths"),
    [
        ((), "not live", ["src", "tests"]),
        (("-n", "8"), "not live", ["src", "tests"]),
        (("-k", "docs"), "not live", ["src", "tests"]),
        (("-m", "slow", "tests/docs"), "(slow) and (not live)", ["tests/docs"]),
    ],
)
def test_marks_of_the_user_narrow_a_part_and_paths_replace_its_own(
    arguments: tuple[str, ...], selects: str, paths: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    command = command_of(PARTS[0], arguments, Path("record.xml"))
    assert command[command.index("-m", 2) + 1] == selects
    assert [each for each in command if each in ("src", "tests", "tests/docs")] == paths


@pytest.mark.parametrize(
    ("others", "last", "code"),
    [
        ([Result("live", 0, {"c": 3.0}, (), 0)], "make test: passed: 2 passed, 0 failed, 1 skipped in 1 min 5 s", 0),
        ([Result("live", 5, {}, (), 0)], "make test: passed: 1 passed, 0 failed, 1 skipped in 1 min 5 s", 0),
        (
            [Result("live", 1, {"c": 3.0}, ("c",), 0)],
            "make test: FAILED: 1 passed, 1 failed, 1 skipped in 1 min 5 s",
            1,
        ),
        ([Result("live", 3, {}, (), 0)], "make test: FAILED: 1 passed, 0 failed, 1 skipped in 1 min 5 s", 3),
    ],
)
def test_the_last_line_and_the_code_say_whether_all_is_well(others: list[Result], last: str, code: int) -> None:
    results = [RIGHT, *others]
    lines = lines_of(results, 65.0)
    assert lines[-1] == last
    assert exit_code_of(results) == code
    assert lines[1].endswith("  c" if 3.0 in [s for r in others for s in r.seconds.values()] else "  b")


def test_where_nothing_is_selected_that_is_said() -> None:
    nothing = [Result("a", 5, {}, (), 0), Result("b", 5, {}, (), 0)]
    assert lines_of(nothing, 1.0)[-1] == "make test: no test was selected"
    assert exit_code_of(nothing) == 5
