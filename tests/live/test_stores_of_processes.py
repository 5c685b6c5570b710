"""A real process whose disk takes no more bytes, or whose log another program holds: its run waits, says why, and goes on."""

from __future__ import annotations

import resource
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
