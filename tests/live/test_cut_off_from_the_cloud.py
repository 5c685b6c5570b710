"""A device that is started again while nobody can reach the cloud: it serves what it served, over its edge."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from edgewise.fleet.messages import Deploy
from edgewise.service.client import InferenceClient, Reply
from edgewise.simulation.emulated.emulated_fleet import CLOUD, EmulatedFleet
from edgewise.simulation.emulated.fleet_file import DeviceClass, EdgeClass, FleetFile
from tests.inference.tiny import images, split_plan, two_exit_graph
from tests.live.small_fleet import EDGE, QUICK, World

pytestmark = [pytest.mark.live, pytest.mark.slow, pytest.mark.timeout(200)]
DEVICE = "device-1"
GRAPH = two_exit_graph()


class OneDevice(World):
    """An edge with a device that only serves."""

    def make_fleet(self, folder: Path) -> EmulatedFleet:
        devices = DeviceClass(per_edge=1, trainers_per_edge=0, dilation=1.0, link=QUICK, standby=False)
        return EmulatedFleet(FleetFile(name="small", edges=EdgeClass(count=1, link=QUICK), devices=devices), folder)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with OneDevice(tmp_path_factory.mktemp("cut-off")) as made:
        yield made


async def asked(world: World) -> Reply:
    child = world.fleet.children[DEVICE]
    async with InferenceClient("127.0.0.1", child.ready["http_port"]) as client:
        return await client.infer(world.fleet.settings[DEVICE].model_name, {"x": images(1)})


def test_a_device_started_again_without_the_cloud_serves_what_it_served(world: World) -> None:
    async def answered_again() -> Reply | None:
        reply = await asked(world)
        return reply if not reply.error else None

    async def scene() -> None:
        ack = await world.operator.register(GRAPH.model_bytes, task="tiny")
        assert ack.accepted, ack.reason
        deployed = await world.operator.deploy(Deploy(1, (split_plan(GRAPH),), deadline_s=5.0, staged=False))
        assert deployed.accepted, deployed.reason
        before = await asked(world)
        await world.fleet.set_link(EDGE, CLOUD, outage="cut")
        await world.rows(lambda rows: rows[EDGE].state == "gone")
        await world.restart(DEVICE)
        after = await world.eventually(answered_again)
        told = {name: after.parameters[name] for name in ("source", "served_by", "plan_revision", "model_version")}
        assert told == {name: before.parameters[name] for name in told}
        assert (told["source"], told["served_by"], told["model_version"]) == ("plan", f"{DEVICE},{EDGE}", 1)
        assert f"{DEVICE} serves version 1 of tiny again" in world.log(DEVICE)
        await world.fleet.set_link(EDGE, CLOUD, outage=None)
        await world.all_here()

    world.run(scene())
