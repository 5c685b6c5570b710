"""A peer that lies: an enrolled device, with a certificate of its own, that sends what no honest node sends.

Whatever it sends has to be refused, and no run may end otherwise because of it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import numpy as np

from edgewise.chaos.virtual_fleet import MALLORY, VirtualFleet
from edgewise.core.errors import EdgewiseError
from edgewise.core.ids import ClientId, NodeId, RoundNumber, digest_of
from edgewise.fleet.messages import LetterAck, RunLetter
from edgewise.fleet.node.node import Node
from edgewise.ledger.entry import Purpose
from edgewise.testing.fleet import CLOUD
from edgewise.training.protocols.letters import Address, BlobName, RunEnded, UpdateReport, WorkFailed, WorkOrder
from edgewise.training.protocols.protocol import CLIENT, COORDINATOR
from edgewise.training.protocols.run_spec import RunSpec
from edgewise.transport.loopback import LoopbackTransport

PEER = NodeId("device-m")
_TIMEOUT_S = 5.0
Craft = Callable[[VirtualFleet, int], Coroutine[Any, Any, None]]


async def _forge(fleet: VirtualFleet, draw: int) -> None:
    """Reports updates and failures in the name of every client, as large as true ones, for this round and the next."""
    for client in sorted(fleet.clients):
        for number in (fleet.round, fleet.round + 1):
            await _report(fleet, client, number, 8)
            failed = WorkFailed(
                run=fleet.spec.run,
                round=RoundNumber(number),
                client=ClientId(client),
                cause="it is said to",
                has_diverged=True,
            )
            await _say(fleet, CLOUD, "report", Address(COORDINATOR), failed, {})


async def _stale(fleet: VirtualFleet, draw: int) -> None:
    """Reports in its own name, though nobody asked it, for rounds that are over and to come."""
    for number in (0, 1, fleet.round, fleet.round + 5):
        await _report(fleet, MALLORY, number, 8)


async def _oversize(fleet: VirtualFleet, draw: int) -> None:
    """Announces blobs that nobody could keep, and one of a negative size."""
    for client in (MALLORY, *sorted(fleet.clients)[:1]):
        for size in (2**40, -1):
            blob = BlobName(digest_of(b"nothing"), size)
            await _say(fleet, CLOUD, "report", Address(COORDINATOR), _report_of(fleet, client, fleet.round, blob), {})


async def _wrong_tier(fleet: VirtualFleet, draw: int) -> None:
    """Gives devices orders, and tells them that the run has ended."""
    spec: RunSpec = fleet.spec
    for client in sorted(fleet.clients):
        node, to = NodeId(f"device-{client}"), Address(CLIENT, client)
        order = WorkOrder(spec=spec, round=RoundNumber(fleet.round + 1), client=ClientId(client), sections=())
        await _say(fleet, node, "control", to, order, {})
        await _say(fleet, node, "control", to, RunEnded(run=spec.run), {})


async def _replay(fleet: VirtualFleet, draw: int) -> None:
    """Sends what was sent before, byte by byte."""
    for parcel, arrive in tuple(fleet.links.remembered)[-12:]:
        arrive(parcel.content)


async def _readdress(fleet: VirtualFleet, draw: int) -> None:
    """Sends what was sent to a node to all others that offer such a service."""
    for parcel, _ in tuple(fleet.links.remembered)[-12:]:
        service = parcel.key.rpartition("/")[2]
        for name, node in sorted(fleet.nodes.items()):
            key = node.keys.service(name, service)
            if name in (parcel.receiver, parcel.sender) or name in fleet.down:
                continue
            transport = node.transport
            assert isinstance(transport, LoopbackTransport)
            for server in fleet.fabric.find(name, "serve", key):
                if server.owner is transport:
                    transport.answer_to(server, parcel.content, fleet.loop.create_future(), PEER)


async def _report(fleet: VirtualFleet, client: str, number: int, size: int) -> None:
    data = np.full(size, 1e6, np.float32).tobytes()
    letter = _report_of(fleet, client, number, BlobName(digest_of(data), len(data)))
    await _say(fleet, CLOUD, "report", Address(COORDINATOR), letter, {"0": np.frombuffer(data, np.uint8)})


def _report_of(fleet: VirtualFleet, client: str, number: int, blob: BlobName) -> UpdateReport:
    run, at = fleet.spec.run, RoundNumber(number)
    return UpdateReport(run=run, round=at, client=ClientId(client), update=blob, num_examples=10**6)


async def _say(fleet: VirtualFleet, node: NodeId, service: str, to: Address, letter: Any, tensors: Any) -> None:
    mallory = _peer(fleet)
    with contextlib.suppress(EdgewiseError):
        ack = await mallory.ask(
            node, service, RunLetter(to, letter), LetterAck, tensors, purpose=Purpose.TRAINING, timeout_s=_TIMEOUT_S
        )
        if ack.accepted and not isinstance(letter, RunEnded):
            fleet.taken.append(f"{node} takes {letter.key!r} of {PEER}")


def _peer(fleet: VirtualFleet) -> Node:
    return fleet.nodes[PEER]


CRAFTED: Mapping[str, Craft] = {
    "forge": _forge,
    "stale": _stale,
    "replay": _replay,
    "readdress": _readdress,
    "wrong tier": _wrong_tier,
    "oversize": _oversize,
}
