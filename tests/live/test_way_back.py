"""A device that was another edge's for a while, and whose own edge then loses and regains its link to the cloud."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgewise.core.ids import NodeId
from edgewise.simulation.emulated.emulated_fleet import CLOUD, EmulatedFleet
from edgewise.simulation.emulated.fleet_file import DeviceClass, EdgeClass, FleetFile
from tests.live.small_fleet import EDGE, QUICK, World

pytestmark = [pytest.mark.live, pytest.mark.slow, pytest.mark.timeout(200)]
DEVICE = "device-1"


class TwoEdges(World):
    """Two edges with a device each that neither trains nor serves; each device has a standby at the other edge."""

    def make_fleet(self, folder: Path) -> EmulatedFleet:
        devices = DeviceClass(per_edge=1, trainers_per_edge=0, dilation=1.0, link=QUICK)
        return EmulatedFleet(FleetFile(name="small", edges=EdgeClass(count=2, link=QUICK), devices=devices), folder)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with TwoEdges(tmp_path_factory.mktemp("ways")) as made:
        yield made


def test_a_device_is_reached_again_after_its_edge_was_cut_off_from_the_cloud(world: World) -> None:
    async def reached() -> bool | None:
        return bool((await world.operator.ledger(NodeId(DEVICE))).entries) or None

    async def scene() -> None:
        await world.all_here()
        await world.fleet.children[EDGE].kill()
        await world.eventually(lambda: said(world, f"{DEVICE} moves from uplink 0 to 1"))
        await world.eventually(reached)
        await world.fleet.restart(EDGE)
        await world.eventually(lambda: said(world, f"{DEVICE} moves from uplink 1 to 0"))
        await world.all_here()
        await world.eventually(reached)
        await world.fleet.set_link(EDGE, CLOUD, outage="cut")
        await world.rows(lambda rows: rows[EDGE].state == "gone")
        await world.fleet.set_link(EDGE, CLOUD, outage=None)
        await world.all_here()
        await world.eventually(reached)

    world.run(scene())


async def said(world: World, text: str) -> bool | None:
    await asyncio.sleep(0)
    return text in world.log(DEVICE) or None
