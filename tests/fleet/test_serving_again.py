"""What a node serves is on its disk: after a restart it serves all its models again, unasked; and how many it takes."""

from __future__ import annotations

import asyncio
import logging
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from edgewise.core.errors import Busy, InputError, StoreError
from edgewise.core.ids import NodeId, Revision, Tier
from edgewise.fleet.messages import (
    BlobRef,
    ExampleCountsRequest,
    Feedback,
    HealthRequest,
    InForce,
    InstallOrder,
    NodesAt,
    UninstallOrder,
)
from edgewise.fleet.node.blob_grants import BlobGrants
from edgewise.fleet.node.settings import AgentSettings
from edgewise.fleet.serving.device_model import EndpointModels
from edgewise.fleet.serving.drift_watch import CollectOrder
from edgewise.fleet.serving.serving_role import Serving
from edgewise.inference.serving_node import device_only_plan
from edgewise.planning.plan import Site
from edgewise.service.served_model import find_model
from edgewise.transport.bulk.blobs import FolderBlobs
from edgewise.transport.frame import Frame
from edgewise.transport.keys import Keys
from tests.inference.tiny import images, split_plan, two_exit_graph

GRAPHS = {"digits": two_exit_graph(), "faces": two_exit_graph(seed=1)}
CLOUD, EDGE = NodeId("cloud"), Site(Tier.EDGE)
FRAME = Frame(kind="install_order", sender=CLOUD)


def role(folder: Path, tier: Tier, **settings: Any) -> Serving:
    """The serving role of a node that reaches nobody."""
    blobs = FolderBlobs(folder / "blobs")

    async def fetch(ref: BlobRef) -> bytes:
        return blobs.read(ref.digest)

    node: Any = SimpleNamespace(
        name=NodeId(f"{tier}-1"), blobs=blobs, grants=BlobGrants(blobs), fetch=fetch, pull=fetch, holders={}, spare=asyncio.Event(), keys=Keys("test"), coordinator=None, uplink_to=lambda name: None,
        spawn=lambda work, name: asyncio.get_running_loop().create_task(work),
    )  # fmt: skip
    return Serving(node, AgentSettings(name=node.name, tier=tier, identity="", state=str(folder), **settings))


def order(serving: Serving, model: str, revision: int = 64, version: int = 3) -> InstallOrder:
    graph = GRAPHS[model]
    ref = BlobRef(serving.node.blobs.put(graph.model_bytes), len(graph.model_bytes), CLOUD)
    plan, at = split_plan(graph, threshold=0.01), (NodesAt(EDGE, (NodeId("edge-1"),)),)
    return InstallOrder(model, version, ref, (plan,), Revision(revision), at, deadline_s=7.0)


async def first_life(folder: Path, tier: Tier) -> dict[str, InstallOrder]:
    """A node installs a plan of each of two models, then its process ends."""
    serving = role(folder, tier)
    orders = {"digits": order(serving, "digits"), "faces": order(serving, "faces", 128, 4)}
    await asyncio.gather(*(serving.install(o, FRAME) for o in orders.values()))
    await serving.close()
    return orders


@pytest.mark.parametrize("tier", [Tier.DEVICE, Tier.EDGE])
def test_a_node_serves_again_all_that_it_served(tier: Tier, tmp_path: Path) -> None:
    async def run() -> None:
        orders = await first_life(tmp_path, tier)
        serving = role(tmp_path, tier)
        assert serving.in_force() == {}
        await serving.resume()
        assert serving.in_force() == {
            "digits": InForce(3, Revision(64), orders["digits"].digest),
            "faces": InForce(4, Revision(128), orders["faces"].digest),
        }
        assert serving.node.coordinator == CLOUD
        for model in serving.models.values():
            answer = await model.served.infer({"x": images(1)})
            assert (str(answer.observation.source), answer.observation.deadline_s) == ("plan", 7.0)
        if serving.host is not None:
            assert serving.host.revisions == (64, 128)
        await serving.close()

    asyncio.run(run())


def test_a_device_at_another_edge_asks_that_one_first(tmp_path: Path) -> None:
    async def run() -> None:
        await first_life(tmp_path, Tier.DEVICE)
        serving = role(tmp_path, Tier.DEVICE)
        await serving.resume()
        serving.ask_first(NodeId("edge-2"))
        assert serving.models["faces"].served._peers.at(EDGE).usable() == ("edge-2", "edge-1")
        await serving.close()

    asyncio.run(run())


