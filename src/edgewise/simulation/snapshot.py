"""A virtual run between two instants as bytes, and back: what its nodes know, what is on the agenda, the blobs.

Parts are values and seeds are places in a tree, so this is all there is; a run that is restored ends to the last bit as the
one that was not interrupted. Only for undisturbed runs: those keep no logs and no outboxes.
"""

from __future__ import annotations

from typing import Any

import msgspec

from edgewise.core.ids import Digest, Generation
from edgewise.simulation.record import SimulatedRound
from edgewise.simulation.virtual_node import VirtualNode
from edgewise.simulation.virtual_run import VirtualRun
from edgewise.simulation.virtual_store import StoreContent
from edgewise.training.protocols.event_log import decode_event, encode_event
from edgewise.training.protocols.letters import AnyLetter, BlobName
from edgewise.training.protocols.messages import AnnounceWaiting, Refusal, Work

NodeKey = tuple[str, str]
"""Role and name."""


class _Node(msgspec.Struct, frozen=True, array_like=True):
    key: NodeKey
    state: bytes | None
    generation: Generation
    is_up: bool
    held: tuple[Digest, ...]
    delivered: tuple[Digest, ...]
    needed: tuple[Digest, ...]


class _Call(msgspec.Struct, frozen=True, array_like=True):
    """A call of the agenda; what it does not take is empty."""

    time_s: float
    name: str
    node: NodeKey
    generation: Generation
    to: NodeKey | None = None
    letter: AnyLetter | None = None
    event: bytes = b""
    made: tuple[BlobName, ...] = ()
    timer: tuple[str, str, str] | None = None
    count: int = 0


class RunSnapshot(msgspec.Struct, frozen=True):
    """What a run is between two instants."""

    now_s: float
    nodes: tuple[_Node, ...]
    calls: tuple[_Call, ...]
    works: tuple[tuple[NodeKey, Generation, Work], ...]
    timers: tuple[tuple[tuple[str, str, str], int], ...]
    store: StoreContent
    num_put: int
    num_bytes: tuple[int, int, int]
    records: tuple[SimulatedRound, ...]
    waited: tuple[AnnounceWaiting, ...]
    refusals: tuple[tuple[str, Refusal, int], ...]


def snapshot_of(run: VirtualRun) -> bytes:
    """A run as it is between two instants.

    Args:
        run: Undisturbed, not ended.

    Returns:
        What `restore` takes.
    """
    run._sweep()
    every = [node for nodes in run.nodes.values() for node in nodes.values()]
    return msgspec.msgpack.encode(
        RunSnapshot(
            run.agenda.now,
            tuple(_node(node) for node in every),
            tuple(_call(time, call.__name__, *args) for time, call, args in run.agenda.calls()),
            tuple((_key(node), generation, work) for node, generation, work in run._works),
            tuple(run._timers.items()),
            run.store.content(),
            run._num_put,
            (run._up_bytes, run._down_bytes, run._wan_bytes),
            tuple(run.records),
            tuple(action for action in run.announced if isinstance(action, AnnounceWaiting)),
            tuple((role, reason, num) for (role, reason), num in run.refusals.items()),
        )
    )


def restore(run: VirtualRun, data: bytes) -> None:
    """Puts a run that has not begun where another was; `carry_on` goes on with it.

    Args:
        run: Made of the same parts.
        data: As from `snapshot_of`.
    """
    found = msgspec.msgpack.decode(data, type=RunSnapshot)
    for each in found.nodes:
        node = _named(run, each.key)
        node.state = None if each.state is None else msgspec.msgpack.decode(each.state, type=node.part.state)
        node.generation, node.is_up = each.generation, each.is_up
        node.held, node.delivered, node.needed = frozenset(each.held), set(each.delivered), frozenset(each.needed)
    run.store.load(found.store)
    run.agenda.load(found.now_s, [(call.time_s, getattr(run, call.name), _args(run, call)) for call in found.calls])
    run._works[:] = [(_named(run, key), generation, work) for key, generation, work in found.works]
    run._timers = dict(found.timers)
    run._num_put = found.num_put
    run._up_bytes, run._down_bytes, run._wan_bytes = found.num_bytes
    run.records[:], run.announced[:] = found.records, found.waited
    run.refusals = {(role, reason): num for role, reason, num in found.refusals}


def _key(node: VirtualNode) -> NodeKey:
    return node.role, node.name


def _named(run: VirtualRun, key: NodeKey) -> VirtualNode:
    return run.nodes[key[0]][key[1]]


def _node(node: VirtualNode) -> _Node:
    state = None if node.state is None else msgspec.msgpack.encode(node.state)
    kept = (tuple(digests) for digests in (node.held, node.delivered, node.needed))
    return _Node(_key(node), state, node.generation, node.is_up, *kept)


def _call(time_s: float, name: str, node: VirtualNode, generation: Generation, *args: Any) -> _Call:
    """One of the four calls that an undisturbed run puts on its agenda."""
    about = (time_s, name, _key(node), generation)
    if name == "_arrive":
        receiver, letter, _ = args
        return _Call(*about, to=_key(receiver), letter=letter)
    if name == "_answered":
        event, letter = args
        return _Call(*about, letter=letter, event=encode_event(event))
    if name == "_worked":
        event, made = args
        return _Call(*about, event=encode_event(event), made=tuple(made))
    timer, count = args
    return _Call(*about, timer=timer, count=count)


def _args(run: VirtualRun, call: _Call) -> tuple[Any, ...]:
    first = (_named(run, call.node), call.generation)
    if call.to is not None and call.letter is not None:
        return (*first, _named(run, call.to), call.letter, call.letter.blobs)
    if call.letter is not None:
        return (*first, decode_event(call.event), call.letter)
    if call.event:
        return (*first, decode_event(call.event), list(call.made))
    return (*first, call.timer, call.count)
