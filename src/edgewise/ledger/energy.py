"""Computes energy in joules, by a printed model or from the processor's counter; every number names its source.

A model is `P_active · CPU seconds + P_idle · (wall − CPU) + joules/byte · bytes`; read `kpis.py` next.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from edgewise.core.errors import InputError
from edgewise.core.ids import Tier

MEASURED = "measured"
MODELLED = "modelled"


class EnergyModel(msgspec.Struct, frozen=True):
    """Holds the assumed power of one kind of node.

    Attributes:
        active_power_w: While one core computes.
        idle_power_w: While the node waits, charged to the run for its wall time.
        joules_per_byte_up: Radio or port, per byte sent.
        joules_per_byte_down: The same per byte received.
    """

    active_power_w: float
    idle_power_w: float = 0.0
    joules_per_byte_up: float = 0.0
    joules_per_byte_down: float = 0.0


class Energy(msgspec.Struct, frozen=True, kw_only=True):
    """Holds an amount of energy and its source.

    Attributes:
        joules: The sum.
        source: `measured` or `modelled`; a sum of both is `modelled`.
        compute_j: Part of it for computing.
        idle_j: For waiting.
        network_j: For bytes.
    """

    joules: float
    source: str = MODELLED
    compute_j: float = 0.0
    idle_j: float = 0.0
    network_j: float = 0.0

    def __add__(self, other: Energy) -> Energy:
        return Energy(
            joules=self.joules + other.joules,
            source=self.source if self.source == other.source else MODELLED,
            compute_j=self.compute_j + other.compute_j,
            idle_j=self.idle_j + other.idle_j,
            network_j=self.network_j + other.network_j,
        )


ENERGY_MODELS: dict[Tier, EnergyModel] = {
    Tier.DEVICE: EnergyModel(4.0, 1.9, 1.0e-7, 0.5e-7),
    Tier.EDGE: EnergyModel(15.0, 6.0, 1.0e-8, 1.0e-8),
    Tier.CLOUD: EnergyModel(25.0, 0.0, 1.0e-8, 1.0e-8),
}
"""Assumed kinds, for comparing plans and not for bills: a single-board computer on Wi-Fi, a small fanless server, one core of a rack server.

Edit them in the job's `[energy]` table; the report prints whatever was used.
"""


def modelled_energy(
    model: EnergyModel,
    *,
    cpu_seconds: float,
    wall_seconds: float = 0.0,
    sent_bytes: float = 0,
    received_bytes: float = 0,
) -> Energy:
    """Computes energy by the model.

    Args:
        model: Of the node.
        cpu_seconds: Processor time it used; on a dilated node the stretched time.
        wall_seconds: How long the run lasted; time above `cpu_seconds` is idle.
        sent_bytes: It sent.
        received_bytes: It received.

    Returns:
        The sum and its parts, labelled `modelled`.

    Raises:
        InputError: If a quantity is negative.

    Example:
        >>> modelled_energy(EnergyModel(4.0, 2.0, 1e-7), cpu_seconds=1, wall_seconds=3, sent_bytes=1_000_000).joules
        8.1
    """
    if min(cpu_seconds, wall_seconds, sent_bytes, received_bytes) < 0:
        raise InputError(
            f"energy of {cpu_seconds} CPU s, {wall_seconds} s, {sent_bytes} and {received_bytes} bytes: none may be negative. "
            "Take differences of a later and an earlier reading."
        )
    compute = model.active_power_w * cpu_seconds
    idle = model.idle_power_w * max(0.0, wall_seconds - cpu_seconds)
    network = model.joules_per_byte_up * sent_bytes + model.joules_per_byte_down * received_bytes
    return Energy(joules=compute + idle + network, source=MODELLED, compute_j=compute, idle_j=idle, network_j=network)


def printed(models: Mapping[Tier, EnergyModel]) -> dict[str, dict[str, float]]:
    """Returns the parameters as the report prints them.

    Args:
        models: By tier.

    Returns:
        By tier and name.
    """
    return {str(tier): msgspec.to_builtins(model) for tier, model in models.items()}


class ProcessorCounter:
    """Reads the processor's energy counter (RAPL, through Linux powercap) for the whole machine.

    So it is a node's energy only where one node runs on the machine; elsewhere print it beside the model.
    """

    def __init__(self, root: Path = Path("/sys/class/powercap")) -> None:
        self._packages = sorted(p for p in root.glob("intel-rapl:*") if p.name.count(":") == 1)

    def read(self) -> dict[str, tuple[int, int]] | None:
        """Reads every package's counter.

        Returns:
            By package (µJ, µJ at which it wraps); None where there is no counter or it may not be read.
        """
        found = {}
        for package in self._packages:
            try:
                now = int((package / "energy_uj").read_text())
                wraps = int((package / "max_energy_range_uj").read_text())
            except (OSError, ValueError):
                return None
            found[package.name] = (now, wraps)
        return found or None


def measured_energy(
    before: Mapping[str, tuple[int, int]] | None, after: Mapping[str, tuple[int, int]] | None
) -> Energy | None:
    """Computes the energy between two readings of `ProcessorCounter`, at most one wrap apart.

    Args:
        before: First reading.
        after: Second reading.

    Returns:
        The energy, labelled `measured`; None if either reading is missing or the packages differ.
    """
    if before is None or after is None or set(before) != set(after):
        return None
    joules = sum((after[name][0] - before[name][0]) % (after[name][1] + 1) for name in before) / 1e6
    return Energy(joules=joules, source=MEASURED, compute_j=joules)
