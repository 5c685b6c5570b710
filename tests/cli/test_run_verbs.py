"""`runs`, `versions`, `export`, `logs`: what they print, with and without `--json`, and what they refuse."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest

from edgewise.cli import export, logs, runs, versions
from edgewise.cli.main import run
from edgewise.cli.output import Output
from edgewise.core.errors import InputError, RemoteError
from edgewise.core.ids import NodeId, RunId
from edgewise.fleet.messages import LogRequest
from edgewise.fleet.node.recent_log import MOST_LINES, RecentLog
from edgewise.testing import LoopbackFleet

WHERE = "--connect tls/h:1 --identity me"


def on_fleet(folder: Path, scene: Callable[[LoopbackFleet], Awaitable[None]], **how: Any) -> None:
    async def whole() -> None:
        async with LoopbackFleet(folder, edge_of={"a": "edge-1", "b": "edge-1"}, **how) as fleet:
            await scene(fleet)

    asyncio.run(whole())


def printed(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


def test_a_run_that_was_cancelled_is_resumed_from_its_last_round(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def scene(fleet: LoopbackFleet) -> None:
        rounds = asyncio.Queue[int]()
        following = asyncio.create_task(
            fleet.train("fed_avg", num_rounds=1000, register=True, on_status=lambda s: rounds.put_nowait(len(s.rounds)))
        )
        while await rounds.get() < 2:
            pass
        with pytest.raises(
            RemoteError, match=r"run 'tiny-1' has not ended: .*Look at it: edgewise train --follow tiny-1"
        ):
            await fleet.operator.resume(RunId("tiny-1"))
        capsys.readouterr()
        await runs.stop(Output(True), fleet.operator, "tiny-1")
        stopped = printed(capsys)
        assert (stopped["state"], stopped["rounds"] >= 2) == ("cancelled", True)
        with pytest.raises(InputError, match="cancelled"):
            await following
        before = await fleet.operator.status(RunId("tiny-1"))
        short(fleet, "tiny-1", stopped["rounds"] + 2)
        await runs.go_on(Output(), fleet.operator, "tiny-1", "", WHERE)
        assert (
            capsys.readouterr().out == f"tiny-1 goes on as tiny-2; look at it: edgewise train --follow tiny-2 {WHERE}\n"
        )
        async for status in fleet.operator.watch(RunId("tiny-2")):
            last = status
        total = stopped["rounds"] + 2
        assert (last.state, len(last.rounds), last.version) == ("completed", total, 1)
        assert [r.loss for r in last.rounds[: stopped["rounds"]]] == [r.loss for r in before.rounds]
        assert [r.round for r in last.rounds] == list(range(1, total + 1))
        first = fleet.coordinator.runs._live(RunId("tiny-2")).submitted
        assert first.config.initial_model == before.model
        with pytest.raises(
            RemoteError, match=rf"has done all of its {total} rounds\. Go on from its version: .*--start-version 1"
        ):
            await fleet.operator.resume(RunId("tiny-2"))
        await fleet.kill("cloud")
        await fleet.restart("cloud")
        runs.show(Output(), await fleet.operator.runs())
        shown = capsys.readouterr().out
        assert [line.replace("│", " ").split()[:5] for line in shown.splitlines()[3:5]] == [
            ["tiny-1", "tiny", "hierarchical", "cancelled", f"{stopped['rounds']}/1000"],
            ["tiny-2", "tiny", "hierarchical", "completed", f"{total}/{total}"],
        ]
        assert "tiny-1: " in shown
        assert "tiny-2: " not in shown
        again = (await fleet.operator.status(RunId("tiny-2"))).rounds
        assert [(r.round, r.loss, r.uplink_bytes) for r in again] == [
            (r.round, r.loss, r.uplink_bytes) for r in last.rounds
        ]
        runs.show(Output(True), await fleet.operator.runs())
        assert [row["version"] for row in printed(capsys)["runs"]] == [0, 1]

    on_fleet(tmp_path, scene)


def short(fleet: LoopbackFleet, name: str, num_rounds: int) -> None:
    """As if a run had been submitted for fewer rounds; a thousand are not to be waited for."""
    import msgspec

    live = fleet.coordinator.runs._live(RunId(name))
    change = msgspec.structs.replace
    live.submitted = change(live.submitted, config=change(live.submitted.config, num_rounds=num_rounds))


def test_versions_are_listed_and_exported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def scene(fleet: LoopbackFleet) -> None:
        for algorithm in ("fed_avg", {"name": "fed_per", "own": ["3.*"]}):
            await fleet.train(algorithm, num_rounds=1, register=True)
        fleet.coordinator.versions.promote(2, note="it lost 4.4 points")
        known = await fleet.operator.versions()
        versions.show(Output(), known)
        shown = capsys.readouterr().out
        assert shown.splitlines()[3].replace("│", " ").split()[:3] == ["1", "tiny", "tiny-1"]
        assert "version 2: version 2 is the part that its clients share" in shown
        assert "version 2 of tiny came into force; it lost 4.4 points" in shown
        versions.show(Output(True), known, "tiny")
        found = printed(capsys)
        assert [(v["version"], v["run"], v["in_force"]) for v in found["versions"]] == [
            (1, "tiny-1", False),
            (2, "tiny-2", False),
        ]
        assert found["history"][0]["note"] == "it lost 4.4 points"
        with pytest.raises(InputError, match=r"no model 'tinny' is there here\. Did you mean 'tiny'\?"):
            versions.show(Output(), known, "tinny")
        await export.export(Output(True), fleet.operator, 2, tmp_path / "out/my.onnx")
        assert (tmp_path / "out/my.onnx").read_bytes() == await fleet.operator.graph(2)
        onnx.checker.check_model(onnx.load(tmp_path / "out/my.onnx"))
        found = printed(capsys)
        assert (found["model"], found["caution"].startswith("version 2 is the part")) == ("tiny", True)
        with pytest.raises(RemoteError, match=r"there is no model version 7\. Known: \[1, 2\]"):
            await export.export(Output(), fleet.operator, 7, tmp_path / "seven.onnx")
        assert not (tmp_path / "seven.onnx").exists()

    on_fleet(tmp_path, scene)


def test_the_last_lines_are_kept_and_those_asked_for_are_told() -> None:
    log = logging.getLogger("edgewise.made_up")
    kept = RecentLog("edgewise.made_up")
    log.setLevel(logging.INFO)
    try:
        for number in range(MOST_LINES + 5):
            log.info("line %d", number)
        log.debug("not this one")
        found = kept.answer(LogRequest(most=2)).lines
        assert [(line.number, line.level, line.text) for line in found] == [
            (MOST_LINES + 4, "INFO", f"line {MOST_LINES + 3}"), (MOST_LINES + 5, "INFO", f"line {MOST_LINES + 4}"),
        ]  # fmt: skip
        assert kept.answer(LogRequest(after=found[0].number)).lines == found[1:]
        assert len(kept.answer(LogRequest(most=10**6)).lines) == MOST_LINES
    finally:
        kept.close()
    log.info("after its end")
    assert len(kept.answer(LogRequest(after=found[-1].number)).lines) == 0


def test_logs_are_printed_and_followed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "FOLLOW_EVERY_S", 0.0)
    log, asked = logging.getLogger("edgewise.made_up"), []
    kept = RecentLog("edgewise.made_up")

    async def ask(node: NodeId, request: LogRequest) -> Any:
        asked.append((node, request.after))
        if len(asked) == 4:
            raise RemoteError("enough")
        log.warning("line %d", len(asked))
        return kept.answer(request)

    operator: Any = SimpleNamespace(logs=ask, coordinator=NodeId("cloud"))
    try:
        asyncio.run(logs.show(Output(), operator, "device-1", 10))
        assert capsys.readouterr().out.endswith("WARNING line 1\n")
        with pytest.raises(RemoteError, match="enough"):
            asyncio.run(logs.show(Output(True), operator, "", 10, follow=True))
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [(line["node"], line["text"]) for line in lines] == [("cloud", f"line {n}") for n in (1, 2, 3)]
        assert asked == [("device-1", 0), ("cloud", 0), ("cloud", 2), ("cloud", 3)]
    finally:
        kept.close()


@pytest.mark.parametrize(
    "verb", ["runs", "runs list", "runs cancel r", "runs resume r", "versions", "export 1 --out f", "logs"]
)
def test_without_a_fleet_each_says_what_is_missing(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*verb.split(), "--json"]) == 1
    assert "no fleet given. Say --connect" in json.loads(capsys.readouterr().err)["message"]
