"""Who makes a device declare its services anew when the way beyond its edge is back."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from edgewise.core.ids import Generation, NodeId, Tier
from edgewise.fleet.messages import Capability, NodeInfo
from edgewise.fleet.node.parents import Parents
from edgewise.testing import LoopbackFleet


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
