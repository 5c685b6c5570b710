"""Protocols that do not run in lockstep, over a loopback fleet: no driver knows their names."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import numpy as np

from edgewise.fleet.training.local_worker import LocalWorker
from edgewise.testing import LoopbackFleet

TIMEOUT_S = 40.0
FOUR = {"a": "edge-1", "b": "edge-1", "c": "edge-2", "d": "edge-2"}
NAMES = {"clients": tuple(FOUR)}
FLAT = {"a": "", "b": "", "c": ""}


def suspended(monkeypatch: Any, client: str, go_on: threading.Event) -> None:
    """A client whose worker stands still, though its node answers."""
    whole = LocalWorker._update

    def update(self: LocalWorker, *arguments: Any) -> Any:
        if self.client == client:
            go_on.wait(TIMEOUT_S)
        return whole(self, *arguments)

    monkeypatch.setattr(LocalWorker, "_update", update)


def has_begun(roles: Any, run: str) -> bool:
    """Whether a device has its task."""
    driver = roles.driver("client", run)
    return driver is not None and driver.state is not None


def test_buffered_goes_on_while_a_client_stands_still(tmp_path: Path, monkeypatch: Any) -> None:
    go_on = threading.Event()
    suspended(monkeypatch, "b", go_on)
    protocol = {"name": "buffered", "concurrency": 3, "buffer_size": 2}

    async def scene() -> Any:
        async with LoopbackFleet(tmp_path, edge_of=FLAT) as fleet:
            try:
                async with asyncio.timeout(TIMEOUT_S):
                    return await fleet.train("fed_avg", num_rounds=5, seed=7, protocol=protocol)
            finally:
                go_on.set()

    status = asyncio.run(scene())
    assert len(status.rounds) == 5
    assert [r.num_updates for r in status.rounds] == [2] * 5


def test_gossip_runs_among_four_agents_and_ends_with_their_mean(tmp_path: Path) -> None:
    async def scene() -> tuple[Any, Any]:
        async with LoopbackFleet(tmp_path, edge_of=FOUR, settings=NAMES) as fleet:
            async with asyncio.timeout(TIMEOUT_S):
                status = await fleet.train("fed_avg", num_rounds=6, seed=7, protocol="gossip")
            return status, fleet.model(status)

    status, model = asyncio.run(scene())
    assert status.state == "completed"
    assert np.isfinite(model).all()


def test_gossip_needs_no_coordinator_once_it_has_begun(tmp_path: Path) -> None:
    """The coordinator is cut off after the tasks are taken; its clients go on, and report when it is back."""

    async def scene() -> Any:
        async with LoopbackFleet(tmp_path, edge_of=FOUR, settings=NAMES) as fleet:
            roles = [training.roles for name, training in fleet.training.items() if name.startswith("device")]
            async with asyncio.timeout(TIMEOUT_S):
                run = await fleet.submit("fed_avg", num_rounds=6, seed=7, protocol="gossip", name="alone")
                await fleet.until(lambda: all(has_begun(r, run) for r in roles))
                fleet.fabric.cut("cloud")
                await fleet.until(lambda: all(r.driver("client", run).state.round >= 6 for r in roles))  # type: ignore[union-attr]
                fleet.fabric.heal("cloud")
                return [status async for status in fleet.operator.watch(run)][-1]

    assert asyncio.run(scene()).state == "completed"


def test_gossip_goes_on_without_an_agent_that_is_killed_and_says_what_is_lost(tmp_path: Path) -> None:
    async def scene() -> Any:
        async with LoopbackFleet(tmp_path, edge_of=FOUR, settings=NAMES) as fleet:
            roles = [training.roles for name, training in fleet.training.items() if name.startswith("device")]
            async with asyncio.timeout(TIMEOUT_S):
                run = await fleet.submit(
                    "fed_avg", num_rounds=4, seed=7, protocol="gossip", quorum=3, round_deadline_s=1.0
                )
                await fleet.until(lambda: all(has_begun(r, run) for r in roles))
                await fleet.kill("d")
                return [status async for status in fleet.operator.watch(run)][-1]

    status = asyncio.run(scene())
    assert status.state == "completed", status.cause
    assert status.rounds[-1].num_updates == 3
    assert list(status.rounds[-1].missing) == ["d"]
