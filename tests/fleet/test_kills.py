"""A node killed right after any event of its log is on disk, and started again: the run ends with the same bytes.

What a client keeps (control variates, residuals) is on its disk and provisional until its update counted, so a kill
anywhere leaves a run as if nothing had happened. Real processes: `tests/live/test_fleet_kill_points.py`.
"""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgewise.codecs.bundle import bundle_from_bytes, decode_bundle
from edgewise.core.errors import EdgewiseError
from edgewise.core.ids import ClientId, NodeId, RunId, digest_of
from edgewise.fleet.store.events import EventLog
from edgewise.fleet.training.live_run import LiveRun
from edgewise.testing import LoopbackFleet
from edgewise.training.protocols.folding import section_from_blob
from edgewise.training.protocols.protocol import CLIENT, EDGE
from tests.twin.test_twin import EDGE_OF, FEEDBACK, PROTOCOLS, simulated

TIMEOUT_S = 30.0
STRIDE = int(os.environ.get("EDGEWISE_KILL_STRIDE", "4"))
"""After every so many events of a log comes a kill; `make chaos` takes every one."""
ROUNDS = 2


class Killed(Exception):
    """The process would be gone here."""


def gone(*_: Any, **__: Any) -> Any:
    raise Killed


def events_of(fleet: LoopbackFleet, node: NodeId) -> EventLog:
    return fleet.coordinator.events if node == "cloud" else fleet.training[node].events


async def killed_after(fleet: LoopbackFleet, victim: str, num_events: int) -> bool:
    """Kills a node right after its n-th event from now on, and starts it again; False if it has fewer."""
    node, loop = fleet._node_of(victim), asyncio.get_running_loop()
    events, dead, left, loops = events_of(fleet, node), asyncio.Event(), num_events, threading.get_ident()

    def count(num: int) -> None:
        nonlocal left
        left -= num
        if left > 0:
            return
        is_cut = threading.Event()
        events.append_many = events.compact = gone  # type: ignore[method-assign]

        def cut() -> None:
            fleet.fabric.cut(node)
            dead.set()
            is_cut.set()

        if threading.get_ident() == loops:  # the log is written on the loop's own thread or on another
            cut()
        else:
            loop.call_soon_threadsafe(cut)
            is_cut.wait(10.0)
        raise Killed

    events._count = count  # type: ignore[method-assign]
    await dead.wait()
    await fleet.kill(victim)
    await fleet.restart(victim)
    return True


async def run_with_a_kill(fleet: LoopbackFleet, victim: str, num_events: int, spec: Any, protocol: str) -> Any:
    """A run with a kill; None where it ended before."""
    name = f"{protocol}-{victim}-{num_events}"
    killing = asyncio.create_task(killed_after(fleet, victim, num_events))
    await asyncio.sleep(0)
    try:
        await fleet.submit(spec, num_rounds=ROUNDS, seed=7, protocol=protocol, name=name)
    except EdgewiseError:  # the coordinator died of it
        assert victim == "cloud"
    while True:
        try:
            status = await fleet.operator.status(name)  # type: ignore[arg-type]
        except EdgewiseError:
            await asyncio.sleep(0.02)
            continue
        if status.state != "running" or (victim == "cloud" and not fleet.coordinator.runs._runs):
            break
        await asyncio.sleep(0.02)
    await fleet.until(lambda: killing.done() or is_over(fleet, victim, name))  # the end may be its last event
    done, _ = await asyncio.wait({killing}, timeout=0.5)
    if done:
        killing.result()
        return status
    killing.cancel()
    return None


def is_over(fleet: LoopbackFleet, victim: str, run: str) -> bool:
    """Whether a node has heard of the end of a run; the coordinator has where its status says so."""
    training = fleet.training.get(fleet._node_of(victim))
    if victim == "cloud" or training is None:
        return victim == "cloud"
    driver = training.roles.driver(EDGE if victim.startswith("edge") else CLIENT, RunId(run))
    return driver is None or driver.is_over


