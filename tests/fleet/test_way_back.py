"""Who makes a device declare its services anew when the way beyond its edge is back."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgewise.core.backoff import Backoff
from edgewise.core.ids import Generation, NodeId, Tier
from edgewise.fleet.messages import Capability, NodeInfo
from edgewise.fleet.node.parents import Parents
from edgewise.testing import LoopbackFleet
from edgewise.transport.keys import Keys
from edgewise.transport.zenoh.session_config import zenoh_id


def capability(cores: int) -> Capability:
    return Capability(cores, 1, 1.0, 1.0, 1.0, "")


class Known:
    """A node that is told who the others are, the operator last."""

    name = NodeId("device-1")

    async def info_of(self, node: NodeId) -> NodeInfo:
        for _ in range(3 if node == "operator" else 1):
            await asyncio.sleep(0)
        return NodeInfo(node, Tier.CLOUD, Generation(1), "", NodeId(""), capability(0 if node == "operator" else 2))


def times_declared(tier: Tier, *back: str, index: int = 0) -> int:
    """How often services are declared when these nodes are seen again through an uplink, all at once."""
    attached: list[int] = []

    async def run() -> None:
        node: Any = Known()
        nobody: Any = None
        parents: Any = Parents(node, tier, nobody, nobody)

        async def attach(index: int) -> None:
            attached.append(index)

        parents.attach = attach
        await asyncio.gather(*(parents._way_is_back(index, NodeId(name)) for name in back))

    asyncio.run(run())
    return len(attached)


@pytest.mark.parametrize("back", [("cloud",), ("operator", "cloud"), ("cloud", "operator")])
def test_a_node_that_is_back_makes_a_device_declare_anew_whoever_else_is(back: tuple[str, ...]) -> None:
    assert times_declared(Tier.DEVICE, *back) == 1


def test_an_operator_that_is_back_makes_nobody_declare_anew() -> None:
    assert times_declared(Tier.DEVICE, "operator") == 0


def test_an_edge_and_an_uplink_that_is_not_in_use_are_left_alone() -> None:
    assert times_declared(Tier.EDGE, "cloud") == 0
    assert times_declared(Tier.DEVICE, "cloud", index=1) == 0


class Router:
    """A link to a parent's router, over which the parent's token comes after the link was made anew some times."""

    def __init__(self, parents: Any, is_linked: bool, needed: int) -> None:
        self.parents, self.is_linked, self.needed, self.relinked, self.seen = parents, is_linked, needed, 0, None

    async def watch_presence(self, _: str, seen: Any) -> None:
        self.seen = seen

    async def routers(self) -> list[str]:
        return [zenoh_id(NodeId("cloud"), Generation(1))] if self.is_linked else []

    async def relink(self, _: str) -> int:
        self.relinked += 1
        if self.relinked == self.needed:
            self.seen(Keys("test").alive("cloud", "cloud", 1), True)
        return 1


class Waiting(Known):
    """An edge's node with real tasks."""

    name, keys = NodeId("edge-1"), Keys("test")

    def __init__(self) -> None:
        self.tasks: list[asyncio.Task[None]] = []

    def spawn(self, work: Any, _: str) -> None:
        self.tasks.append(asyncio.get_running_loop().create_task(work))

    def set_parent(self, *_: Any) -> None:
        pass


@pytest.mark.parametrize("is_first", [True, False], ids=["at the start", "after it was away"])
def test_an_uplink_that_is_linked_and_sees_no_parent_is_linked_anew_until_it_does(
    is_first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgewise.fleet.node.parents.DEAF", Backoff(0.02, most_s=0.05))

    async def run() -> None:
        node: Any = Waiting()
        told: Any = SimpleNamespace(peer_changed=lambda *_: None, ways_changed=lambda: None)
        status: Any = SimpleNamespace(came=lambda _: None, waits_for=lambda *_: None)
        parents: Any = Parents(node, Tier.EDGE, told, status)
        router: Any = Router(parents, is_linked=True, needed=3 if is_first else 5)
        await parents.watch(0, router)
        if not is_first:
            token = Keys("test").alive("cloud", "cloud", 1)
            router.seen(token, True)
            await until(lambda: parents.parent == "cloud" and not parents._deaf)
            router.seen(token, False)
        await until(lambda: router.relinked == router.needed and not parents._deaf)
        assert all(task.done() and not task.exception() for task in node.tasks)
        assert router.relinked == router.needed

    asyncio.run(run())


def test_an_uplink_without_a_router_is_left_to_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgewise.fleet.node.parents.DEAF", Backoff(0.01, most_s=0.01))

    async def run() -> None:
        nobody: Any = None
        node: Any = Waiting()
        parents: Any = Parents(node, Tier.EDGE, nobody, nobody)
        router: Any = Router(parents, is_linked=False, needed=1)
        looks: list[int] = []
        routers = router.routers

        async def looked() -> Any:
            looks.append(0)
            return await routers()

        router.routers = looked
        await parents.watch(0, router)
        await until(lambda: len(looks) > 20)
        assert router.relinked == 0
        for task in node.tasks:
            task.cancel()

    asyncio.run(run())


async def until(holds: Any) -> None:
    async with asyncio.timeout(30):
        while not holds():  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.005)


def test_who_declares_itself_anew_where_it_is_was_never_away(tmp_path: Path) -> None:
    async def scene() -> None:
        async with LoopbackFleet(tmp_path, edge_of={"a": "edge-1"}) as fleet:
            seen: list[tuple[str, bool]] = []
            node = fleet.nodes[NodeId("device-a")]
            watcher = fleet.nodes[NodeId("edge-1")]
            alive = watcher.keys.alive("*", "*", "*")
            await watcher.transport.watch_presence(alive, lambda key, there: seen.append((key, there)))
            await asyncio.sleep(0)
            before = len(seen)
            await node.attach(node.attached)
            await asyncio.sleep(0)
            assert len(seen) == before
            assert (await watcher.info_of(NodeId("device-a"), fresh=True)).client == "a"
            await node.detach()
            await asyncio.sleep(0)
            assert seen[-1] == (watcher.keys.alive("device", "device-a", 1), False)

    asyncio.run(scene())
