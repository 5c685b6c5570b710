"""Runs every test: what is not `live` in two processes, then what is `live` one after the other; one line says how it went.

    python -m tests.run_in_parts [what pytest takes]        # this is `make test TEST_ARGS=...`

Tests that are `live` start processes and look at the clock, so nothing else runs beside them. A part that fails does not
keep the other from running.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import pytest

NUM_SLOWEST = 10
INTERRUPTED, NOTHING_SELECTED = int(pytest.ExitCode.INTERRUPTED), int(pytest.ExitCode.NO_TESTS_COLLECTED)
HARMLESS = (int(pytest.ExitCode.OK), NOTHING_SELECTED)


@dataclass(frozen=True, slots=True)
class Part:
    """Tests that run together.

    Attributes:
        name: For people.
        selects: Expression of marks.
        paths: Where its tests are, unless somebody names some.
        options: Of pytest; what the user says wins.
        fixed: Of pytest; these win.
    """

    name: str
    selects: str
    paths: tuple[str, ...]
    options: tuple[str, ...] = ()
    fixed: tuple[str, ...] = ()


PARTS = (
    # `worksteal`: neighbours stay together, so a module's fixture is made once or twice; who is done takes from who is not.
    Part(
        "what is not live, in two processes",
        "not live",
        ("src", "tests"),
        options=("--doctest-modules", "--numprocesses=2", "--dist=worksteal"),
    ),
    Part("what is live, one after the other", "live", ("tests",), fixed=("--numprocesses=0",)),
)


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a part.

    Attributes:
        name: Its name.
        code: What pytest exited with.
        seconds: Of each test, with its set-up.
        bad: Tests that failed, or whose set-up did.
        num_skipped: Tests that were skipped.
    """

    name: str
    code: int
    seconds: dict[str, float]
    bad: tuple[str, ...]
    num_skipped: int


def command_of(part: Part, arguments: Sequence[str], record: Path) -> list[str]:
    """How pytest is called for a part.

    Args:
        part: Which.
        arguments: Of the user; paths replace the part's own, marks narrow it.
        record: Where pytest writes what came of each test.

    Returns:
        The command.
    """
    marks = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    marks.add_argument("-m", default="")
    known, others = marks.parse_known_args(arguments)
    is_named = any("/" in each and Path(each.partition("::")[0]).exists() for each in others)
    selects = f"({known.m}) and ({part.selects})" if known.m else part.selects
    paths = () if is_named else part.paths
    kept = ("-ojunit_family=xunit1", f"--junitxml={record}")
    return [sys.executable, "-m", "pytest", *paths, *part.options, *others, "-m", selects, *kept, *part.fixed]


def result_of(part: Part, code: int, record: Path) -> Result:
    """Reads what pytest wrote of a part; nothing where it did not come so far."""
    cases = list(ElementTree.parse(record).iter("testcase")) if record.exists() else []
    seconds: dict[str, float] = {}
    bad, skipped = [], 0
    for case in cases:
        name = f"{case.get('file')}::{case.get('name')}"
        seconds[name] = seconds.get(name, 0.0) + float(case.get("time", 0.0))
        if case.find("failure") is not None or case.find("error") is not None:
            bad.append(name)
        skipped += case.find("skipped") is not None
    return Result(part.name, code, seconds, tuple(dict.fromkeys(bad)), skipped)


def lines_of(results: Iterable[Result], seconds: float) -> list[str]:
    """What is said at the end; the last line says whether all is well."""
    results = list(results)
    all_seconds = {name: s for result in results for name, s in result.seconds.items()}
    slowest = sorted(all_seconds.items(), key=lambda item: -item[1])[:NUM_SLOWEST]
    bad = [name for result in results for name in result.bad]
    broken = [
        f"part {r.name!r}: pytest ended with {r.code} before its end"
        for r in results
        if r.code not in HARMLESS and not r.bad
    ]
    skipped = sum(result.num_skipped for result in results)
    lines = [f"the {len(slowest)} slowest:", *(f"  {s:6.1f} s  {name}" for name, s in slowest)]
    lines += [f"FAILED {name}" for name in bad] + broken
    counts = f"{len(all_seconds) - skipped - len(bad)} passed, {len(bad)} failed, {skipped} skipped"
    in_all = f"in {seconds // 60:.0f} min {seconds % 60:.0f} s"
    if bad or broken:
        return [*lines, f"make test: FAILED: {counts} {in_all}"]
    return [*lines, f"make test: passed: {counts} {in_all}" if all_seconds else "make test: no test was selected"]


def exit_code_of(results: Iterable[Result]) -> int:
    """The first code that says trouble; that of nothing selected only where no part had a test."""
    codes = [result.code for result in results]
    trouble = [code for code in codes if code not in HARMLESS]
    return trouble[0] if trouble else min(codes)


def main(arguments: Sequence[str]) -> int:
    """Runs the parts one after the other.

    Args:
        arguments: What pytest takes.

    Returns:
        The exit code.
    """
    began, results = time.monotonic(), []
    with tempfile.TemporaryDirectory() as folder:
        for number, part in enumerate(PARTS, 1):
            print(f"part {number}/{len(PARTS)}  {part.name}", flush=True)
            record = Path(folder) / f"{number}.xml"
            code = subprocess.run(command_of(part, arguments, record)).returncode
            results.append(result_of(part, code, record))
            if code == INTERRUPTED:
                break
    print("\n".join(lines_of(results, time.monotonic() - began)))
    return exit_code_of(results)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
