"""The door of the command line: help, misuse, errors, exit codes."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgewise.cli import main
from edgewise.core.errors import PlanInfeasible


def failing_verb(error: BaseException) -> Any:
    app = main.make_app()

    @app.command()
    def command(as_json: bool = main.typer.Option(False, "--json")) -> None:
        raise error

    return main.typer.main.get_command(app)


def run_failing(monkeypatch: pytest.MonkeyPatch, error: BaseException, *args: str) -> int:
    monkeypatch.setattr(main, "available_verbs", lambda: ["plan"])
    monkeypatch.setattr(main, "load_verb", lambda verb: failing_verb(error))
    return main.run(["plan", *args])


def test_help_lists_the_verbs_that_exist(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {verb} " in shown for verb in main.available_verbs())


def test_no_verb_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run([]) == 0
    assert "Usage: edgewise" in capsys.readouterr().out


def test_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["--version"]) == 0
    assert capsys.readouterr().out == f"edgewise {main.__version__}\n"


def test_the_environment_variables_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["--help-settings"]) == 0
    assert "`EDGEWISE_DATA`" in capsys.readouterr().out


def test_an_unknown_verb_is_misuse_and_the_nearest_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["docto"]) == 2
    assert "there is no verb 'docto'. Did you mean 'doctor'?" in capsys.readouterr().err


def test_a_verb_of_an_earlier_release_names_the_new_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["keep", "job.toml"]) == 2
    assert capsys.readouterr().err == (
        "error [misuse]: `edgewise keep` is now called `edgewise retrain`, with the same options.\n"
    )


def test_an_unknown_option_is_misuse(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["doctor", "--jsn"]) == 2
    assert "No such option: --jsn" in capsys.readouterr().err


@pytest.mark.parametrize("verb", main.available_verbs())
def test_every_verb_has_help_with_an_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = main.load_verb(verb)
    for words in [[verb, name] for name in getattr(command, "commands", {})] or [[verb]]:
        assert main.run([*words, "--help"]) == 0
        shown = capsys.readouterr().out
        assert "Example:\n" in shown
        assert f"    edgewise {' '.join(words)}" in shown
        assert "--json" in shown


def test_our_error_is_a_sentence_with_its_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_failing(monkeypatch, PlanInfeasible("no plan. Allow more.", limit="energy")) == 1
    assert capsys.readouterr().err == "error [plan.infeasible]: no plan. Allow more.\n"


def test_json_asks_for_the_error_envelope(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_failing(monkeypatch, PlanInfeasible("no plan.", limit="energy"), "--json") == 1
    envelope = json.loads(capsys.readouterr().err)
    assert envelope == {"code": "plan.infeasible", "message": "no plan.", "fields": {"limit": "energy"}}


def test_an_interrupt_ends_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_failing(monkeypatch, KeyboardInterrupt()) == 130


def test_a_missing_file_is_named_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    error = FileNotFoundError(2, "No such file or directory", "job.toml")
    assert run_failing(monkeypatch, error) == 1
    assert "cannot use 'job.toml': No such file or directory." in capsys.readouterr().err


def test_a_missing_torch_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_failing(monkeypatch, ModuleNotFoundError("No module named 'torch'", name="torch")) == 1
    assert "torch is not installed, and only training needs it" in capsys.readouterr().err


def test_another_missing_module_is_our_bug_and_shows_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModuleNotFoundError):
        run_failing(monkeypatch, ModuleNotFoundError("No module named 'x'", name="x"))


def leaves(command: Any, *words: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    below = getattr(command, "commands", {})
    for name, one in below.items():
        yield from leaves(one, *words, name)
    if not below:
        yield words, command


def numbers() -> list[tuple[tuple[str, ...], Any]]:
    """Every option of every verb that takes a number."""
    verbs = [leaf for verb in main.available_verbs() for leaf in leaves(main.load_verb(verb), verb)]
    kinds = (int, float, int | None, float | None)
    return [(words, p) for words, c in verbs for p in c.params if p.type_descriptor.annotation in kinds]


def test_every_number_has_its_least() -> None:
    found = numbers()
    assert len(found) > 20
    assert [(words, p.opts) for words, p in found if p.min is None] == []


@pytest.mark.parametrize("value", ["-1", "nan", "inf", "-inf", "1e300", "9" * 30, "x"])
def test_a_number_that_means_nothing_is_misuse_and_its_option_is_named(
    value: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for words, option in numbers():
        verb = main.load_verb(words[0])
        for word in words[1:]:
            verb = verb.commands[word]
        name = option.opts[0]
        is_option = name.startswith("-")
        others = [p for p in verb.params if p.required and p.name != option.name]
        needed = [word for p in others if p.opts[0].startswith("-") for word in (p.opts[0], "1")]
        places = ["1" for p in others if not p.opts[0].startswith("-")]
        given = [name, value] if is_option else ["--", value]
        assert main.run([*words, *needed, *(given if is_option else []), *places, *([] if is_option else given)]) == 2
        said = capsys.readouterr().err
        assert name in said, said


def test_a_full_disk_names_the_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("edgewise.core.files.os.fsync", full)
    assert main.run(["ca", "init", str(tmp_path / "ca")]) == 1
    assert f"cannot use '{tmp_path}/ca/ca." in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "ca").iterdir()] == []
