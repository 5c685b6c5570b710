"""What a node must not be able to do, over a loopback fleet with real identities: refused, counted, answered; rounds go on."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgewise.codecs.bundle import CodedBundle, CodedSection, bundle_to_bytes, encode_bundle
from edgewise.core.errors import IdentityRefused, RemoteError, Unreachable
from edgewise.core.ids import ClientId, Digest, NodeId, RoundNumber, RunId, digest_of
from edgewise.core.provenance import RAW, traced
from edgewise.fleet.messages import Ack, FleetRequest, LetterAck, NodeInfo, RunLetter
from edgewise.fleet.node.delivery import is_passing
from edgewise.fleet.node.node import Node
from edgewise.fleet.training.local_worker import LocalWorker
from edgewise.ledger.entry import Purpose
from edgewise.testing import LoopbackFleet
from edgewise.training.protocols.letters import (
    Address,
    AnyLetter,
    BlobName,
    RunEnded,
    SumReport,
    UpdateReport,
    WorkFailed,
    WorkOrder,
)
from edgewise.training.protocols.messages import Refusal
from edgewise.transport.frame import Frame, make_frame

EDGE_OF = {"a": "edge-1", "b": "edge-1", "c": "edge-1"}
WORDS = {"name": "fed_avg"}
PROTOCOLS = ("synchronous", "hierarchical")
NUM_ENTRIES = 8 * 8 + 3
LIAR = NodeId("device-b")


class Order:
    """An order that `device-b` took, and what it sends back."""

    def __init__(self, node: Node, letter: WorkOrder, sender: NodeId) -> None:
        self.node, self.letter, self.server = node, letter, sender

    def update(self, values: Any = None, client: str = "b", **fields: Any) -> tuple[UpdateReport, bytes]:
        """An update of zeros, or of other values."""
        values = np.zeros(NUM_ENTRIES, np.float32) if values is None else values
        coded, _ = encode_bundle({}, {"model": values}, None, np.random.default_rng(0))
        data = bundle_to_bytes(coded)
        known: dict[str, Any] = {"num_examples": 20, "update": BlobName(digest_of(data), len(data))}
        run, number = self.letter.spec.run, self.letter.round
        return UpdateReport(run=run, round=number, client=ClientId(client), **{**known, **fields}), data

    def bundle(self, arrays: Any) -> tuple[UpdateReport, bytes]:
        """An update whose bundle says that it is a model, and has these arrays."""
        data = bundle_to_bytes(CodedBundle((CodedSection("model", (NUM_ENTRIES,)),), arrays))
        return self.update(update=BlobName(digest_of(data), len(data)))[0], data

    async def send(self, letter: UpdateReport, data: bytes | None) -> LetterAck:
        """Sends it to whoever gave the order."""
        to = Address("coordinator" if self.server == "cloud" else "edge", self.server)
        tensors = {} if data is None else {"0": np.frombuffer(data, np.uint8)}
        return await say(self.node, self.server, to, letter, tensors)


async def say(node: Node, server: NodeId, to: Address, letter: AnyLetter, tensors: Any = ()) -> LetterAck:
    return await node.ask(server, "report", RunLetter(to, letter), LetterAck, tensors, purpose=Purpose.TRAINING)


Answering = Callable[[Order], Awaitable[None]]


async def trained(folder: Path, protocol: str, answering: Answering) -> tuple[Any, LoopbackFleet]:
    """A run in which `device-b` answers orders by `answering` instead of training; quorum 2 of 3."""
    async with LoopbackFleet(folder, edge_of=EDGE_OF) as fleet:
        liar = fleet.nodes[LIAR]

        async def take(message: RunLetter, _: Frame, sender: NodeInfo) -> LetterAck:
            if isinstance(message.letter, WorkOrder):
                liar.spawn(answering(Order(liar, message.letter, sender.node)), "answer")
            return LetterAck()

        liar.route("control", RunLetter, take)
        status = await fleet.train(WORDS, num_rounds=2, protocol=protocol, quorum=2)
        return status, fleet


BAD_UPDATES: dict[str, tuple[Callable[[Order], tuple[UpdateReport, bytes | None]], str]] = {
    "not finite": (
        lambda order: order.update(np.full(NUM_ENTRIES, np.nan, np.float32)),
        "entry 0 .* is nan",
    ),
    "misshaped": (
        lambda order: order.update(np.zeros(NUM_ENTRIES + 1, np.float32)),
        r"must have shape \(67,\), found \(68,\)",
    ),
    "of another type": (
        lambda order: order.update(np.zeros(NUM_ENTRIES, np.int64)),
        "must be float32, found int64",
    ),
    "no bundle at all": (
        lambda order: (order.update(update=BlobName(digest_of(b"x"), 1))[0], b"x"),
        "are not a bundle",
    ),
    "arrays of no section": (
        lambda order: order.bundle({"model/plain": np.zeros(NUM_ENTRIES, np.float32), "x/plain": np.zeros(9, np.int8)}),
        r"arrays \['x/plain'\] of a bundle belong to none",
    ),
    "a section twice": (
        lambda order: order.bundle(
            {f"model/{part}": np.zeros(NUM_ENTRIES, np.float32) for part in ("plain", "values")}
        ),
        r"came as it is and coded, with \['plain', 'values'\]",
    ),
    "negative examples": (lambda order: order.update(num_examples=-3), "examples|weight"),
    "bytes of another digest": (lambda order: (order.update()[0], b"y" * 300), "which they are not"),
    "a blob it does not have": (
        lambda order: (order.update(update=BlobName(Digest("0" * 64), 300))[0], None),
        "is not in this node's store",
    ),
    "a blob too large": (
        lambda order: (order.update(update=BlobName(Digest("0" * 64), 10**12))[0], None),
        "of at most",
    ),
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("kind", sorted(BAD_UPDATES))
def test_a_bad_update_is_refused_its_node_quarantined_and_the_round_goes_on(kind, protocol, tmp_path):
    make, text = BAD_UPDATES[kind]
    answers: list[LetterAck] = []

    async def lie(order: Order) -> None:
        answers.append(await order.send(*make(order)))

    status, _ = asyncio.run(trained(tmp_path, protocol, lie))
    assert (answers[0].accepted, answers[0].refusal) == (False, Refusal.INVALID)
    assert [r.num_updates for r in status.rounds] == [2, 2]
    assert status.rounds[0].missing["b"].startswith("in quarantine: ")
    assert re.search(text, status.rounds[0].missing["b"])
    assert len(answers) == 1  # it is asked no more


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_report_for_another_client_is_refused_and_its_signer_quarantined(protocol, tmp_path, caplog):
    refusals: list[RemoteError] = []

    async def lie(order: Order) -> None:
        with pytest.raises(RemoteError, match="its report is in the name of 'a'") as caught:
            await order.send(*order.update(client="a"))
        refusals.append(caught.value)

    with caplog.at_level(logging.WARNING, "edgewise.fleet"):
        status, fleet = asyncio.run(trained(tmp_path, protocol, lie))
    server = fleet.nodes[NodeId("cloud" if protocol == "synchronous" else "edge-1")]
    assert refusals[0].fields["remote_code"] == IdentityRefused.code
    assert server.refused["a report of device-b in the name of client a"] == 1
    assert "'device-b' holds the data of client 'b', its report is in the name of 'a'" in caplog.text
    assert [r.num_updates for r in status.rounds] == [2, 2]
    assert "in the name of 'a'" in status.rounds[0].missing["b"]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_task_that_raises_is_a_dropout_with_its_cause(protocol, tmp_path, monkeypatch):
    whole = LocalWorker._update

    def broken(self: LocalWorker, *order: Any) -> Any:
        if self.client == "b":
            raise ValueError("the sensor is unplugged")
        return whole(self, *order)

    async def run() -> Any:
        async with LoopbackFleet(tmp_path, edge_of=EDGE_OF) as fleet:
            return await fleet.train(WORDS, num_rounds=1, protocol=protocol, quorum=2)

    monkeypatch.setattr(LocalWorker, "_update", broken)
    status = asyncio.run(run())
    assert (
        status.rounds[0]
        .missing["b"]
        .startswith("its task raised ValueError: the sensor is unplugged (test_adversaries.py:")
    )


def test_a_forged_sender_a_replay_and_an_order_of_a_device_change_nothing(tmp_path):
    async def run() -> None:
        async with LoopbackFleet(tmp_path, edge_of=EDGE_OF) as fleet:
            cloud, liar = fleet.nodes[NodeId("cloud")], fleet.nodes[LIAR]
            key = cloud.keys.service(cloud.name, "control")
            guard = liar.transport.guard  # type: ignore[attr-defined]

            async def forge() -> Frame:
                """Asks in the operator's name, signed by device-b."""
                guard.node = NodeId("operator")
                try:
                    return await liar.transport.query(key, make_frame("fleet_request", FleetRequest()), timeout_s=5.0)
                finally:
                    guard.node = LIAR

            with pytest.raises(RemoteError, match="claims to be from 'operator' and is signed by"):
                await forge()
            assert cloud.refused["fleet_request in the name of operator"] == 1
            with pytest.raises(RemoteError, match="'device-b' is a device, 'fleet_request' is taken from cloud only"):
                await liar.ask(cloud.name, "control", FleetRequest(), Ack)
            assert cloud.refused["fleet_request by device-b, a device"] == 1
            taken: list[bytes] = []
            operator_guard = fleet.operator.node.transport.guard  # type: ignore[attr-defined]
            operator_guard.tap = taken.append
            await fleet.operator.nodes()
            operator_guard.tap = None
            server = fleet.fabric.find(LIAR, "serve", key)[0]
            again = await fleet.fabric.ask(liar.transport, server, taken[0])  # type: ignore[arg-type]
            assert b"is replayed: the newest taken is" in again

    asyncio.run(run())


