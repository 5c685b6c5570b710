"""State that stays on its stage between the requests of a stream: an LSTM."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from onnx import TensorProto, helper

from edgewise.core.errors import Busy, GraphError, InputError, PlanInfeasible
from edgewise.core.ids import Revision, Tier
from edgewise.inference.serving_node import device_only_plan, local_server
from edgewise.inference.session import AnswerSource
from edgewise.inference.stages import check_plan
from edgewise.inference.streams import StreamLost, StreamStates, StreamStep
from edgewise.models.graph.graph import Graph, graph_from
from edgewise.planning.moves.state import keeping
from edgewise.planning.plan import EXIT, INPUT, Gate, Plan
from edgewise.planning.planner import Evidence, Sites
from edgewise.planning.planners import candidates
from edgewise.planning.policy import Policy
from edgewise.planning.profile import LinkState
from edgewise.service.client import InferenceClient
from edgewise.service.open_inference import serve_http
from tests.inference.loopback_world import World, world
from tests.inference.recurrent import KEEPS, lstm_graph, raw_lstm, samples, split_lstm, unrolled
from tests.inference.tiny import active
from tests.planning.scenario import profile

GRAPH = lstm_graph()
PLANS = {"device": split_lstm(GRAPH, Tier.DEVICE), "split": split_lstm(GRAPH), "raw": raw_lstm(GRAPH)}
SPLIT = PLANS["split"]


def kept(made: World, revision: int = 1) -> StreamStates:
    """The edge's states."""
    ((prepared),) = made.hosts["edge-1"]._plans[Revision(revision)].values()
    assert prepared.streams is not None
    return prepared.streams


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_stateful_answers_equal_the_model_unrolled_wherever_the_state_is(plan: Plan) -> None:
    async def run() -> None:
        async with world("edge-1") as made:
            await made.install(plan, graph=GRAPH)
            assert [t.name for t in made.server.inputs] == ["x"]
            assert [t.name for t in made.server.outputs] == ["y"]
            sequences = {seed: samples(20, seed) for seed in (1, 2)}
            streams = {seed: made.server.stream() for seed in sequences}
            found: dict[int, list[np.ndarray]] = {1: [], 2: []}
            for at in range(20):
                for seed, x in sequences.items():
                    served = await streams[seed].infer({"x": x[at : at + 1]})
                    assert served.observation.source is AnswerSource.PLAN
                    found[seed].append(served.outputs["y"])
            for seed, x in sequences.items():
                assert np.allclose(np.concatenate(found[seed]), unrolled(x), rtol=0, atol=1e-6)

    asyncio.run(run())


def test_only_what_the_stage_reads_travels_and_the_state_does_not() -> None:
    async def run() -> None:
        async with world("edge-1") as made:
            await made.install(SPLIT, graph=GRAPH)
            stream = made.server.stream()
            served = [await stream.infer({"x": samples(1)}) for _ in range(3)]
            assert {s.observation.payload_bytes for s in served} == {(("device→edge", 6 * 4),)}
            assert set(served[0].outputs) == {"y"}

    asyncio.run(run())


def test_a_request_without_a_stream_begins_from_nothing_and_leaves_nothing() -> None:
    async def run() -> None:
        async with world("edge-1") as made:
            await made.install(SPLIT, graph=GRAPH)
            x = samples(1)
            answers = [(await made.server.infer({"x": x})).outputs["y"] for _ in range(2)]
            assert answers[0].tobytes() == answers[1].tobytes()
            assert len(kept(made)) == 0

    asyncio.run(run())


@pytest.mark.parametrize("how", ["closed", "last request", "evicted at the device"])
def test_a_stream_that_ends_frees_its_state_at_the_edge(how: str) -> None:
    async def run() -> None:
        async with world("edge-1") as made:
            await made.install(SPLIT, graph=GRAPH)
            made.server.streams.max_streams = 1
            stream = made.server.stream()
            await stream.infer({"x": samples(1)})
            assert len(kept(made)) == 1
            if how == "closed":
                stream.close()
            elif how == "last request":
                await stream.infer({"x": samples(1)}, is_last=True)
            else:
                made.server.stream()
            await asyncio.gather(*made.server.streams.telling)
            assert len(kept(made)) == 0
            if how != "last request":
                with pytest.raises(StreamLost, match=r"stream 'stream-1' is not open on 'device-1'"):
                    await stream.infer({"x": samples(1)})

    asyncio.run(run())


