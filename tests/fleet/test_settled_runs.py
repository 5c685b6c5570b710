"""What a coordinator keeps in memory of runs that are over: it keeps all of them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec

from edgewise.fleet.training.live_run import LiveRun
from edgewise.testing import LoopbackFleet

ROUNDS = (2, 42)
MOST_BYTES_PER_ROUND = 40


def kept_bytes(live: LiveRun) -> int:
    assert not live.rounds
    assert not live.driver.moved.closed
    return len(live.packed) + len(msgspec.msgpack.encode(live.driver.state))


def test_a_run_that_is_over_keeps_some_ten_bytes_of_a_round(tmp_path: Path) -> None:
    async def scene() -> list[LiveRun]:
        async with LoopbackFleet(tmp_path, edge_of={"a": "edge-1", "b": "edge-1"}) as fleet:
            for number in ROUNDS:
                await fleet.train("fed_avg", num_rounds=number, seed=7, protocol="hierarchical")
            return list(fleet.coordinator.runs.all())

    short, long = asyncio.run(scene())
    more = kept_bytes(long) - kept_bytes(short)
    assert more <= MOST_BYTES_PER_ROUND * (ROUNDS[1] - ROUNDS[0])
    assert [record.round for record in long.records] == list(range(1, ROUNDS[1] + 1))
    assert all(record.uplink_bytes and record.downlink_bytes for record in long.records)
