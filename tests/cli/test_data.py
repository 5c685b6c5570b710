"""`edgewise data` prints the audit of a split."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgewise.cli.main import run

SKEWED = '{"clients": 3, "alpha": 0.5}'


def test_the_audit_counts_clients_and_examples(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["data", "digits", "--settings", SKEWED, "--json"]) == 0
    audit = json.loads(capsys.readouterr().out)["audit"]
    assert len(audit["examples"]) == 3
    assert audit["empty_clients"] == []
    assert audit["duplicates"] == 0


def test_the_audit_is_a_table_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["data", "digits", "--settings", SKEWED]) == 0
    assert "clients 3" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_settings_that_are_no_object_are_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["data", "digits", "--settings", text]) == 1
    assert "--settings" in capsys.readouterr().err


def test_a_missing_task_file_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["data", "nowhere.py"]) == 1
    assert "task file 'nowhere.py' does not exist" in capsys.readouterr().err


def test_a_task_file_that_does_not_import_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "task.py").write_text("import nothing_of_this_name\n")
    assert run(["data", str(tmp_path / "task.py")]) == 1
    assert "No module named 'nothing_of_this_name'" in capsys.readouterr().err
