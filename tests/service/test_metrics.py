"""`/metrics` says what was counted, in Prometheus's text; the model routes beside it say the same."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest

from edgewise.core.ids import ClientId, NodeId, Tier
from edgewise.fleet.fleet_metrics import version_metrics
from edgewise.fleet.node.settings import AgentSettings
from edgewise.fleet.serving.serving_role import Serving
from edgewise.inference.serving_metrics import host_metrics
from edgewise.inference.serving_node import local_server
from edgewise.ledger.entry import Direction, FrameCounter, Purpose
from edgewise.ledger.metric import metric, metrics_text, node_metrics
from edgewise.service.client import InferenceClient
from edgewise.service.endpoint import open_endpoint
from edgewise.service.open_inference import serve_http
from edgewise.testing import LoopbackFleet
from edgewise.training.protocols.protocol import RunView
from tests.inference.loopback_world import world
from tests.inference.tiny import images, split_plan, two_exit_graph

GRAPH = two_exit_graph()
SAMPLE = re.compile(r'^([a-z_]+)(?:\{((?:[a-z_]+="(?:[^"\\]|\\.)*",?)*)\})? (\S+)$')


def parsed(text: str) -> dict[tuple[str, str], float]:
    """Samples by name and labels; every line must be one of Prometheus's, each family described before its samples."""
    found, family = {}, ""
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            family = line.split()[2]
        elif not line.startswith("# HELP "):
            sample = SAMPLE.match(line)
            assert sample, line
            assert re.fullmatch(rf"{family}(_count|_sum)?", sample[1]), line
            assert (sample[1], sample[2] or "") not in found, line
            found[sample[1], sample[2] or ""] = float(sample[3])
    return found


def test_an_endpoint_counts_requests_stages_queue_and_plan() -> None:
    async def run() -> dict[tuple[str, str], float]:
        node = await local_server(GRAPH, name='a "b"\\c', version=7)
        endpoint = await serve_http(node, metrics=lambda: [metric("own", "gauge", "Given\nfrom outside.", {(): 2.5})])
        async with InferenceClient(endpoint.host, endpoint.port) as client:
            for _ in range(3):
                await client.infer('a "b"\\c', {"x": images()})
        async with httpx.AsyncClient() as client:
            reply = await client.get(f"{endpoint.url}/metrics")
        assert reply.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        await endpoint.close()
        await node.close()
        return parsed(reply.text)

    found, model = asyncio.run(run()), r'model="a \"b\"\\c"'
    assert found["edgewise_request_seconds_count", f'{model},source="plan"'] == 3
    total, compute = (
        found[f"edgewise_{n}_seconds_sum", f"{model},{w}"]
        for n, w in (("request", 'source="plan"'), ("stage", 'stage="device compute"'))
    )
    assert 0 < compute <= total
    assert found["edgewise_plan_info", f'{model},plan="device only",revision="1",version="7"'] == 1
    assert found["edgewise_jobs_total", 'end="completed"'] >= 3
    assert (found["edgewise_queue_jobs", ""], found["edgewise_own", ""]) == (0, 2.5)


def test_both_ends_of_a_cut_count_what_crossed() -> None:
    async def run() -> None:
        async with world("edge-1") as made:
            await made.install(split_plan(GRAPH), graph=GRAPH)
            for _ in range(2):
                await made.server.infer({"x": images()})
            await asyncio.sleep(0)  # counted once the answer is on its way
            device = parsed(metrics_text(made.server.metrics()))
            size = np.prod(GRAPH.tensor("a").shape) * 4
            assert device["edgewise_payload_bytes_total", 'model="model",boundary="device→edge"'] == 2 * size
            edge = parsed(metrics_text(host_metrics(made.hosts["edge-1"], {"model": 3})))
            assert edge["edgewise_stage_requests_total", 'end="answered"'] == 2
            assert edge["edgewise_version", 'model="model"'] == 3

    asyncio.run(run())


