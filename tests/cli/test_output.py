"""Text for people, JSON for programs."""

from __future__ import annotations

import json
import math
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edgewise.cli.output import Output, to_json


def test_json_mode_prints_one_value_and_no_text(capsys: pytest.CaptureFixture[str]) -> None:
    out = Output(as_json=True)
    out.line("for people")
    out.table("t", ["a"], [[1]])
    out.result({"rounds": 3})
    assert capsys.readouterr().out == '{"rounds":3}\n'


def test_text_mode_prints_the_line_and_no_value(capsys: pytest.CaptureFixture[str]) -> None:
    out = Output()
    out.line("for people")
    out.result({"rounds": 3})
    assert capsys.readouterr().out == "for people\n"


def test_a_table_prints_its_title_headings_and_cells(capsys: pytest.CaptureFixture[str]) -> None:
    Output().table("levels", ["level", "p50"], [[4, 0.12345], [5, 1.0]])
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("levels", "level", "p50", "0.1235", "1"))


def test_an_event_is_one_line_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    Output(as_json=True).event("node_joined", node="device-1")
    assert json.loads(capsys.readouterr().out) == {"event": "node_joined", "node": "device-1"}


def test_an_event_is_one_line_of_text(capsys: pytest.CaptureFixture[str]) -> None:
    Output().event("node_joined", node="device-1")
    assert capsys.readouterr().out == "node joined node=device-1\n"


def test_progress_is_plain_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with Output().progress("round", 20) as advance:
        for index in range(20):
            advance(f"loss {index}")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 10
    assert lines[-1] == "round 20/20 loss 19"


def test_progress_is_silent_with_json(capsys: pytest.CaptureFixture[str]) -> None:
    with Output(as_json=True).progress("round", 2) as advance:
        advance("")
    assert capsys.readouterr() == ("", "")


def test_json_takes_structs_arrays_paths_and_nan() -> None:
    class Point(msgspec.Struct):
        x: float

    value = {
        "point": Point(1.5),
        "array": np.arange(2),
        "number": np.float32(0.5),
        "path": Path("a/b"),
        "nan": math.nan,
    }
    assert json.loads(to_json(value)) == {
        "point": {"x": 1.5},
        "array": [0, 1],
        "number": 0.5,
        "path": "a/b",
        "nan": None,
    }
