"""The nodes of a virtual run, and what may go wrong with them and their letters."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from edgewise.core.ids import Digest, Generation
from edgewise.training.protocols.letters import Address, AnyLetter
from edgewise.training.protocols.messages import Event
from edgewise.training.protocols.protocol import Role, Step

FIRST_GENERATION = Generation(1)


class Disturbance:
    """What goes wrong in a run; this one disturbs nothing but has everything logged and delivered until acknowledged."""

    def fate(self, node: VirtualNode, letter: AnyLetter) -> tuple[float, ...]:
        """Extra seconds of each copy of a letter, or of its answer; () loses it."""
        return (0.0,)

    def kills(self, node: VirtualNode, event: Event) -> bool:
        """Whether the node dies after the event is logged, before anything is made of it."""
        return False


@dataclass(slots=True, eq=False)
class VirtualNode:
    """One role on one node.

    Attributes:
        role: `coordinator`, `edge` or `client`.
        name: The edge's or the client's; "" for the coordinator.
        address: Both.
        part: The protocol's role.
        step: Its step, bound to algorithm and blobs.
        state: The fold of its log.
        generation: Incarnation; grows when it is started again.
        is_up: Whether letters arrive.
        log: Its events, where a run is disturbed.
        outbox: Letters that are not acknowledged, where a run is disturbed.
        held: Section blobs that it received last; they are not sent to it again.
        delivered: Blobs it need not send any more.
        needed: What it needed at the last sweep.
    """

    role: str
    name: str
    part: Role
    step: Step
    address: Address
    state: Any = None
    generation: Generation = FIRST_GENERATION
    is_up: bool = True
    log: list[Event] = field(default_factory=list)
    outbox: dict[tuple[Address, str], AnyLetter] = field(default_factory=dict)
    held: frozenset[Digest] = frozenset()
    delivered: set[Digest] = field(default_factory=set)
    needed: frozenset[Digest] = frozenset()