def test_an_answer_in_another_nodes_name_does_not_count(tmp_path):
    async def run() -> None:
        async with LoopbackFleet(tmp_path, edge_of=EDGE_OF) as fleet:
            edge, liar, device = (fleet.nodes[NodeId(n)] for n in ("edge-1", "device-b", "device-a"))
            key = edge.keys.service(device.name, "lies")

            async def lie(question: Frame) -> Frame:
                return make_frame("ack", Ack(), purpose=question.purpose)

            await liar.transport.serve(key, lie)
            with pytest.raises(IdentityRefused, match="'device-b' answers what 'device-a' was asked"):
                await edge.ask(device.name, "lies", FleetRequest(), Ack)
            liar.transport.guard.node = device.name  # type: ignore[attr-defined]
            with pytest.raises(IdentityRefused, match="claims to be from 'device-a' and is signed by"):
                await edge.ask(device.name, "lies", FleetRequest(), Ack)
            liar.transport.guard.node = LIAR  # type: ignore[attr-defined]
            assert edge.refused["an answer in the name of device-a"] == 2

    asyncio.run(run())


def test_a_sum_in_another_edges_name_is_refused(tmp_path):
    async def run() -> None:
        async with LoopbackFleet(tmp_path, edge_of={**EDGE_OF, "d": "edge-2"}) as fleet:
            edge = fleet.nodes[NodeId("edge-2")]
            report = SumReport(
                run=RunId("r"), round=RoundNumber(1), assignment=1, edge=NodeId("edge-1"),
                sums=BlobName(Digest("0" * 64), 1), contributions={},
            )  # fmt: skip
            with pytest.raises(RemoteError, match="'edge-2' forwards a sum in the name of 'edge-1'"):
                await say(edge, NodeId("cloud"), Address("coordinator"), report)
            assert fleet.nodes[NodeId("cloud")].refused["a sum of edge-2 in the name of edge-1"] == 1

    asyncio.run(run())


