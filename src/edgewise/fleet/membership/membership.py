"""Folds the coordinator's view of the fleet, as a pure step.

A liveliness token proves nothing, anybody in the fleet may declare one: it only has the node asked. A description does, for it
is signed in the incarnation it speaks of (`Node.info_of`), and only that makes a node alive or a newer incarnation take its place.

Joining: a token is present, the node has not proved itself yet; its description from before its last absence is kept.
Alive: it has, and its worker progresses. Gone: the token of its proved incarnation is gone (killed in milliseconds, frozen or cut off
after the transport's lease; which of them shows when it is back: a new incarnation had ended, the same one had not), or it is
there and nobody answers for it any more. Suspected: the worker has work and its counter stands still, by far longer than it ever did
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
MOST_CLAIMS = 16
"""Tokens of one name that are remembered beside its proved one; the oldest are forgotten first."""
Token = tuple[Tier, Generation]
"""What a liveliness token claims."""


class NodeState(StrEnum):
    """Names the believed state of a node."""

    JOINING = "joining"
    ALIVE = "alive"
    GONE = "gone"
    SUSPECTED = "suspected"


_PRESENT = (NodeState.ALIVE, NodeState.SUSPECTED)


class NodeAppeared(msgspec.Struct, frozen=True, tag=True):
    """Reports that a liveliness token appeared."""

    node: NodeId
    tier: Tier
    generation: Generation


class NodeVanished(msgspec.Struct, frozen=True, tag=True):
    """Reports that a liveliness token is gone."""

    node: NodeId
    tier: Tier
    generation: Generation


class NodeDescribed(msgspec.Struct, frozen=True, tag=True):
    """Reports the info of a node, which proved it."""

    info: NodeInfo


class NodeUnanswered(msgspec.Struct, frozen=True, tag=True):
    """Reports that nobody proves to be a node, however often it was asked, though its token is there."""

    node: NodeId
    generation: Generation


class ProgressObserved(msgspec.Struct, frozen=True, tag=True):
    """Reports the progress counter of a node's worker."""

    node: NodeId
    progress: Progress


Event = NodeAppeared | NodeVanished | NodeDescribed | NodeUnanswered | ProgressObserved


class AskInfo(msgspec.Struct, frozen=True, tag=True):
    """Orders that a node be asked to prove itself, while `Membership.is_open` says that there is something to prove."""

    node: NodeId


class TellDisplaced(msgspec.Struct, frozen=True, tag=True):
    """Orders that an older incarnation, which is still there, be told that a newer one proved itself."""

    node: NodeId
    newer: Generation


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


Action = AskInfo | TellDisplaced | NodeLost | NodeReady


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownNode:
    """Holds the believed state of one node.

    Attributes:
        node, tier, generation: Who, where, which incarnation proved itself; 0 before one has.
        state: What is believed.
        tokens: Its tokens that are there, as they came.
        info: Its description of itself; None before it came.
        cause: Why it is not alive.
        counter: Its worker's, as last seen.
        stalls: Answers in a row without a move of the busy worker.
        longest_gap: Most stalls after which it did move.
    """

    node: NodeId
    tier: Tier
    generation: Generation
    state: NodeState = NodeState.JOINING
    tokens: tuple[Token, ...] = ()
    info: NodeInfo | None = None
    cause: str = ""
    counter: int = -1
    stalls: int = 0
    longest_gap: int = 0


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
        """Returns whether a node is present in this incarnation, proved."""
        member = self.members.get(node)
        return member is not None and member.generation == generation and member.state in _PRESENT

    def is_open(self, node: NodeId) -> bool:
        """Returns whether a token of a node claims more than what is proved: that it is there, or a newer incarnation."""
        member = self.members.get(node)
        return member is not None and any(
            claimed > member.generation or (claimed == member.generation and member.state not in _PRESENT)
            for _, claimed in member.tokens
        )


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
            return _appeared(state, node, (tier, generation))
        case NodeVanished(node, tier, generation):
            return _vanished(state, node, (tier, generation))
        case NodeDescribed(info):
            return _described(state, info)
        case NodeUnanswered(node, generation):
            known = state.members.get(node)
            if known is None or known.generation != generation or known.state not in _PRESENT:
                return state, ()
            return _lost(state, known, f"{node} is unreachable: its liveliness token is there, nobody answers for it")
        case ProgressObserved(node, progress):
            return _observe(state, node, progress)


def _appeared(state: Membership, node: NodeId, token: Token) -> tuple[Membership, tuple[Action, ...]]:
    known = state.members.get(node) or KnownNode(node=node, tier=token[0], generation=Generation(0))
    if token in known.tokens:
        return state, ()
    proved = tuple(each for each in known.tokens if each == (known.tier, known.generation))
    claimed = tuple(each for each in known.tokens if each not in proved)
    known = replace(known, tokens=(*proved, *claimed[-MOST_CLAIMS + 1 :], token))
    if known.state is NodeState.GONE and token[1] >= known.generation:
        known = replace(known, state=NodeState.JOINING, cause="")
    state = _with(state, known)
    if known.state in _PRESENT and token[1] < known.generation:
        return state, (TellDisplaced(node, known.generation),)
    return state, ((AskInfo(node),) if state.is_open(node) else ())


def _vanished(state: Membership, node: NodeId, token: Token) -> tuple[Membership, tuple[Action, ...]]:
    known = state.members.get(node)
    if known is None or token not in known.tokens:
        return state, ()
    known = replace(known, tokens=tuple(each for each in known.tokens if each != token))
    if known.state in _PRESENT and token == (known.tier, known.generation):
        state, actions = _lost(
            state, known, f"{node} is unreachable: its liveliness token is gone (process ended, frozen or cut off)"
        )
        return state, (*actions, *((AskInfo(node),) if state.is_open(node) else ()))
    if known.state is NodeState.JOINING and not known.tokens:
        if known.info is None:  # it never proved that it exists
            return Membership({name: each for name, each in state.members.items() if name != node}), ()
        known = replace(known, state=NodeState.GONE, cause=f"{node} left again before it proved itself")
    return _with(state, known), ()


def _described(state: Membership, info: NodeInfo) -> tuple[Membership, tuple[Action, ...]]:
    known = state.members.get(info.node)
    if known is None or info.generation < known.generation or (info.tier, info.generation) not in known.tokens:
        return state, ()  # of a former incarnation, or it left while it was asked; its next token asks anew
    if known.state in _PRESENT and known.generation == info.generation:
        return _with(state, replace(known, info=info)), ()
    has_older = any(claimed < info.generation for _, claimed in known.tokens)
    alive = KnownNode(
        node=info.node,
        tier=info.tier,
        generation=info.generation,
        state=NodeState.ALIVE,
        tokens=known.tokens,
        info=info,
    )
    displaced = (TellDisplaced(info.node, info.generation),) if has_older else ()
    return _with(state, alive), (*displaced, NodeReady(info, _absence(known, info.generation)))


def _lost(state: Membership, known: KnownNode, cause: str) -> tuple[Membership, tuple[Action, ...]]:
    return _with(state, replace(known, state=NodeState.GONE, cause=cause)), (NodeLost(known.node, cause),)


def _observe(state: Membership, node: NodeId, progress: Progress) -> tuple[Membership, tuple[Action, ...]]:
    known = state.members.get(node)
    if known is None or known.state not in _PRESENT:
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


def _absence(known: KnownNode, generation: Generation) -> str:
    if known.info is None:
        return ""
    return "it was frozen or cut off" if known.generation == generation else "it was started again"


def _with(state: Membership, member: KnownNode) -> Membership:
    return Membership({**state.members, member.node: member})