def test_the_edge_bounds_its_streams_and_an_evicted_one_gets_a_clear_answer() -> None:
    async def run() -> None:
        async with world("edge-1") as made:
            await made.install(SPLIT, graph=GRAPH)
            kept(made).max_streams = 2
            streams = [made.server.stream() for _ in range(3)]
            for stream in streams:
                await stream.infer({"x": samples(1)})
            assert (len(kept(made)), kept(made).num_evicted) == (2, 1)
            lost = (await streams[0].infer({"x": samples(1)})).observation
            assert lost.source is AnswerSource.NONE
            assert "its state is not here; it was evicted or its node restarted. Begin a new stream" in lost.cause
            assert (await streams[2].infer({"x": samples(1)})).observation.source is AnswerSource.PLAN

    asyncio.run(run())


def test_a_stream_stays_with_the_node_and_the_plan_it_began_on() -> None:
    async def run() -> None:
        async with world("edge-1", "edge-2") as made:
            await made.install(SPLIT, graph=GRAPH)
            x, stream = samples(3), made.server.stream()
            found = [(await stream.infer({"x": x[:1]})).outputs["y"]]
            await made.install(PLANS["device"], 2, graph=GRAPH)
            served = await stream.infer({"x": x[1:2]})
            assert (served.observation.revision, served.observation.served_by[-1]) == (1, "edge-1")
            found.append(served.outputs["y"])
            assert np.allclose(np.concatenate(found), unrolled(x[:2]), atol=1e-6)
            made.fabric.cut("edge-1")
            away = (await stream.infer({"x": x[2:]}, deadline_s=0.5)).observation
            assert (away.source, made.hosts["edge-2"].answered) == (AnswerSource.NONE, 0)
            assert made.server.revisions == (1, 2)
            stream.close()
            assert made.server.revisions == (2,)

    asyncio.run(run())


def test_a_request_that_is_refused_does_not_move_the_stream() -> None:
    async def run() -> None:
        async with world("edge-1") as made:
            await made.install(SPLIT, graph=GRAPH)
            x, stream = samples(2), made.server.stream()
            found = [(await stream.infer({"x": x[:1]})).outputs["y"]]
            with pytest.raises(InputError, match="has dtype float64"):
                await stream.infer({"x": x[1:].astype(np.float64) * 1e300})
            made.server.max_in_flight = 0
            with pytest.raises(Busy):
                await stream.infer({"x": x[1:]})
            made.server.max_in_flight = 64
            found.append((await stream.infer({"x": x[1:]})).outputs["y"])
            assert np.allclose(np.concatenate(found), unrolled(x), atol=1e-6)

    asyncio.run(run())


def test_requests_of_one_stream_are_taken_in_order_however_they_are_sent() -> None:
    async def run() -> None:
        async with world("edge-1") as made:
            await made.install(SPLIT, graph=GRAPH)
            x, stream = samples(12), made.server.stream()
            served = await asyncio.gather(*(stream.infer({"x": row[None]}) for row in x))
            assert np.allclose(np.concatenate([s.outputs["y"] for s in served]), unrolled(x), atol=1e-6)

    asyncio.run(run())


def test_streams_of_two_devices_are_told_apart_though_they_have_the_same_name() -> None:
    states = StreamStates({"h": np.zeros(1)})
    for name in ("device-1/s", "device-2/s"):
        states.after(StreamStep(name, 0), {"h": np.ones(1)})
    assert len(states) == 2
    with pytest.raises(StreamLost, match="its state stands after request 1"):
        states.before(StreamStep("device-1/s", 5))


def test_a_gate_in_front_of_a_stage_that_keeps_state_is_refused() -> None:
    early = Gate(EXIT, "device", 0.5, tensors=("r",), index=0)
    ahead = Gate("frame_difference", INPUT, 0.5, tensors=("x",))
    for gate in (early, ahead):
        plan = Plan("bad", GRAPH.digest, SPLIT.stages, SPLIT.handovers, (gate, *SPLIT.gates))
        with pytest.raises(PlanInfeasible, match="whose state must see every request"):
            check_plan(GRAPH, plan)


