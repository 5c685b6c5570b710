"""A task whose code differs is refused by its digest, before round 1 and when a node joins later."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from edgewise.core.errors import RemoteError
from edgewise.core.ids import NodeId
from edgewise.models.task import load_task
from edgewise.models.task_code import code_digest, difference
from edgewise.testing import LoopbackFleet, tiny_task
from edgewise.training.tasks.digits_task import DigitsTask

SOURCE = Path(tiny_task.__file__).read_text()
IMPORTING = SOURCE.replace("import numpy as np\n", "import beside_me\nimport numpy as np\n")


def written(path: Path, text: str = SOURCE, ends: str = "\n") -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.replace("\n", ends).encode())
    return code_digest(load_task(path))


def test_a_digest_is_of_the_code_whatever_the_file_is_called_and_wherever_it_lies(tmp_path: Path) -> None:
    first = written(tmp_path / "a.py")
    assert first == written(tmp_path / "elsewhere/b.py") == written(tmp_path / "c.py", ends="\r\n")
    assert first == code_digest(load_task(tmp_path / "a.py", hidden=3))  # settings say where data lie, they may differ
    assert first != written(tmp_path / "d.py", SOURCE.replace("hidden", "inner"))
    assert code_digest(DigitsTask()) not in ("", first)


def test_what_a_file_imports_from_beside_it_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path / "one")
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "beside_me.py").write_text(f"scale = {name!r}\n")
        (tmp_path / name / "not_imported.py").write_text(name)
    found = {written(tmp_path / name / "my.py", IMPORTING) for name in ("one", "two")}
    assert len(found) == 2


def test_who_differs_is_named_with_the_cure() -> None:
    there = {NodeId(f"device-{i}"): "a" * 64 for i in range(3)}
    assert difference("tiny", "a" * 64, there) == difference("tiny", "", there) == difference("tiny", "", {}) == ""
    assert difference("tiny", "", {**there, NodeId("device-1"): "b" * 64}) == (
        "the code of task 'tiny' differs on device-1: bbbbbbbbbbbb there, that of the other nodes is aaaaaaaaaaaa. "
        "Install the same task file everywhere and start it again."
    )
    assert "differs on device-0, device-1, device-2: aaaaaaaaaaaa there, this job's is bb" in difference(
        "tiny", "b" * 64, there
    )


def test_a_run_of_other_code_does_not_begin(tmp_path: Path) -> None:
    written(tmp_path / "ours.py", SOURCE + "\n# a line that the devices do not have\n")

    async def scene() -> None:
        async with LoopbackFleet(tmp_path / "fleet", edge_of={"a": "edge-1", "b": "edge-1"}) as fleet:
            fleet.task = load_task(tmp_path / "ours.py")
            with pytest.raises(RemoteError, match="the code of task 'tiny' differs on device-a, device-b"):
                await fleet.submit("fed_avg", num_rounds=1)
            assert fleet.coordinator.runs._runs == {}

    asyncio.run(scene())


def test_a_node_that_comes_back_with_other_code_trains_no_round(tmp_path: Path) -> None:
    mine = tmp_path / "mine.py"
    written(mine)

    async def scene() -> None:
        async with LoopbackFleet(tmp_path / "fleet", edge_of={"a": "edge-1", "b": "edge-1"}, task_file=mine) as fleet:
            await fleet.kill("b")
            run = await fleet.submit("fed_avg", num_rounds=1, clients=("a", "b"), quorum=2)
            mine.write_text(SOURCE + "\n# edited meanwhile\n")
            await fleet.restart("b")
            causes = []
            async with asyncio.timeout(60):
                async for status in fleet.operator.watch(run):
                    causes.append(status.cause)
                    if "the code of task 'tiny' differs on device-b" in status.cause or status.state != "running":
                        break
            assert "the code of task 'tiny' differs on device-b" in causes[-1], causes

    asyncio.run(scene())