@pytest.mark.slow
@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("victim", ["a", "edge-1", "cloud"])
def test_a_kill_after_any_event_leaves_the_model_byte_equal(victim: str, protocol: str, tmp_path: Path) -> None:
    if (victim, protocol) == ("edge-1", "synchronous"):
        pytest.skip("an edge has no part in it")
    spec = {"name": "scaffold"}
    model = digest_of(simulated(LoopbackFleet(tmp_path, edge_of=EDGE_OF).task, spec, protocol, ROUNDS).vector.tobytes())

    async def scene() -> int:
        async with LoopbackFleet(tmp_path, edge_of=EDGE_OF) as fleet:
            for num_events in range(2 if victim == "cloud" else 1, 100, STRIDE):
                async with asyncio.timeout(TIMEOUT_S):
                    status = await run_with_a_kill(fleet, victim, num_events, spec, protocol)
                if status is None:
                    return num_events - STRIDE
                assert status.state == "completed", (num_events, status.cause)
                assert status.model == model, num_events
                assert [r.num_updates for r in status.rounds] == [3, 3], num_events
                await controls_agree(fleet, num_events)
        raise AssertionError("a log without an end")

    # A client: an order and its work each round, and the end; a report's answer may be overtaken by the next order.
    assert asyncio.run(scene()) > ROUNDS * 2 + 1 - STRIDE


async def controls_agree(fleet: LoopbackFleet, what: Any) -> None:
    """The server's control variate is the mean of the clients'."""
    live: LiveRun = list(fleet.coordinator.runs._runs.values())[-1]
    state = getattr(live.driver.state, "run", live.driver.state)
    section = state.sections["control"]
    server = section_from_blob(section, fleet.nodes[NodeId("cloud")].blobs.read(section.blob.digest))
    kept = []
    for client in EDGE_OF:
        roles, run = fleet.training[fleet._node_of(client)].roles, live.submitted.run
        await fleet.until(lambda roles=roles, run=run: roles.kept(run) is not None)  # type: ignore[misc]
        (digest,) = roles.kept(run) or ()
        data = fleet.workers[ClientId(client)].private.read(digest)
        kept.append(decode_bundle({}, None, bundle_from_bytes(data))["control"])
    assert np.abs(server - np.mean(kept, axis=0)).max() <= 1e-6, what


def test_residuals_survive_a_restart_between_any_two_rounds(tmp_path: Path) -> None:
    spec, rounds = {"name": "fed_avg", "uplink": FEEDBACK}, 4

    async def scene() -> Any:
        async with LoopbackFleet(tmp_path, edge_of=EDGE_OF) as fleet:
            restarts = []

            async def again() -> None:
                await fleet.kill("b")
                await fleet.restart("b")

            def after_a_round(status: Any) -> None:
                if len(status.rounds) > len(restarts) and status.state == "running":
                    restarts.append(asyncio.get_running_loop().create_task(again()))

            async with asyncio.timeout(TIMEOUT_S):
                status = await fleet.train(spec, num_rounds=rounds, seed=7, on_status=after_a_round)
                await asyncio.gather(*restarts)
            return status, len(restarts), fleet.task

    status, num_restarts, task = asyncio.run(scene())
    assert num_restarts
    assert status.model == digest_of(simulated(task, spec, "hierarchical", rounds).vector.tobytes())


@pytest.mark.parametrize("name", ["scaffold", "fed_avg"])
def test_work_that_was_under_way_is_done_anew_from_what_stood(name: str, tmp_path: Path, monkeypatch: Any) -> None:
    """A device that is killed while it trains, in the second round: what it keeps then is what counted in the first.

    One that keeps nothing has no log to come back with: its server asks again.
    """
    spec = {"name": name}

    async def scene() -> Any:
        async with LoopbackFleet(tmp_path, edge_of=EDGE_OF) as fleet:
            worker, hung, go_on = fleet.workers[ClientId("a")], asyncio.Event(), threading.Event()
            whole, loop = worker._update, asyncio.get_running_loop()

            def slow(driver: Any, work: Any, job: Any) -> Any:
                if work.order.round == 2:
                    loop.call_soon_threadsafe(hung.set)
                    go_on.wait(10.0)
                return whole(driver, work, job)

            patched(monkeypatch, worker, slow)
            async with asyncio.timeout(TIMEOUT_S):
                training = asyncio.create_task(fleet.train(spec, num_rounds=3, seed=7))
                await hung.wait()
                logs = [log for log in fleet.training[fleet._node_of("a")].events.runs() if log.startswith("client/")]
                await fleet.kill("a")
                go_on.set()
                await fleet.restart("a")
                return await training, fleet.task, logs

    status, task, logs = asyncio.run(scene())
    assert bool(logs) is (name == "scaffold")
    assert status.model == digest_of(simulated(task, spec, "hierarchical", 3).vector.tobytes())


def patched(monkeypatch: pytest.MonkeyPatch, worker: Any, slow: Any) -> None:
    """Workers have slots: the method is replaced on a class of this one's own."""
    kind = type(worker)
    whole = kind._update

    def update(self: Any, *arguments: Any) -> Any:
        return slow(*arguments) if self is worker else whole(self, *arguments)

    monkeypatch.setattr(kind, "_update", update)
