"""Admission: what is queued costs, and who would be late hears it at once."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from math import inf

import pytest

from edgewise.core.errors import Busy
from edgewise.inference.prepared import PreparedPlan
from edgewise.inference.recent_costs import CostBySize
from edgewise.inference.remote_window import MOST_REMOTE, RemoteWindow
from edgewise.inference.request_admission import RequestTooLarge
from edgewise.inference.serving_node import ServingNode, local_server
from edgewise.inference.stages import make_session
from edgewise.inference.worker import Worker
from edgewise.models.graph.living import peak_bytes
from edgewise.service.client import InferenceClient, error_text
from edgewise.service.open_inference import serve_http
from tests.inference.tiny import images, two_exit_graph

GRAPH = two_exit_graph()
ENTRIES = 64


@contextmanager
def busy_for(worker: Worker, seconds: float) -> Iterator[None]:
    """The worker has a job at hand that is expected to take so long; it is done when the block ends."""
    begun, done = threading.Event(), threading.Event()

    def job() -> None:
        begun.set()
        done.wait(60)

    worker.submit(job, lambda result, error: None, cost_s=seconds)
    assert begun.wait(60)
    try:
        yield
    finally:
        done.set()


def queued(worker: Worker, cost_s: float, due_s: float, tenant: str = "") -> None:
    worker.submit(lambda: None, lambda result, error: None, deadline_s=due_s, cost_s=cost_s, tenant=tenant)


def test_what_is_in_front_and_what_would_be_made_late_count() -> None:
    worker, now = Worker(), time.monotonic()

    def late(cost_s: float, after_s: float, tenant: str = "") -> float:
        late_s = worker.late_by_s(cost_s, now + after_s, tenant)
        return late_s if late_s == -inf else round(late_s)

    with busy_for(worker, 100.0):
        assert late(50, 200) == 100 + 50 - 200
        queued(worker, 80.0, now + 300)
        assert late(50, 200) == -50  # it goes first: 100 + 50 - 200, and the other is done at 230 of 300
        assert late(130, 250) == 10  # the other would be done at 310 of 300
        assert late(50, 400) == 100 + 80 + 50 - 400
        assert late(50, inf) == -inf
        worker.set_shares({"": 1.0, "b": 1.0})
        assert late(50, 200, "b") == 100 + 50 + 50 - 200  # half of the thread is the other's meanwhile
        assert late(90, 200, "b") == 100 + 90 + 80 - 200  # which has 80 s of work in all
    worker.close()


def test_an_unknown_size_costs_in_proportion_to_the_largest_known_below_it_and_no_more_than_a_larger_one() -> None:
    costs = CostBySize()
    assert costs.expected_s(10) == 0.0
    costs.add(10, 1.0)
    costs.add(100, 4.0)
    assert [costs.expected_s(n) for n in (5, 10, 20, 90, 100, 200)] == [1.0, 1.0, 2.0, 4.0, 4.0, 8.0]
    assert [costs.is_sure(n) for n in (40, 400, 401)] == [True, True, False]
    costs.add(10, 17.0)  # a running mean of sixteen, in which a pause counts as three times the usual
    assert costs.expected_s(10) == 1.125


def prepared_of(node: ServingNode, seconds: float) -> PreparedPlan:
    """The plan in force, as if an example took so long."""
    found = node.models["tiny"]._active
    assert found is not None
    found.costs = CostBySize()
    found.costs.add(ENTRIES, seconds)
    return found


def test_who_would_be_late_is_refused_at_once_and_told_when_to_come_back() -> None:
    async def run() -> None:
        node = await local_server(GRAPH, name="tiny")
        model = node.models["tiny"]
        prepared_of(node, 1.0)
        with busy_for(node.worker, 50.0):
            with pytest.raises(Busy, match=r"is dropped at once\. Come back then") as refused:
                await node.infer({"x": images()}, deadline_s=30.0)
            # 50 s at hand, 1 s of its own, 30 s less the 0.1 s kept back
            assert refused.value.fields["retry_after_s"] == pytest.approx(50 + 1 - 29.9, abs=2.0)
            taken = asyncio.create_task(node.infer({"x": images()}, deadline_s=60.0))
            await asyncio.sleep(0)
            assert node.worker.num_waiting == 1
        assert (await taken).outputs
        assert model.refused == 1
        await node.close()

    asyncio.run(run())


def test_what_takes_too_long_or_too_much_memory_alone_is_refused_for_its_size() -> None:
    async def run() -> None:
        node = await local_server(GRAPH, name="tiny")
        plan = prepared_of(node, 1.0)
        many = {"x": images(10)}  # 10 s expected, nothing like it seen: taken up to four times the deadline, once
        with pytest.raises(RequestTooLarge, match=r"640 values takes about 10 s.*send at most 64 values at once"):
            await node.infer(many, deadline_s=1.0)
        assert (await node.infer(many, deadline_s=4.0)).outputs
        prepared_of(node, 1.0).costs.add(10 * ENTRIES, 1000.0)
        with pytest.raises(RequestTooLarge, match="its deadline is 4"):
            await node.infer(many, deadline_s=4.0)
        with pytest.raises(Busy, match=r"takes about 1 s here, its deadline is 0\.010 s.*or plan with a faster node"):
            await node.infer({"x": images()}, deadline_s=0.01)
        plan.bytes_per_entry = float(2**30)
        with pytest.raises(RequestTooLarge, match=r"to compute, one may take .* MiB here"):
            await node.infer(many, deadline_s=60.0)
        await node.close()

    asyncio.run(run())


def test_a_long_request_does_not_stand_in_front_of_the_short_ones() -> None:
    x = images(10)
    end = make_session(GRAPH.whole).run(["end"], {"x": x})[0]

    async def run() -> None:
        node = await local_server(GRAPH, name="tiny")
        prepared_of(node, 0.1)
        with busy_for(node.worker, 0.0):  # so it was computed beside it
            served = await node.infer({"x": x}, deadline_s=60.0)
        assert served.outputs["end"].tobytes() == end.tobytes()
        assert node._lanes.long is not None
        await node.close()

    asyncio.run(run())


def test_over_http_overload_is_503_with_retry_after_and_size_is_413() -> None:
    async def run() -> None:
        node = await local_server(GRAPH, name="tiny")
        endpoint = await serve_http(node)
        prepared_of(node, 1.0)

        async def ask(client: InferenceClient, num: int, deadline_s: float) -> tuple[int, dict[str, str], str]:
            x = images(num)
            tensor = {"name": "x", "shape": list(x.shape), "datatype": "FP32", "data": x.ravel().tolist()}
            body = json.dumps({"inputs": [tensor], "parameters": {"deadline_ms": 1e3 * deadline_s}}).encode()
            status, headers, content = await client.call("POST", "/v2/models/tiny/infer", body)
            return status, headers, error_text(content)

        async with InferenceClient(endpoint.host, endpoint.port, timeout_s=30) as client:
            with busy_for(node.worker, 50.0):
                status, headers, _ = await ask(client, 1, 30.0)
            assert status == 503
            assert 20 <= int(headers["retry-after"]) <= 23
            status, headers, said = await ask(client, 10, 1.0)
            assert (status, "retry-after" in headers) == (413, False)
            assert "send at most" in said
        await endpoint.close()
        await node.close()

    asyncio.run(run())


def test_a_site_that_was_full_is_trusted_with_fewer_requests_and_then_with_more() -> None:
    now = [0.0]
    window = RemoteWindow(_now=lambda: now[0])
    window.cut(10, 1.0)
    window.cut(10, 1.0)  # one of the same crowd
    assert window.size == pytest.approx(7.0)
    window.grow()
    assert window.size == pytest.approx(7.0 + 1 / 7)
    now[0] = 1.5
    window.cut(1, 1.0)
    assert window.size == 1.0
    for _ in range(10_000):
        window.grow()
    assert window.size == MOST_REMOTE


def test_the_memory_of_a_graph_is_what_lives_at_one_time() -> None:
    # Most lives while b's Relu is computed, and c's: 8 · 64 floats twice, and the 10 of the exit that is done.
    assert peak_bytes(GRAPH) == 4 * (8 * 64 + 8 * 64 + 10)
