"""Faults that are aimed at a place: campaigns meet phases in which a node spends little as often as those in which it is for long."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import msgspec

from edgewise.chaos.cells import DOWN, STARTING, Place, all_places, why_not
from edgewise.chaos.faults import FAULTS, Fault
from edgewise.chaos.virtual_fleet import MALLORY
from edgewise.core.ids import Tier
from edgewise.testing.fleet import CLOUD, OPERATOR

if TYPE_CHECKING:
    from edgewise.chaos.campaign import Campaign

AIMED_SHARE = 0.5
"""Of campaigns that have an aimed fault beside the others."""
_LAST_MOMENT = 24
"""Of those in a place; most are among its first."""
_AWAY_S = 4.0
WAITING = "waiting"


def with_aim(rng: random.Random, campaign: Campaign) -> Campaign:
    """Adds to some campaigns a fault that meets a drawn place, and what brings a node there.

    Args:
        rng: Draws all of it.
        campaign: As drawn so far.

    Returns:
        The campaign.
    """
    if rng.random() >= AIMED_SHARE:
        return campaign
    place = rng.choice([place for place in all_places() if _nodes_in(place, campaign) and _kinds(place, campaign)])
    kind = rng.choice(_kinds(place, campaign))
    node = rng.choice(_nodes_in(place, campaign))
    first = _bringing(rng, place, node, campaign)
    is_liar, edge_of = FAULTS[kind].hits == "operator", campaign.edge_of
    if is_liar:
        edge_of = {**edge_of, MALLORY: ""}
    moment = 1 + int(rng.random() ** 3 * _LAST_MOMENT)
    seconds = round(0.01 + rng.random() ** 3 * FAULTS[kind].longest_s, 3)
    aimed = Fault(kind, OPERATOR if is_liar else node, moment, seconds, str(place))
    return msgspec.structs.replace(campaign, edge_of=edge_of, faults=(*campaign.faults, *first, aimed))


def _nodes_in(place: Place, campaign: Campaign) -> list[str]:
    """Nodes of a campaign that can be in a place."""
    if campaign.protocol["name"] not in place.protocols:
        return []
    if place.tier is Tier.CLOUD:
        return [CLOUD]
    if place.tier is Tier.EDGE:
        return sorted({edge for edge in campaign.edge_of.values() if edge})
    return [f"device-{client}" for client in campaign.clients]


def _kinds(place: Place, campaign: Campaign) -> list[str]:
    """Faults that can meet a place in a campaign."""
    kinds = [kind for kind in sorted(FAULTS) if not why_not(place, kind)]
    return kinds if campaign.quorum else [kind for kind in kinds if FAULTS[kind].hits != "spared"]


def _bringing(rng: random.Random, place: Place, node: str, campaign: Campaign) -> tuple[Fault, ...]:
    """What has a node be in a place that it is not in by itself."""
    away_s = round(0.5 + _AWAY_S * rng.random(), 3)
    if place.phase in (STARTING, DOWN):
        return (Fault("kill", node, 1 + int(rng.random() * 40), away_s),)
    if place.phase == WAITING:  # for a client that is not there when the run is submitted
        return (Fault("kill", f"device-{rng.choice(campaign.clients)}", 0, away_s),)
    return ()
