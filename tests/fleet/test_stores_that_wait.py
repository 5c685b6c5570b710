"""A store that takes nothing for a while: nobody drops anything, the run says why it waits, and goes on by itself."""

from __future__ import annotations

import asyncio
import errno
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgewise.core import files
from edgewise.core.ids import NodeId
from edgewise.fleet.store import database
from edgewise.testing import LoopbackFleet

ROUNDS = 8
EDGE_OF = {"a": "edge-1", "b": "edge-1", "c": "edge-2"}
TIMEOUT_S = 60.0


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "_LOCKED_S", 0.05)


class Disk:
    """Folders whose disk is full: files, and databases by a lock or by their own limit of pages."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.full: set[Path] = set()
        whole = files._write_all

        def write(handle: int, data: Any) -> None:
            path = Path(f"/proc/self/fd/{handle}").readlink()
            if any(path.is_relative_to(folder) for folder in self.full):
                raise OSError(errno.ENOSPC, "No space left on device")
            whole(handle, data)

        monkeypatch.setattr(files, "_write_all", write)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Another program holds a database."""
    other = sqlite3.connect(path, isolation_level=None, timeout=20.0)
    other.execute("BEGIN EXCLUSIVE")
    try:
        yield
    finally:
        other.execute("ROLLBACK")
        other.close()


@contextmanager
def refused(disk: Disk, how: str, state: Path) -> Iterator[None]:
    if how == "locked":
        with locked(state / "events.db"):
            yield
        return
    disk.full.add(state)
    with locked(state / "events.db"):  # on a full disk a log takes nothing either
        yield
    disk.full.clear()


def node_of(fleet: LoopbackFleet, who: str) -> NodeId:
    return fleet._node_of(who)


async def ended(fleet: LoopbackFleet, run: Any) -> Any:
    *_, last = [status async for status in fleet.operator.watch(run)]
    return last


async def begun(fleet: LoopbackFleet, algorithm: str) -> Any:
    run = await fleet.submit(algorithm, num_rounds=ROUNDS, seed=3, quorum=3, protocol="hierarchical", name="r")
    await fleet.until(lambda: len(fleet.coordinator.runs.status(run).rounds) >= 1)
    return run


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    async def train() -> Any:
        async with LoopbackFleet(tmp_path_factory.mktemp("undisturbed"), edge_of=EDGE_OF) as fleet:
            return fleet.model(await ended(fleet, await begun(fleet, "scaffold")))

    return asyncio.run(train())


@pytest.mark.parametrize(("who", "how"), [("cloud", "full"), ("edge-1", "locked"), ("b", "full")])
def test_a_run_waits_for_a_store_says_why_and_ends_as_if_nothing_had_been(who, how, undisturbed, tmp_path, monkeypatch):
    disk = Disk(monkeypatch)

    async def disturbed() -> Any:
        async with LoopbackFleet(tmp_path, edge_of=EDGE_OF) as fleet, asyncio.timeout(TIMEOUT_S):
            run = await begun(fleet, "scaffold")
            status = fleet.coordinator.runs.status
            with refused(disk, how, fleet._state(node_of(fleet, who))):
                await fleet.until(lambda: "the store" in status(run).cause, TIMEOUT_S)
                said = status(run)
            assert said.state == "running"
            assert len(said.rounds) < ROUNDS
            assert f"{node_of(fleet, who)} waits: the store" in said.cause
            assert "is locked" in said.cause or "is full" in said.cause
            last = await ended(fleet, run)
            assert last.state == "completed", last.cause
            assert all(round.num_updates == 3 and not round.missing for round in last.rounds)
            return fleet.model(last)

    assert np.array_equal(asyncio.run(disturbed()), undisturbed)


def test_a_run_ends_when_told_to_though_its_store_takes_nothing_and_that_is_written_down_later(tmp_path):
    async def scene() -> None:
        async with LoopbackFleet(tmp_path, edge_of=EDGE_OF) as fleet, asyncio.timeout(TIMEOUT_S):
            run = await begun(fleet, "fed_avg")
            runs = fleet.coordinator.runs
            with locked(fleet._state(NodeId("cloud")) / "events.db"):
                await fleet.operator.cancel(run)
                told = await ended(fleet, run)
                assert told.state == "cancelled"
                assert "events.db' is locked" in told.cause
                assert "written down when the store takes it" in told.cause
            await fleet.until(lambda: runs._live(run).registered, TIMEOUT_S)
            assert runs.status(run).state == "cancelled"
            await fleet.kill("cloud")
            await fleet.restart("cloud")
            assert fleet.coordinator.runs.status(run).state == "cancelled"

    asyncio.run(scene())


def test_a_node_that_ends_while_its_store_takes_nothing_ends_at_once_and_goes_on_from_its_log(undisturbed, tmp_path):
    async def scene() -> Any:
        async with LoopbackFleet(tmp_path, edge_of=EDGE_OF) as fleet, asyncio.timeout(TIMEOUT_S):
            run = await begun(fleet, "scaffold")
            with locked(fleet._state(NodeId("cloud")) / "events.db"):
                await fleet.until(lambda: "is locked" in fleet.coordinator.runs.status(run).cause, TIMEOUT_S)
                async with asyncio.timeout(10.0):
                    await fleet.kill("cloud")
            await fleet.restart("cloud")
            return fleet.model(await ended(fleet, run))

    assert np.array_equal(asyncio.run(scene()), undisturbed)
