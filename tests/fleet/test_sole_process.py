"""A second process of a node is refused, or takes the first one's place; operators' sessions may be many."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edgewise.core.errors import IdentityRefused, InputError, RemoteError, StoreError
from edgewise.core.ids import Generation, NodeId, Tier
from edgewise.fleet import agent as agents
from edgewise.fleet.agent import Agent
from edgewise.fleet.messages import Ack, LogRequest, NodeInfo, TakeOver
from edgewise.fleet.node import sole_process
from edgewise.fleet.node.connect import open_node
from edgewise.fleet.node.settings import AgentSettings
from edgewise.fleet.node.sole_process import LOCK, StateLock
from edgewise.fleet.operator.operator import Operator, connect_operator
from edgewise.security.authority import Authority, create_authority
from edgewise.security.identity import Identity
from tests.inference.tiny import two_exit_graph

DEVICE = NodeId("device-1")


class Machine:
    """A coordinator in this process, and whatever is started beside it; real sessions over TLS."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.stack = folder, AsyncExitStack()
        create_authority(folder / "ca", "home")
        authority = Authority.load(folder / "ca")
        for name, tier in (("cloud", Tier.CLOUD), ("operator", Tier.CLOUD), (str(DEVICE), Tier.DEVICE)):
            authority.issue(name, tier, folder=folder / name)

    async def start(self, name: str = DEVICE, state: str = "state", **settings: Any) -> Agent:
        tier = Tier.CLOUD if name == "cloud" else Tier.DEVICE
        known: dict[str, Any] = {"identity": str(self.folder / name), "state": str(self.folder / name / state)}
        agent = await Agent.open(AgentSettings(name=name, tier=tier, fleet="home", **known, **settings))
        self.stack.push_async_callback(agent.close)
        return agent

    async def device(self, state: str = "state", **settings: Any) -> Agent:
        return await self.start(state=state, connect=(self.cloud.endpoint,), **settings)

    async def operator(self, state: str, name: str = "operator") -> Operator:
        session = connect_operator(self.folder / name, self.cloud.endpoint, self.folder / state, "home")
        return await self.stack.enter_async_context(session)

    def run(self, scene: Callable[[], Awaitable[None]]) -> None:
        async def whole() -> None:
            async with self.stack:
                self.cloud = await self.start("cloud", coordinator=True, listen=("tls/127.0.0.1:0",))
                await scene()

        asyncio.run(whole())


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.setattr(agents, "PARENT_WAIT_S", 0.5)
    return Machine(tmp_path)


def test_a_second_process_of_a_name_is_refused_and_the_first_goes_on(machine: Machine) -> None:
    async def scene() -> None:
        first = await machine.device()
        with pytest.raises(
            InputError, match=r"a node of the name 'device-1' is running already, since 20.*--take-over"
        ):
            await machine.device("other-state")
        with pytest.raises(StoreError, match=rf"state' is in use by process {os.getpid()} on .*--take-over"):
            await machine.device()
        assert not first.stopped.is_set()
        operator = await machine.operator("one")
        logging.getLogger("edgewise.fleet").warning("a line of this process")
        lines = (await operator.logs(DEVICE, LogRequest(most=1))).lines
        assert [line.text for line in lines] == ["a line of this process"]
        rows = {row.info.node: row for row in (await operator.nodes(fresh=True)).nodes}
        assert (rows[DEVICE].state, rows[DEVICE].info.generation) == ("alive", first.node.generation)

    machine.run(scene)


def test_who_takes_over_tells_the_first_which_stops_even_if_its_clock_is_ahead(machine: Machine) -> None:
    async def scene() -> None:
        first = await machine.device()
        ahead = Generation(first.node.generation + 10**15)
        first.node.generation = first.node.transport.inner.guard.generation = ahead  # type: ignore[attr-defined]

        async def leaves() -> None:
            await first.stopped.wait()
            await first.close()

        leaving = asyncio.create_task(leaves())
        second = await machine.device("other-state", take_over=True)
        await leaving
        assert first.stop_cause == "another process of this name takes over"
        assert second.node.generation == ahead + 1
        operator = await machine.operator("one")
        rows = await operator.wait_for_nodes(lambda rows: any(r.info.generation == ahead + 1 for r in rows), 20.0)
        assert {row.info.node for row in rows if row.state == "alive"} >= {DEVICE}

    machine.run(scene)


