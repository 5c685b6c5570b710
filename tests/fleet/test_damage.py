"""Damage on a disk is named with its file, stops only what needs it, and is fetched again from whoever has it."""

from __future__ import annotations

import asyncio
import re
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from edgewise.cli import repair as verb
from edgewise.core.errors import InputError, StoreDamaged
from edgewise.core.ids import Digest, NodeId
from edgewise.fleet.operator.refetch import fetch_from_anybody
from edgewise.fleet.store.repair import check_state, fetch_damaged
from edgewise.testing import LoopbackFleet
from edgewise.transport.bulk.blobs import FolderBlobs
from tests.fleet.test_stores_that_wait import begun, ended

EDGE_OF = {"a": "edge-1", "b": "edge-1", "c": "edge-2"}
CLOUD = NodeId("cloud")
TIMEOUT_S = 25.0


def flip(path: Path, place: int = 3) -> None:
    """One bit of a file, as a disk does it: its size stays."""
    data = bytearray(path.read_bytes())
    data[place % len(data)] ^= 1
    path.write_bytes(bytes(data))


def blobs_of(fleet: LoopbackFleet, name: NodeId) -> list[Path]:
    return [
        path for path in sorted((fleet._state(name) / "blobs").iterdir()) if re.fullmatch("[0-9a-f]{64}", path.name)
    ]


def in_a_fleet(folder: Path, scene: Any) -> Any:
    async def run() -> Any:
        async with LoopbackFleet(folder, edge_of=EDGE_OF) as fleet, asyncio.timeout(TIMEOUT_S):
            return await scene(fleet)

    return asyncio.run(run())


def test_a_blob_is_checked_when_it_is_read_and_again_once_its_file_has_changed(tmp_path: Path) -> None:
    blobs = FolderBlobs(tmp_path)
    digest = blobs.put(b"a model of seven")
    assert blobs.read(digest) == b"a model of seven"
    flip(tmp_path / digest)
    with pytest.raises(
        StoreDamaged, match=rf"blob {digest[:12]} is damaged on disk: '.*{digest}' is not what its name says"
    ):
        blobs.read(digest)
    assert not blobs.has(digest)  # so it is fetched again
    assert (tmp_path / f"{digest}.damaged").exists()
    assert blobs.put(b"a model of seven") == digest
    assert FolderBlobs(tmp_path).read(digest, 2, 5) == b"model"


def test_putting_what_is_damaged_there_mends_it(tmp_path: Path) -> None:
    digest = FolderBlobs(tmp_path).put(b"content")
    flip(tmp_path / digest)
    assert FolderBlobs(tmp_path).put(b"content") == digest
    assert FolderBlobs(tmp_path).read(digest) == b"content"


def test_every_blob_of_an_ended_run_is_damaged_the_coordinator_starts_and_trains_on(tmp_path: Path) -> None:
    async def scene(fleet: LoopbackFleet) -> None:
        run = await begun(fleet, "scaffold")
        await ended(fleet, run)
        await fleet.kill("cloud")
        for path in blobs_of(fleet, CLOUD):
            flip(path)
        await fleet.restart("cloud")
        assert fleet.coordinator.runs.status(run).state == "completed"
        await fleet._all_known()
        again = await fleet.train("fed_avg", num_rounds=2, protocol="hierarchical")
        assert len(again.rounds) == 2

    in_a_fleet(tmp_path, scene)


def test_a_run_whose_log_is_damaged_says_so_and_the_others_go_on(tmp_path: Path) -> None:
    async def scene(fleet: LoopbackFleet) -> None:
        first = await fleet.submit("fed_avg", num_rounds=2, name="first", protocol="hierarchical")
        await ended(fleet, first)
        second = await begun(fleet, "scaffold")
        await fleet.kill("cloud")
        database = fleet._state(CLOUD) / "events.db"
        change(database, "UPDATE events SET payload = CAST(x'00' || payload AS BLOB) WHERE run = 'coordinator/first'")
        await fleet.restart("cloud")
        told = fleet.coordinator.runs.status(first)
        assert told.state == "failed"
        assert re.search(
            r"its record cannot be read: event \d+ of run 'coordinator/first' in '.*events.db' is missing", told.cause
        )
        assert (await ended(fleet, second)).state == "completed"

    in_a_fleet(tmp_path, scene)


def change(database: Path, statement: str) -> None:
    import sqlite3

    with sqlite3.connect(database) as raw:
        assert raw.execute(statement).rowcount
    raw.close()


@pytest.mark.parametrize("at", ["running", "restart"])
def test_a_blob_that_a_run_needs_is_fetched_again_and_the_model_is_the_same(at: str, tmp_path: Path) -> None:
    async def scene(fleet: LoopbackFleet, *, harm: bool) -> Any:
        run = await begun(fleet, "scaffold")
        if harm:
            if at == "restart":
                await fleet.kill("cloud")
            for path in blobs_of(fleet, CLOUD):
                held = (fleet._state(n) / "blobs" / path.name for n in fleet.nodes if n != CLOUD)
                if any(other.exists() for other in held):
                    flip(path)
            if at == "restart":
                await fleet.restart("cloud")
        return fleet.model(await ended(fleet, run))

    wanted = in_a_fleet(tmp_path / "whole", partial(scene, harm=False))
    assert np.array_equal(in_a_fleet(tmp_path / "harmed", partial(scene, harm=True)), wanted)


def test_repair_names_what_is_damaged_and_has_it_fetched_again(tmp_path: Path, capsys: Any) -> None:
    async def scene(fleet: LoopbackFleet) -> None:
        state = fleet._state(CLOUD)
        digest = fleet.nodes[CLOUD].blobs.put(b"a graph that serves")
        fleet.nodes[NodeId("edge-1")].blobs.put(b"a graph that serves")
        fleet.nodes[NodeId("edge-1")].grants.open(digest)  # as it does with graphs that are installed on it
        lost = fleet.nodes[CLOUD].blobs.put(b"nobody else has it")
        assert check_state(state).damages == ()
        for name in (digest, lost):
            flip(state / "blobs" / name)
        found = check_state(state)
        assert {damage.name for damage in found.unmended} == {digest, lost}
        mended = await fetch_damaged(found, partial(fetch_from_anybody, fleet.operator))
        assert [damage.name for damage in mended.unmended] == [lost]
        assert {damage.mended_by for damage in mended.damages} == {"edge-1", ""}
        assert fleet.nodes[CLOUD].blobs.read(digest) == b"a graph that serves"
        verb.show(verb.Output(), mended)
        said = capsys.readouterr().out
        assert "It was fetched again from edge-1." in said
        assert f"blob {lost[:12]} in {state / 'blobs' / lost}" in said
        assert "1 damaged" in said
        (state / "blobs" / f"{lost}.damaged").unlink()
        assert check_state(state).damages == ()

    in_a_fleet(tmp_path, scene)


def test_repair_of_no_state_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no state folder of a node"):
        check_state(tmp_path)


def test_what_is_wrong_is_told_as_json(tmp_path: Path) -> None:
    digest = FolderBlobs(tmp_path / "blobs").put(b"content")
    flip(tmp_path / "blobs" / digest)
    (damage,) = check_state(tmp_path).damages
    assert (damage.kind, damage.name) == ("blob", Digest(digest))
    assert msgspec.to_builtins(damage)["path"].endswith(digest)
