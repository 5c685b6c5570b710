"""What the virtual clock charges: transfers and local steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from edgewise.core.ids import ClientId
from edgewise.core.units import parse_duration, parse_rate
from edgewise.training.job import VirtualTable


@dataclass(frozen=True, slots=True)
class VirtualCosts:
    """Rates of links and devices. A transfer takes bytes / rate + half a round trip; clients do not share a link.

    Attributes:
        uplink_bytes_per_s: From a device.
        downlink_bytes_per_s: To a device.
        round_trip_s: Of that link.
        wan_bytes_per_s: Between edge and cloud, both ways.
        wan_round_trip_s: Of that link.
        step_s: One local step.
        slowdown: Factor on a client's steps, where it is not 1.
        link_slowdown: Factor on a client's transfers, where it is not 1.
    """

    uplink_bytes_per_s: float = 2.5e6
    downlink_bytes_per_s: float = 2.5e6
    round_trip_s: float = 0.005
    wan_bytes_per_s: float = 6.25e6
    wan_round_trip_s: float = 0.02
    step_s: float = 0.01
    slowdown: Mapping[ClientId, float] = field(default_factory=dict)
    link_slowdown: Mapping[ClientId, float] = field(default_factory=dict)

    def down_s(self, client: ClientId, size_bytes: int) -> float:
        """One transfer to a client, in seconds."""
        seconds = size_bytes / self.downlink_bytes_per_s + self.round_trip_s / 2
        return seconds * self.link_slowdown.get(client, 1.0) if self.link_slowdown else seconds

    def up_s(self, client: ClientId, size_bytes: int) -> float:
        """One transfer from a client, in seconds."""
        seconds = size_bytes / self.uplink_bytes_per_s + self.round_trip_s / 2
        return seconds * self.link_slowdown.get(client, 1.0) if self.link_slowdown else seconds

    def work_s(self, client: ClientId, num_steps: int) -> float:
        """Local steps of a client, in seconds."""
        return num_steps * self.step_s * self.slowdown.get(client, 1.0)

    def wan_s(self, size_bytes: int) -> float:
        """One transfer between edge and cloud, in seconds."""
        return size_bytes / self.wan_bytes_per_s + self.wan_round_trip_s / 2


FREE = VirtualCosts(
    uplink_bytes_per_s=float("inf"),
    downlink_bytes_per_s=float("inf"),
    round_trip_s=0.0,
    wan_bytes_per_s=float("inf"),
    wan_round_trip_s=0.0,
    step_s=0.0,
)
"""Nothing takes time: for tests of what happens, not when."""


def costs_of(table: VirtualTable) -> VirtualCosts:
    """Reads the costs of a job file.

    Args:
        table: Its `[virtual]`.

    Returns:
        The same in SI units.

    Raises:
        InputError: If a quantity is not written as one.
    """
    return VirtualCosts(
        uplink_bytes_per_s=parse_rate(table.uplink),
        downlink_bytes_per_s=parse_rate(table.downlink),
        round_trip_s=parse_duration(table.round_trip),
        wan_bytes_per_s=parse_rate(table.wan),
        wan_round_trip_s=parse_duration(table.wan_round_trip),
        step_s=parse_duration(table.step_time),
    )
