"""SIGKILL at every boundary of the event log, of the coordinator and of an edge: the run ends with the same bytes.

The boundaries are those of an undisturbed run's log; `crash_after` kills the process right after its n-th event is on
disk. The devices' processes live through all of them and find their way back by themselves.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from edgewise.core.errors import EdgewiseError
from edgewise.core.ids import digest_of
from edgewise.fleet.store.events import EventLog
from edgewise.simulation.emulated.emulated_fleet import CLOUD
from tests.live.small_fleet import EDGE, World

pytestmark = [pytest.mark.live, pytest.mark.slow, pytest.mark.timeout(280)]
ROUNDS = 2
INDEX_EVENTS = 2 + ROUNDS  # submitted, each round as told, registered


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with World(tmp_path_factory.mktemp("killed")) as made:
        yield made


def events(database: Path, log: str) -> list[str]:
    reader = EventLog.open(database, read_only=True)
    try:
        return [entry.kind for entry in reader.read(log)]
    finally:
        reader.close()


async def whole(world: World, protocol: str, name: str, rounds: int = ROUNDS) -> str:
    """An undisturbed run; its model is the simulator's."""
    await world.all_here()
    await world.submit(name, protocol=protocol, num_rounds=rounds)
    status = await world.end_of(name)
    assert status.model == digest_of(world.simulated(protocol, rounds))
    return status.model


async def disturbed(
    world: World, victim: str, name: str, kill_after: int, *, protocol: str = "hierarchical", rounds: int = ROUNDS
) -> str:
    """A run in which `victim` is killed right after its n-th event is on disk."""
    await world.restart(victim, crash_after=kill_after)
    await world.all_here()
    with suppress(EdgewiseError):  # the coordinator may die of it
        await world.submit(name, protocol=protocol, num_rounds=rounds)
    await world.death_of(victim)
    await world.restart(victim)
    status = await world.end_of(name)
    assert [(r.num_updates, r.missing) for r in status.rounds] == [(len(world.clients), {})] * rounds
    return status.model


@pytest.mark.parametrize("protocol", ["synchronous", "hierarchical"])
def test_the_coordinator_killed_at_every_boundary_ends_with_the_same_bytes(world: World, protocol: str) -> None:
    async def scene() -> None:
        model = await whole(world, protocol, f"{protocol}-whole")
        log = events(world.folder / "state" / CLOUD / "events.db", f"{protocol}-whole")
        for kill_after in range(1, INDEX_EVENTS + len(log) + 1):
            name = f"{protocol}-{kill_after}"
            assert await disturbed(world, CLOUD, name, kill_after, protocol=protocol) == model, f"{kill_after} of {log}"

    devices = [world.fleet.children[device].pid for device in world.fleet.devices]
    world.run(scene(), 250.0)
    assert [world.fleet.children[d].pid for d in world.fleet.devices if world.fleet.children[d].running] == devices


def test_an_edge_killed_at_every_boundary_forwards_each_sum_once(world: World) -> None:
    at_edge, at_cloud = world.folder / "state" / EDGE / "edge.db", world.folder / "state" / CLOUD / "events.db"

    async def nothing_kept() -> bool | None:
        last = {kind: place for place, kind in enumerate(events(at_edge, "edge"))}
        return last.get("RunDismissed", -1) >= last.get("RegionOpened", -1) or None

    async def scene() -> None:
        await world.all_here()
        await world.eventually(nothing_kept)
        before = len(events(at_edge, "edge"))
        model = await whole(world, "hierarchical", "edge-whole", rounds=1)
        await world.eventually(nothing_kept)
        log = events(at_edge, "edge")[before:]
        assert log == ["RegionOpened", "UpdateReceived", "UpdateReceived", "SumAcknowledged", "RunDismissed"]
        for kill_after in range(1, len(log) + 1):
            name = f"edge-{kill_after}"
            assert await disturbed(world, EDGE, name, kill_after, rounds=1) == model, f"{kill_after} of {log}"
            assert events(at_cloud, name).count("SumReceived") == 1
            await world.eventually(nothing_kept)

    world.run(scene(), 250.0)
