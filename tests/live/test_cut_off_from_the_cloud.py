"""A device that is started again while nobody can reach the cloud: it serves what it served, over its edge."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from edgewise.fleet.messages import Deploy
from edgewise.fleet.node.node_status import read_status
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
        made.run(deployed(made))
        yield made


async def deployed(world: World) -> None:
    """Version 1 is in force, along the edge."""
    ack = await world.operator.register(GRAPH.model_bytes, task="tiny")
    assert ack.accepted, ack.reason
    answer = await world.operator.deploy(Deploy(1, (split_plan(GRAPH),), deadline_s=5.0, staged=False))
    assert answer.accepted, answer.reason


async def asked(world: World) -> Reply:
    child = world.fleet.children[DEVICE]
    async with InferenceClient("127.0.0.1", child.ready["http_port"]) as client:
        return await client.infer(world.fleet.settings[DEVICE].model_name, {"x": images(1)})


async def answer_of(world: World, source: str) -> Reply:
    """Asks until an answer comes that way."""

    async def look() -> Reply | None:
        reply = await asked(world)
        return reply if not reply.error and reply.parameters["source"] == source else None

    return await world.eventually(look)


def test_a_device_started_again_without_the_cloud_serves_what_it_served(world: World) -> None:
    async def answered_again() -> Reply | None:
        reply = await asked(world)
        return reply if not reply.error else None

    async def scene() -> None:
        before = await answer_of(world, "plan")
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


def test_after_a_power_cut_they_may_start_in_any_order_and_the_device_answers_from_its_disk_meanwhile(
    world: World,
) -> None:
    """The device first, then its edge, the cloud last: from a deeper answer of its own to the whole plan."""

    async def scene() -> None:
        fleet = world.fleet
        for name in (DEVICE, EDGE, CLOUD):
            await fleet.children[name].kill()
        await fleet.restart(DEVICE)
        alone = await answer_of(world, "device_exit")
        assert (alone.parameters["served_by"], alone.parameters["model_version"]) == (DEVICE, 1)
        status = read_status(Path(fleet.settings[DEVICE].state))
        assert status is not None
        assert (status.phase, status.models) == ("serving", {"tiny": 1})
        assert list(status.waits_for) == [fleet.settings[DEVICE].connect[0]]
        await fleet.restart(EDGE)
        whole = await answer_of(world, "plan")
        assert whole.parameters["served_by"] == f"{DEVICE},{EDGE}"
        await fleet.restart(CLOUD)
        await world.all_here()
        assert "waits for" in world.log(DEVICE)
        assert "is there after" in world.log(DEVICE)
        await world.eventually(lambda: nothing_is_waited_for(world))

    world.run(scene())


async def nothing_is_waited_for(world: World) -> bool | None:
    records = [read_status(Path(world.fleet.settings[name].state)) for name in (DEVICE, EDGE)]
    return all(record is not None and not record.waits_for for record in records) or None