def test_a_renewed_certificate_is_the_same_node(machine: Machine) -> None:
    """Refused beside the first; with `--take-over` the first is told, though it has never seen that certificate."""

    async def scene() -> None:
        first = await machine.device()
        Authority.load(machine.folder / "ca").issue(DEVICE, Tier.DEVICE, folder=machine.folder / DEVICE)
        assert first.node.identity.certificate_pem != Identity.load(machine.folder / DEVICE).certificate_pem
        with pytest.raises(InputError, match=r"a node of the name 'device-1' is running already, since 20"):
            await machine.device("other-state")
        operator = await machine.operator("one")
        await operator.wait_for_nodes(lambda rows: any(r.info.node == DEVICE for r in rows), 20.0)

        async def leaves() -> None:
            await first.stopped.wait()
            await first.close()

        leaving = asyncio.create_task(leaves())
        second = await machine.device("other-state", take_over=True)
        await leaving
        assert first.stop_cause == "another process of this name takes over"
        newer = second.node.generation
        rows = await operator.wait_for_nodes(lambda rows: any(r.info.generation == newer for r in rows), 20.0)
        assert DEVICE in {row.info.node for row in rows if row.state == "alive"}
        await operator.logs(DEVICE, LogRequest(most=1))  # what it signs counts, and what is asked of it reaches it

    machine.run(scene)


def test_one_of_the_old_certificate_that_was_cut_off_learns_of_its_successor(machine: Machine) -> None:
    async def scene() -> None:
        first = await machine.device()
        cloud = machine.cloud.node
        await first.node.ask(cloud.name, "control", TakeOver(), Ack)
        Authority.load(machine.folder / "ca").issue(DEVICE, Tier.DEVICE, folder=machine.folder / DEVICE)
        generation = Generation(time.time_ns())
        newer = await open_node(
            device_settings(machine), second_info(machine, first, generation), generation=generation
        )
        machine.stack.push_async_callback(newer.close)
        await first.node.detach()  # it is away
        await newer.attach(0)
        assert not (await newer.ask(cloud.name, "control", TakeOver(), Ack)).accepted
        with pytest.raises(RemoteError, match="generation"):
            await first.node.ask(cloud.name, "control", TakeOver(), Ack)
        assert (first.stop_cause, first.is_displaced) == ("cloud hears a newer process of this name", True)

    machine.run(scene)


def device_settings(machine: Machine) -> AgentSettings:
    return AgentSettings(
        name=DEVICE,
        tier=Tier.DEVICE,
        fleet="home",
        identity=str(machine.folder / DEVICE),
        state=str(machine.folder / "other"),
        connect=(machine.cloud.endpoint,),
    )


def second_info(machine: Machine, first: Agent, newer: Generation) -> Callable[[], NodeInfo]:
    """How the holder of the certificate that is in the folder now describes itself."""
    certificate = Identity.load(machine.folder / DEVICE).certificate_pem.decode()
    return lambda: msgspec.structs.replace(first.describe(), certificate=certificate, generation=newer)