def test_a_node_counts_bytes_by_purpose_and_the_energy_they_cost() -> None:
    counter = FrameCounter(NodeId("edge-1"))
    for size, direction in ((100, Direction.SENT), (50, Direction.SENT), (7, Direction.RECEIVED)):
        counter.count("stage_request", Purpose.SERVING, direction, size)
    counter.count("update", Purpose.TRAINING, Direction.SENT, 1000)
    found = parsed(metrics_text(node_metrics(NodeId("edge-1"), Tier.EDGE, counter.entries())))
    assert found["edgewise_bytes_total", 'purpose="serving",direction="sent"'] == 150
    assert found["edgewise_frames_total", 'purpose="serving",direction="sent"'] == 2
    assert found["edgewise_bytes_total", 'purpose="training",direction="sent"'] == 1000
    assert np.isclose(found["edgewise_energy_joules_total", 'source="modelled",part="network"'], (1157) * 1e-8)
    joules = found["edgewise_energy_joules_total", 'source="modelled",part="compute"']
    assert np.isclose(joules, 15.0 * found["edgewise_cpu_seconds_total", ""])


@pytest.mark.parametrize("tier", list(Tier))
def test_every_node_with_an_endpoint_serves_its_metrics(tier: Tier, tmp_path: Path) -> None:
    counter = FrameCounter(NodeId("node-1"))
    counter.count("update", Purpose.TRAINING, Direction.RECEIVED, 11)
    node: Any = SimpleNamespace(
        holders={},
        spare=asyncio.Event(),
        name=counter.node,
        counter=counter,
        route=lambda *a: None,
        extra_services={},
        sync_services={},
        coordinator=None,
    )
    settings = AgentSettings(
        name=node.name, tier=tier, identity="", state=str(tmp_path), http="127.0.0.1:0", dilation=3
    )

    async def run() -> str:
        serving = Serving(node, settings, open_endpoint)
        await serving.open()
        async with httpx.AsyncClient() as client:
            reply = await client.get(f"http://127.0.0.1:{serving.http_port}/metrics")
        await serving.close()
        return reply.text

    found = parsed(asyncio.run(run()))
    assert found["edgewise_node_info", f'node="node-1",tier="{tier}",dilation="3"'] == 1
    assert found["edgewise_bytes_total", 'purpose="training",direction="received"'] == 11
    assert found["edgewise_queue_jobs", ""] == 0


def long_run(fleet: LoopbackFleet) -> RunView:
    (view,) = [live.view for live in fleet.coordinator.runs.all() if live.submitted.run == "long"]
    assert view is not None
    return view


def test_a_coordinator_tells_of_runs_versions_and_nodes(tmp_path: Path) -> None:
    async def run() -> None:
        async with LoopbackFleet(tmp_path, edge_of={"a": "edge-1", "b": "edge-1"}, engine="sequential") as fleet:
            coordinator, is_started = fleet.coordinator, False
            server = await serve_http({}, metrics=coordinator.metrics, ready=lambda: is_started)
            async with httpx.AsyncClient(base_url=server.url) as client:
                live, ready = [await client.get(f"/v2/health/{word}") for word in ("live", "ready")]
                assert (live.status_code, ready.status_code, ready.json()) == (200, 503, {"ready": False})
                is_started = True
                assert (await client.get("/v2/health/ready")).status_code == 200
                await fleet.train("fed_avg", num_rounds=2, register=True)
                await fleet.submit("fed_avg", num_rounds=10**6, name="long")
                await fleet.kill("b")
                await fleet.until(lambda: not long_run(fleet).members[ClientId("b")].can_work)
                found = parsed((await client.get("/metrics")).text)
            await server.close()
            assert found["edgewise_runs", 'state="completed"'] == 1
            assert found["edgewise_runs", 'state="running"'] == 1
            about = 'run="tiny-1",task="tiny",protocol="hierarchical",state="completed"'
            assert found["edgewise_run_info", about] == 1
            closed = found["edgewise_run_rounds_closed", 'run="tiny-1"'], found["edgewise_run_rounds", 'run="tiny-1"']
            assert closed == (2, 2)
            clients = {s: found["edgewise_run_clients", f'run="long",state="{s}"'] for s in ("listed", "present")}
            assert clients == {"listed": 2, "present": 1}
            assert ("edgewise_run_clients", 'run="tiny-1",state="present"') not in found
            assert found["edgewise_nodes", 'tier="device",state="alive"'] == 1
            assert found["edgewise_nodes", 'tier="device",state="gone"'] == 1
            assert found["edgewise_nodes", 'tier="edge",state="alive"'] == 1

    asyncio.run(run())
    served = parsed(metrics_text(version_metrics({"digits": 4, "faces": 1})))
    assert served == {("edgewise_version_in_force", f'model="{m}"'): v for m, v in (("digits", 4), ("faces", 1))}