def test_sequences_of_the_protocol_are_streams() -> None:
    async def run() -> None:
        async with world("edge-1") as made:
            await made.install(SPLIT, graph=GRAPH)
            endpoint = await serve_http({"lstm": made.server})
            x = samples(4)
            async with InferenceClient(endpoint.host, endpoint.port) as client:
                found = []
                for at, row in enumerate(x):
                    said = {"sequence_id": 7, "sequence_start": at == 0, "sequence_end": at == 3}
                    found.append((await client.infer("lstm", {"x": row[None]}, parameters=said)).outputs["y"])
                assert np.allclose(np.concatenate(found), unrolled(x), atol=1e-6)
                assert (len(made.server.streams), len(kept(made))) == (0, 0)
                with pytest.raises(Exception, match="stream '7' is not open"):
                    await client.infer("lstm", {"x": x[:1]}, parameters={"sequence_id": 7})
            await endpoint.close()

    asyncio.run(run())


def test_state_is_not_for_a_client_to_give() -> None:
    async def run() -> None:
        async with world("edge-1") as made:
            await made.install(PLANS["device"], graph=GRAPH)
            with pytest.raises(InputError, match="the model has no input 'h0'"):
                await made.server.infer({"x": samples(1), "h0": np.zeros((1, 1, 8), np.float32)})
            assert active(SPLIT).plan.state == (("h0", "hn"), ("c0", "cn"))

    asyncio.run(run())


def test_a_planners_plan_keeps_the_state_where_it_put_the_stage_that_reads_it() -> None:
    known = {tier: profile(tier, speed, of=GRAPH) for tier, speed in ((Tier.DEVICE, 300.0), (Tier.EDGE, 0.1))}
    sites = Sites.chain(known, [LinkState(1e8, 1e-5, 0)])
    found = list(candidates("chain", GRAPH, sites, Policy(), Evidence(), [keeping(KEEPS)]))
    plans = [plan for plan in found if plan.state]
    assert {plan.stages[-1].site.tier for plan in plans} == {Tier.DEVICE, Tier.EDGE}
    assert all("h0" not in h.tensors for plan in plans for h in plan.handovers)

    async def run() -> None:
        async with world("edge-1") as made:
            for revision, plan in enumerate(plans, 1):
                await made.install(plan, revision, graph=GRAPH)
                x, stream = samples(6, revision), made.server.stream()
                answers = [await stream.infer({"x": row[None]}) for row in x]
                assert {s.observation.source for s in answers} == {AnswerSource.PLAN}
                assert np.allclose(np.concatenate([s.outputs["y"] for s in answers]), unrolled(x), atol=1e-6)

    asyncio.run(run())


def test_one_model_is_served_with_its_state_without_any_fleet() -> None:
    async def run() -> None:
        node, x = await local_server(GRAPH, keeps=KEEPS), samples(5)
        stream = node.stream()
        answers = [(await stream.infer({"x": row[None]})).outputs["y"] for row in x]
        assert np.allclose(np.concatenate(answers), unrolled(x), atol=1e-6)
        await node.close()

    asyncio.run(run())


