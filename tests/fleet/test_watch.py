"""`Watch` over a loopback fabric: tokens in, infos and counters asked, who is ready and who is lost said once."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from edgewise.core.backoff import Backoff
from edgewise.core.errors import IdentityRefused, Unreachable
from edgewise.core.ids import Generation, NodeId, Tier
from edgewise.fleet.membership import watch as module
from edgewise.fleet.membership.membership import STALL_OBSERVATIONS, NodeState
from edgewise.fleet.membership.watch import Watch
from edgewise.fleet.messages import Capability, NodeInfo, Progress, ProgressRequest
from edgewise.transport.keys import Keys
from edgewise.transport.loopback import LoopbackFabric

KEYS = Keys("test")
DEVICE, EDGE = NodeId("device-1"), NodeId("edge-1")


class Watcher:
    """A coordinator's node and its watch; what others answer is set here."""

    name = NodeId("cloud")
    keys = KEYS

    def __init__(self, **how: Any) -> None:
        self.fabric = LoopbackFabric()
        self.transport = self.fabric.open(self.name)
        self.ready: list[str] = []
        self.lost: list[str] = []
        self.asked: list[NodeId] = []
        self.answers: dict[NodeId, list[Exception]] = {}
        self.proved: dict[NodeId, list[int]] = {}
        self.told: list[tuple[NodeId, Generation]] = []
        self.refused: dict[str, int] = {}
        self.counter: Callable[[], Progress] = lambda: Progress(0, False)
        node: Any = self
        self.watch = Watch(
            node, ready=lambda info: self.ready.append(info.node), lost=lambda n, cause: self.lost.append(cause), **how
        )

    def spawn(self, work: Any, name: str) -> asyncio.Task[Any]:
        return asyncio.get_running_loop().create_task(work, name=name)

    async def proofs_of(self, node: NodeId) -> list[NodeInfo]:
        self.asked.append(node)
        if errors := self.answers.get(node):
            raise errors.pop(0)
        tier = Tier(node.partition("-")[0])
        proofs = self.proved.get(node, [1])
        return [NodeInfo(node, tier, Generation(g), "", self.name, Capability(1, 1, 1.0, 1.0, 1.0, "")) for g in proofs]

    async def tell_displaced(self, node: NodeId, newer: Generation) -> None:
        self.told.append((node, newer))

    def count_refusal(self, what: str) -> None:
        self.refused[what] = self.refused.get(what, 0) + 1

    @property
    def verifier(self) -> Any:
        return self

    def check_generation(self, node: NodeId, generation: int) -> None:
        if generation > 10**18:
            raise IdentityRefused("it was started in the future.")

    async def ask(self, node: NodeId, service: str, message: Any, answer: Any, **_: Any) -> Progress:
        assert (service, message, answer) == ("progress", ProgressRequest(), Progress)
        return self.counter()

    async def appear(self, node: NodeId, epoch: int = 1) -> Any:
        tier = Tier(node.partition("-")[0])
        return await self.fabric.open(node).declare_presence(KEYS.alive(tier, node, Generation(epoch)))

    async def is_alive(self, *nodes: NodeId) -> bool:
        return await self.watch.wait_for(lambda members: {m.node for m in members.alive()} == set(nodes), 5.0)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for waits in ("INFO_RETRY", "CLAIM_RETRY"):
        monkeypatch.setattr(module, waits, Backoff(0.001, most_s=0.001))


def played(scene: Callable[[Watcher], Awaitable[None]], **how: Any) -> Watcher:
    async def run() -> Watcher:
        watcher = Watcher(**how)
        await watcher.watch.start()
        await scene(watcher)
        await watcher.transport.close()
        return watcher

    return asyncio.run(run())


def test_a_token_is_asked_who_it_is_and_its_end_is_a_loss() -> None:
    async def scene(watcher: Watcher) -> None:
        token = await watcher.appear(DEVICE)
        assert await watcher.is_alive(DEVICE)
        await token.close()
        assert await watcher.is_alive()

    watcher = played(scene)
    assert (watcher.ready, watcher.asked) == ([DEVICE], [DEVICE])
    assert ["its liveliness token is gone" in cause for cause in watcher.lost] == [True]


def test_who_was_there_before_the_watch_began_is_seen_too() -> None:
    async def run() -> None:
        watcher = Watcher()
        await watcher.appear(EDGE)
        await watcher.watch.start()
        assert await watcher.is_alive(EDGE)

    asyncio.run(run())


def test_a_node_that_does_not_answer_yet_is_asked_again() -> None:
    async def scene(watcher: Watcher) -> None:
        watcher.answers[DEVICE] = [Unreachable("not yet."), Unreachable("not yet.")]
        await watcher.appear(DEVICE)
        assert await watcher.is_alive(DEVICE)

    assert played(scene).asked == [DEVICE] * 3


def test_a_node_that_is_gone_is_asked_no_more() -> None:
    async def scene(watcher: Watcher) -> None:
        watcher.answers[DEVICE] = [Unreachable("never.") for _ in range(1000)]
        token = await watcher.appear(DEVICE)
        await asyncio.sleep(0.02)
        await token.close()
        await asyncio.sleep(0.01)
        asked = len(watcher.asked)
        await asyncio.sleep(0.02)
        assert len(watcher.asked) == asked > 1

    assert played(scene).ready == []


def test_a_node_with_anothers_certificate_is_not_counted_in(caplog: pytest.LogCaptureFixture) -> None:
    async def scene(watcher: Watcher) -> None:
        watcher.answers[DEVICE] = [IdentityRefused("it presents a certificate of 'device-2'.") for _ in range(1000)]
        await watcher.appear(DEVICE)
        await asyncio.sleep(0.02)
        assert watcher.watch.members.members[DEVICE].state is NodeState.JOINING

    with caplog.at_level(logging.WARNING, "edgewise.fleet"):
        assert played(scene).ready == []
    assert "does not count device-1 in" in caplog.text


