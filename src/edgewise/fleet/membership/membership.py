"""Folds the coordinator's view of the fleet, as a pure step.

Joining: the liveliness token is present, the node has not described itself yet; its description from before its last absence
is kept. Alive: it has described itself, and its worker progresses. Gone: the token is gone (killed in milliseconds, frozen or cut off
after the transport's lease; which of them shows when it is back: a new incarnation had ended, the same one had not).
Suspected: the token is there but the worker has work and its counter stands still, by far longer than it ever did
before it moved again, and than it says that this work may take. A node that comes back with a newer generation is alive again.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum

import msgspec

from edgewise.core.ids import Generation, NodeId, Tier
from edgewise.fleet.messages import NodeInfo, Progress

STALL_OBSERVATIONS = 10
"""Consecutive equal counters of a busy worker, asked once a second, until it is suspected."""
STALL_GAPS = 20
"""A worker that was seen to move after g seconds of standing still is given this many times g: slow is not hung."""


class NodeState(StrEnum):
    """Names the believed state of a node."""

    JOINING = "joining"
    ALIVE = "alive"
    GONE = "gone"
    SUSPECTED = "suspected"


class NodeAppeared(msgspec.Struct, frozen=True, tag=True):
    """Reports that a liveliness token appeared."""

    node: NodeId
    tier: Tier
    generation: Generation


class NodeVanished(msgspec.Struct, frozen=True, tag=True):
    """Reports that a liveliness token is gone."""

    node: NodeId
    generation: Generation


class NodeDescribed(msgspec.Struct, frozen=True, tag=True):
    """Reports the info of a node."""

    info: NodeInfo


class ProgressObserved(msgspec.Struct, frozen=True, tag=True):
    """Reports the progress counter of a node's worker."""

    node: NodeId
    progress: Progress


Event = NodeAppeared | NodeVanished | NodeDescribed | ProgressObserved


class AskInfo(msgspec.Struct, frozen=True, tag=True):
    """Orders a query of a node's info."""

    node: NodeId


class NodeLost(msgspec.Struct, frozen=True, tag=True):
    """Notifies that a node is lost."""

    node: NodeId
    cause: str


class NodeReady(msgspec.Struct, frozen=True, tag=True):
    """Notifies that a node is alive and known.

    Attributes:
        info: Who it is.
        after: What its absence was, now that it is over; "" the first time.
    """

    info: NodeInfo
    after: str = ""


Action = AskInfo | NodeLost | NodeReady


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownNode:
    """Holds the believed state of one node.

    Attributes:
        node, tier, generation: Who, where, which incarnation.
        state: What is believed.
        info: Its description of itself; None before it came.
        cause: Why it is not alive.
        counter: Its worker's, as last seen.
        stalls: Answers in a row without a move of the busy worker.
        longest_gap: Most stalls after which it did move.
        after: What its last absence was.
    """

    node: NodeId
    tier: Tier
    generation: Generation
    state: NodeState = NodeState.JOINING
    info: NodeInfo | None = None
    cause: str = ""
    counter: int = -1
    stalls: int = 0
    longest_gap: int = 0
    after: str = ""


@dataclass(frozen=True, slots=True)
class Membership:
    """Holds all nodes ever seen, by name."""

    members: dict[NodeId, KnownNode] = field(default_factory=dict)

    def alive(self, tier: Tier | None = None) -> tuple[KnownNode, ...]:
        """Returns the members that are alive and described, in the order of their names."""
        return tuple(
            m
            for _, m in sorted(self.members.items())
            if m.state is NodeState.ALIVE and (tier is None or m.tier is tier)
        )

    def has(self, node: NodeId, generation: Generation) -> bool:
        """Returns whether a node is present in this incarnation."""
        member = self.members.get(node)
        return member is not None and member.generation == generation and member.state is not NodeState.GONE


def step(state: Membership, event: Event) -> tuple[Membership, tuple[Action, ...]]:
    """Folds one event into the view of the fleet.

    Args:
        state: The view so far.
        event: What happened.

    Returns:
        The next view, and what to do.
    """
    match event:
        case NodeAppeared(node, tier, generation):
            known = state.members.get(node)
            if known is not None and (
                known.generation > generation or (known.generation == generation and known.state is not NodeState.GONE)
            ):
                return state, ()
            info = None if known is None else known.info
            joining = KnownNode(
                node=node, tier=tier, generation=generation, info=info, after=_absence(known, generation)
            )
            return _with(state, joining), (AskInfo(node),)
        case NodeVanished(node, generation):
            known = state.members.get(node)
            if known is None or known.generation != generation or known.state is NodeState.GONE:
                return state, ()
            cause = f"{node} is unreachable: its liveliness token is gone (process ended, frozen or cut off)"
            return _with(state, replace(known, state=NodeState.GONE, cause=cause)), (NodeLost(node, cause),)
        case NodeDescribed(info):
            known = state.members.get(info.node)
            if known is None or known.generation > info.generation:
                return state, ()
            described = replace(known, info=info, generation=info.generation, after="")
            if known.state is NodeState.GONE:  # it left again while it was asked; its next token asks anew
                return _with(state, described), ()
            here = NodeState.ALIVE if known.state is NodeState.JOINING else known.state
            return _with(state, replace(described, state=here)), (NodeReady(info, known.after),)
        case ProgressObserved(node, progress):
            return _observe(state, node, progress)


def _observe(state: Membership, node: NodeId, progress: Progress) -> tuple[Membership, tuple[Action, ...]]:
    known = state.members.get(node)
    if known is None or known.state not in (NodeState.ALIVE, NodeState.SUSPECTED):
        return state, ()
    moved = progress.counter != known.counter or not progress.busy
    stalls = 0 if moved else known.stalls + 1
    gap = max(known.longest_gap, known.stalls) if moved else known.longest_gap
    observed = replace(known, counter=progress.counter, stalls=stalls, longest_gap=gap)
    if moved:
        back = known.state is NodeState.SUSPECTED and known.info is not None
        observed = replace(observed, state=NodeState.ALIVE, cause="")
        return _with(state, observed), ((NodeReady(known.info, "its worker hung"),) if back and known.info else ())
    patience = max(STALL_OBSERVATIONS, STALL_GAPS * gap, progress.patience)
    if stalls >= patience and known.state is NodeState.ALIVE:
        cause = (
            f"{node} answers but its worker hangs: counter {progress.counter} did not move over "
            f"{stalls} answers while it was to {progress.work or 'work'}"
        )
        return _with(state, replace(observed, state=NodeState.SUSPECTED, cause=cause)), (NodeLost(node, cause),)
    return _with(state, observed), ()


def _absence(known: KnownNode | None, generation: Generation) -> str:
    if known is None:
        return ""
    return "it was frozen or cut off" if known.generation == generation else "it was started again"


def _with(state: Membership, member: KnownNode) -> Membership:
    return Membership({**state.members, member.node: member})
