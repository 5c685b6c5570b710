"""Who gets which plan when nodes return while a deployment is in progress."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from edgewise.core.ids import Epoch, NodeId, Tier
from edgewise.fleet.deployments import EPOCHS_PER_DEPLOYMENT, Deployed, Deployments
from edgewise.fleet.messages import Capability, Deploy, NodeInfo

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

    def __init__(self, plan_epoch: int) -> None:
        self.plan_epoch = plan_epoch

    async def info_of(self, node: NodeId, *, fresh: bool) -> NodeInfo:
        assert fresh
        return info(Tier.DEVICE, self.plan_epoch)


def info(tier: Tier, plan_epoch: int = 0) -> NodeInfo:
    return NodeInfo(NodeId(f"{tier}-1"), tier, Epoch(1), "", NodeId("cloud"), CAPABILITY, plan_epoch=plan_epoch)


def deployed(number: int) -> Deployed:
    return Deployed(Deploy(number, ()), Epoch(number * EPOCHS_PER_DEPLOYMENT))


def deployments(plan_epoch: int) -> Recorded:
    nothing: Any = None
    made = Recorded(FakeNode(plan_epoch), nothing, nothing, nothing, nothing, nothing, [deployed(1)])  # type: ignore[arg-type]
    made.installed = []
    return made


@pytest.mark.parametrize(
    ("reached", "expected"),
    [(0, [(NodeId("device-1"), 2 * EPOCHS_PER_DEPLOYMENT)]), (2 * EPOCHS_PER_DEPLOYMENT, [])],
    ids=["missed by the rollout", "reached by the rollout"],
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
        made = deployments(0)
        async with made._busy:
            await made.returned(info(Tier.EDGE))
        return made

    assert asyncio.run(run()).installed == [(NodeId("edge-1"), EPOCHS_PER_DEPLOYMENT)]


def test_nothing_is_installed_before_the_first_deployment():
    async def run() -> Recorded:
        made = deployments(0)
        made.history.clear()
        await made.returned(info(Tier.DEVICE))
        return made

    assert asyncio.run(run()).installed == []
