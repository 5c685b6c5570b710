"""`edgewise ca` as a person uses it."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from edgewise.cli.main import run


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    assert run(["ca", "init", "ca", "--fleet", "home"]) == 0
    return tmp_path


def test_a_node_gets_three_files_and_its_key_is_its_own(home: Path) -> None:
    assert run(["ca", "issue", "edge-1", "--tier", "edge", "--host", "10.0.0.5"]) == 0
    folder = home / "nodes" / "edge-1"
    assert sorted(file.name for file in folder.iterdir()) == ["ca.pem", "node.key", "node.pem"]
    assert stat.S_IMODE((folder / "node.key").stat().st_mode) == 0o600


def test_json_says_what_was_issued(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert run(["ca", "issue", "device-1", "--tier", "device", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["node"], answer["tier"], answer["fleet"]) == ("device-1", "device", "home")


def test_a_key_born_on_the_node_never_reaches_the_authority(home: Path) -> None:
    assert run(["ca", "request", "device-9", "--tier", "device"]) == 0
    key = (home / "nodes/device-9/node.key").read_bytes()
    assert run(["ca", "sign", "nodes/device-9/node.csr"]) == 0
    assert (home / "nodes/device-9/node.pem").exists()
    assert (home / "nodes/device-9/node.key").read_bytes() == key
    assert all(key not in file.read_bytes() for file in (home / "ca").rglob("*.*"))


def test_revoking_counts_the_certificates(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["ca", "issue", "device-1", "--tier", "device"]) == 0
    assert run(["ca", "revoke", "device-1"]) == 0
    assert "revoked 1 certificate(s) of 'device-1'" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["ca", "init", "ca"], "already holds an authority"),
        (["ca", "issue", "Edge 1", "--tier", "edge"], "node name 'Edge 1' is not usable"),
        (["ca", "issue", "edge-1", "--tier", "egde"], "'egde' is not a tier. Did you mean 'edge'?"),
        (["ca", "issue", "edge-1", "--tier", "edge", "--ca", "other"], "no usable certificate authority in 'other'"),
        (["ca", "sign", "missing.csr"], "cannot use 'missing.csr': No such file or directory"),
        (["ca", "revoke", "nobody"], "no certificate was issued to 'nobody'"),
    ],
)
def test_what_cannot_be_done_is_refused_with_the_reason(
    home: Path, words: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(words) == 1
    assert text in capsys.readouterr().err


def test_ca_alone_shows_its_verbs(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["ca"]) == 2
    assert "init" in capsys.readouterr().err
