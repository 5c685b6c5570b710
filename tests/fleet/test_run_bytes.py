"""What a run says it moved, whoever was killed: as undisturbed, and as the frames that devices counted."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from edgewise.ledger.entry import Purpose
from edgewise.testing import LoopbackFleet
from edgewise.transport.frame import decode_frame
from tests.fleet.test_kills import ROUNDS, TIMEOUT_S, run_with_a_kill
from tests.twin.test_twin import EDGE_OF, PROTOCOLS

WIDE = {"hidden": 12_000}
"""An update of 384 kB: its receiver pulls it in chunks, so what is sent twice is not sent whole."""
NARROW = {"hidden": 8}


class Payloads:
    """Bytes of the chunks that devices sent: what sockets carried, without the frames around it."""

    def __init__(self) -> None:
        self.size_bytes = 0

    def __call__(self, data: bytes) -> None:
        frame = decode_frame(data)
        if frame.purpose is Purpose.BULK and frame.sender.startswith("device-"):
            self.size_bytes += sum(tensor.array.nbytes for tensor in frame.tensors)


def moved(status: Any) -> list[tuple[int, int]]:
    return [(r.uplink_bytes, r.downlink_bytes) for r in status.rounds]


def in_a_fleet(folder: Path, settings: Any, scene: Any, tap: Any = None) -> Any:
    async def run() -> Any:
        fleet = LoopbackFleet(folder, edge_of=EDGE_OF, settings=settings, tap=tap)
        async with fleet, asyncio.timeout(TIMEOUT_S):
            return await scene(fleet)

    return asyncio.run(run())


@pytest.mark.parametrize(("protocol", "victim"), [*((p, "cloud") for p in PROTOCOLS), ("hierarchical", "edge-1")])
def test_bytes_of_a_run_are_those_of_one_that_nobody_killed(protocol: str, victim: str, tmp_path: Path) -> None:
    async def scene(fleet: LoopbackFleet) -> tuple[list[Any], Any]:
        undisturbed, killed = await fleet.train("fed_avg", num_rounds=ROUNDS, seed=7, protocol=protocol), []
        for num_events in range(1 if victim == "edge-1" else 2, 100, 3):
            status = await run_with_a_kill(fleet, victim, num_events, "fed_avg", protocol)
            if status is None:
                break
            killed.append(moved(status))
        return killed, moved(undisturbed)

    killed, undisturbed = in_a_fleet(tmp_path, NARROW, scene)
    assert len(killed) >= ROUNDS
    assert killed == [undisturbed] * len(killed)


def test_bytes_of_a_run_are_those_that_its_devices_sent_whoever_was_killed(tmp_path: Path) -> None:
    sent = Payloads()

    async def scene(fleet: LoopbackFleet) -> list[tuple[int, int]]:
        found = []
        for victim, num_events in (("cloud", 4), ("edge-1", 3)):
            before = sent.size_bytes
            status = await run_with_a_kill(fleet, victim, num_events, "fed_avg", "hierarchical")
            assert status is not None, (victim, num_events)
            found.append((sum(up for up, _ in moved(status)), sent.size_bytes - before))
        return found

    for told, carried in in_a_fleet(tmp_path, WIDE, scene, sent):
        assert told == pytest.approx(carried, rel=0.01)
