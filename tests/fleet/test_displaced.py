"""A process that a newer one of its name displaces is told, says so, and comes back; over real sessions with TLS."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from edgewise.core.errors import EdgewiseError
from edgewise.core.ids import Generation, NodeId, Tier
from edgewise.fleet import agent as agents
from edgewise.fleet import agent_process
from edgewise.fleet.agent import Agent
from edgewise.fleet.membership.membership import NodeState
from edgewise.fleet.node import standing_by
from edgewise.fleet.node.connect import open_node
from edgewise.fleet.node.settings import AgentSettings
from edgewise.security.authority import Authority
from edgewise.security.refusal import MOST_AHEAD_S
from edgewise.transport.frame import Frame, make_frame
from tests.fleet.test_sole_process import DEVICE, Machine

WAIT_S = 60.0


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.setattr(agents, "PARENT_WAIT_S", 0.5)
    monkeypatch.setattr(standing_by, "LOOK_AGAIN_S", 0.1)
    for ends_the_process in ("end_in_time", "keep_for_good"):
        monkeypatch.setattr(agent_process, ends_the_process, lambda *_: None)
    return Machine(tmp_path)


def settings(machine: Machine, name: str = DEVICE, state: str = "state") -> AgentSettings:
    folder = machine.folder / name
    return AgentSettings(
        name=name,
        tier=Tier.DEVICE,
        fleet="home",
        identity=str(folder),
        state=str(folder / state),
        connect=(machine.cloud.endpoint,),
    )


async def until(holds: Any) -> None:
    async with asyncio.timeout(WAIT_S):
        while not holds():  # noqa: ASYNC110 - what is looked at has no event
            await asyncio.sleep(0.02)


def generation_seen(machine: Machine) -> int:
    member = seen(machine)
    return 0 if member is None else member.generation


def seen(machine: Machine) -> Any:
    assert machine.cloud.coordinator is not None
    return machine.cloud.coordinator.watch.members.members.get(DEVICE)


def test_a_malicious_device_evicts_nobody_by_tokens_over_tls(machine: Machine) -> None:
    async def scene() -> None:
        first = await machine.device()
        await until(lambda: seen(machine) is not None and seen(machine).state is NodeState.ALIVE)
        Authority.load(machine.folder / "ca").issue("device-2", Tier.DEVICE, folder=machine.folder / "device-2")
        liar = await open_node(settings(machine, "device-2"), first.describe)
        machine.stack.push_async_callback(liar.close)
        asked = 0

        async def lies(query: Frame) -> Frame:
            nonlocal asked
            asked += 1
            return make_frame("node_info")

        await liar.transport.serve(liar.keys.service(DEVICE, "info"), lies)
        soon = Generation(int((time.time() + MOST_AHEAD_S - 3600) * 1e9))
        refused = machine.cloud.node.refused
        found: dict[Any, Any] = {
            soon: lambda: asked >= 3,
            Generation(2**62): lambda: f"a liveliness token of {DEVICE} from the future" in refused,
            "soon": lambda: "a liveliness token that is none" in refused,
        }
        for claim, is_found in found.items():
            token = await liar.transport.declare_presence(liar.keys.alive(Tier.DEVICE, DEVICE, str(claim)))
            await until(is_found)
            await token.close()
        await until(lambda: not machine.cloud.coordinator.watch.members.is_open(DEVICE))  # type: ignore[union-attr]
        assert seen(machine).state is NodeState.ALIVE
        assert not first.stopped.is_set()
        await first.close()
        again = await machine.device()  # what it was told of itself keeps it neither from starting
        await until(lambda: generation_seen(machine) == again.node.generation)  # nor from being seen

    machine.run(scene)


def test_a_displaced_process_is_told_and_comes_back_when_the_other_one_is_gone(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    events: list[tuple[str, dict[str, Any]]] = []
    opened: list[Agent] = []
    open_agent = Agent.open

    async def opening(*args: Any, **how: Any) -> Agent:
        opened.append(await open_agent(*args, **how))
        return opened[-1]

    def times(kind: str) -> int:
        return sum(what == kind for what, _ in events)

    async def scene() -> None:
        monkeypatch.setattr(Agent, "open", opening)
        running = asyncio.create_task(
            agent_process.run_agent(settings(machine), lambda kind, **fields: events.append((kind, fields)))
        )
        await until(lambda: times("ready") == 1)
        first = opened[0]
        await first.node.detach()  # as if it were cut off: nobody hears it
        second = await open_agent(settings(machine, state="other"))
        await until(lambda: generation_seen(machine) == second.node.generation)
        await first.node.attach(0)
        await until(lambda: times("displaced") == 1)
        assert events[-1][1]["cause"] == "cloud hears a newer process of this name"
        await until(lambda: "stands by: another process of this name is there" in caplog.text)
        assert generation_seen(machine) == second.node.generation
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1.0):
                await asyncio.shield(running)
        await second.close()
        await until(lambda: times("ready") == 2)
        await until(lambda: generation_seen(machine) == opened[-1].node.generation > second.node.generation)
        assert seen(machine).state is NodeState.ALIVE
        opened[-1].stopped.set()
        await running
        assert times("stopped") == 1

    machine.run(scene)


def test_a_refusal_that_another_node_signed_displaces_nobody(machine: Machine) -> None:
    """A relay may refuse in another's name; who was asked must have signed it."""

    async def scene() -> None:
        first = await machine.device()
        key = first.node.keys.service("cloud", "control")
        refusal = make_frame("error", sender=NodeId("device-1"))
        error: Any = EdgewiseError("it is stale.", reason="stale_generation", newest_generation=2**62)
        error.reply = refusal
        await first.node._perhaps_overtaken(NodeId("cloud"), key, error)
        assert not first.stopped.is_set()

    machine.run(scene)
