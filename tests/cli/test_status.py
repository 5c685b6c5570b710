"""`edgewise status` reads what nodes of this machine left in their state folders."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from edgewise.cli.main import run
from edgewise.fleet.node.node_status import STATUS_FILE, NodeStatus
from edgewise.fleet.node.sole_process import StateLock

PARENT = "tls/10.0.0.2:7447"


def waiting(folder: Path) -> NodeStatus:
    status = NodeStatus(folder, "device-1", "device")
    status.becomes("serving", http_port=8000, models={"digits": 3})
    for _ in range(2):
        status.waits_for(PARENT, "nothing listens on that port. Check the port.")
    return status


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert run(["status", *words]) == 0
    return capsys.readouterr().out


def test_a_running_node_says_what_it_serves_and_waits_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = waiting(tmp_path)
    lock = asyncio.run(StateLock.take(tmp_path))
    lines = shown(capsys, "--state", str(tmp_path)).splitlines()
    assert lines[0].startswith("device-1 (device) is serving, process ")
    assert lines[0].endswith("http port 8000, digits v3")
    assert lines[1] == f"  waits for {PARENT}: nothing listens on that port. Check the port. (0 s, 2 attempts)"
    status.came(PARENT)
    status.came(PARENT)
    assert len(shown(capsys, "--state", str(tmp_path)).splitlines()) == 1
    lock.close()


def test_one_that_ended_is_not_running(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    waiting(tmp_path).becomes("stopped", "another process of this name takes over")
    (row,) = json.loads(shown(capsys, "--state", str(tmp_path), "--json"))["nodes"]
    assert (row["phase"], row["process"], row["waits_for"]) == ("not running", 0, {})
    assert row["cause"] == "another process of this name takes over"


def test_all_nodes_of_a_machine_are_found_and_none_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEWISE_STATE", str(tmp_path))
    assert run(["status"]) == 1
    assert "no node has left its status in" in capsys.readouterr().err
    for name in ("device-1", "device-2"):
        NodeStatus(tmp_path / name, name, "device").becomes("displaced", "cloud hears a newer process of this name")
    (tmp_path / "device-3").mkdir()
    (tmp_path / "device-3" / STATUS_FILE).write_text("half a f")
    assert [line.split(" ")[0] for line in shown(capsys).splitlines()] == ["device-1", "device-2"]
    assert "is displaced, process" in shown(capsys)


def test_a_status_that_cannot_be_written_keeps_nobody_from_serving(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "state").touch()
    NodeStatus(tmp_path / "state", "device-1", "device").becomes("serving")
    assert "device-1 cannot write its status" in caplog.text
