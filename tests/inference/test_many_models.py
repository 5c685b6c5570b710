"""Many models on one device: each with its own plan and version, one thread shared fairly, one budget."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from typing import Any

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


class Jobs:
    """Jobs of a worker in virtual time: each takes as long as it says."""

    def __init__(self, shares: dict[str, float], max_waiting: int = 10_000) -> None:
        self.now_s, self.order, self._done = 0.0, list[str](), threading.Semaphore(0)
        self.worker = Worker(max_waiting=max_waiting, clock=lambda: self.now_s)
        self.worker.set_shares(shares)

    def submit(self, tenant: str, seconds: float = 1.0, **settings: float) -> None:
        def job() -> None:
            self.now_s += seconds
            self.order.append(tenant)

        self.worker.submit(job, lambda *_: self._done.release(), tenant=tenant, **settings)

    def run(self, *jobs: tuple[str, float]) -> list[str]:
        """Whose jobs ran, in order, all of which waited from the start."""
        begun, release = threading.Event(), threading.Event()
        self.worker.submit(lambda: (begun.set(), release.wait()), lambda *_: None)
        begun.wait()
        for tenant, seconds in jobs:
            self.submit(tenant, seconds)
        release.set()
        for _ in jobs:
            self._done.acquire()
        return self.order


def test_one_job_of_a_quiet_model_goes_before_the_flood_of_another() -> None:
    jobs = Jobs({"flood": 1.0, "quiet": 1.0})
    order = jobs.run(*[("flood", 1.0)] * 100, *[("quiet", 1.0)] * 3)
    # They alternate, though a hundred of the flood were there before.
    assert [place for place, tenant in enumerate(order) if tenant == "quiet"] == [1, 3, 5]
    jobs.worker.close()


@pytest.mark.parametrize("seconds", [{"a": 1.0, "b": 1.0}, {"a": 1.0, "b": 5.0}])
def test_two_floods_get_the_thread_by_their_shares_however_long_their_jobs_are(seconds: dict[str, float]) -> None:
    jobs = Jobs({"a": 3.0, "b": 1.0})
    order = jobs.run(*[("b", seconds["b"])] * 100, *[("a", seconds["a"])] * 100)[:100]
    used = {tenant: seconds[tenant] * order.count(tenant) for tenant in "ab"}
    # Of the time that either has had, three quarters are a's, but for one job of each.
    assert abs(used["a"] / 3 - used["b"]) <= max(seconds["a"] / 3, seconds["b"])
    jobs.worker.close()


def test_a_model_that_was_idle_has_saved_up_nothing() -> None:
    jobs = Jobs({"a": 1.0, "b": 1.0})
    jobs.run(*[("a", 1.0)] * 20)
    order = jobs.run(*[("a", 1.0)] * 5, *[("b", 1.0)] * 5)[20:]
    assert order[:6] in (["a", "b"] * 3, ["b", "a"] * 3)
    jobs.worker.close()


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
        order: list[str] = []
        for name, model in node.models.items():  # every request takes three milliseconds of the thread
            (prepared,) = model._plans.values()
            stage = prepared.stages.stages[0][1]

            def slow(feeds: Any, run: Any = stage.run, name: str = name) -> Any:
                busy_for(0.003)
                order.append(name)
                return run(feeds)

            stage.run = slow  # type: ignore[method-assign]
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
        waited = []
        for _ in range(11):
            before = order.count("first")
            served = await node.infer({"x": images()}, model="second", deadline_s=60.0)
            assert served.observation.source == "plan"
            waited.append(order.count("first") - before)
        stop = True
        await asyncio.gather(*floods)
        assert refused > 0  # the flood met its own bound of 8 …
        assert (
            sorted(waited)[5] <= 3
        )  # … and with its 8 open all the time, the other waits for the one at work, not for all
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
            _, _, body = await client.call("GET", "/v2/models/stats")
            assert [s["inference_count"] for s in json.loads(body)["model_stats"]] == [1, 0, 1]
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
