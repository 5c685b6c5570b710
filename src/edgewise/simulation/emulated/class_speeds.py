"""Dilations of a fleet's classes from their declared speeds, measured on this machine with the model itself.

    file = with_speeds(file, machine_speed(graph))       # devices of 200 MFLOP/s on a machine of 100 GFLOP/s: dilation 500

So what is asked of a planner does not depend on who emulates the fleet, nor on how busy that machine is.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import msgspec
import numpy as np

from edgewise.core.ids import Tier
from edgewise.core.units import parse_speed
from edgewise.inference.stages import Tensors, make_stage
from edgewise.models.graph.graph import Graph
from edgewise.simulation.emulated.fleet_file import FleetFile

MEASUREMENTS, PAUSE_S = 8, 0.03
"""Spread over time, for another process on the processor's other half makes it a third slower while it runs."""


@dataclass(frozen=True, slots=True)
class MachineSpeed:
    """What a graph takes on this machine.

    Attributes:
        seconds: Of the whole graph, one example, one thread, undisturbed.
        flops: Operations of it, a multiply-add counted as two.
    """

    seconds: float
    flops: float

    @property
    def flops_per_s(self) -> float:
        """Operations per second."""
        return self.flops / self.seconds


def machine_speed(graph: Graph, inputs: Tensors | None = None) -> MachineSpeed:
    """Measures a graph here; weights of any value will do.

    Args:
        graph: What the fleet will run.
        inputs: One example; zeros if None.

    Returns:
        Its speed.
    """
    feeds = inputs or {t.name: np.zeros(t.shape, t.dtype) for t in graph.inputs}
    stage = make_stage(graph, [t.name for t in graph.inputs], [t.name for t in graph.outputs])
    stage.compute(feeds)
    for _ in range(MEASUREMENTS):
        time.sleep(PAUSE_S)
        stage.measure_again(feeds)
    return MachineSpeed(stage.measure(feeds), float(sum(group.flops for group in graph.condensed.groups)))


def with_speeds(file: FleetFile, here: MachineSpeed) -> FleetFile:
    """The fleet with the dilations that follow from its declared speeds.

    Args:
        file: Its classes; what has no speed keeps its dilation.
        here: Of this machine.

    Returns:
        The fleet. A class that is declared faster than this machine gets dilation 1: it cannot be sped up.

    Raises:
        InputError: If a speed is none.
    """
    change = msgspec.structs.replace

    def dilated(of: msgspec.Struct) -> msgspec.Struct:
        speed = str(getattr(of, "speed", ""))
        return change(of, dilation=max(1.0, here.flops_per_s / parse_speed(speed))) if speed else of

    return change(file, cloud=dilated(file.cloud), edges=dilated(file.edges), devices=dilated(file.devices))


def speed_lines(file: FleetFile, here: MachineSpeed) -> list[str]:
    """What is assumed of each class, in words.

    Args:
        file: As from `with_speeds`.
        here: Of this machine.

    Returns:
        A line per tier.
    """
    lines = []
    for tier, of in ((Tier.DEVICE, file.devices), (Tier.EDGE, file.edges), (Tier.CLOUD, file.cloud)):
        whole_s = here.seconds * of.dilation
        declared = (
            f"{of.speed}, declared" if of.speed else "this machine" if of.dilation == 1 else "declared as a dilation"
        )
        short = of.speed and parse_speed(of.speed) > here.flops_per_s
        why = ", as fast as this machine can" if short else f", {of.dilation:.4g} times this machine's"
        lines.append(f"{tier}: {declared}; the whole model takes {whole_s * 1e3:.3g} ms{why}")
    return lines
