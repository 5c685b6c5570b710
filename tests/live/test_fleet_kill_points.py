"""SIGKILL of real processes at boundaries of their event logs: of the coordinator, an edge, and a device in mid-run.

The boundaries are those of an undisturbed run's log; `crash_after` kills the process right after its n-th event is on
disk. The others' processes live through all of them and find their way back by themselves. Here some boundaries are
taken, by `make chaos` all; all are taken without processes in `tests/training` and, in part, in `tests/fleet`.
"""

from __future__ import annotations

import os
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
STRIDE = int(os.environ.get("EDGEWISE_KILL_STRIDE", "3"))
"""From one boundary to the next; `make chaos` takes every one."""
FIRST = {"synchronous": 1, "hierarchical": min(2, STRIDE)}
"""The two protocols take different ones."""
INDEX_EVENTS = 2 + ROUNDS  # submitted, each round as told, registered


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with World(tmp_path_factory.mktemp("killed")) as made:
        yield made


SCAFFOLD = {"name": "scaffold", "local": {"name": "sgd", "learning_rate": 0.1, "epochs": 1}}


def last_index(database: Path, log: str) -> int:
    """How many events a log has had, compacted or not."""
    reader = EventLog.open(database, read_only=True)
    try:
        return max((entry.index for entry in reader.read(log)), default=0)
    finally:
        reader.close()


async def whole(world: World, protocol: str, name: str, rounds: int = ROUNDS) -> str:
    """An undisturbed run; its model is the simulator's."""
    await world.all_here()
    await world.submit(name, protocol=protocol, num_rounds=rounds, algorithm=SCAFFOLD)
    status = await world.end_of(name)
    assert status.model == digest_of(world.simulated(protocol, rounds, algorithm=SCAFFOLD))
    return status.model


async def disturbed(world: World, victim: str, name: str, kill_after: int, *, protocol: str = "hierarchical") -> str:
    """A run in which `victim` is killed right after its n-th event is on disk."""
    await world.restart(victim, crash_after=kill_after)
    await world.all_here()
    with suppress(EdgewiseError):  # the coordinator may die of it
        await world.submit(name, protocol=protocol, num_rounds=ROUNDS, algorithm=SCAFFOLD)
    await world.death_of(victim)
    await world.restart(victim)
    status = await world.end_of(name)
    assert [(r.num_updates, r.missing) for r in status.rounds] == [(len(world.clients), {})] * ROUNDS
    return status.model


@pytest.mark.parametrize("protocol", ["synchronous", "hierarchical"])
def test_the_coordinator_killed_at_a_boundary_ends_with_the_same_bytes(world: World, protocol: str) -> None:
    async def scene() -> None:
        model = await whole(world, protocol, f"{protocol}-whole")
        num = last_index(world.folder / "state" / CLOUD / "events.db", f"coordinator/{protocol}-whole")
        for kill_after in range(
            FIRST[protocol], INDEX_EVENTS + num, STRIDE
        ):  # the last may come after the run's end was heard of
            name = f"{protocol}-{kill_after}"
            assert await disturbed(world, CLOUD, name, kill_after, protocol=protocol) == model, f"{kill_after} of {num}"

    devices = [world.fleet.children[device].pid for device in world.fleet.devices]
    world.run(scene(), 250.0)
    assert [world.fleet.children[d].pid for d in world.fleet.devices if world.fleet.children[d].running] == devices


@pytest.mark.parametrize("victim", [EDGE, "device-1"])
def test_an_edge_or_a_device_killed_in_mid_run_ends_with_the_same_bytes(world: World, victim: str) -> None:
    """Each of the first events is before a report is acknowledged or a round is folded; all are in `tests/fleet`."""

    async def scene() -> None:
        model = await whole(world, "hierarchical", f"{victim}-whole")
        for kill_after in range(1, 6, min(2, STRIDE)):
            name = f"{victim}-{kill_after}"
            assert await disturbed(world, victim, name, kill_after) == model, kill_after

    world.run(scene(), 250.0)
