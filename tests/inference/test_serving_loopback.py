"""Server and stage hosts over the loopback transport, in real time but without sleeping."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import numpy as np
import pytest

from edgewise.core.errors import Busy, InputError, PlanInfeasible, RemoteError
from edgewise.core.ids import NodeId, Revision, Tier
from edgewise.inference.gates.exit import confidence
from edgewise.inference.serving_node import device_only_plan, local_server
from edgewise.inference.session import AnswerSource
from edgewise.inference.stage_messages import STAGE_REQUEST, StageRequest
from edgewise.inference.stage_server import StageHost
from edgewise.inference.stages import make_session
from edgewise.models.graph.graph import Graph
from edgewise.planning.plan import Plan, Site
from edgewise.transport.frame import Frame, make_frame
from edgewise.transport.remote import answer, checked_reply
from edgewise.transport.transport import on_the_loop
from tests.inference.loopback_world import hang, world
from tests.inference.tiny import (
    active,
    close,
    images,
    model_server,
    raw_plan,
    split_plan,
    three_tier_plan,
    two_exit_graph,
)

GRAPH = two_exit_graph()


def whole(graph: Graph, x: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
    return list(make_session(graph.whole).run(None, {"x": x}))


@pytest.mark.parametrize("plan", [split_plan(GRAPH), split_plan(GRAPH, exit_on_device=False), raw_plan(GRAPH)])
def test_a_lossless_split_answers_as_the_uncut_model_to_the_last_bit(plan: Plan) -> None:
    async def run() -> None:
        async with world("edge-1") as made:
            await made.install(plan)
            for seed in range(5):
                x = images(1 + seed % 2, seed)
                served = await made.server.infer({"x": x})
                assert served.observation.source is AnswerSource.PLAN
                assert served.outputs["end"].tobytes() == whole(GRAPH, x)[1].tobytes()

    asyncio.run(run())


def test_three_tiers_relay_the_answer_and_name_who_computed() -> None:
    async def run() -> None:
        async with world("edge-1", cloud=True) as made:
            await made.install(three_tier_plan(GRAPH))
            x = images()
            served = await made.server.infer({"x": x})
            assert served.outputs["end"].tobytes() == whole(GRAPH, x)[1].tobytes()
            assert served.observation.served_by == ("device-1", "edge-1", "cloud-1")
            assert [name for name, _ in served.observation.payload_bytes] == ["device→edge", "edge→cloud"]
            assert {"device compute", "edge compute", "cloud compute"} <= {n for n, _ in served.observation.stages}

    asyncio.run(run())


def test_a_confident_request_leaves_at_the_device_and_sends_nothing() -> None:
    async def run() -> None:
        async with world("edge-1") as made:
            await made.install(split_plan(GRAPH, threshold=0.01))
            x = images()
            served = await made.server.infer({"x": x})
            assert (served.observation.source, served.observation.exit_index) == (AnswerSource.PLAN, 0)
            assert served.outputs["end"].tobytes() == whole(GRAPH, x)[0].tobytes()
            assert served.observation.payload_bytes == ()
            assert made.hosts["edge-1"].answered == 0

    asyncio.run(run())


def test_the_edge_answers_from_its_own_exit_when_the_cloud_is_lost() -> None:
    async def run() -> None:
        async with world("edge-1", cloud=True) as made:
            await made.install(three_tier_plan(GRAPH))
            made.fabric.cut("cloud-1")
            served = await made.server.infer({"x": images()})
            assert (served.observation.source, served.observation.exit_index) == (AnswerSource.EDGE_EXIT, 0)
            assert "cloud-1" in served.observation.cause

    asyncio.run(run())


def test_another_edge_takes_over_when_home_is_cut_off() -> None:
    async def run() -> None:
        async with world("edge-1", "edge-2") as made:
            await made.install(split_plan(GRAPH))
            made.fabric.cut("edge-1")
            x = images()
            served = await made.server.infer({"x": x})
            assert served.observation.source is AnswerSource.OTHER_EDGE
            assert served.outputs["end"].tobytes() == whole(GRAPH, x)[1].tobytes()
            assert "edge-1: transport.unreachable" in served.observation.cause

    asyncio.run(run())


def test_a_returned_edge_is_used_again_at_once() -> None:
    async def run() -> None:
        async with world("edge-1", "edge-2") as made:
            await made.install(split_plan(GRAPH))
            made.fabric.cut("edge-1")
            made.server.peer_lost("edge-1")
            away = await made.server.infer({"x": images()})
            made.fabric.heal("edge-1")
            made.server.peer_returned("edge-1")
            back = await made.server.infer({"x": images()})
            assert (away.observation.source, back.observation.source) == (AnswerSource.OTHER_EDGE, AnswerSource.PLAN)
            assert away.observation.cause == "edge-1: is unreachable or on trial"

    asyncio.run(run())


@pytest.mark.parametrize("exit_on_device", [True, False])
@pytest.mark.parametrize("fault", ["dies before", "dies in between", "hangs"])
def test_every_request_is_answered_by_its_deadline_whatever_the_edge_does(fault: str, exit_on_device: bool) -> None:
    async def run() -> None:
        async with world("edge-1") as made:
            await made.install(split_plan(GRAPH, exit_on_device=exit_on_device))
            asked = hang(made, "edge-1")
            if fault == "dies before":
                made.fabric.cut("edge-1")
            asks = [asyncio.ensure_future(made.server.infer({"x": images()}, deadline_s=0.5)) for _ in range(8)]
            if fault == "dies in between":
                await asked.wait()
                made.fabric.cut("edge-1")
            served = await asyncio.gather(*asks)
            wanted = AnswerSource.DEVICE_EXIT if exit_on_device else AnswerSource.LOCAL_TAIL
            assert {s.observation.source for s in served} == {wanted}
            assert max(s.observation.latency_s for s in served) <= 0.5
            assert all(s.observation.cause and s.outputs["end"].shape == (1, 10) for s in served)

    asyncio.run(run())


def test_a_hanging_edge_is_left_alone_after_its_first_failure() -> None:
    async def run() -> None:
        async with world("edge-1") as made:
            await made.install(split_plan(GRAPH))
            hang(made, "edge-1")
            first = await made.server.infer({"x": images()}, deadline_s=0.5)
            second = await made.server.infer({"x": images()}, deadline_s=0.5)
            assert first.observation.latency_s > 0.4
            assert second.observation.latency_s < 0.3
            assert second.observation.source is AnswerSource.DEVICE_EXIT

    asyncio.run(run())


def test_requests_in_flight_finish_on_the_epoch_they_began_with() -> None:
    async def run() -> None:
        async with world("edge-1") as made:
            await made.install(split_plan(GRAPH))
            entered, release = asyncio.Event(), asyncio.Event()
            answer = on_the_loop(made.hosts["edge-1"].handle)

            async def slow(frame: Frame) -> Frame:
                entered.set()
                await release.wait()
                return await answer(frame)

            made.registrations["edge-1"].handler = slow  # type: ignore[attr-defined]
            x = images()
            old = asyncio.ensure_future(made.server.infer({"x": x}))
            await entered.wait()
            newer = two_exit_graph(seed=9)
            await made.install(device_only_plan(newer), 2, 2, newer)
            new = await made.server.infer({"x": x})
            assert made.server.revisions == (1, 2)
            release.set()
            finished = await old
            assert (finished.observation.revision, finished.observation.version) == (1, 1)
            assert finished.outputs["end"].tobytes() == whole(GRAPH, x)[1].tobytes()
            assert (new.observation.revision, new.observation.version) == (2, 2)
            assert new.outputs["end"].tobytes() == whole(newer, x)[1].tobytes()
            assert made.server.revisions == (2,)

    asyncio.run(run())


def test_a_plan_the_edge_does_not_know_is_refused_and_the_device_answers() -> None:
    async def run() -> None:
        async with world("edge-1") as made:
            await made.install(split_plan(GRAPH))
            await made.server.prepare(active(split_plan(GRAPH), 7), GRAPH)
            made.server.activate(Revision(7))
            served = await made.server.infer({"x": images()})
            assert served.observation.source is AnswerSource.DEVICE_EXIT
            assert "is not prepared on 'edge-1'; prepared are revisions [1]" in served.observation.cause
            assert made.hosts["edge-1"].refused == 1

    asyncio.run(run())


def test_raw_inputs_do_not_pass_a_link_without_a_grant_and_the_device_answers() -> None:
    async def run() -> None:
        async with world("edge-1", allow=None) as made:
            await made.install(raw_plan(GRAPH))
            for _ in range(2):
                served = await made.server.infer({"x": images()})
                assert served.observation.source is AnswerSource.LOCAL_TAIL
                assert "carries data of class ['raw'] over a link without a data policy" in served.observation.cause
            await made.install(split_plan(GRAPH), 2)
            assert (await made.server.infer({"x": images()})).observation.source is AnswerSource.PLAN

    asyncio.run(run())


def test_a_full_edge_says_so_and_the_device_answers() -> None:
    async def run() -> None:
        async with world("edge-1") as made:
            await made.install(split_plan(GRAPH))
            worker, begun, release = made.hosts["edge-1"].worker, threading.Event(), threading.Event()
            busy = worker.run(lambda: (begun.set(), release.wait()))
            await asyncio.get_running_loop().run_in_executor(None, begun.wait, 10)
            worker.max_waiting = 0
            served = await made.server.infer({"x": images()})
            release.set()
            await busy
            assert served.observation.source is AnswerSource.DEVICE_EXIT
            assert "0 jobs wait for this node's worker, the limit is 0" in served.observation.cause

    asyncio.run(run())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "order"}, "the stage service of 'edge-1' takes 'stage_request', found 'order'"),
        ({"site": Site(Tier.CLOUD)}, "site cloud of plan .* is wanted, 'edge-1' is tier edge"),
        ({"version": 5}, "revision 1, version 5, is not prepared on 'edge-1'"),
        ({"sections": ()}, r"a bundle with sections \['a'\] is expected, found \[\]"),
    ],
)
def test_a_stage_host_refuses_what_it_was_not_asked_for(change: dict[str, Any], message: str) -> None:
    async def run() -> None:
        host = StageHost(NodeId("edge-1"), Tier.EDGE)
        plan = split_plan(GRAPH)
        await host.prepare(active(plan), GRAPH)
        fields = {
            "plan": plan.digest,
            "revision": 1,
            "version": 1,
            "site": Site(Tier.EDGE),
            "request": "r",
            "sections": (),
        } | change
        kind = fields.pop("kind", STAGE_REQUEST)
        with pytest.raises(RemoteError, match=message):
            checked_reply(await answer(on_the_loop(host.handle), make_frame(kind, StageRequest(**fields))))
        await host.close()

    asyncio.run(run())


def test_a_stage_host_keeps_the_last_few_plans() -> None:
    async def run() -> None:
        host = StageHost(NodeId("edge-1"), Tier.EDGE, keep=2)
        for revision in (1, 2, 3):
            await host.prepare(active(split_plan(GRAPH), revision), GRAPH)
        assert host.revisions == (2, 3)
        await host.close()

    asyncio.run(run())


def test_alternatives_of_a_plan_map_stay_warm() -> None:
    async def run() -> None:
        async with world("edge-1") as made:
            for revision in (1, 2):
                await made.install(split_plan(GRAPH), revision)
            assert made.server.revisions == (2,)
            await made.server.prepare(active(split_plan(GRAPH), 3), GRAPH)
            made.server.activate(Revision(3), keep=[Revision(2)])
            assert made.server.revisions == (2, 3)

    asyncio.run(run())


def test_a_model_is_served_without_any_fleet() -> None:
    async def run() -> None:
        server = await local_server(GRAPH)
        x = images(3)
        served = await server.infer({"x": x})
        early, end = whole(GRAPH, x)
        assert served.outputs["end"].tobytes() == end.tobytes()
        assert served.outputs["early"].tobytes() == early.tobytes()
        await server.close()

    asyncio.run(run())


def test_an_answer_does_not_wait_for_those_who_learn_from_it() -> None:
    async def run() -> None:
        told = list[str]()
        server = model_server(
            on_observation=lambda seen: told.append(seen.request),
            on_served=lambda inputs, served: told.append(str(sorted(inputs))),
        )
        await server.prepare(active(device_only_plan(GRAPH)), GRAPH)
        server.activate(Revision(1))
        await server.infer({"x": images()}, request="r1")
        assert told == []
        await asyncio.sleep(0)
        assert told == ["r1", "['x']"]
        await close(server)

    asyncio.run(run())


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"y": images()}, "the model has no input 'y'. Did you mean|the model has no input 'y'. Known: x"),
        ({}, "input 'x' is missing, given are"),
        ({"x": images().astype(np.float64)}, "input 'x' has dtype float64, the model takes float32"),
        ({"x": images()[0]}, r"input 'x' has shape \[1, 8, 8\], the model takes \[n, 1, 8, 8\]"),
        ({"x": images(0)}, r"input 'x' has shape \[0, 1, 8, 8\]"),
    ],
)
def test_wrong_inputs_are_refused_with_what_was_needed(inputs: dict[str, Any], message: str) -> None:
    async def run() -> None:
        server = await local_server(GRAPH)
        try:
            with pytest.raises(InputError, match=message):
                await server.infer(inputs)
        finally:
            await server.close()

    asyncio.run(run())


def test_a_server_without_a_plan_or_with_too_many_requests_refuses() -> None:
    async def run() -> None:
        server = model_server("device-1", max_in_flight=0)
        with pytest.raises(Busy, match="'device-1' has no active plan yet"):
            await server.infer({"x": images()})
        with pytest.raises(PlanInfeasible, match=r"revision 4 is not prepared on 'device-1', prepared are \[\]"):
            server.activate(Revision(4))
        await server.prepare(active(device_only_plan(GRAPH)), GRAPH)
        server.activate(Revision(1))
        with pytest.raises(Busy, match="0 requests are open on 'device-1', this one is dropped"):
            await server.infer({"x": images()})
        assert server.refused == 1
        with pytest.raises(PlanInfeasible, match="cuts graph"):
            await server.prepare(active(device_only_plan(GRAPH)), two_exit_graph(seed=3))
        await close(server)

    asyncio.run(run())


@pytest.mark.parametrize(
    ("plan", "first"),
    [
        (split_plan(GRAPH), 0),
        (split_plan(GRAPH, exit_on_device=False), 1),
        (raw_plan(GRAPH), 1),
        (three_tier_plan(GRAPH), 0),
        (three_tier_plan(GRAPH, edge_threshold=0.0), 0),
    ],
)
def test_the_answer_at_the_plans_first_exit_is_known_wherever_it_was_computed(plan: Plan, first: int) -> None:
    async def run() -> None:
        async with world("edge-1", cloud=True) as made:
            await made.install(plan)
            x = images()
            seen = (await made.server.infer({"x": x})).observation
            assert seen.confidence == pytest.approx(float(confidence(whole(GRAPH, x)[first])[0]))
            assert seen.predicted == whole(GRAPH, x)[first][0].argmax()
            assert seen.confidence_exit == first

    asyncio.run(run())
