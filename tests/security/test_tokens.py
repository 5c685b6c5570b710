"""Tokens of HTTP clients: hashed, closed to others, with roles and an end, revoked at once."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path

import pytest

from edgewise.cli.main import run
from edgewise.core.errors import InputError
from edgewise.security.tokens import PREFIX, TokenFile, Tokens, digest_of, read_tokens

NOON = dt.datetime(2030, 1, 1, 12, tzinfo=dt.UTC)


def test_a_token_is_stored_as_its_hash_closed_to_others_and_found_by_its_text(tmp_path: Path) -> None:
    file = TokenFile(tmp_path / "deep" / "tokens.json")
    text = file.create("cam-7", ["infer", "feedback"])
    other = file.create("ops", ["manage"])
    assert len(text) > 40
    assert text.startswith(PREFIX)
    written = file.path.read_text()
    assert text not in written
    assert digest_of(text) in written
    assert file.path.stat().st_mode & 0o777 == 0o600
    tokens = Tokens(file.path)
    found = tokens.find(text)
    assert found is not None
    assert [found.may(role) for role in ("infer", "feedback", "metrics", "manage")] == [True, True, False, False]
    manager = tokens.find(other)
    assert manager is not None
    assert manager.may("metrics")
    assert [tokens.find(wrong) for wrong in ("", PREFIX, text[:-1], text + "x", digest_of(text), "\udcff")] == [
        None
    ] * 6


def test_a_token_ends_when_it_is_revoked_when_its_time_is_over_and_when_its_file_is_gone(tmp_path: Path) -> None:
    now = [NOON]
    file = TokenFile(tmp_path / "tokens.json", now=lambda: now[0])
    day, ever = file.create("day", ["infer"], days=1), file.create("ever", ["infer"], days=0)
    tokens = Tokens(file.path, now=lambda: now[0])
    assert tokens.find(day) is not None
    now[0] += dt.timedelta(days=1)
    assert tokens.find(day) is None
    assert tokens.find(ever) is not None
    file.revoke("ever")
    assert tokens.find(ever) is None
    back = file.create("ever", ["infer"], days=0)
    assert (tokens.find(ever), tokens.find(back) is not None) == (None, True)
    file.path.unlink()
    assert tokens.find(back) is None


@pytest.mark.parametrize(
    ("content", "mode", "sentence"),
    [
        (None, 0, "no tokens can be read from"),
        ("{", 0o600, "is no file of tokens"),
        ('{"tokens": [{"name": 1}]}', 0o600, "is no file of tokens"),
        ('{"tokens": []}', 0o644, r"is open to others \(mode 644\). Close it: chmod 600"),
    ],
)
def test_a_file_that_cannot_be_trusted_lets_nobody_in(
    tmp_path: Path, content: str | None, mode: int, sentence: str
) -> None:
    path = tmp_path / "tokens.json"
    text = TokenFile(path).create("cam-7", ["infer"])
    tokens = Tokens(path)
    assert tokens.find(text) is not None
    path.unlink()
    if content is not None:
        path.write_text(content)
        path.chmod(mode)
    assert tokens.find(text) is None
    with pytest.raises(InputError, match=sentence):
        read_tokens(path)


def test_the_verb_makes_lists_and_revokes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, secret = tmp_path / "tokens.json", tmp_path / "cam-7.token"

    def verb(*words: object) -> int:
        return run(["token", *map(str, words), "--tokens", str(file), "--json"])

    assert verb("create", "cam-7", "--role", "infer", "--role", "feedback", "--out", secret) == 0
    text = secret.read_text().strip()
    assert secret.stat().st_mode & 0o777 == 0o600
    assert text not in capsys.readouterr().out
    assert verb("create", "ops", "--role", "manage", "--days", 0) == 0
    assert json.loads(capsys.readouterr().out)["token"].startswith(PREFIX)
    assert verb("list") == 0
    listed = json.loads(capsys.readouterr().out)
    assert [(row["name"], row["roles"], row["expires"] is None) for row in listed] == [
        ("cam-7", ["infer", "feedback"], False),
        ("ops", ["manage"], True),
    ]
    assert verb("create", "cam-7") == 1
    assert verb("create", "cam-8", "--role", "root") == 1
    assert "'root' is no role" in capsys.readouterr().err
    assert verb("revoke", "cam-7") == 0
    assert Tokens(file).find(text) is None
    assert verb("revoke", "cam-7") == 1
