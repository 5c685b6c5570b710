"""What a run says it moved, whoever was killed: as undisturbed, and as the frames that devices counted."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from edgewise.core.ids import NodeId
from edgewise.ledger.entry import Direction, Purpose
from edgewise.testing import LoopbackFleet
from tests.fleet.test_kills import ROUNDS, TIMEOUT_S, run_with_a_kill
from tests.twin.test_twin import EDGE_OF, PROTOCOLS

WIDE = {"hidden": 12_000}
"""An update of 384 kB: its receiver pulls it in chunks, so what is sent twice is not sent whole."""
NARROW = {"hidden": 8}


def moved(status: Any) -> list[tuple[int, int]]:
    return [(r.uplink_bytes, r.downlink_bytes) for r in status.rounds]


def sent_by_devices(fleet: LoopbackFleet) -> int:
    entries = [e for client in EDGE_OF for e in fleet.nodes[NodeId(f"device-{client}")].counter.entries()]
    return sum(e.size_bytes for e in entries if e.purpose is Purpose.BULK and e.direction is Direction.SENT)


def in_a_fleet(folder: Path, settings: Any, scene: Any) -> Any:
    async def run() -> Any:
        async with LoopbackFleet(folder, edge_of=EDGE_OF, settings=settings) as fleet, asyncio.timeout(TIMEOUT_S):
            return await scene(fleet)

    return asyncio.run(run())


@pytest.mark.parametrize(("protocol", "victim"), [*((p, "cloud") for p in PROTOCOLS), ("hierarchical", "edge-1")])
def test_bytes_of_a_run_are_those_of_one_that_nobody_killed(protocol: str, victim: str, tmp_path: Path) -> None:
    async def scene(fleet: LoopbackFleet) -> tuple[list[Any], Any]:
        undisturbed, killed = await fleet.train("fed_avg", num_rounds=ROUNDS, seed=7, protocol=protocol), []
        for num_events in range(1 if victim == "edge-1" else 2, 100, 2):
            status = await run_with_a_kill(fleet, victim, num_events, "fed_avg", protocol)
            if status is None:
                break
            killed.append(moved(status))
        return killed, moved(undisturbed)

    killed, undisturbed = in_a_fleet(tmp_path, NARROW, scene)
    assert len(killed) >= 2 * ROUNDS
    assert killed == [undisturbed] * len(killed)


def test_bytes_of_a_run_are_those_that_its_devices_sent_whoever_was_killed(tmp_path: Path) -> None:
    async def scene(fleet: LoopbackFleet) -> list[tuple[int, int]]:
        found = []
        for victim, num_events in (("cloud", 4), ("edge-1", 3), ("cloud", 7)):
            before = sent_by_devices(fleet)
            status = await run_with_a_kill(fleet, victim, num_events, "fed_avg", "hierarchical")
            assert status is not None, (victim, num_events)
            found.append((sum(up for up, _ in moved(status)), sent_by_devices(fleet) - before))
        return found

    for told, sent in in_a_fleet(tmp_path, WIDE, scene):
        assert told == pytest.approx(sent, rel=0.01)