@pytest.mark.parametrize(
    "key",
    ["ew/test/alive/device/device-1/soon", "ew/test/alive/device/device-1/-1", "ew/test/alive/boss/device-1/1",
     "ew/test/alive/device/Device 1/1", "ew/test/alive/device/device-1/1_0", f"ew/test/alive/device/device-1/{10**18 + 1}"],
)  # fmt: skip
def test_a_token_that_is_none_is_counted_and_changes_nothing(key: str) -> None:
    async def scene(watcher: Watcher) -> None:
        for _ in range(2):
            await (await watcher.fabric.open("liar").declare_presence(key)).close()
        await watcher.appear(DEVICE)
        assert await watcher.is_alive(DEVICE)

    watcher = played(scene)
    assert list(watcher.refused.values()) in ([4], [2])
    assert watcher.lost == []


def test_a_claim_that_nobody_proves_is_asked_about_and_loses_nobody() -> None:
    async def scene(watcher: Watcher) -> None:
        await watcher.appear(DEVICE)
        assert await watcher.is_alive(DEVICE)
        bogus = await watcher.appear(DEVICE, 10**17)
        while len(watcher.asked) < 3:  # noqa: ASYNC110 - a stub's list has no event
            await asyncio.sleep(0.001)
        assert await watcher.is_alive(DEVICE)
        await bogus.close()
        assert await watcher.watch.wait_for(lambda members: not members.is_open(DEVICE), 5.0)
        assert await watcher.is_alive(DEVICE)

    watcher = played(scene)
    assert (watcher.ready, watcher.lost, watcher.told) == ([DEVICE], [], [])


def test_of_two_processes_the_older_one_is_told() -> None:
    async def scene(watcher: Watcher) -> None:
        await watcher.appear(DEVICE)
        assert await watcher.is_alive(DEVICE)
        watcher.proved[DEVICE] = [1, 2]  # both answer
        await watcher.appear(DEVICE, 2)
        assert await watcher.watch.wait_for(lambda members: members.has(DEVICE, Generation(2)), 5.0)
        await asyncio.sleep(0)

    watcher = played(scene)
    assert (watcher.ready, watcher.lost, watcher.told) == ([DEVICE, DEVICE], [], [(DEVICE, 2)])


def test_a_token_nobody_answers_for_is_a_loss_until_somebody_does() -> None:
    """A liveliness token can outlive its node (zenoh#2248)."""

    async def scene(watcher: Watcher) -> None:
        await watcher.appear(DEVICE)
        assert await watcher.is_alive(DEVICE)
        watcher.answers[DEVICE] = [Unreachable("nobody answers.") for _ in range(10)]
        assert await watcher.watch.wait_for(lambda members: not members.alive(), 5.0)
        assert await watcher.is_alive(DEVICE)

    watcher = played(scene, prove_every_s=0.001)
    assert watcher.ready == [DEVICE, DEVICE]
    assert ["nobody answers for it" in cause for cause in watcher.lost] == [True]


def test_itself_and_other_tiers_are_not_watched() -> None:
    async def scene(watcher: Watcher) -> None:
        await watcher.transport.declare_presence(KEYS.alive(Tier.CLOUD, watcher.name, Generation(1)))
        await watcher.appear(EDGE)
        await watcher.appear(DEVICE)
        assert await watcher.is_alive(DEVICE)

    assert played(scene, tiers=[Tier.DEVICE, Tier.CLOUD]).asked == [DEVICE]


def test_what_does_not_come_about_is_told_at_the_deadline() -> None:
    async def scene(watcher: Watcher) -> None:
        assert not await watcher.watch.wait_for(lambda members: bool(members.alive()), 0.01)

    played(scene)


def test_an_awaited_worker_that_hangs_is_lost_and_ready_again_when_it_moves() -> None:
    async def scene(watcher: Watcher) -> None:
        await watcher.appear(DEVICE)
        assert await watcher.is_alive(DEVICE)
        watcher.counter = lambda: Progress(7, True, "train run-1 round 3")
        watcher.watch.expect([DEVICE])
        state = lambda: watcher.watch.members.members[DEVICE].state  # noqa: E731
        assert await watcher.watch.wait_for(lambda _: state() is NodeState.SUSPECTED, 5.0)
        watcher.watch.expect([])  # a suspect is asked all the same
        watcher.counter = lambda: Progress(8, True)
        assert await watcher.watch.wait_for(lambda _: state() is NodeState.ALIVE, 5.0)

    watcher = played(scene, ask_every_s=0.001)
    assert watcher.ready == [DEVICE, DEVICE]
    (cause,) = watcher.lost
    assert f"counter 7 did not move over {STALL_OBSERVATIONS} answers while it was to train run-1 round 3" in cause


def test_nobody_is_asked_for_a_counter_once_nothing_is_awaited() -> None:
    async def scene(watcher: Watcher) -> None:
        await watcher.appear(DEVICE)
        assert await watcher.is_alive(DEVICE)
        counted: list[int] = []
        watcher.counter = lambda: Progress(counted.append(1) or len(counted), True)  # type: ignore[func-returns-value]
        watcher.watch.expect([DEVICE])
        await asyncio.sleep(0.02)
        watcher.watch.expect([])
        await asyncio.sleep(0.01)
        asked = len(counted)
        await asyncio.sleep(0.02)
        assert len(counted) == asked > 1

    played(scene, ask_every_s=0.001)