def spoil(path: Path) -> None:
    path.write_bytes(b"half a f")


def lose_the_models(path: Path) -> None:
    for blob in (path.parent / "blobs").rglob("*"):
        if blob.is_file():
            blob.unlink()


@pytest.mark.parametrize(
    ("damage", "warns"),
    [(Path.unlink, False), (lose_the_models, False), (spoil, True)],
    ids=["new", "no model", "broken"],
)
def test_what_is_not_there_or_broken_is_waited_for(
    damage: Any, warns: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        await first_life(tmp_path, Tier.DEVICE)
        damage(tmp_path / "serving.msgpack")
        serving = role(tmp_path, Tier.DEVICE)
        await serving.resume()
        assert serving.in_force() == {}
        await serving.close()

    with caplog.at_level(logging.WARNING, "edgewise.fleet"):
        asyncio.run(run())
    assert any("waits for its coordinator" in r.getMessage() for r in caplog.records) == warns


def test_who_asks_for_a_model_that_is_fetched_again_is_told_to_come_back(tmp_path: Path) -> None:
    async def run() -> None:
        orders = await first_life(tmp_path, Tier.DEVICE)
        graph = tmp_path / "blobs" / orders["digits"].graph.digest
        graph.write_bytes(graph.read_bytes()[:-1])
        serving = role(tmp_path, Tier.DEVICE)
        await serving.resume()
        assert list(serving.in_force()) == ["faces"]
        assert serving._device is not None
        with pytest.raises(Busy, match="has no active plan yet"):
            await serving._device.infer({"x": images(1)}, model="digits")
        with pytest.raises(Busy, match="'digits' is not ready"):
            find_model(serving._device.models, "digits")
        again = order(serving, "digits")
        await serving.install(again, FRAME)
        assert (await serving._device.infer({"x": images(1)}, model="digits")).observation.version == again.version
        await serving.close()

    asyncio.run(run())


def test_a_deployment_has_the_same_name_everywhere_and_another_model_another_name(tmp_path: Path) -> None:
    device, edge = (asyncio.run(first_life(tmp_path / str(tier), tier))["digits"] for tier in (Tier.DEVICE, Tier.EDGE))
    assert device.digest == edge.digest
    other = BlobRef(GRAPHS["faces"].digest, 1, CLOUD)
    assert InstallOrder("digits", 3, other, device.plans, device.revision).digest != device.digest


@pytest.mark.parametrize("tier", [Tier.DEVICE, Tier.EDGE])
def test_what_is_uninstalled_is_gone_for_good_and_the_others_stay(tier: Tier, tmp_path: Path) -> None:
    async def run() -> None:
        await first_life(tmp_path, tier)
        serving = role(tmp_path, tier)
        await serving.resume()
        await serving.uninstall(UninstallOrder("digits"), FRAME)
        assert list(serving.in_force()) == ["faces"]
        await serving.close()
        again = role(tmp_path, tier)
        await again.resume()
        assert list(again.in_force()) == ["faces"]
        await again.close()

    asyncio.run(run())


@pytest.mark.parametrize("tier", [Tier.DEVICE, Tier.EDGE])
@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"max_models": 1}, r"serves 1 models \(digits\) and takes no more, so not 'faces'"),
        (
            {"models_bytes": 3 * len(GRAPHS["digits"].model_bytes)},
            r"'faces' with 1 plans needs about .* on \w+-1, where .* of .* for models are taken",
        ),
    ],
    ids=["number", "bytes"],
)
def test_a_model_without_room_is_refused_and_the_others_are_served(
    settings: Any, text: str, tier: Tier, tmp_path: Path
) -> None:
    async def run() -> None:
        serving = role(tmp_path, tier, **settings)
        assert (await serving.install(order(serving, "digits"), FRAME)).accepted
        ack = await serving.install(order(serving, "faces", 128), FRAME)
        assert re.search(text, ack.reason), ack.reason
        assert (await serving.install(order(serving, "digits", 192, 5), FRAME)).accepted
        assert serving.in_force()["digits"].version == 5
        await serving.close()

    asyncio.run(run())


