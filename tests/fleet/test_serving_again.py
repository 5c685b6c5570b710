"""What a node served is on its disk: after a restart it serves that again, told by nobody."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgewise.core.ids import Epoch, NodeId, Tier
from edgewise.fleet.messages import BlobRef, InstallOrder
from edgewise.fleet.node.settings import AgentSettings
from edgewise.fleet.serving.serving_role import Serving
from edgewise.transport.bulk.blobs import FolderBlobs
from edgewise.transport.frame import Frame
from edgewise.transport.keys import Keys
from tests.inference.tiny import images, split_plan, two_exit_graph

GRAPH = two_exit_graph()
CLOUD = NodeId("cloud")


def role(folder: Path, tier: Tier) -> Serving:
    """The serving role of a node that reaches nobody."""
    blobs = FolderBlobs(folder / "blobs")

    async def fetch(ref: BlobRef) -> bytes:
        return blobs.read(ref.digest)

    node: Any = SimpleNamespace(
        name=NodeId(f"{tier}-1"), blobs=blobs, fetch=fetch, keys=Keys("test"), coordinator=None, uplink_to=lambda name: None,
    )  # fmt: skip
    return Serving(node, AgentSettings(name=node.name, tier=tier, identity="", state=str(folder)))


async def installed(folder: Path, tier: Tier) -> InstallOrder:
    """A node's first life: it installs a plan, then its process ends."""
    serving = role(folder, tier)
    ref = BlobRef(serving.node.blobs.put(GRAPH.model_bytes), len(GRAPH.model_bytes), CLOUD)
    order = InstallOrder(3, ref, (split_plan(GRAPH, threshold=0.01),), Epoch(64), (NodeId("edge-1"),), deadline_s=7.0)
    await serving.install(order, Frame(kind="install_order", sender=CLOUD))
    await serving.close()
    return order


@pytest.mark.parametrize("tier", [Tier.DEVICE, Tier.EDGE])
def test_a_node_serves_again_what_it_served(tier: Tier, tmp_path: Path) -> None:
    async def run() -> None:
        order = await installed(tmp_path, tier)
        serving = role(tmp_path, tier)
        assert (serving.version, serving.plan_epoch, serving.deployed) == (0, 0, "")
        await serving.resume()
        assert (serving.version, serving.plan_epoch, serving.deployed) == (3, 64, order.digest)
        assert serving.node.coordinator == CLOUD
        if serving.server is not None:
            answer = await serving.server.infer({"x": images(1)})
            assert (str(answer.observation.source), answer.observation.deadline_s) == ("plan", 7.0)
        else:
            assert serving.host is not None
            assert serving.host.epochs == (64,)
        await serving.close()

    asyncio.run(run())


def test_a_device_at_another_edge_asks_that_one_first(tmp_path: Path) -> None:
    async def run() -> None:
        await installed(tmp_path, Tier.DEVICE)
        serving = role(tmp_path, Tier.DEVICE)
        await serving.resume(NodeId("edge-2"))
        assert serving.server is not None
        assert serving.server._peers.usable() == ("edge-2", "edge-1")
        await serving.close()

    asyncio.run(run())


def spoil(path: Path) -> None:
    path.write_bytes(b"half a f")


def lose_the_model(path: Path) -> None:
    for blob in (path.parent / "blobs").rglob("*"):
        if blob.is_file():
            blob.unlink()


@pytest.mark.parametrize(
    ("damage", "warns"),
    [(Path.unlink, False), (lose_the_model, False), (spoil, True)],
    ids=["new", "no model", "broken"],
)
def test_what_is_not_there_or_broken_is_waited_for(
    damage: Any, warns: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        await installed(tmp_path, Tier.DEVICE)
        damage(tmp_path / "serving.msgpack")
        serving = role(tmp_path, Tier.DEVICE)
        await serving.resume()
        assert serving.version == 0
        await serving.close()

    with caplog.at_level(logging.WARNING, "edgewise.fleet"):
        asyncio.run(run())
    assert any("waits for its coordinator" in r.getMessage() for r in caplog.records) == warns


def test_a_deployment_has_the_same_name_everywhere_and_another_model_another_name(tmp_path: Path) -> None:
    device, edge = (asyncio.run(installed(tmp_path / str(tier), tier)) for tier in (Tier.DEVICE, Tier.EDGE))
    assert device.digest == edge.digest
    other = two_exit_graph(seed=1)
    assert InstallOrder(3, BlobRef(other.digest, 1, CLOUD), device.plans, device.epoch).digest != device.digest