@pytest.mark.parametrize("who", ["another authority", "another name", "no key"])
def test_a_stolen_name_takes_nothing_over(who: str, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        first = await machine.device()
        create_authority(machine.folder / "other-ca", "home")
        folder = machine.folder / "other-ca" if who == "another authority" else machine.folder / "ca"
        name, tier = (
            "device-2" if who == "another name" else DEVICE,
            Tier.EDGE if who == "another tier" else Tier.DEVICE,
        )
        forged = Identity.load(Authority.load(folder).issue(name, tier).write(machine.folder / "forged"))
        own = Identity.load(machine.folder / DEVICE)
        shown = own.certificate_pem if who == "no key" else forged.certificate_pem
        signs = replace(own, _key=forged._key)  # the session is let in by TLS, what it says is signed by the other key
        monkeypatch.setattr(Identity, "load", lambda _: signs)
        newer = await open_node(device_settings(machine), first.describe)
        machine.stack.push_async_callback(newer.close)
        with pytest.raises((RemoteError, IdentityRefused)):
            await newer.ask(DEVICE, "control", TakeOver(shown.decode()), Ack)
        assert not first.stopped.is_set()
        assert first.node.refused == {"take_over in the name of device-1": 1}

    machine.run(scene)


def test_nobody_else_can_have_a_node_taken_over(machine: Machine) -> None:
    async def scene() -> None:
        first = await machine.device()
        operator = await machine.operator("one")
        ack = await operator.node.ask(DEVICE, "control", TakeOver(), Ack)
        assert (ack.accepted, first.stopped.is_set()) == (False, False)
        assert "by a newer process of its own certificate only" in ack.reason

    machine.run(scene)


def test_a_first_that_does_not_leave_is_named(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sole_process, "LEAVE_TIMEOUT_S", 0.3)

    async def scene() -> None:
        await machine.device()
        with pytest.raises(
            InputError, match=r"'device-1' was told to stop and still answers\. End its process by hand"
        ):
            await machine.device("other-state", take_over=True)

    machine.run(scene)


def test_an_operator_does_not_speak_in_the_name_of_a_running_node(machine: Machine) -> None:
    async def scene() -> None:
        with pytest.raises(
            InputError, match=r"orders in its name would put it out of the fleet\. Give operators certif"
        ):
            await machine.operator("one", name="cloud")
        assert (await (await machine.operator("one")).nodes()).nodes[0].info.node == "cloud"

    machine.run(scene)


def test_files_go_to_a_fleet_from_each_of_two_sessions_of_one_operator(machine: Machine) -> None:
    """Both have the name, and each has only its own files."""

    async def scene() -> None:
        one, two = await machine.operator("one"), await machine.operator("two")
        for number, session in enumerate((one, two, one, two), 1):
            graph = two_exit_graph(seed=number).model_bytes
            assert (await session.register(graph, task="digits")).version == number
            assert await one.graph(number) == graph

    machine.run(scene)


def test_a_service_that_gives_no_blobs_is_not_asked_for_them(machine: Machine) -> None:
    async def scene() -> None:
        operator = await machine.operator("one")
        operator.node.blob_service = "control"
        with pytest.raises(RemoteError, match="'control' is no service that gives blobs"):
            await operator.register(b"graph", task="digits")

    machine.run(scene)


def test_a_first_that_was_cut_off_learns_of_its_successor_and_stops(machine: Machine) -> None:
    async def scene() -> None:
        first = await machine.device()
        cloud = machine.cloud.node
        newer = await open_node(  # as if the fleet had not reached the first when this one was started
            AgentSettings(
                name=DEVICE, tier=Tier.DEVICE, fleet="home", identity=str(machine.folder / DEVICE),
                state=str(machine.folder / "other"), connect=(machine.cloud.endpoint,),
            ),
            first.describe,
        )  # fmt: skip
        machine.stack.push_async_callback(newer.close)
        assert not (await newer.ask(cloud.name, "control", TakeOver(), Ack)).accepted  # any question that it signs
        with pytest.raises(RemoteError, match="generation"):
            await first.node.ask(cloud.name, "control", TakeOver(), Ack)
        assert first.stopped.is_set()
        assert (first.stop_cause, first.is_displaced) == ("cloud hears a newer process of this name", True)

    machine.run(scene)


def test_a_clock_that_is_set_back_makes_no_older_generation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        lock = await StateLock.take(tmp_path)
        now = lock.next_generation()
        monkeypatch.setattr(sole_process.time, "time_ns", lambda: 5)
        assert lock.next_generation() == now + 1
        lock.keep(Generation(now + 10))
        assert lock.next_generation() == now + 11
        (tmp_path / sole_process.GENERATION).write_text("garbage")
        assert lock.next_generation() == 5
        lock.close()

    asyncio.run(scene())


HOLD = """
import asyncio, sys
from pathlib import Path
from edgewise.fleet.node.sole_process import StateLock
lock = asyncio.run(StateLock.take(Path(sys.argv[1])))
print("held", flush=True)
sys.stdin.read()
"""


def test_a_state_that_is_a_file_is_said(tmp_path: Path) -> None:
    (tmp_path / "state").touch()
    with pytest.raises(StoreError, match=r"state' is a file\. Give the path of a folder"):
        asyncio.run(StateLock.take(tmp_path / "state"))


def test_a_process_that_holds_the_state_is_told_to_stop_and_waited_for(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(StoreError, match=f"in use by process {process.pid} on "):
            asyncio.run(StateLock.take(tmp_path))
        asyncio.run(StateLock.take(tmp_path, take_over=True)).close()
        assert process.wait(20) == -15
    again = asyncio.run(StateLock.take(tmp_path))  # what a dead process wrote stands in nobody's way
    assert (tmp_path / LOCK).read_text().split()[0] == str(os.getpid())
    again.close()
