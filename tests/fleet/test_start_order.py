"""Nodes start in any order, over real sessions with TLS: whoever is away is waited for, and said; what cannot heal ends a node."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from edgewise.core.backoff import Backoff
from edgewise.core.errors import EdgewiseError, InputError, Unreachable
from edgewise.core.ids import Tier
from edgewise.fleet import agent as agents
from edgewise.fleet import agent_process
from edgewise.fleet.agent import Agent
from edgewise.fleet.membership.membership import NodeState
from edgewise.fleet.node import link_watch
from edgewise.fleet.node.node_status import read_status
from edgewise.fleet.node.settings import AgentSettings
from edgewise.security.authority import Authority, create_authority

TIERS = {"cloud": Tier.CLOUD, "edge-1": Tier.EDGE, "device-1": Tier.DEVICE}
PARENT = {"edge-1": "cloud", "device-1": "edge-1"}
WAIT_S = 60.0


class Machines:
    """Identities and fixed ports of a cloud, an edge and a device; started in this process, or run as a process would be."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.stack, self.agents = folder, AsyncExitStack(), dict[str, Agent]()
        self.events: list[tuple[str, dict[str, Any]]] = []
        for ca in ("ca", "other-ca"):
            create_authority(folder / ca, "home")
        for name, tier in TIERS.items():
            Authority.load(folder / "ca").issue(name, tier, folder=folder / name)
        self.ports = {}
        for name in ("cloud", "edge-1"):
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                self.ports[name] = free.getsockname()[1]

    def settings(self, name: str, **settings: Any) -> AgentSettings:
        own: dict[str, Any] = {"listen": (f"tls/127.0.0.1:{self.ports[name]}",)} if name in self.ports else {}
        if name in PARENT:
            own["connect"] = (f"tls/127.0.0.1:{self.ports[PARENT[name]]}",)
        own |= {"coordinator": name == "cloud", "identity": str(self.folder / name)}
        own["state"] = str(self.folder / "state" / name)
        return AgentSettings(name=name, tier=TIERS[name], fleet="home", **own | settings)

    async def start(self, name: str, **settings: Any) -> Agent:
        agent = self.agents[name] = await Agent.open(self.settings(name, **settings))
        self.stack.push_async_callback(agent.close)
        return agent

    async def run_as_process(self, name: str, **settings: Any) -> None:
        await agent_process.run_agent(
            self.settings(name, **settings), lambda kind, **fields: self.events.append((kind, fields))
        )

    def play(self, scene: Callable[[], Awaitable[None]]) -> None:
        async def whole() -> None:
            async with self.stack:
                await asyncio.wait_for(scene(), 2 * WAIT_S)

        asyncio.run(whole())

    def sees(self, *names: str) -> bool:
        """Whether the cloud sees nodes alive."""
        coordinator = self.agents["cloud"].coordinator
        assert coordinator is not None
        known = coordinator.watch.members.members
        return all(name in known and known[name].state is NodeState.ALIVE for name in names)  # type: ignore[index]


@pytest.fixture
def machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machines:
    monkeypatch.setattr(agents, "PARENT_WAIT_S", 0.5)
    monkeypatch.setattr(link_watch, "LINK_GRACE_S", 0.3)
    monkeypatch.setattr(link_watch, "LINK_RETRY", Backoff(0.05, most_s=0.2))
    for ends_the_process in ("end_in_time", "keep_for_good"):
        monkeypatch.setattr(agent_process, ends_the_process, lambda *_: None)
    return Machines(tmp_path)


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not holds():  # noqa: ASYNC110 - what is looked at has no event
            await asyncio.sleep(0.02)


