"""`edgewise report` reads what a run wrote."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgewise.cli.main import run
from edgewise.service.report import write_report
from tests.service.made_up import made_up_report


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_report(made_up_report(), tmp_path / "run")
    return tmp_path / "run"


def test_twelve_kpis_are_printed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["report", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert shown.count("training ") >= 6
    assert shown.count("inference ") >= 6


def test_json_is_the_report_itself(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["report", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((folder / "report.json").read_text())


def test_the_page_is_drawn_again(folder: Path, tmp_path: Path) -> None:
    assert run(["report", str(folder), "--out", str(tmp_path / "again")]) == 0
    assert (tmp_path / "again" / "index.html").read_text() == (folder / "index.html").read_text()


def test_a_missing_report_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["report", str(tmp_path)]) == 1
    assert "no report at" in capsys.readouterr().err
