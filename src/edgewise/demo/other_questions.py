"""The two other questions, measured: a small fleet of its own whose devices let raw inputs go, and whose link can be slow.

The demo's own devices refuse to send raw inputs, whatever a plan says; so what is best without that policy is measured
on devices that have no such rule. Same speeds, same links, other processes; idle until they are asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import msgspec

from edgewise.core.ids import Tier
from edgewise.demo.planning import slowed
from edgewise.demo.scenario import OPEN, PRIVATE, SLOW_BYTES_PER_S, Demo
from edgewise.demo.streaming import take
from edgewise.demo.ways import ask_in_turn, deploy_ways, way_rows
from edgewise.fleet.operator.operator import connect_operator
from edgewise.planning.costs.cost import CostTable
from edgewise.planning.levels import Recommendation
from edgewise.planning.plan import Plan
from edgewise.service.report import WayRow
from edgewise.simulation.emulated.emulated_fleet import CLOUD, OPERATOR, EmulatedFleet

DEVICES = 2
GAP_S = 0.1
JOIN_TIMEOUT_S = 60.0


class OpenFleet:
    """One cloud, one edge and two devices that may send raw inputs anywhere; made by `open_fleet`."""

    def __init__(self, demo: Demo, folder: Path, holdout: Path) -> None:
        file, change = demo.fleet.file, msgspec.structs.replace
        self._demo, self._folder = demo, folder
        self.fleet = EmulatedFleet(
            change(
                file,
                name="open",
                raw_may_reach=Tier.CLOUD,
                edges=change(file.edges, count=1),
                devices=change(file.devices, per_edge=DEVICES, trainers_per_edge=0, standby=False),
            ),
            folder,
            holdout=holdout,
        )
        self._starting = asyncio.create_task(self.fleet.start())

    async def measure(self, answers: Sequence[Recommendation]) -> list[tuple[WayRow, ...]]:
        """Measures what the planner recommends for each question, each beside the others.

        Args:
            answers: To the demo's own question, to that without a policy, and to that with a slow link.

        Returns:
            The ways of the second question and of the third.
        """
        demo, number = self._demo, self._demo.settings.asked_elsewhere
        await self._starting
        identity, endpoint = self.fleet.identity(OPERATOR), self.fleet.endpoint(CLOUD)
        async with connect_operator(identity, endpoint, self._folder / "operator", self.fleet.file.name) as operator:
            await operator.wait_for_nodes(
                lambda rows: sum(r.state == "alive" for r in rows) == len(self.fleet.children), JOIN_TIMEOUT_S
            )
            plans: list[Plan] = list({a.plan.digest: a.plan for a in answers}.values())
            ways = await deploy_ways(operator, plans, demo.graphs)
            parts = demo.task.parts.stream
            inputs, targets = take(parts.inputs, parts.targets, number)
            ports = [self.fleet.children[device].ready["http_port"] for device in self.fleet.devices]
            found = []
            for answer, policy, rate in ((answers[1], OPEN, None), (answers[2], PRIVATE, SLOW_BYTES_PER_S)):
                for device in self.fleet.devices if rate is not None else ():
                    await self.fleet.set_link(device, self.fleet.edges[0], bytes_per_s=rate)
                await ask_in_turn(ports, ways, inputs, targets, gap_s=GAP_S)

                def table_of(plan: Plan, is_slow: bool = rate is not None) -> CostTable:
                    search = demo.search_of(plan)
                    return (slowed(search) if is_slow else search).table

                found.append(way_rows(ways, answer.plan, policy, table_of))
            return found

    async def close(self) -> None:
        """Ends its processes; idempotent."""
        with suppress(Exception):  # a start that failed is told by `measure`, to whoever waits for it
            await self._starting
        await self.fleet.stop()


@asynccontextmanager
async def open_fleet(demo: Demo, folder: Path, holdout: Path) -> AsyncIterator[OpenFleet]:
    """Starts the fleet in the background; at the end of the block nothing of it is left.

    Args:
        demo: Its fleet's classes count.
        folder: Throw-away.
        holdout: Of the task.

    Yields:
        The fleet, perhaps not up yet.
    """
    made = OpenFleet(demo, folder, holdout)
    try:
        yield made
    finally:
        await made.close()
