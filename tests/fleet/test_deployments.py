"""Who gets which plan when nodes return while a deployment is in progress."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from edgewise.core.ids import Epoch, NodeId, Tier
from edgewise.fleet.messages import BlobRef, Capability, Deploy, InstallOrder, NodeInfo
from edgewise.fleet.serving.deployments import EPOCHS_PER_DEPLOYMENT, Deployed, Deployments

CAPABILITY = Capability(1, 1, 1.0, 1.0, 1.0, "")


class Recorded(Deployments):
    """Writes down what it would install."""

    installed: list[tuple[NodeId, int]]

    async def _install(self, node: NodeId, what: Deployed) -> str:
        self.installed.append((node, int(what.epoch)))
        return ""


class FakeNode:
    """A coordinator's node whose devices say that they run a plan."""

    name = NodeId("cloud")

    def __init__(self, deployed: str) -> None:
        self.deployed = deployed

    async def info_of(self, node: NodeId, *, fresh: bool) -> NodeInfo:
        assert fresh
        return info(Tier.DEVICE, self.deployed)


class FakeVersions:
    """A registry in which a version's graph is called after its number."""

    def get(self, number: int) -> Any:
        return SimpleNamespace(graph=f"graph of {number}")


def info(tier: Tier, deployed: str = "") -> NodeInfo:
    return NodeInfo(NodeId(f"{tier}-1"), tier, Epoch(1), "", NodeId("cloud"), CAPABILITY, deployed=deployed)


def deployed(number: int) -> Deployed:
    return Deployed(Deploy(number, ()), Epoch(number * EPOCHS_PER_DEPLOYMENT))


def name_of(number: int, graph: str = "") -> str:
    order = deployed(number)
    ref = BlobRef(graph or f"graph of {number}", 1, NodeId("edge-1"))  # type: ignore[arg-type]
    return InstallOrder(number, ref, (), order.epoch, stage_nodes=(NodeId("edge-1"),)).digest


def deployments(reached: str) -> Recorded:
    nothing: Any = None
    node: Any = FakeNode(reached)
    versions: Any = FakeVersions()
    made = Recorded(node, versions, nothing, nothing, nothing, nothing, [deployed(1)])
    made.installed = []
    return made


@pytest.mark.parametrize(
    ("reached", "expected"),
    [
        ("", [(NodeId("device-1"), 2 * EPOCHS_PER_DEPLOYMENT)]),
        (name_of(2, "of another fleet"), [(NodeId("device-1"), 2 * EPOCHS_PER_DEPLOYMENT)]),
        (name_of(2), []),
    ],
    ids=["missed by the rollout", "with another model of that number", "reached by the rollout"],
)
def test_a_device_that_returns_during_a_rollout_gets_what_is_in_force_after_it(reached, expected):
    async def run() -> Recorded:
        made = deployments(reached)
        async with made._busy:
            task = asyncio.create_task(made.returned(info(Tier.DEVICE)))
            await asyncio.sleep(0)
            assert made.installed == []
            made.history.append(deployed(2))
        await task
        return made

    assert asyncio.run(run()).installed == expected


def test_an_edge_that_returns_during_a_rollout_is_not_kept_waiting():
    async def run() -> Recorded:
        made = deployments("")
        async with made._busy:
            await made.returned(info(Tier.EDGE))
        return made

    assert asyncio.run(run()).installed == [(NodeId("edge-1"), EPOCHS_PER_DEPLOYMENT)]


def test_nothing_is_installed_before_the_first_deployment():
    async def run() -> Recorded:
        made = deployments("")
        made.history.clear()
        await made.returned(info(Tier.DEVICE))
        return made

    assert asyncio.run(run()).installed == []
