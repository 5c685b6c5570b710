"""Death, freeze and hang told apart; who returns takes part again; what is sent over the WAN; a node that enrols late."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from edgewise.core.ids import ClientId, Tier, digest_of
from edgewise.fleet.store.events import EventLog
from edgewise.simulation.emulated.emulated_fleet import CLOUD
from edgewise.training.protocols.event_log import decode_event
from edgewise.training.protocols.letters import UpdateReport
from edgewise.training.protocols.messages import Received
from tests.live.small_fleet import EDGE, World

pytestmark = [pytest.mark.live, pytest.mark.slow, pytest.mark.timeout(200)]
LEASE_S = 2.0
STOP_S = 5.0
HIDDEN = 4096
MODEL_BYTES = 4 * (8 * HIDDEN + 3)
FOLLOWS_S = 3.0  # beside what is measured, on a busy machine


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with World(tmp_path_factory.mktemp("lost"), hidden=HIDDEN) as made:
        yield made


@pytest.fixture(autouse=True)
def restored(world: World) -> Iterator[None]:
    """Whatever a test broke is whole again after it."""
    yield
    stop_client_1(world).unlink(missing_ok=True)
    world.fleet.children["device-2"].send_signal(signal.SIGCONT)
    for node in (CLOUD, EDGE, "device-2"):
        if not world.fleet.children[node].running:
            world.run(world.restart(node))


async def in_the_second_round(world: World, name: str, **wish: Any) -> None:
    """A run whose first round is closed and whose second waits for client-1, which stands still."""
    await world.all_here()
    stop_client_1(world).touch()
    await world.submit(name, num_rounds=3, quorum=1, **wish)


def stop_client_1(world: World) -> Any:
    return world.folder / "task" / "stop-client-1"


def survivors(world: World, lost_in: set[int]) -> str:
    """The model of a simulation in which client-1 is lost in these rounds."""
    return digest_of(
        world.simulated("hierarchical", 3, quorum=1, fails=lambda number, c: c == "client-1" and number in lost_in)
    )


def test_a_killed_node_is_lost_in_milliseconds_and_the_survivors_model_is_the_simulations(world: World) -> None:
    async def scene() -> None:
        await in_the_second_round(world, "killed")
        await world.eventually(lambda: reported(world, "killed", 1))
        begun = time.monotonic()
        await world.fleet.children["device-2"].kill()
        rows = await world.rows(lambda rows: rows["device-2"].state == "gone")
        assert time.monotonic() - begun < LEASE_S  # not by the lease: the end of its process is seen
        assert "device-2 is unreachable: its liveliness token is gone" in rows["device-2"].cause
        status = await world.end_of("killed")
        assert [(r.num_updates, sorted(r.missing)) for r in status.rounds] == [(1, ["client-1"]), (1, []), (1, [])]
        assert "device-2 is unreachable" in status.rounds[0].missing["client-1"]
        assert status.model == survivors(world, {1, 2, 3})
        stop_client_1(world).unlink()
        await world.fleet.restart("device-2")
        await world.all_here()

    world.run(scene())
    assert "device-2 is back; it was started again" in world.log(CLOUD)


async def reported(world: World, run: str, number: int) -> bool | None:
    """Whether only client-1 is awaited."""
    status = await world.operator.status(run)  # type: ignore[arg-type]
    return True if status.cause.endswith("waits for client-0, client-1") or status.rounds else None


def test_a_frozen_node_is_lost_after_the_lease_and_returns_with_its_identity(world: World) -> None:
    async def scene() -> None:
        await in_the_second_round(world, "frozen", round_deadline_s=None)
        before = (await world.rows(lambda rows: True))["device-2"].info
        begun = time.monotonic()
        world.fleet.children["device-2"].send_signal(signal.SIGSTOP)
        await world.rows(lambda rows: rows["device-2"].state == "gone")
        waited = time.monotonic() - begun
        assert 0.5 * LEASE_S < waited < LEASE_S + FOLLOWS_S
        await world.rounds_of("frozen", 1)
        stop_client_1(world).unlink()
        world.fleet.children["device-2"].send_signal(signal.SIGCONT)
        rows = await world.rows(lambda rows: rows["device-2"].state == "alive")
        assert (rows["device-2"].info.node, rows["device-2"].info.generation) == (before.node, before.generation)
        await world.submit("thawed", num_rounds=3)
        status = await world.end_of("thawed")
        assert [r.num_updates for r in status.rounds] == [2, 2, 2]
        assert status.model == survivors(world, set())

    world.run(scene())
    assert "device-2 is back; it was frozen or cut off" in world.log(CLOUD)


def test_a_hung_worker_is_suspected_with_its_work_named_and_is_back_when_it_moves(world: World) -> None:
    async def scene() -> None:
        await world.restart("device-2")  # a worker that stood still in another test would be given 20 times as long
        await in_the_second_round(world, "hung")
        status = await world.rounds_of("hung", 1)
        cause = status.rounds[0].missing["client-1"]
        assert "device-2 answers but its worker hangs: counter" in cause
        assert "while it was to train hung round 1" in cause
        assert (await world.rows(lambda rows: True))["device-2"].state == "alive"  # its token is there all the time
        await world.end_of("hung")
        stop_client_1(world).unlink()
        await world.eventually(lambda: said(world, EDGE, "device-2 is back; its worker hung"))
        await world.submit("moves", num_rounds=3)
        assert [r.num_updates for r in (await world.end_of("moves")).rounds] == [2, 2, 2]

    world.run(scene())


async def said(world: World, node: str, text: str) -> bool | None:
    return text in world.log(node) or None


def test_a_model_crosses_the_wan_once_per_edge(world: World) -> None:
    async def came_down() -> dict[str, int]:
        counters = await world.fleet.links.counters()
        return {link: counters[link]["down"]["delivered_bytes"] for link in (f"{EDGE}→{CLOUD}", "device-1→edge-1")}

    async def scene() -> list[int]:
        await world.all_here()
        before = await came_down()
        await world.submit("wan", num_rounds=3, seed=11)  # the models of seed 7 are in the edge's blobs
        await world.end_of("wan")
        return [after - before[link] for link, after in (await came_down()).items()]

    wan, last_mile = world.run(scene())
    assert 3 * MODEL_BYTES < wan < 1.3 * 3 * MODEL_BYTES  # two devices behind the edge would be twice that
    assert 3 * MODEL_BYTES < last_mile < 1.3 * 3 * MODEL_BYTES


def test_a_node_that_enrols_while_a_round_runs_takes_part_without_a_restart(world: World) -> None:
    fleet = world.fleet
    routers = {name: fleet.children[name].pid for name in (CLOUD, EDGE)}

    async def enrol() -> None:
        template = fleet.settings["device-1"]
        fleet.issue("device-9", Tier.DEVICE)
        await fleet.start_node(
            msgspec.structs.replace(
                template, name="device-9", client="client-9", identity=str(fleet.identity("device-9")),
                state=str(world.folder / "state" / "device-9"),
            )
        )  # fmt: skip

    async def scene() -> None:
        await world.all_here()
        stop_client_1(world).touch()
        clients = (*world.clients, ClientId("client-9"))
        # Two are needed: a start may take so long that client-1 is suspected to hang meanwhile; it is asked again then.
        await world.submit("enrolled", num_rounds=2, quorum=2, clients=clients)
        await enrol()
        await world.all_here("device-9")
        stop_client_1(world).unlink()
        status = await world.end_of("enrolled")
        assert [r.num_updates for r in status.rounds] == [2, 3]
        await fleet.children["device-9"].stop()

    world.run(scene())
    assert {name: fleet.children[name].pid for name in routers} == routers
    assert all(fleet.children[name].running for name in routers)


def test_a_signal_stops_every_node_in_time_and_the_run_goes_on_after_it(world: World) -> None:
    name, seed, signals = "stopped", 13, {CLOUD: signal.SIGINT, EDGE: signal.SIGTERM, "device-2": signal.SIGINT}

    async def stop_all() -> list[int]:
        for node, number in signals.items():
            world.fleet.children[node].send_signal(number)
        processes = [world.fleet.children[node]._process for node in signals]
        return [await asyncio.wait_for(p.wait(), STOP_S) for p in processes if p is not None]

    async def scene() -> None:
        await world.all_here()
        stop_client_1(world).touch()  # a worker inside a task that does not come back cannot hold its process
        await world.submit(name, seed=seed)
        await world.eventually(lambda: worker_stands(world, name))
        assert await stop_all() == [0, 0, 0]
        stop_client_1(world).unlink()
        for node in signals:
            await world.restart(node)
        status = await world.end_of(name)
        assert [(r.num_updates, r.missing) for r in status.rounds] == [(2, {})] * 2
        assert status.model == digest_of(world.simulated("hierarchical", 2, seed=seed))

    world.run(scene())


async def worker_stands(world: World, run: str) -> bool | None:
    """Whether client-0 has answered and client-1 is at work; read from the edge's log."""
    reader = EventLog.open(world.folder / "state" / EDGE / "events.db", read_only=True)
    try:
        events = [decode_event(e.payload) for e in reader.read(f"edge/{run}") if e.kind == "Received"]
    finally:
        reader.close()
    return any(isinstance(e, Received) and isinstance(e.letter, UpdateReport) for e in events) or None
