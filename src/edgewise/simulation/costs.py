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
    """

    uplink_bytes_per_s: float = 2.5e6
    downlink_bytes_per_s: float = 2.5e6
    round_trip_s: float = 0.005
    wan_bytes_per_s: float = 6.25e6
    wan_round_trip_s: float = 0.02
    step_s: float = 0.01
    slowdown: Mapping[ClientId, float] = field(default_factory=dict)

    def client_s(self, client: ClientId, down_bytes: int, num_steps: int, up_bytes: int) -> float:
        """From asking a client to its update's arrival.

        Args:
            client: Who.
            down_bytes: Size of the model it receives.
            num_steps: Local steps it does.
            up_bytes: Size of its update.

        Returns:
            Seconds.
        """
        work = num_steps * self.step_s * self.slowdown.get(client, 1.0)
        return down_bytes / self.downlink_bytes_per_s + work + up_bytes / self.uplink_bytes_per_s + self.round_trip_s

    def wan_s(self, size_bytes: int) -> float:
        """One transfer between edge and cloud, in seconds."""
        return size_bytes / self.wan_bytes_per_s + self.wan_round_trip_s / 2


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
