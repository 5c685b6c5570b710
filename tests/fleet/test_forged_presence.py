"""An enrolled device that is malicious declares tokens and answers in another's name: nobody is displaced, and all go on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edgewise.core.errors import EdgewiseError, IdentityRefused
from edgewise.core.ids import Generation, NodeId, Tier
from edgewise.fleet.membership.membership import NodeState
from edgewise.fleet.messages import Displaced, InfoRequest, NodeInfo, kind_of
from edgewise.fleet.node.proof import make_question, proofs_of
from edgewise.fleet.node.sole_process import first_of
from edgewise.security.refusal import MOST_AHEAD_S
from edgewise.testing import LoopbackFleet
from edgewise.transport.frame import Frame, make_frame

EDGE_OF = {"a": "edge-1", "b": "edge-1"}
CLOUD, EDGE, VICTIM, LIAR = NodeId("cloud"), NodeId("edge-1"), NodeId("device-a"), NodeId("device-b")
SOON = Generation(int(time.time() + MOST_AHEAD_S - 3600) * 10**9)
"""As large as it may be; what is larger is not even asked about."""


def in_a_fleet(folder: Path, scene: Callable[[LoopbackFleet], Awaitable[None]]) -> None:
    async def run() -> None:
        async with LoopbackFleet(folder, edge_of=EDGE_OF) as fleet:
            await asyncio.wait_for(scene(fleet), 60.0)

    asyncio.run(run())


def state_of(fleet: LoopbackFleet, node: NodeId = VICTIM) -> NodeState | None:
    """As the coordinator and the edge see a node, where they agree."""
    training = fleet.training[EDGE].watch
    assert training is not None
    seen = {watch.members.members[node].state for watch in (fleet.coordinator.watch, training)}
    return seen.pop() if len(seen) == 1 else None


@pytest.mark.parametrize("claim", [SOON, Generation(2**62)], ids=["soon", "huge"])
def test_a_bogus_token_evicts_nobody_while_it_is_held_nor_after(claim: Generation, tmp_path: Path) -> None:
    async def scene(fleet: LoopbackFleet) -> None:
        liar = fleet.nodes[LIAR]
        tokens = [
            await liar.transport.declare_presence(liar.keys.alive(tier, VICTIM, claim))
            for tier in (Tier.DEVICE, Tier.EDGE)
        ]
        status = await fleet.train({"name": "fed_avg"}, num_rounds=1, quorum=2)
        assert status.rounds[0].num_updates == 2
        assert state_of(fleet) is NodeState.ALIVE
        for token in tokens:
            await token.close()
        assert state_of(fleet) is NodeState.ALIVE
        await fleet.kill("a")
        await fleet.until(lambda: state_of(fleet) is NodeState.GONE)
        await fleet.restart("a")
        await fleet.until(lambda: state_of(fleet) is NodeState.ALIVE)
        assert fleet.coordinator.watch.members.members[VICTIM].generation == 2

    in_a_fleet(tmp_path, scene)


async def lie_as(fleet: LoopbackFleet, kind: str) -> None:
    """Has the liar answer who the victim is, before the victim does."""
    liar, victim = fleet.nodes[LIAR], fleet.nodes[VICTIM]
    question, _ = make_question()
    heard = await liar.transport.query(liar.keys.service(VICTIM, "info"), question, timeout_s=5.0)

    async def answer(frame: Frame) -> Frame:
        if kind == "silent":
            await asyncio.sleep(3600)
        nonce = frame.read(InfoRequest).nonce
        info = msgspec.structs.replace(heard.read(NodeInfo), nonce=nonce, generation=SOON)
        if kind == "nonsense":
            return make_frame("nonsense", tensors={})
        return make_frame(kind_of(info), info)

    key = liar.keys.service(VICTIM, "info")
    await liar.transport.serve(key, answer)
    if kind == "replayed":  # what the victim signed once, in answer to the liar
        sent = victim.transport.guard.seal(heard, key)  # type: ignore[attr-defined]
        guard = liar.transport.guard  # type: ignore[attr-defined]

        class Repeats:
            open, node = guard.open, guard.node
            seal = staticmethod(lambda frame, to: sent if to == key else guard.seal(frame, to))

        liar.transport.guard = Repeats()  # type: ignore[attr-defined]
    declared = fleet.fabric._declared
    declared.insert(0, declared.pop())


@pytest.mark.parametrize("kind", ["forged", "replayed", "nonsense", "silent"])
def test_whoever_answers_in_anothers_name_is_not_believed_and_hides_nobody(kind: str, tmp_path: Path) -> None:
    async def scene(fleet: LoopbackFleet) -> None:
        await lie_as(fleet, kind)
        cloud, liar = fleet.nodes[CLOUD], fleet.nodes[LIAR]
        assert [info.generation for info in await proofs_of(cloud, VICTIM, timeout_s=0.3)] == [1]
        if kind != "silent":  # an honest one that is asked alone may be hidden by silence, until the deadline
            assert (await cloud.info_of(VICTIM, fresh=True)).generation == 1
        token = await liar.transport.declare_presence(liar.keys.alive(Tier.DEVICE, VICTIM, SOON))
        await asyncio.sleep(0)
        assert state_of(fleet) is NodeState.ALIVE
        await token.close()
        assert await first_of(fleet.nodes[VICTIM]) is None  # nor does it keep the victim from starting
        await fleet.kill("a")
        with pytest.raises(EdgewiseError):
            await proofs_of(cloud, VICTIM, timeout_s=0.3)

    in_a_fleet(tmp_path, scene)


def test_who_says_that_a_node_is_displaced_must_show_the_newer_one(tmp_path: Path) -> None:
    async def scene(fleet: LoopbackFleet) -> None:
        told: list[Any] = []

        async def take(message: Displaced, _: Frame, sender: NodeInfo) -> Displaced:
            told.append((message.newer, sender.node, await first_of(fleet.nodes[VICTIM])))
            return message

        fleet.nodes[VICTIM].route("control", Displaced, take)
        await fleet.nodes[LIAR].tell_displaced(VICTIM, SOON)
        assert told == [(SOON, LIAR, None)]

    in_a_fleet(tmp_path, scene)


def test_an_incarnation_far_in_the_future_is_refused_with_its_cure(tmp_path: Path) -> None:
    async def scene(fleet: LoopbackFleet) -> None:
        victim, cloud = fleet.nodes[VICTIM], fleet.nodes[CLOUD]
        victim.generation = victim.transport.guard.generation = Generation(2**62)  # type: ignore[attr-defined]
        with pytest.raises(
            IdentityRefused, match=r"started [0-9,]+ days from now.*Set its clock, remove the file 'gen"
        ):
            await cloud.info_of(VICTIM, fresh=True)

    in_a_fleet(tmp_path, scene)
