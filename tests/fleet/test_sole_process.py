"""A second process of a node is refused, or takes the first one's place; operators' sessions may be many."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from edgewise.core.errors import InputError, RemoteError, StoreError
from edgewise.core.ids import Generation, NodeId, Tier
from edgewise.fleet import agent as agents
from edgewise.fleet.agent import Agent
from edgewise.fleet.messages import Ack, TakeOver
from edgewise.fleet.node import sole_process
from edgewise.fleet.node.settings import AgentSettings
from edgewise.fleet.node.sole_process import LOCK, StateLock
from edgewise.fleet.operator.operator import Operator, connect_operator
from edgewise.security.authority import Authority, create_authority
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
        rows = {row.info.node: row for row in (await operator.nodes(fresh=True)).nodes}
        assert (rows[DEVICE].state, rows[DEVICE].info.generation) == ("alive", first.node.generation)

    machine.run(scene)


def test_who_takes_over_tells_the_first_which_stops_even_if_its_clock_is_ahead(machine: Machine) -> None:
    async def scene() -> None:
        first = await machine.device()
        ahead = Generation(first.node.generation + 10**15)
        first.node.generation = ahead

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
        with pytest.raises(InputError, match=r"'device-1' was told to stop and still answers. End its process by hand"):
            await machine.device("other-state", take_over=True)

    machine.run(scene)


def test_an_operator_does_not_speak_in_the_name_of_a_running_node(machine: Machine) -> None:
    async def scene() -> None:
        with pytest.raises(
            InputError, match=r"orders in its name would put it out of the fleet. Give operators certif"
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


HOLD = """
import asyncio, sys
from pathlib import Path
from edgewise.fleet.node.sole_process import StateLock
lock = asyncio.run(StateLock.take(Path(sys.argv[1])))
print("held", flush=True)
sys.stdin.read()
"""


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
