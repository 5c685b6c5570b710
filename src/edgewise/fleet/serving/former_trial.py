"""Old versions against the one in force, on the fresh labelled examples of the fleet's devices; only counts leave a device."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from dataclasses import dataclass

from edgewise.core.errors import EdgewiseError
from edgewise.core.ids import NodeId
from edgewise.fleet.messages import BlobRef, FormerAnswer, FormerRequest, PairsAnswer, PairsOrder
from edgewise.fleet.node.node import Node
from edgewise.fleet.serving.versions import VersionStore
from edgewise.lifecycle.former import PairCounts, choose_former, former_versions
from edgewise.models.version import ModelVersion

log = logging.getLogger("edgewise.fleet")
TRIAL_TIMEOUT_S = 60.0
"""For a device to fetch an old version, if it has it no more, and to answer some hundred examples twice."""


@dataclass(frozen=True, slots=True)
class FormerTrial:
    """The coordinator's part of a trial.

    Attributes:
        node: Its node.
        versions: The registry.
    """

    node: Node
    versions: VersionStore

    async def find(self, request: FormerRequest, in_force: int, devices: Iterable[NodeId]) -> FormerAnswer:
        """Lets devices compare former versions with the one in force.

        Args:
            request: Of which model.
            in_force: The version that serves.
            devices: Who is here.

        Returns:
            The version that is surely better, or 0, and a sentence.
        """
        registry = self.versions.registry
        served = [line.number for line in registry.history(request.model)]
        here = [v for v in registry.versions(request.model) if self.versions.blobs.claim(v.graph)]
        tried = former_versions(here, served, in_force, request.besides)
        nodes = list(devices)
        pairs = {version.number: await self._pairs(version, in_force, nodes) for version in tried}
        return FormerAnswer(*choose_former({number: of for number, of in pairs.items() if of.num}))

    async def _pairs(self, version: ModelVersion, in_force: int, devices: Iterable[NodeId]) -> PairCounts:
        graph = BlobRef(version.graph, self.versions.graph_size(version.number), self.node.name)
        order = PairsOrder(version.task, in_force, graph)
        answers = await asyncio.gather(*(self._ask(device, order, version.number) for device in devices))
        return PairCounts(sum(a.num for a in answers), sum(a.lost for a in answers), sum(a.gained for a in answers))

    async def _ask(self, device: NodeId, order: PairsOrder, number: int) -> PairCounts:
        try:
            return (await self.node.ask(device, "control", order, PairsAnswer, timeout_s=TRIAL_TIMEOUT_S)).pairs
        except EdgewiseError as error:  # the others may be enough
            log.info("%s could not try version %d of %s: %s", device, number, order.model, error)
            return PairCounts()
