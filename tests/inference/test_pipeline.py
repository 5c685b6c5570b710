"""A pipeline over two edges: device → (edge, 0) → (edge, 1)."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from edgewise.core.errors import PlanInfeasible
from edgewise.core.ids import NodeId, Tier
from edgewise.inference.peers import Target
from edgewise.inference.session import AnswerSource
from edgewise.inference.stage_messages import STAGE
from edgewise.inference.stage_server import StageHost
from edgewise.inference.stages import build_stages, check_plan, make_session
from edgewise.planning.plan import ENTRY, Handover, Plan, Site
from tests.inference.loopback_world import KEYS, World, hang, world
from tests.inference.tiny import D, E, active, exit_gate, images, stage, two_exit_graph

GRAPH = two_exit_graph()
FIRST, SECOND = Site(E), Site(E, 1)


def pipeline_plan(*, combine: str = "all") -> Plan:
    return Plan(
        "pipeline",
        GRAPH.digest,
        (
            stage(GRAPH, "x", "a", D),
            stage(GRAPH, "a", "b", FIRST, "first"),
            stage(GRAPH, "b", "end", SECOND, "second"),
        ),
        (Handover("device", "first", ("a",), "none", combine), Handover("first", "second", ("b",), "none")),
        (exit_gate(1, "end", "second"),),
    )


async def lay(made: World, plan: Plan) -> None:
    """Puts edge-1 at the first site and edge-2 at the second."""
    await made.install(plan)
    transport = made.fabric.open("edge-1-outward", allow=lambda origins, key: None)
    made.hosts["edge-1"].set_targets(
        [Target(NodeId("edge-2"), await transport.__aenter__(), KEYS.service("edge-2", STAGE))], SECOND
    )
    device = made.server._peers.at(FIRST).target("edge-1")
    made.server.set_targets([device], FIRST)


def test_a_pipeline_answers_as_the_whole_model_to_the_last_bit_and_names_its_sites() -> None:
    async def run() -> None:
        async with world("edge-1", "edge-2") as made:
            await lay(made, pipeline_plan())
            for seed in range(4):
                x = images(1 + seed % 2, seed)
                served = await made.server.infer({"x": x})
                assert served.outputs["end"].tobytes() == make_session(GRAPH.whole).run(["end"], {"x": x})[0].tobytes()
            seen = served.observation
            assert (seen.source, seen.served_by) == (AnswerSource.PLAN, ("device-1", "edge-1", "edge-2"))
            assert [name for name, _ in seen.payload_bytes] == ["device→edge", "edge→edge:1"]
            assert {"edge compute", "edge:1 compute"} <= {name for name, _ in seen.stages}

    asyncio.run(run())


@pytest.mark.parametrize("victim", ["edge-1", "edge-2"])
@pytest.mark.parametrize("fault", ["is cut off", "hangs", "is cut off at work"])
def test_one_edge_lost_is_answered_by_the_deadline(victim: str, fault: str) -> None:
    async def run() -> None:
        async with world("edge-1", "edge-2") as made:
            await lay(made, pipeline_plan())
            asked = hang(made, victim) if fault != "is cut off" else asyncio.Event()
            if fault == "is cut off":
                made.fabric.cut(victim)
            asks = [asyncio.ensure_future(made.server.infer({"x": images()}, deadline_s=0.5)) for _ in range(4)]
            if fault == "is cut off at work":
                await asked.wait()
                made.fabric.cut(victim)
            served = await asyncio.gather(*asks)
            assert {s.observation.source for s in served} == {AnswerSource.LOCAL_TAIL}
            assert max(s.observation.latency_s for s in served) <= 0.5
            whole = make_session(GRAPH.whole).run(["end"], {"x": images()})[0]
            assert all(s.outputs["end"].tobytes() == whole.tobytes() and s.observation.cause for s in served)

    asyncio.run(run())


def test_any_edge_can_stand_at_any_site_of_its_tier() -> None:
    async def run() -> None:
        async with world("edge-1", "edge-2") as made:
            await lay(made, pipeline_plan())
            made.server.set_targets([made.server._peers.at(None).target("edge-2")], FIRST)
            second = made.hosts["edge-1"]._peers.at(SECOND).target("edge-2")
            made.hosts["edge-2"].set_targets([second], SECOND)
            served = await made.server.infer({"x": images()})
            assert served.observation.served_by == ("device-1", "edge-2", "edge-2")

    asyncio.run(run())


def test_a_node_of_another_tier_builds_nothing_and_a_branching_plan_is_refused() -> None:
    async def run() -> None:
        host = StageHost(NodeId("cloud-1"), Tier.CLOUD)
        await host.prepare(active(pipeline_plan()), GRAPH)
        assert host._plans[active(pipeline_plan()).revision] == {}
        with pytest.raises(PlanInfeasible, match=r"hands over device→first \(any_k\) from device; nodes run chains"):
            await build_stages(GRAPH, pipeline_plan(combine="any_k"), ENTRY)
        await host.close()

    asyncio.run(run())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tile": (0, 3)}, "computes a tile of its input"),
        ({"graph": "f" * 64}, "computes a piece of graph ffffffffffff"),
    ],
)
def test_what_nodes_cannot_run_yet_is_refused_by_name(change: dict[str, Any], message: str) -> None:
    plan = pipeline_plan()
    first, *rest = plan.stages
    odd = msgspec.structs.replace(plan, stages=(msgspec.structs.replace(first, **change), *rest))
    with pytest.raises(PlanInfeasible, match=message):
        check_plan(GRAPH, odd)