def test_orders_and_counts_are_of_one_model(tmp_path: Path) -> None:
    async def run() -> None:
        serving = role(tmp_path, Tier.DEVICE)
        for name, revision in (("digits", 64), ("faces", 128)):
            made = order(serving, name, revision)
            plan = device_only_plan(GRAPHS[name])
            await serving.install(InstallOrder(name, 3, made.graph, (plan,), made.revision), FRAME)
        for index in range(3):
            await serving.models["digits"].served.infer({"x": images(1, index)}, request=f"r{index}")
        await asyncio.sleep(0.05)
        assert (await serving._feedback(Feedback("digits", {"r0": 1, "r9": 1}))).taken == 1
        assert (await serving._feedback(Feedback("faces", {"r0": 1}))).taken == 0
        counts = [await serving._counts(ExampleCountsRequest(name)) for name in ("digits", "faces")]
        assert [(c.num_hard, c.num_labelled) for c in counts] == [(3, 1), (0, 0)]
        health = [await serving._health(HealthRequest(n, Revision(r))) for n, r in (("digits", 64), ("faces", 128))]
        assert [h.num_requests for h in health] == [3, 0]
        await serving._collect(CollectOrder(1, "digits"))
        assert serving.models["digits"].counts().num_hard == 1
        with pytest.raises(InputError, match=r"no model 'digit' is in force here\. Did you mean 'digits'"):
            await serving._counts(ExampleCountsRequest("digit"))
        await serving.close()

    asyncio.run(run())


def test_health_of_a_new_deployment_begins_with_it(tmp_path: Path) -> None:
    async def run() -> None:
        serving = role(tmp_path, Tier.DEVICE)
        await serving.install(order(serving, "digits"), FRAME)
        await serving.models["digits"].served.infer({"x": images(1)})
        await serving.install(order(serving, "digits", 128), FRAME)
        await serving.models["digits"].served.infer({"x": images(1)})
        await asyncio.sleep(0.05)
        now, before = [await serving._health(HealthRequest("digits", Revision(r))) for r in (128, 64)]
        assert (now.num_requests, before.num_requests) == (1, 0)
        await serving.close()

    asyncio.run(run())


def test_the_only_model_answers_to_the_devices_own_word_too(tmp_path: Path) -> None:
    async def run() -> None:
        serving = role(tmp_path, Tier.DEVICE)
        assert serving._device is not None
        models = EndpointModels(serving._device.models, "model")
        assert ("model" in models, list(models)) == (False, [])
        await serving.install(order(serving, "digits"), FRAME)
        assert (models["model"] is models["digits"], list(models)) == (True, ["digits"])
        await serving.install(order(serving, "faces", 128), FRAME)
        assert ("model" in models, list(models)) == (False, ["digits", "faces"])
        await serving.close()

    asyncio.run(run())


@pytest.mark.parametrize("tier", [Tier.DEVICE, Tier.EDGE])
def test_of_a_damaged_model_the_name_is_said_and_the_others_are_served(
    tier: Tier, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        orders = await first_life(tmp_path, tier)
        file = tmp_path / "blobs" / orders["faces"].graph.digest
        whole = file.read_bytes()
        file.write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
        serving = role(tmp_path, tier)
        await serving.resume()
        assert set(serving.in_force()) == {"digits"}
        assert "the graph of faces is damaged" in caplog.text
        assert str(file) in caplog.text

        async def fetch(ref: BlobRef) -> bytes:
            """From the coordinator, which has it whole; nothing else can make it whole again."""
            assert not serving.node.blobs.has(ref.digest)
            serving.node.blobs.put(whole)
            return whole

        serving.node.fetch = fetch
        assert (await serving.install(orders["faces"], FRAME)).accepted
        assert set(serving.in_force()) == {"digits", "faces"}
        await serving.close()

    asyncio.run(run())


def test_a_graph_damaged_where_it_alone_is_says_what_to_do(tmp_path: Path) -> None:
    async def run() -> None:
        serving = role(tmp_path, Tier.CLOUD)
        wanted = order(serving, "faces")
        wanted = msgspec.structs.replace(wanted, graph=msgspec.structs.replace(wanted.graph, holder=serving.node.name))
        (tmp_path / "blobs" / wanted.graph.digest).write_bytes(b"half a m")
        with pytest.raises(StoreError, match=r"'faces' was damaged .* bring the model again"):
            await serving.install(wanted, FRAME)
        await serving.close()

    asyncio.run(run())