def test_an_order_of_a_device_is_refused(tmp_path):
    async def run() -> None:
        async with LoopbackFleet(tmp_path, edge_of=EDGE_OF) as fleet:
            liar, device = fleet.nodes[LIAR], fleet.nodes[NodeId("device-a")]
            message = RunLetter(Address("client", "a"), RunEnded(run=RunId("r")))
            with pytest.raises(RemoteError, match="'device-b' is a device; 'ended' is taken from cloud or edge only"):
                await liar.ask(device.name, "control", message, LetterAck, purpose=Purpose.TRAINING)
            assert device.refused["an order of device-b, a device"] == 1

    asyncio.run(run())


def test_a_node_that_cannot_be_asked_who_it_is_is_told_to_try_again(tmp_path):
    async def run() -> None:
        async with LoopbackFleet(tmp_path, edge_of=EDGE_OF) as fleet:
            cloud, device = fleet.nodes[NodeId("cloud")], fleet.nodes[NodeId("device-a")]
            cloud._known.clear()
            await device.detach()
            failed = WorkFailed(run=RunId("r"), round=RoundNumber(1), client=ClientId("a"), cause="")
            with pytest.raises(RemoteError, match="cloud cannot ask 'device-a' for its certificate") as caught:
                await say(device, cloud.name, Address("coordinator"), failed)
            assert caught.value.fields["remote_code"] == Unreachable.code
            assert is_passing(caught.value)

    asyncio.run(run())


