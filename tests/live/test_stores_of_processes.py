"""A real process whose disk takes no more bytes, or whose log another program holds: its run waits, says why, and goes on."""

from __future__ import annotations

import json
import resource
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from edgewise.core.ids import digest_of
from edgewise.fleet.messages import RunStatus
from edgewise.simulation.emulated.emulated_fleet import CLOUD
from tests.live.small_fleet import EDGE, World

pytestmark = [pytest.mark.live, pytest.mark.slow, pytest.mark.timeout(200)]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with World(tmp_path_factory.mktemp("stores"), hidden=4096) as made:
        yield made


@contextmanager
def full(world: World, node: str) -> Iterator[None]:
    """No file of the process may grow any more, as on a full disk."""
    pid = world.fleet.children[node].pid
    _, most = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (1, most))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (most, most))


@contextmanager
def locked(world: World, node: str) -> Iterator[None]:
    """Another program holds the log."""
    other = sqlite3.connect(Path(world.fleet.settings[node].state) / "events.db", isolation_level=None, timeout=20.0)
    other.execute("BEGIN EXCLUSIVE")
    try:
        yield
    finally:
        other.execute("ROLLBACK")
        other.close()


@pytest.mark.parametrize(("node", "refuse"), [(CLOUD, full), (CLOUD, locked), (EDGE, full)])
def test_a_run_waits_says_why_and_ends_as_if_nothing_had_been(world: World, node: str, refuse) -> None:
    name = f"{refuse.__name__}-{node}"

    async def waits() -> RunStatus | None:
        status = await world.operator.status(name)  # type: ignore[arg-type]
        assert status.state == "running", status.cause
        return status if f"{node} waits: the store" in status.cause else None

    async def scene() -> RunStatus:
        await world.all_here()
        world.stop("client-0", "client-1")
        await world.submit(name, num_rounds=3)
        await world.stand("client-0", "client-1")
        with refuse(world, node):
            world.go()
            said = await world.eventually(waits)
        assert ("is locked" if refuse is locked else "(") in said.cause
        return await world.end_of(name)

    status = world.run(scene())
    assert status.state == "completed", status.cause
    assert [round.num_updates for round in status.rounds] == [2, 2, 2]
    assert status.model == digest_of(world.simulated("hierarchical", 3))


def repaired(state: Path) -> tuple[int, dict[str, Any]]:
    """What `edgewise repair` says of a folder whose node runs."""
    words = [sys.executable, "-m", "edgewise", "repair", "--state", str(state), "--json"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=100, check=False)
    return done.returncode, json.loads(done.stdout)


def test_every_blob_of_ended_runs_is_damaged_and_the_coordinator_starts_and_leads_the_next(world: World) -> None:
    async def scene() -> None:
        await world.all_here()
        await world.submit("before", num_rounds=2)
        assert (await world.end_of("before")).state == "completed"
        await world.fleet.children[CLOUD].kill()
        blobs = Path(world.fleet.settings[CLOUD].state) / "blobs"
        for path in blobs.iterdir():
            data = bytearray(path.read_bytes())
            data[len(data) // 2] ^= 1
            path.write_bytes(bytes(data))
        await world.restart(CLOUD)
        await world.all_here()
        assert (await world.end_of("before")).state == "completed"
        code, found = repaired(blobs.parent)
        assert code == 1
        assert found["damages"]
        assert all(damage["path"].startswith(str(blobs)) and damage["cure"] for damage in found["damages"])
        await world.submit("after", num_rounds=2)
        assert (await world.end_of("after")).state == "completed"

    world.run(scene())
    assert repaired(Path(world.fleet.settings[EDGE].state))[0] == 0
