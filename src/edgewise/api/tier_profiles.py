"""What the tiers cost where only this machine is at hand: one profile measured here, stretched by a fleet file."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import msgspec

from edgewise.core.errors import DataError
from edgewise.core.ids import NodeId, Tier
from edgewise.core.units import parse_duration, parse_rate
from edgewise.core.unreadable import UNREADABLE
from edgewise.planning.profile import LinkState, Profile

if TYPE_CHECKING:
    from edgewise.api.source import Source
    from edgewise.models.graph.graph import Graph
    from edgewise.simulation.emulated.fleet_file import FleetFile

T = TypeVar("T")


def stretched(profile: Profile, tier: Tier, dilation: float, power_w: float) -> Profile:
    """A profile of this machine as that of a slower one.

    Args:
        profile: Measured here, undilated.
        tier: Whom it shall stand for.
        dilation: How many times slower segments run; codecs and overhead are not stretched.
        power_w: Modelled power while computing.

    Returns:
        The profile.
    """
    change = msgspec.structs.replace
    groups = (change(g, seconds=g.seconds * dilation, p95_seconds=g.p95_seconds * dilation) for g in profile.groups)
    segments = (
        change(
            s, seconds=s.seconds * dilation, p95_seconds=s.p95_seconds * dilation, mad_seconds=s.mad_seconds * dilation
        )
        for s in profile.segments
    )
    return change(
        profile,
        node=NodeId(f"emulated-{tier}"),
        tier=tier,
        groups=tuple(groups),
        segments=tuple(segments),
        active_power_w=power_w,
        call_s=profile.call_s * dilation,
        fingerprint=change(profile.fingerprint, dilation=dilation),
    )


def read_profiles(paths: Sequence[Path]) -> dict[Tier, Profile]:
    """Reads profiles that `edgewise profile --out` wrote.

    Args:
        paths: Files.

    Returns:
        By tier.

    Raises:
        DataError: If a file is no profile.
    """
    found = {}
    for path in paths:
        try:
            read = msgspec.json.decode(path.read_bytes(), type=Profile)
        except UNREADABLE as error:
            raise DataError(
                f"{str(path)!r} is not a profile: {error}. Make one with 'edgewise profile --out'."
            ) from error
        found[read.tier] = read
    return found


def links_of(file: FleetFile) -> tuple[LinkState, LinkState]:
    """The links a fleet file declares: device–edge, edge–cloud.

    Args:
        file: The fleet file.
    """
    from edgewise.fleet.node.probe import JOULES_PER_BYTE

    first, second = (
        LinkState(parse_rate(link.rate), parse_duration(link.rtt), joules_per_byte=JOULES_PER_BYTE)
        for link in (file.devices.link, file.edges.link)
    )
    return first, second


def measure_tiers(
    graph: Graph, file: FleetFile, source: Source, budget_s: float, given: Mapping[Tier, Profile]
) -> dict[Tier, Profile]:
    """Profiles the model here, once, and stretches the result to the tiers that have no profile of their own.

    Args:
        graph: The model.
        file: Dilation and power of each tier.
        source: Real inputs.
        budget_s: Time to measure for.
        given: Profiles that were measured elsewhere.

    Returns:
        A profile for each tier; nothing is measured where all are given.
    """
    from edgewise.inference.evidence import CODECS
    from edgewise.inference.profiler import profile_graph

    tiers = {
        Tier.DEVICE: (file.devices.dilation, file.devices.active_power_w),
        Tier.EDGE: (file.edges.dilation, file.edges.active_power_w),
        Tier.CLOUD: (file.cloud.dilation, file.cloud.active_power_w),
    }
    missing = [tier for tier in tiers if tier not in given]
    if not missing:
        return dict(given)
    here = off_the_loop(
        lambda: profile_graph(
            graph, NodeId("local"), Tier.DEVICE, budget_s=budget_s, codecs=CODECS, inputs=source.example(0)
        )
    )
    return {**{tier: stretched(here, tier, *tiers[tier]) for tier in missing}, **given}


def off_the_loop(work: Callable[[], T]) -> T:
    """Does work that runs an event loop of its own, also where one is running already: in a notebook's cell.

    Args:
        work: What to do; on a thread of its own if it must be.

    Returns:
        What it returns.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return work()
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()
