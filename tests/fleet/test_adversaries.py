"""What a node must not be able to do, over a loopback fleet with real identities: refused, counted, answered; rounds go on."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from edgewise.core.errors import IdentityRefused, RemoteError, Unreachable
from edgewise.core.ids import ClientId, Digest, NodeId, RoundNumber, RunId, Tier
from edgewise.core.provenance import RAW, traced
from edgewise.fleet.messages import Ack, BlobRef, EdgeSum, FleetRequest, TrainFailed, TrainOrder, UpdateReport
from edgewise.fleet.node.delivery import is_passing
from edgewise.fleet.node.node import Node
from edgewise.fleet.training.trainer import Trainer
from edgewise.ledger.entry import Purpose
from edgewise.testing import LoopbackFleet
from edgewise.training.protocols.regions import SumReport
from edgewise.transport.frame import Frame, make_frame

HOMES = {"a": "edge-1", "b": "edge-1", "c": "edge-1"}
WORDS = {"name": "fed_avg"}
PROTOCOLS = ("synchronous", "hierarchical")
NUM_ENTRIES = 8 * 8 + 3
LIAR = NodeId("device-b")
Answering = Callable[[Node, TrainOrder], Awaitable[None]]


def update(order: TrainOrder, client: str = "b", weight: float = 20.0, **fields: Any) -> UpdateReport:
    return UpdateReport(order.run, order.round, ClientId(client), weight, {}, (NUM_ENTRIES,), **fields)


async def send(node: Node, order: TrainOrder, report: UpdateReport, values: Any = None) -> Ack:
    values = np.zeros(NUM_ENTRIES, np.float32) if values is None else values
    return await node.ask(
        order.report_to, "report", report, Ack, {"values": values}, purpose=Purpose.TRAINING, run=order.run
    )


async def trained(folder: Path, protocol: str, answering: Answering) -> tuple[Any, LoopbackFleet]:
    """A run in which `device-b` answers orders by `answering` instead of training; quorum 2 of 3."""
    async with LoopbackFleet(folder, homes=HOMES) as fleet:
        liar = fleet.nodes[LIAR]

        async def take(order: TrainOrder, frame: Frame, _: Any) -> Ack:
            liar.spawn(answering(liar, order), "answer")
            return Ack()

        liar.route("control", TrainOrder, take, Tier.EDGE, Tier.CLOUD)
        status = await fleet.train(WORDS, num_rounds=2, protocol=protocol, quorum_fraction=0.6)
        return status, fleet


BAD_UPDATES = {
    "not finite": (lambda order: update(order), np.full(NUM_ENTRIES, np.nan, np.float32), "entry 0 of the update is nan"),
    "misshaped": (
        lambda order: msgspec.structs.replace(update(order), shape=(NUM_ENTRIES + 1,)),
        np.zeros(NUM_ENTRIES + 1, np.float32),
        r"has shape \(67,\), found \(68,\)",
    ),
    "a weight that counts nothing": (lambda order: update(order, weight=float("nan")), None, "weight"),
    "a blob of another node": (
        lambda order: update(order, payload=BlobRef(Digest("0" * 64), 300, NodeId("device-a"))),
        None,
        "it was to announce its own",
    ),
    "a blob too large": (
        lambda order: update(order, payload=BlobRef(Digest("0" * 64), 10**12, LIAR)), None, "of at most"
    ),
}  # fmt: skip


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("kind", sorted(BAD_UPDATES))
def test_a_bad_update_is_refused_its_node_quarantined_and_the_round_goes_on(kind, protocol, tmp_path):
    make, values, text = BAD_UPDATES[kind]
    answers: list[Ack] = []

    async def lie(node: Node, order: TrainOrder) -> None:
        answers.append(await send(node, order, make(order), values))

    status, _ = asyncio.run(trained(tmp_path, protocol, lie))
    assert (answers[0].accepted, answers[0].details["reason"]) == (False, "invalid")
    assert [r.num_updates for r in status.rounds] == [2, 2]
    assert status.rounds[0].missing["b"].startswith("in quarantine: ")
    assert re.search(text, status.rounds[0].missing["b"])
    assert len(answers) == 1  # it is asked no more


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_report_for_another_client_is_refused_and_its_signer_quarantined(protocol, tmp_path, caplog):
    refusals: list[RemoteError] = []

    async def lie(node: Node, order: TrainOrder) -> None:
        with pytest.raises(RemoteError, match="its report is in the name of 'a'") as caught:
            await send(node, order, update(order, client="a"))
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
    whole = Trainer._update

    def broken(self: Trainer, *order: Any) -> Any:
        if self.client == "b":
            raise ValueError("the sensor is unplugged")
        return whole(self, *order)

    async def run() -> Any:
        async with LoopbackFleet(tmp_path, homes=HOMES) as fleet:
            return await fleet.train(WORDS, num_rounds=1, protocol=protocol, quorum_fraction=0.6)

    monkeypatch.setattr(Trainer, "_update", broken)
    status = asyncio.run(run())
    assert status.rounds[0].missing == {"b": "its task raised ValueError: the sensor is unplugged"}


def test_a_forged_sender_a_replay_and_an_order_of_a_device_change_nothing(tmp_path):
    async def run() -> None:
        async with LoopbackFleet(tmp_path, homes=HOMES) as fleet:
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
        async with LoopbackFleet(tmp_path, homes=HOMES) as fleet:
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
        async with LoopbackFleet(tmp_path, homes={**HOMES, "d": "edge-2"}) as fleet:
            edge = fleet.nodes[NodeId("edge-2")]
            report = SumReport(RunId("r"), RoundNumber(1), 1, NodeId("edge-1"), Digest("0" * 64), {})
            message = EdgeSum(report, BlobRef(Digest("0" * 64), 1, edge.name))
            with pytest.raises(RemoteError, match="'edge-2' forwards a sum in the name of 'edge-1'"):
                await edge.ask(NodeId("cloud"), "report", message, Ack, purpose=Purpose.TRAINING)
            assert fleet.nodes[NodeId("cloud")].refused["a sum of edge-2 in the name of edge-1"] == 1

    asyncio.run(run())


def test_a_node_that_cannot_be_asked_who_it_is_is_told_to_try_again(tmp_path):
    async def run() -> None:
        async with LoopbackFleet(tmp_path, homes=HOMES) as fleet:
            cloud, device = fleet.nodes[NodeId("cloud")], fleet.nodes[NodeId("device-a")]
            cloud._known.clear()
            await device.detach()
            failed = TrainFailed(RunId("r"), RoundNumber(1), ClientId("a"), "")
            with pytest.raises(RemoteError, match="cloud cannot ask 'device-a' for its certificate") as caught:
                await device.ask(cloud.name, "report", failed, Ack)
            assert caught.value.fields["remote_code"] == Unreachable.code
            assert is_passing(caught.value)

    asyncio.run(run())


def test_what_the_policy_lets_go_and_what_it_refuses_is_counted(tmp_path):
    async def run() -> None:
        async with LoopbackFleet(tmp_path, homes=HOMES) as fleet:
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
