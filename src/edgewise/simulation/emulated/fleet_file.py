"""Defines `fleet.toml`: device classes and links of an emulated fleet.

[cloud]
dilation = 1.0
[edges]
count = 2
speed = "10 GFLOP/s"
link = { rate = "50 Mbit/s", rtt = "20 ms" }
[devices]
per_edge = 4
trainers_per_edge = 3
speed = "200 MFLOP/s"
link = { rate = "20 Mbit/s", rtt = "5 ms" }

A class has a speed, then it is as fast on every machine that emulates it: its dilation follows from what the model
takes here (`class_speeds.py`). Or it has a dilation, then it is so many times slower than whichever machine that is.
"""

from __future__ import annotations

from typing import Any

import msgspec

from edgewise.core.ids import Tier


class LinkClass(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Describes a class of links.

    Attributes:
        rate: e.g. "20 Mbit/s", per direction.
        rtt: Round trip added, e.g. "5 ms".
        jitter: Added at random, one way.
        loss_fraction: Share of segments that need a retransmission.
    """

    rate: str = "20 Mbit/s"
    rtt: str = "5 ms"
    jitter: str = "0 ms"
    loss_fraction: float = 0.0


class CloudClass(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Describes the cloud node.

    Attributes:
        dilation: How many times slower than this machine it computes; what counts where no speed is declared.
        speed: How fast it runs the fleet's model, e.g. "10 GFLOP/s"; "" for none.
        active_power_w: Modelled power while computing.
    """

    dilation: float = 1.0
    speed: str = ""
    active_power_w: float = 60.0


class EdgeClass(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Describes the edges and their links to the cloud.

    Attributes:
        count: How many.
        dilation: How many times slower than this machine each computes; what counts where no speed is declared.
        speed: How fast it runs the fleet's model, e.g. "10 GFLOP/s"; "" for none.
        active_power_w: Modelled power while computing.
        link: To the cloud.
    """

    count: int = 2
    dilation: float = 4.0
    speed: str = ""
    active_power_w: float = 15.0
    link: LinkClass = LinkClass("50 Mbit/s", "20 ms")


class DeviceClass(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Describes the devices, their local engine and their links to a primary and a standby edge.

    Attributes:
        per_edge: Devices under each edge.
        trainers_per_edge: Of them, those that hold data and train.
        dilation: How many times slower than this machine each computes; what counts where no speed is declared.
        speed: How fast it runs the fleet's model, e.g. "200 MFLOP/s"; "" for none.
        active_power_w: Modelled power while computing.
        link: To each of its edges.
        standby: Whether it has a link to a second edge, too.
        engine: Of local training.
    """

    per_edge: int = 4
    trainers_per_edge: int = 3
    dilation: float = 30.0
    speed: str = ""
    active_power_w: float = 3.0
    link: LinkClass = LinkClass("20 Mbit/s", "5 ms")
    standby: bool = True
    engine: str = "sequential"


class FleetFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Describes an emulated fleet.

    Attributes:
        name: Fleet name.
        task: Task file or `digits`.
        task_settings: Passed to the task.
        raw_may_reach: Outermost tier raw data may reach.
        cloud, edges, devices: The three tiers.
    """

    name: str = "emulated"
    task: str = "digits"
    task_settings: dict[str, Any] = {}
    raw_may_reach: Tier = Tier.DEVICE
    cloud: CloudClass = CloudClass()
    edges: EdgeClass = EdgeClass()
    devices: DeviceClass = DeviceClass()
