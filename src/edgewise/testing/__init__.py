"""Fakes for tests of whoever builds on Edgewise: a fleet in one process, a tiny task. Not imported by the rest.

    async with LoopbackFleet(folder, edge_of={"a": "edge-1", "b": "edge-2"}) as fleet:
        status = await fleet.train({"name": "fed_avg"}, num_rounds=3, seed=7)
    fleet.model(status)          # float32[d], byte-equal to what `simulate_rounds` ends with

A fleet that serves instead of training is `ServingFleet` in `serving_fleet.py`. The fabric without certificates is `edgewise.transport.loopback.LoopbackFabric`, the clock
`edgewise.core.clock.VirtualClock`.
"""

from edgewise.testing.fleet import LoopbackFleet
from edgewise.testing.serving_fleet import ServingFleet
from edgewise.testing.tiny_task import TinyTask

__all__ = ["LoopbackFleet", "ServingFleet", "TinyTask"]
