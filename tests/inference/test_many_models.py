"""Many models on one device: each with its own plan and version, one thread shared fairly, one budget."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from edgewise.core.errors import Busy, InputError
from edgewise.core.ids import NodeId, Revision
from edgewise.inference.serving_node import ServingNode, device_only_plan
from edgewise.inference.stages import make_session
from edgewise.inference.worker import Worker
from edgewise.service.client import InferenceClient
from edgewise.service.open_inference import serve_http
from tests.inference.recurrent import KEEPS, lstm_graph, samples
from tests.inference.tiny import active, images, two_exit_graph

GRAPHS = {"first": two_exit_graph(seed=1), "second": two_exit_graph(seed=2)}


async def node_with(*names: str, shares: dict[str, float] | None = None, **settings: int) -> ServingNode:
    node = ServingNode(NodeId("device-1"), **settings)
    for version, name in enumerate(names, 1):
        model = node.deploy(name, share=(shares or {}).get(name, 1.0))
        await model.prepare(active(device_only_plan(GRAPHS[name]), version, version), GRAPHS[name])
        model.activate(Revision(version))
    return node


def test_each_model_answers_with_its_own_plan_and_version() -> None:
    async def run() -> None:
        node = await node_with("first", "second")
        x = images()
        for version, (name, graph) in enumerate(GRAPHS.items(), 1):
            served = await node.infer({"x": x}, model=name)
            assert served.outputs["end"].tobytes() == make_session(graph.whole).run(["end"], {"x": x})[0].tobytes()
            assert (served.observation.version, served.observation.revision) == (version, version)
        with pytest.raises(InputError, match=r"serves no model 'third', it serves \['first', 'second'\]"):
            await node.infer({"x": x}, model="third")
        with pytest.raises(InputError, match="serves no model ''"):
            await node.infer({"x": x})
        node.withdraw("first")
        assert (await node.infer({"x": x})).observation.version == 2
        await node.close()

    asyncio.run(run())


def busy_for(seconds: float) -> None:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def in_order(shares: dict[str, float], jobs: list[tuple[str, float]]) -> list[str]:
    """Whose jobs ran, in order, of jobs that all waited from the start."""
    worker, begun, release, order = Worker(max_waiting=10_000), threading.Event(), threading.Event(), list[str]()
    worker.set_shares(shares)
    worker.submit(lambda: (begun.set(), release.wait()), lambda *_: None)
    begun.wait()
    done = threading.Semaphore(0)
    for tenant, seconds in jobs:
        worker.submit(
            lambda tenant=tenant, seconds=seconds: (busy_for(seconds), order.append(tenant)),
            lambda *_: done.release(),
            tenant=tenant,
        )
    release.set()
    for _ in jobs:
        done.acquire()
    worker.close()
    return order


def test_one_job_of_a_quiet_model_goes_before_the_flood_of_another() -> None:
    order = in_order({"flood": 1.0, "quiet": 1.0}, [("flood", 0.001)] * 100 + [("quiet", 0.001)] * 3)
    # They alternate: the quiet one's three are among the first handful, a hundred of the flood before them or not.
    assert max(place for place, tenant in enumerate(order) if tenant == "quiet") <= 8


def test_two_floods_get_the_thread_by_their_shares() -> None:
    order = in_order({"a": 3.0, "b": 1.0}, [("b", 0.001)] * 80 + [("a", 0.001)] * 80)
    # 3:1 of the time while both have work; a busy machine stretches single jobs, so by a factor of two at most.
    assert 1.5 <= order[:60].count("a") / order[:60].count("b") <= 6.0


def test_a_model_that_was_idle_has_saved_up_nothing() -> None:
    worker = Worker()
    worker.set_shares({"a": 1.0, "b": 1.0})
    done = threading.Event()
    for _ in range(20):
        worker.submit(lambda: busy_for(0.001), lambda *_: None, tenant="a")
    worker.submit(lambda: None, lambda *_: done.set(), tenant="a", deadline_s=float("inf"))
    done.wait()
    worker.submit(lambda: None, lambda *_: done.set(), tenant="b")
    assert worker._tenants["b"].used_s >= worker._now_s > 0.015
    worker.close()


def test_within_a_model_the_earliest_deadline_goes_first() -> None:
    worker, begun, release, order = Worker(), threading.Event(), threading.Event(), list[int]()
    worker.submit(lambda: (begun.set(), release.wait()), lambda *_: None)
    begun.wait()
    done = threading.Semaphore(0)
    for late in (3, 1, 2):
        worker.submit(
            lambda late=late: order.append(late),
            lambda *_: done.release(),
            deadline_s=time.monotonic() + 100 + late,
            tenant="a",
        )
    release.set()
    for _ in range(3):
        done.acquire()
    assert order == [1, 2, 3]
    worker.close()


def test_a_flood_on_one_model_neither_starves_nor_shuts_out_the_other() -> None:
    async def run() -> None:
        node = await node_with("first", "second", max_in_flight=16)
        for model in node.models.values():  # every request takes three milliseconds of the thread
            (prepared,) = model._plans.values()
            (_, stage), run_whole = prepared.stages.stages[0], prepared.stages.stages[0][1].run
            stage.run = lambda feeds, run=run_whole: (busy_for(0.003), run(feeds))[1]  # type: ignore[method-assign]
            prepared.usual_stage_s = 1.0
        refused, stop = 0, False

        async def flood() -> None:
            nonlocal refused
            while not stop:
                try:
                    await node.infer({"x": images()}, model="first")
                except Busy:
                    refused += 1
                    await asyncio.sleep(0.001)

        floods = [asyncio.create_task(flood()) for _ in range(40)]
        await asyncio.sleep(0.05)
        latencies = []
        for _ in range(10):
            served = await node.infer({"x": images()}, model="second", deadline_s=10.0)
            latencies.append(served.observation.latency_s)
        stop = True
        await asyncio.gather(*floods)
        assert refused > 0  # the flood met its own bound of 8 …
        # … and with eight of its requests open all the time the other waits for one or two of them, not for all.
        assert sorted(latencies)[5] < 0.6 * 8 * 0.003
        await node.close()

    asyncio.run(run())


def test_the_endpoint_serves_all_models_of_a_node_as_they_come_and_go() -> None:
    async def run() -> None:
        node = await node_with("first", "second")
        endpoint = await serve_http(node)
        async with InferenceClient(endpoint.host, endpoint.port) as client:
            for name in GRAPHS:
                status, _, _ = await client.call("GET", f"/v2/models/{name}/ready")
                assert status == 200
                reply = await client.infer(name, {"x": images()})
                assert sorted(reply.outputs) == ["early", "end"]
            keeping = lstm_graph()
            model = node.deploy("lstm")
            await model.prepare(active(device_only_plan(keeping, keeps=KEEPS), 9, 1), keeping)
            model.activate(Revision(9))
            assert list((await client.infer("lstm", {"x": samples(1)})).outputs) == ["y"]
            node.withdraw("first")
            status, _, body = await client.call("GET", "/v2/models/first/ready")
            assert (status, b"no model 'first' is served here" in body) == (404, True)
        await endpoint.close()
        await node.close()

    asyncio.run(run())


def test_a_share_must_be_positive() -> None:
    with pytest.raises(InputError, match=r"the share of model 'x' is 0\.0, it must be > 0"):
        ServingNode(NodeId("device-1")).deploy("x", share=0.0)
