"""A run that was cancelled and resumed is, to the last bit, the run that nobody disturbed: what both sides keep stands."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from edgewise.core.ids import RunId
from edgewise.fleet.messages import RunStatus
from edgewise.testing import LoopbackFleet
from edgewise.training.algorithms import make_algorithm
from edgewise.training.client_update import keeps_on_clients

FOREVER = 10**6
FEEDBACK = {"name": "error_feedback", "codec": {"name": "top_k", "fraction": 0.2}}
ALGORITHMS: dict[str, Any] = {
    "scaffold": "scaffold",
    "fed_adam": "fed_adam",
    "ditto": "ditto",
    "error feedback": {"name": "fed_avg", "uplink": FEEDBACK},
    "zeroth_order": "zeroth_order",
    "a part of the clients": {"name": "scaffold", "select": {"name": "uniform", "cohort_size": 2}},
}


def in_a_fleet(folder: Path, edge: str, scene: Callable[[LoopbackFleet], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        async with LoopbackFleet(folder, edge_of=dict.fromkeys("abc", edge)) as fleet:
            return await scene(fleet)

    return asyncio.run(run())


async def cancelled(fleet: LoopbackFleet, run: RunId, after: int) -> int:
    """Stops a run once so many rounds have closed; how many had when it stood still."""
    async for status in fleet.operator.watch(run):
        if len(status.rounds) >= after:
            await fleet.operator.cancel(run)
    assert status.state == "cancelled", status.cause
    return len(status.rounds)


def shortened(fleet: LoopbackFleet, run: RunId, num_rounds: int) -> None:
    """As if a run had been submitted for fewer rounds, so that none ends before it is cancelled."""
    live, change = fleet.coordinator.runs._live(run), msgspec.structs.replace
    live.submitted = change(live.submitted, config=change(live.submitted.config, num_rounds=num_rounds))


async def completed(fleet: LoopbackFleet, run: RunId) -> tuple[RunStatus, list[str]]:
    """How a run ended, and what it waited for on the way."""
    waits = []
    async for status in fleet.operator.watch(run):
        waits.append(status.cause)
    assert status.state == "completed", status.cause
    return status, waits


async def kept(fleet: LoopbackFleet, *runs: RunId) -> dict[str, list[bytes]]:
    """What each client keeps at the end of the last of some runs that it took part in."""
    roles = {client: fleet.training[worker.node.name].roles for client, worker in fleet.workers.items()}
    await fleet.until(lambda: not any(each.driver("client", run) for each in roles.values() for run in runs))
    found = {}
    for client, each in roles.items():
        digests = next((d for run in reversed(runs) if (d := each.kept(run)) is not None), ())
        found[str(client)] = [fleet.workers[client].private.read(digest) for digest in digests]
    return found


@pytest.mark.parametrize(("algorithm", "edge"), [(name, "") for name in ALGORITHMS] + [("scaffold", "edge-1")])
def test_a_resumed_run_is_the_run_that_nobody_disturbed(algorithm: str, edge: str, tmp_path: Path) -> None:
    how = {"algorithm": ALGORITHMS[algorithm], "seed": 3, "protocol": "hierarchical" if edge else "synchronous"}

    async def disturbed(fleet: LoopbackFleet) -> Any:
        runs = [await fleet.submit(num_rounds=FOREVER, **how)]
        for _ in range(2):
            num_rounds = 2 + await cancelled(fleet, runs[-1], 2)
            shortened(fleet, runs[-1], num_rounds if len(runs) > 1 else FOREVER)
            runs.append(await fleet.operator.resume(runs[-1]))
        status, _ = await completed(fleet, runs[-1])
        return fleet.model(status), [r.loss for r in status.rounds], await kept(fleet, *runs)

    async def undisturbed(fleet: LoopbackFleet) -> Any:
        run = await fleet.submit(num_rounds=len(seen), **how)
        status, _ = await completed(fleet, run)
        return fleet.model(status), [r.loss for r in status.rounds], await kept(fleet, run)

    got, seen, stood = in_a_fleet(tmp_path / "disturbed", edge, disturbed)
    want, losses, stands = in_a_fleet(tmp_path / "undisturbed", edge, undisturbed)
    assert seen == losses
    assert np.array_equal(got, want)
    assert stood == stands
    keeps = any(keeps_on_clients(exchange) for exchange in make_algorithm(ALGORITHMS[algorithm]).exchanges)
    assert any(stands.values()) == keeps


@pytest.mark.parametrize("protocol", ["synchronous", "hierarchical", "buffered"])
def test_a_client_whose_kept_state_is_gone_is_said_to_begin_anew(protocol: str, tmp_path: Path) -> None:
    spec: Any = {"name": "buffered", "concurrency": 3, "buffer_size": 3} if protocol == "buffered" else protocol
    local = {"name": "scaffold"} if protocol != "buffered" else {"name": "fed_avg", "uplink": FEEDBACK}

    async def scene(fleet: LoopbackFleet) -> None:
        run = await fleet.submit(local, num_rounds=FOREVER, protocol=spec)
        done = await cancelled(fleet, run, 2)
        shortened(fleet, run, done + 3)
        await kept(fleet, run)
        await fleet.kill("b")
        shutil.rmtree(fleet._state(fleet._node_of("b")) / "kept")
        await fleet.restart("b")
        status, waits = await completed(fleet, await fleet.operator.resume(run))
        assert [r.num_updates for r in status.rounds] == [3] * (done + 3)
        said = [*waits, *(cause for r in status.rounds[done:] for cause in r.missing.values())]
        assert any("what b kept in tiny-1 is gone from its disk, it begins anew" in text for text in said), said

    in_a_fleet(tmp_path, "edge-1" if protocol == "hierarchical" else "", scene)
