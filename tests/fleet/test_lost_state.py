"""A device whose disk was lost between two rounds: what it kept has a stated default, or its server begins it anew."""

from __future__ import annotations

import asyncio
import shutil

import pytest

from edgewise.testing import LoopbackFleet

ROUNDS = 12
PERSONAL = {"name": "fed_per", "own": "*bias*"}
ALGORITHMS = {
    "zeroth_order": "zeroth_order",
    "scaffold": "scaffold",
    "personal": PERSONAL,
    "ditto": "ditto",
    "error feedback": {
        "name": "fed_avg",
        "uplink": {"name": "error_feedback", "codec": {"name": "top_k", "fraction": 0.2}},
    },
}


@pytest.mark.parametrize("protocol", ["synchronous", "hierarchical"])
@pytest.mark.parametrize("lost", ["everything", "what it keeps"])
@pytest.mark.parametrize("algorithm", sorted(ALGORITHMS))
def test_a_device_that_lost_its_state_takes_part_again(algorithm, lost, protocol, tmp_path):
    async def train():
        edge_of = dict.fromkeys("abc", "e1" if protocol == "hierarchical" else "")
        async with LoopbackFleet(tmp_path, edge_of=edge_of) as fleet:
            closed = asyncio.Event()
            run = await fleet.submit(ALGORITHMS[algorithm], num_rounds=ROUNDS, protocol=protocol)
            watching = asyncio.create_task(watch(fleet, run, closed))
            await closed.wait()
            await fleet.kill("b")
            assert len(fleet.coordinator.runs.status(run).rounds) < ROUNDS - 1
            state = fleet._state(fleet._node_of("b"))
            for folder in [state] if lost == "everything" else [state / "kept"]:
                shutil.rmtree(folder, ignore_errors=True)
            await fleet.restart("b")
            async with asyncio.timeout(20):
                return await watching

    async def watch(fleet, run, closed):
        async for status in fleet.operator.watch(run):
            if status.rounds:
                closed.set()
        return status

    status = asyncio.run(train())
    assert status.state == "completed", status.cause
    assert [r.num_updates for r in status.rounds] == [3] * ROUNDS