def test_what_the_policy_lets_go_and_what_it_refuses_is_counted(tmp_path):
    async def run() -> None:
        async with LoopbackFleet(tmp_path, edge_of=EDGE_OF) as fleet:
            device = fleet.nodes[NodeId("device-a")]
            raw = {"x": traced(np.zeros(4, np.float32), RAW)}
            with pytest.raises(Exception, match="data of class 'raw' may not leave its device"):
                await device.ask(NodeId("edge-1"), "report", FleetRequest(), Ack, raw)
            refused = [(e.data_class, e.granted, e.num_frames) for e in device.audit.entries]
            assert refused == [("raw", False, 1)]
            await fleet.train(WORDS, num_rounds=1)
            went = [(e.data_class, e.granted) for e in device.audit.entries]
            assert ("raw", True) not in went

    asyncio.run(run())


def test_metrics_without_a_mean_and_letters_without_end_stop_no_round(tmp_path):
    answers: list[LetterAck] = []

    async def run() -> Any:
        async with LoopbackFleet(tmp_path, edge_of=dict.fromkeys("abcd", "")) as fleet:
            for client, metrics in (
                ("b", {"loss": 1e308}),
                ("c", {"loss": -1e308}),
                ("d", dict.fromkeys(map(str, range(9999)), 1.0)),
            ):
                lies(fleet.nodes[NodeId(f"device-{client}")], client, metrics)
            return await fleet.train(WORDS, num_rounds=2, quorum=3, protocol="synchronous")

    def lies(liar: Node, client: str, metrics: dict[str, float]) -> None:
        async def take(message: RunLetter, _: Frame, sender: NodeInfo) -> LetterAck:
            if isinstance(message.letter, WorkOrder):
                order = Order(liar, message.letter, sender.node)
                letter, data = order.update(client=client, metrics=metrics)
                liar.spawn(say_so(order, letter, data), "answer")
            return LetterAck()

        liar.route("control", RunLetter, take)

    async def say_so(order: Order, letter: UpdateReport, data: bytes) -> None:
        answers.append(await order.send(letter, data))

    status = asyncio.run(run())
    assert [r.num_updates for r in status.rounds] == [3, 3]
    assert all(np.isfinite(r.loss) for r in status.rounds)
    assert "a client's letter" in status.rounds[0].missing["d"]
    assert [answer.accepted for answer in answers].count(False) == 1