@pytest.mark.parametrize(
    "order",
    [("device-1", "edge-1", "cloud"), ("device-1", "cloud", "edge-1"), ("edge-1", "device-1", "cloud")],
    ids="→".join,
)
def test_nodes_may_start_in_any_order(
    machines: Machines, order: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    async def scene() -> None:
        for place, name in enumerate(order):
            agent = await machines.start(name)
            is_linked = PARENT.get(name) in (None, *order[:place])
            assert agent.node.linked.is_set() is is_linked
            record = read_status(Path(agent.settings.state))
            assert record is not None
            assert list(record.waits_for) == ([] if is_linked else list(agent.settings.connect))
            assert agent.is_joined.is_set() is (is_linked or TIERS[name] is Tier.EDGE)
        for name in ("device-1", "edge-1"):
            await asyncio.wait_for(machines.agents[name].is_joined.wait(), WAIT_S)
        await until(lambda: machines.sees("device-1", "edge-1"))
        device = machines.agents["device-1"]
        await until(lambda: device.parents.edge == "edge-1")
        await until(lambda: not any(agent.status.record.waits_for for agent in machines.agents.values()))
        assert device.status.metrics()[0].samples == ()

    machines.play(scene)
    assert "device-1 waits for" in caplog.text or order[0] != "device-1"


def test_a_parent_that_comes_while_a_node_prepares_itself_is_joined(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare = Agent._prepare

    async def slowly(agent: Agent) -> None:
        if agent.settings.name == "device-1":
            assert not agent.node.linked.is_set()
            for name in ("cloud", "edge-1"):
                await machines.start(name)
            await asyncio.wait_for(agent.node.linked.wait(), WAIT_S)
        await prepare(agent)

    async def scene() -> None:
        monkeypatch.setattr(Agent, "_prepare", slowly)
        device = await machines.start("device-1")
        await asyncio.wait_for(device.is_joined.wait(), WAIT_S)
        await until(lambda: machines.sees("device-1", "edge-1"))

    machines.play(scene)


def test_what_is_waited_for_is_said_with_its_cause_and_among_the_metrics(
    machines: Machines, caplog: pytest.LogCaptureFixture
) -> None:
    async def scene() -> None:
        device = await machines.start("device-1")
        endpoint = device.settings.connect[0]
        await until(lambda: device.status.record.waits_for[endpoint].attempts >= 3)
        assert "nothing listens on that port" in device.status.record.waits_for[endpoint].cause
        ((name, labels, seconds),) = device.status.metrics()[0].samples
        assert (name, labels) == ("edgewise_node_waiting_seconds", (("node", "device-1"), ("for", endpoint)))
        assert seconds > 0
        with pytest.raises(Unreachable, match=r"'device-1' has no link to tls/.* yet: .*nothing listens on that port"):
            await device.node.info_of(device.node.name)
        assert not device.stopped.is_set()

    machines.play(scene)
    assert caplog.text.count("device-1 waits for") == 1  # not again for the same cause


def test_who_is_to_wait_so_long_gives_up_with_the_cause(machines: Machines) -> None:
    async def scene() -> None:
        with pytest.raises(Unreachable, match=r"no parent was there within 300 ms: .*nothing listens on that port"):
            await machines.run_as_process("device-1", wait="300 ms")
        assert [kind for kind, _ in machines.events] == ["waiting", "stopped"]
        assert "nothing listens" in str(machines.events[0][1]["waits_for"])

    machines.play(scene)


@pytest.mark.parametrize(
    ("what", "cause"),
    [
        ("authority", "is not of our fleet's authority|refuses our certificate"),
        ("protocol", "speaks TLS, it was dialled without"),
    ],
)
def test_what_no_waiting_heals_ends_a_node_with_its_cause(machines: Machines, what: str, cause: str) -> None:
    async def scene() -> None:
        await machines.start("cloud")
        own: dict[str, Any] = {
            "connect": (f"{'tls' if what == 'authority' else 'tcp'}/127.0.0.1:{machines.ports['cloud']}",)
        }
        if what == "authority":
            folder = machines.folder / "stranger"
            Authority.load(machines.folder / "other-ca").issue("device-1", Tier.DEVICE, folder=folder)
            own["identity"] = str(folder)
        with pytest.raises(EdgewiseError, match=cause):
            await machines.run_as_process("device-1", **own)
        assert machines.events[-1][0] == "stopped"

    machines.play(scene)


def test_a_node_whose_name_was_taken_while_it_waited_is_refused(machines: Machines) -> None:
    async def scene() -> None:
        waiting = asyncio.create_task(machines.run_as_process("device-1"))
        await until(lambda: bool(machines.events))
        cloud = await machines.start("cloud")
        await machines.start("device-1", state=str(machines.folder / "other"), connect=(cloud.endpoint,))
        await machines.start("edge-1")
        with pytest.raises(InputError, match="a node of the name 'device-1' is running already"):
            await asyncio.wait_for(waiting, WAIT_S)

    machines.play(scene)
