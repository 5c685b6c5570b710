"""The table state x fault: in which phase of which role each fault can meet a node, and why it cannot in the others.

A *place* is what a node is in: a phase of a role it has in the run (`client/working`, `new` before the first event), or where it has
none whether it is idle, being started, or down (`edge/starting`). A cell is a place and a kind of fault: `client/working/kill`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, NamedTuple

from edgewise.chaos.faults import FAULTS, Fault
from edgewise.chaos.virtual_fleet import VirtualFleet
from edgewise.core.ids import NodeId, Tier
from edgewise.testing.fleet import CLOUD, OPERATOR
from edgewise.training.protocols import make_protocol
from edgewise.training.protocols.protocol import CLIENT, COORDINATOR, EDGE, Role

PROTOCOLS: Mapping[str, Mapping[str, Any]] = {
    "synchronous": {},
    "hierarchical": {},
    "buffered": {"concurrency": 2, "buffer_size": 2},
    "gossip": {},
}
"""What campaigns run, with parameters of which no phase depends."""
WITH_QUORUM = frozenset(("synchronous", "hierarchical"))
"""Protocols whose rounds may go on without one of the clients."""
NEW, IDLE, STARTING, DOWN = "new", "idle", "starting", "down"
_TIERS = {COORDINATOR: Tier.CLOUD, EDGE: Tier.EDGE, CLIENT: Tier.DEVICE}


class Place(NamedTuple):
    """What a node is in.

    Attributes:
        role: A role by its name, with the protocol's where others have another; the node's tier where it has none.
        phase: Of the role.
        tier: Of the node.
        protocols: In whose runs it occurs.
    """

    role: str
    phase: str
    tier: Tier
    protocols: frozenset[str]

    def __str__(self) -> str:
        return f"{self.role}/{self.phase}"


@cache
def all_places() -> tuple[Place, ...]:
    """Every place there is, in the order of the roles' tables."""
    found, phases = [], {}
    for protocol in PROTOCOLS:
        for role_name, role in _roles(protocol).items():
            phases[_label(protocol, role_name)] = (_TIERS[role_name], (NEW, *role.phases))
    for label, (tier, of) in phases.items():
        users = frozenset(p for p in PROTOCOLS for name in _roles(p) if _label(p, name) == label)
        found += [Place(label, phase, tier, users) for phase in of]
    for tier in Tier:
        found += [Place(tier, phase, tier, frozenset(PROTOCOLS)) for phase in (IDLE, STARTING, DOWN)]
    return tuple(found)


def why_not(place: Place, kind: str) -> str:
    """Why a fault of some kind cannot meet a place; "" where it can."""
    hits = FAULTS[kind].hits
    if hits == "operator":
        return "" if place.tier is Tier.CLOUD else "what a liar sends meets the run as its coordinator has it"
    if place.phase == DOWN:
        return "a fault begins with something that its node does, and a node that is down does nothing"
    if hits == "spared" and place.tier is not Tier.DEVICE:
        return "who leaves is a device"
    if hits == "spared" and not place.protocols & WITH_QUORUM:
        return "a run without a quorum can spare nobody"
    return ""


@cache
def possible_cells() -> tuple[str, ...]:
    """Every cell that can occur."""
    return tuple(f"{place}/{kind}" for place in all_places() for kind in FAULTS if not why_not(place, kind))


@cache
def impossible_cells() -> Mapping[str, int]:
    """How many cells cannot occur, by the reason."""
    reasons = [why_not(place, kind) for place in all_places() for kind in FAULTS]
    return {reason: reasons.count(reason) for reason in dict.fromkeys(reasons) if reason}


def missing_cells(hit: Iterable[str]) -> tuple[str, ...]:
    """Cells that can occur and are not among those that were hit."""
    seen = frozenset(hit)
    return tuple(cell for cell in possible_cells() if cell not in seen)


def places_of(fleet: VirtualFleet, fault: Fault) -> list[str]:
    """What the node is in that a fault meets, one place for each role it has; of a liar's order the coordinator's."""
    node = CLOUD if fault.node == OPERATOR else NodeId(fault.node)
    tier = Tier.CLOUD if node == CLOUD else Tier.DEVICE if node.startswith("device-") else Tier.EDGE
    if node in fleet.down:
        return [f"{tier}/{DOWN if fleet.lanes[node].is_dead else STARTING}"]
    return [_place_of(driver) for driver in drivers_of(fleet, node)] or [f"{tier}/{IDLE}"]


def drivers_of(fleet: VirtualFleet, node: str) -> list[Any]:
    """The roles that a node has in runs."""
    if node == CLOUD:
        roles = fleet.coordinator.runs.roles
    elif node == OPERATOR or NodeId(node) not in fleet.training:
        return []
    else:
        roles = fleet.training[NodeId(node)].roles
    return [driver for _, driver in sorted(roles._drivers.items())]


def _place_of(driver: Any) -> str:
    phase = NEW if driver.state is None else str(driver.role.phase(driver.state))
    name = driver.protocol.spec.name
    return f"{_label(name, driver.role_name)}/{phase}"


@cache
def _label(protocol: str, role_name: str) -> str:
    """A role's name, with the protocol's where other protocols have other roles of that name and none the same."""
    made = {other: _roles(other)[role_name].make_step.__module__ for other in PROTOCOLS if role_name in _roles(other)}
    is_own = len(made) > 1 and list(made.values()).count(made[protocol]) == 1
    return f"{protocol} {role_name}" if is_own else role_name


@cache
def _roles(protocol: str) -> Mapping[str, Role]:
    return make_protocol({"name": protocol, **PROTOCOLS[protocol]}).roles
