"""Faults that are aimed at a place: campaigns meet phases in which a node spends little as often as those in which it is for long."""

from __future__ import annotations

import random
from collections.abc import Mapping

from edgewise.chaos.cells import DOWN, STARTING, Place, all_places, why_not
from edgewise.chaos.faults import FAULTS, Fault
from edgewise.core.ids import Tier
from edgewise.testing.fleet import CLOUD, OPERATOR

AIMED_SHARE = 0.5
"""Of campaigns that have an aimed fault beside the others."""
_LAST_MOMENT = 24
"""Of those in a place; most are among its first."""
_AWAY_S = 4.0
WAITING = "waiting"


def aimed_faults(
    rng: random.Random, protocol: str, edge_of: Mapping[str, str], *, has_quorum: bool
) -> tuple[Fault, ...]:
    """Draws for some campaigns a fault that meets a drawn place, and what brings a node there.

    Args:
        rng: Draws all of it.
        protocol: The campaign's.
        edge_of: Edge of each client that takes part.
        has_quorum: Whether a client can be spared.

    Returns:
        The faults; none for the other campaigns.
    """
    if rng.random() >= AIMED_SHARE:
        return ()
    nodes = {place: _nodes_in(place, protocol, edge_of) for place in all_places()}
    kinds = {place: _kinds(place, has_quorum=has_quorum) for place in all_places()}
    place = rng.choice([place for place in all_places() if nodes[place] and kinds[place]])
    kind, node = rng.choice(kinds[place]), rng.choice(nodes[place])
    first = _bringing(rng, place, node, edge_of)
    moment = 1 + int(rng.random() ** 3 * _LAST_MOMENT)
    seconds = round(0.01 + rng.random() ** 3 * FAULTS[kind].longest_s, 3)
    return (
        *first,
        Fault(kind, OPERATOR if FAULTS[kind].hits == "operator" else node, moment, seconds, during=str(place)),
    )


def _nodes_in(place: Place, protocol: str, edge_of: Mapping[str, str]) -> list[str]:
    """Nodes of a campaign that can be in a place."""
    if protocol not in place.protocols:
        return []
    if place.tier is Tier.CLOUD:
        return [CLOUD]
    if place.tier is Tier.EDGE:
        return sorted({edge for edge in edge_of.values() if edge})
    return [f"device-{client}" for client in edge_of]


def _kinds(place: Place, *, has_quorum: bool) -> list[str]:
    """Faults that can meet a place in a campaign."""
    kinds = [kind for kind in sorted(FAULTS) if not why_not(place, kind)]
    return kinds if has_quorum else [kind for kind in kinds if FAULTS[kind].hits != "spared"]


def _bringing(rng: random.Random, place: Place, node: str, edge_of: Mapping[str, str]) -> tuple[Fault, ...]:
    """What has a node be in a place that it is not in by itself."""
    away_s = round(0.5 + _AWAY_S * rng.random(), 3)
    if place.phase in (STARTING, DOWN):
        return (Fault("kill", node, 1 + int(rng.random() * 40), away_s),)
    if place.phase == WAITING:  # for a client that is not there when the run is submitted
        return (Fault("kill", f"device-{rng.choice(sorted(edge_of))}", 0, away_s),)
    return ()
