"""Reading what is another's by its digest: refused by its client, its edge and the coordinator, and counted; graphs go to all."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from edgewise.core.errors import IdentityRefused, PolicyViolation, RemoteError
from edgewise.core.ids import Digest, NodeId
from edgewise.fleet.messages import BlobRef, GraphAnswer, RunLetter
from edgewise.fleet.node.blob_grants import NOT_NAMED, BlobGrants
from edgewise.fleet.node.delivery import is_passing
from edgewise.fleet.node.node import Node
from edgewise.testing import LoopbackFleet
from edgewise.training.protocols.letters import AnyLetter, BlobName, PeerShare, UpdateReport
from edgewise.transport.bulk.blobs import FolderBlobs
from edgewise.transport.bulk.fetch import fetch_blob

WIDE = {"hidden": 2500}
"""A model of 80 kB: more than travels in a frame, so that it is pulled."""


async def pull(thief: Node, holder: Node, blob: BlobName, folder: Path) -> bytes:
    """Asks a node for a blob, as its server would."""
    mine = FolderBlobs(folder / uuid4().hex)
    key = holder.keys.service(holder.name, "blob")
    await fetch_blob(thief.transport, key, blob.digest, blob.size_bytes, mine)
    return mine.read(blob.digest)


def letters_of(fleet: LoopbackFleet, sort: type) -> list[AnyLetter]:
    """Letters of a sort that any node sends from now on."""
    seen: list[AnyLetter] = []
    for node in fleet.nodes.values():

        def look(message: Any, to: NodeId, *more: Any, name: Any = node.grants.name) -> None:
            if isinstance(message, RunLetter) and isinstance(message.letter, sort):
                seen.append(message.letter)
            name(message, to, *more)

        node.grants.name = look  # type: ignore[method-assign]
    return seen


def kept(fleet: LoopbackFleet) -> None:
    """Lets blobs stay after their round, so that a thief who is late finds them."""
    for node in fleet.nodes.values():
        node.blobs.drop = lambda digest: None  # type: ignore[method-assign]


async def refused(thief: Node, holder: Node, blob: BlobName, folder: Path) -> None:
    assert holder.blobs.has(blob.digest)
    with pytest.raises(RemoteError, match=f"is not for '{thief.name}'") as caught:
        await pull(thief, holder, blob, folder)
    assert caught.value.fields["remote_code"] == PolicyViolation.code
    assert holder.refused[f"a blob that is not for {thief.name}"] >= 1


@pytest.mark.parametrize("protocol", ["synchronous", "hierarchical"])
def test_an_update_is_given_to_its_server_alone(protocol, tmp_path):
    async def run() -> None:
        async with LoopbackFleet(tmp_path, edge_of=dict.fromkeys("ab", "edge-1"), settings=WIDE) as fleet:
            updates = letters_of(fleet, UpdateReport)
            kept(fleet)
            await fleet.train({"name": "fed_avg"}, num_rounds=1, protocol=protocol)
            device, other, edge, cloud = (fleet.nodes[NodeId(n)] for n in ("device-a", "device-b", "edge-1", "cloud"))
            update = next(letter.update for letter in updates if letter.client == "a")
            server, stranger = (edge, cloud) if protocol == "hierarchical" else (cloud, edge)
            await refused(other, device, update, tmp_path / "thief")
            await refused(other, server, update, tmp_path / "thief")
            await refused(stranger, device, update, tmp_path / "thief")
            assert len(await pull(server, device, update, tmp_path / "server")) == update.size_bytes
            assert (
                len(await pull(device, server, update, tmp_path / "back")) == update.size_bytes
            )  # its own, should it lose it

    asyncio.run(run())


def test_a_share_is_given_to_the_neighbour_it_is_for(tmp_path):
    async def run() -> None:
        async with LoopbackFleet(tmp_path, edge_of=dict.fromkeys("abcd", ""), settings=WIDE) as fleet:
            shares = letters_of(fleet, PeerShare)
            kept(fleet)
            await fleet.train({"name": "fed_avg"}, num_rounds=1, protocol={"name": "gossip", "num_rings": 1})
            share = next(letter for letter in shares if letter.sender == "a")
            sender, receiver = fleet.nodes[NodeId("device-a")], fleet.nodes[NodeId(f"device-{share.receiver}")]
            others = [fleet.nodes[NodeId(f"device-{c}")] for c in "bcd" if c != share.receiver]
            await refused(others[0], sender, share.share, tmp_path / "thief")
            await refused(fleet.nodes[NodeId("cloud")], receiver, share.share, tmp_path / "thief")
            assert await pull(receiver, sender, share.share, tmp_path / "receiver")

    asyncio.run(run())


def test_who_asks_for_a_blob_is_proved(tmp_path):
    async def run() -> None:
        async with LoopbackFleet(tmp_path, edge_of={"a": "", "b": ""}) as fleet:
            cloud, liar = fleet.nodes[NodeId("cloud")], fleet.nodes[NodeId("device-b")]
            digest = cloud.blobs.put(b"for device-a")
            cloud.grants._named[digest] = frozenset((NodeId("device-a"),))
            blob, guard = BlobName(digest, 12), liar.transport.guard  # type: ignore[attr-defined]
            guard.node = NodeId("device-a")
            with pytest.raises(RemoteError, match="claims to be from 'device-a' and is signed by") as caught:
                await pull(liar, cloud, blob, tmp_path / "thief")
            assert caught.value.fields["remote_code"] == IdentityRefused.code
            guard.sign, sign = None, guard.sign
            with pytest.raises(RemoteError, match="is not signed"):
                await pull(liar, cloud, blob, tmp_path / "thief")
            guard.node, guard.sign = NodeId("device-b"), sign
            cloud.grants.open(digest)  # as the graph of a model
            assert await pull(liar, cloud, blob, tmp_path / "thief") == b"for device-a"

    asyncio.run(run())


def test_a_blob_that_is_not_named_yet_is_asked_for_again(tmp_path):
    async def run() -> None:
        async with LoopbackFleet(tmp_path, edge_of={"a": ""}) as fleet:
            cloud, device = fleet.nodes[NodeId("cloud")], fleet.nodes[NodeId("device-a")]
            ref = BlobRef(cloud.blobs.put(b"named after a restart"), 21, cloud.name)
            with pytest.raises(RemoteError) as caught:
                await device.pull(ref)
            assert caught.value.fields["reason"] == NOT_NAMED
            assert is_passing(caught.value)

    asyncio.run(run())


def test_a_digest_never_leads_out_of_the_folder(tmp_path):
    async def run() -> None:
        async with LoopbackFleet(tmp_path, edge_of={"a": ""}) as fleet:
            cloud, device = fleet.nodes[NodeId("cloud")], fleet.nodes[NodeId("device-a")]
            (tmp_path / "secret").write_bytes(b"secret")
            for name in (
                "../../../secret",
                str(tmp_path / "secret"),
                "..%2f..%2fsecret",
                "A" * 64,
                "0" * 64 + "\0",
                "",
            ):
                cloud.grants.open(Digest(name))  # even where the policy grants it
                with pytest.raises(Exception, match="is not a digest"):
                    await fetch_unchecked(device, cloud, name)

    asyncio.run(run())


async def fetch_unchecked(thief: Node, holder: Node, name: str) -> None:
    from edgewise.ledger.entry import Purpose
    from edgewise.transport.bulk.fetch import ChunkRequest
    from edgewise.transport.frame import make_frame

    frame = make_frame("chunk_request", ChunkRequest(Digest(name), 0, 6), purpose=Purpose.BULK)
    await thief.transport.query(holder.keys.service(holder.name, "blob"), frame, timeout_s=5.0)


def test_what_was_named_is_forgotten_with_its_blob(tmp_path):
    blobs = FolderBlobs(tmp_path)
    grants = BlobGrants(blobs)
    for number in range(1000):
        digest = blobs.put(bytes([number % 256, number // 256]), durable=False)
        grants.name(GraphAnswer(BlobRef(digest, 2, NodeId("cloud"))), NodeId("device-a"))
        blobs.drop(digest)
    assert len(grants._named) <= 64
    assert not grants.may_have(NodeId("device-b"), digest)
