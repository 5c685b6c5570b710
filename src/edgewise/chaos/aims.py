"""Faults that are aimed at a place: campaigns meet phases in which a node spends little as often as those in which it is for long."""

from __future__ import annotations

import random
from collections.abc import Mapping

from edgewise.chaos.cells import DOWN, IDLE, NEW, STARTING, Place, all_places, why_not
from edgewise.chaos.faults import FAULTS, Fault
from edgewise.core.ids import Tier
from edgewise.testing.fleet import CLOUD, OPERATOR

NUM_AIMED = (0, 1, 1, 2, 2)
"""How many aimed faults a campaign has beside the others; drawn from these."""
RARE_WEIGHT = 6.0
"""How much more often a cell is aimed at that hardly anything else brings about: of a role that one protocol has, of the
moment before its first event, or a liar's."""
_LAST_MOMENT, _LAST_BRIEF = 24, 5
"""Of those in a place, and in one that is soon left; most are among its first."""
_AWAY_S = 4.0
WAITING, ENDED = "waiting", "ended"
_BRIEF = frozenset((NEW, WAITING, ENDED))


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
    cells = [
        (place, kind)
        for place in all_places()
        if _nodes_in(place, protocol, edge_of)
        for kind in _kinds(place, has_quorum=has_quorum)
    ]
    weights = [_weight(place, kind) for place, kind in cells]
    found: list[Fault] = []
    for place, kind in rng.choices(cells, weights, k=rng.choice(NUM_AIMED)):
        found += _aimed(rng, place, kind, rng.choice(_nodes_in(place, protocol, edge_of)), edge_of)
    return tuple(found)


def _aimed(rng: random.Random, place: Place, kind: str, node: str, edge_of: Mapping[str, str]) -> tuple[Fault, ...]:
    """A fault that meets a place, after what brings a node there."""
    first = _bringing(rng, place, node, edge_of)
    moment = 1 + int(rng.random() ** 3 * (_LAST_BRIEF if place.phase in _BRIEF else _LAST_MOMENT))
    seconds = round(0.01 + rng.random() ** 3 * FAULTS[kind].longest_s, 3)
    if FAULTS[kind].hits != "operator":
        return (*first, Fault(kind, node, moment, seconds, during=str(place)))
    # The operator does little: moments are its coordinator's, or where that is down those of a device that misses it.
    whose = node if place.phase != DOWN else f"device-{rng.choice(sorted(edge_of))}"
    return (*first, Fault(kind, OPERATOR, moment, seconds, of=whose, during=str(place)))


def _weight(place: Place, kind: str) -> float:
    """How often a cell is aimed at, next to others."""
    is_lie = FAULTS[kind].hits == "operator"
    is_rare = len(place.protocols) == 1 or place.phase == NEW or (is_lie and place.phase != IDLE)
    return RARE_WEIGHT if is_rare else 1.0


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