@pytest.mark.parametrize("pair", [("h0", "y"), ("x", "hn"), ("hn", "h0")])
def test_what_cannot_be_state_is_refused(pair: tuple[str, str]) -> None:
    with pytest.raises(GraphError, match="are no state: an input and an output of one shape and dtype are needed"):
        device_only_plan(GRAPH, keeps=(pair,))


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_of_two_that_begin_a_sequence_at_once_each_begins_from_nothing(plan: Plan) -> None:
    async def run() -> None:
        async with world("edge-1") as made:
            await made.install(plan, graph=GRAPH)
            x = samples(2)
            asked = [made.server.infer({"x": x[:1]}, stream=StreamStep("same", 0)) for _ in range(2)]
            first, second = await asyncio.gather(*asked)
            follows = await made.server.infer({"x": x[1:]}, stream=StreamStep("same", 1))
            for served, right in ((first, 0), (second, 0), (follows, 1)):
                assert np.allclose(served.outputs["y"], unrolled(x)[right : right + 1], atol=1e-6)

    asyncio.run(run())


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_a_stream_that_ends_while_a_request_is_at_work_leaves_nothing_behind(plan: Plan) -> None:
    async def run() -> None:
        async with world("edge-1") as made:
            await made.install(plan, graph=GRAPH)
            for num_before in (0, 1):
                stream = made.server.stream()
                for _ in range(num_before):
                    await stream.infer({"x": samples(1)})
                at_work = [asyncio.create_task(stream.infer({"x": samples(1)})) for _ in range(2)]
                await asyncio.sleep(0)
                stream.close()
                stream.close()
                results = await asyncio.gather(*at_work, return_exceptions=True)
                if plan is not PLANS["device"]:  # where both are done before it ends
                    assert isinstance(results[1], StreamLost)
            await asyncio.gather(*made.server.streams.telling)
            prepared = made.server._plans[Revision(1)]
            assert (len(made.server.streams), prepared.num_streams, len(prepared.streams or ())) == (0, 0, 0)
            for host in made.hosts.values():
                for at_edge in host._plans[Revision(1)].values():
                    assert len(at_edge.streams or ()) == 0

    asyncio.run(run())


def running_sum(axis: str | int = 3, dtype: int = TensorProto.FLOAT) -> Graph:
    """x float32[1, k], before -> after = before + x: nothing but its state comes out."""
    x, before = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, axis]) for n in ("x", "before"))
    after = helper.make_tensor_value_info("after", dtype, [1, axis])
    nodes = [helper.make_node("Add", ["before", "x"], ["sum"]), helper.make_node("Cast", ["sum"], ["after"], to=dtype)]
    graph = helper.make_graph(nodes, "running", [x, before], [after])
    return graph_from(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def test_a_model_with_nothing_but_its_state_answers_that() -> None:
    async def run() -> None:
        node = await local_server(running_sum(), keeps=(("before", "after"),))
        stream, x = node.stream(), np.ones((1, 3), np.float32)
        assert [(await stream.infer({"x": x})).outputs["after"][0, 0] for _ in range(3)] == [1.0, 2.0, 3.0]
        await node.close()

    asyncio.run(run())


def test_state_of_another_dtype_or_of_no_size_or_twice_is_refused_with_the_cure() -> None:
    pair = (("before", "after"),)
    with pytest.raises(GraphError, match="one shape and dtype are needed"):
        device_only_plan(running_sum(dtype=TensorProto.INT64), keeps=pair)
    with pytest.raises(GraphError, match=r"no fixed size in dimension 1.* --input-shape before=1,1"):
        device_only_plan(running_sum("k"), keeps=pair)
    with pytest.raises(GraphError, match="in two states"):
        device_only_plan(GRAPH, keeps=(("h0", "hn"), ("c0", "hn")))


def test_streams_that_nobody_ends_do_not_keep_every_version_there_ever_was() -> None:
    async def run() -> None:
        async with world("edge-1") as made:
            streams = []
            for revision in range(1, 12):
                await made.install(PLANS["device"], revision, revision, graph=GRAPH)
                streams.append(made.server.stream())
                await streams[-1].infer({"x": samples(1)})
            assert made.server.revisions == (7, 8, 9, 10, 11)
            assert len(made.server.streams) == 5
            with pytest.raises(StreamLost, match=r"its version is long gone\. Begin a new one"):
                await streams[0].infer({"x": samples(1)})
            assert (await streams[6].infer({"x": samples(1)})).observation.version == 7

    asyncio.run(run())


def test_a_sequence_of_one_request_that_is_refused_is_not_left_open() -> None:
    async def run() -> None:
        async with world("edge-1") as made:
            await made.install(SPLIT, graph=GRAPH)
            for is_last, left in ((True, 0), (False, 1)):
                with pytest.raises(InputError, match="Reshape"):
                    await made.server.infer({"x": samples(2)}, stream=StreamStep("one", 0, is_last))
                assert len(made.server.streams) == left

    asyncio.run(run())
