"""Teachers on a live device: the served model's larger part asked from the cut's features, a larger model on the device."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgewise.core.errors import Busy, InputError, PolicyViolation, Unreachable
from edgewise.core.ids import NodeId, Tier
from edgewise.core.provenance import RAW, Origins, origins_of
from edgewise.fleet.serving.example_collector import ExampleCollector
from edgewise.fleet.serving.labelling import label_help
from edgewise.inference.serving_node import device_only_plan
from edgewise.ledger.entry import Direction, FrameCounter, Purpose
from edgewise.models.graph.graph import Graph
from edgewise.models.task import Examples
from edgewise.planning.plan import Plan, Site
from edgewise.planning.policy import Policy
from tests.inference.loopback_world import World, world
from tests.inference.test_serving_loopback import GRAPH, whole
from tests.inference.tiny import images, raw_plan, split_plan, two_exit_graph

ANY = {"name": "teacher", "min_confidence": 0.0}
OTHER = two_exit_graph(seed=7, width=16)
NUM = 9


def only_features(origins: Origins, key: str) -> None:
    if RAW in origins:
        raise PolicyViolation(f"raw data may not go to {key!r}. Grant it in the policy.")


def taught(
    plan: Plan,
    words: dict[str, Any],
    *,
    teacher: Graph | None = None,
    policy: Policy | None = None,
    allow: Any = only_features,
    before: Callable[[World], Awaitable[None]] | None = None,
) -> tuple[Examples | None, NDArray[Any]]:
    """Serves a few requests, lets a source label what was kept; the examples, and all inputs by row."""

    async def run() -> tuple[Examples | None, NDArray[Any]]:
        async with world("edge-1", allow=allow) as made:
            good = ExampleCollector(NodeId("device-1"), "tiny", 10**6)
            made.server._on_served = good.served
            await made.install(plan)
            inputs = np.concatenate([images(1, seed) for seed in range(NUM)])
            for row in inputs:
                await made.server.infer({"x": row[None]})
            await asyncio.sleep(0)
            if before is not None:
                await before(made)
            own = policy or Policy(raw_may_reach=Tier.DEVICE)
            help = label_help(made.server, words, own, teacher, asyncio.get_running_loop())
            return await asyncio.to_thread(good.labelled, words, help), inputs

    return asyncio.run(run())


def labels_of(graph: Graph, inputs: NDArray[Any]) -> list[int]:
    return [int(whole(graph, row[None])[-1].argmax()) for row in inputs]


@pytest.mark.parametrize("exit_on_device", [True, False])
def test_the_larger_part_labels_from_the_features_and_no_input_leaves(exit_on_device: bool) -> None:
    # threshold 0.01: every request left at the device, so nobody has asked the edge about these before
    plan = split_plan(GRAPH, threshold=0.01, exit_on_device=exit_on_device)
    examples, inputs = taught(plan, ANY | {"reads": "features"})
    assert examples is not None
    assert examples.inputs.tobytes() == inputs.tobytes()
    assert examples.targets.tolist() == labels_of(GRAPH, inputs)
    assert origins_of(examples.inputs) == {RAW}


@pytest.mark.parametrize(("teacher", "model"), [(None, GRAPH), (OTHER, OTHER)])
def test_a_model_on_the_device_labels_under_any_plan(teacher: Graph | None, model: Graph) -> None:
    examples, inputs = taught(device_only_plan(GRAPH), ANY | {"reads": "device"}, teacher=teacher)
    assert examples is not None
    assert examples.targets.tolist() == labels_of(model, inputs)


def test_what_is_learned_from_is_counted_as_training_and_outlasts_a_requests_deadline() -> None:
    counters: list[FrameCounter] = []

    async def hurry(made: World) -> None:
        made.server.default_deadline_s = 1e-6
        counters.append(made.server._peers.at(Site(Tier.EDGE)).target("edge-1").transport.guard.counter)  # type: ignore[attr-defined]

    examples, _ = taught(split_plan(GRAPH, threshold=0.01), ANY | {"reads": "features"}, before=hurry)
    assert examples is not None
    sent = {(e.kind, e.purpose): e.num_frames for e in counters[0].entries() if e.direction is Direction.SENT}
    assert sent == {("stage_request", Purpose.TRAINING): NUM}


def test_a_teacher_that_is_not_sure_leaves_examples_out() -> None:
    examples, _ = taught(device_only_plan(GRAPH), {"name": "teacher", "reads": "device", "min_confidence": 1.0})
    assert examples is None


def test_there_are_no_features_where_the_plan_has_no_cut() -> None:
    with pytest.raises(InputError, match=r"has no teacher to ask\. Give this device one"):
        taught(device_only_plan(GRAPH), ANY | {"reads": "features"})


def test_raw_inputs_go_to_a_teacher_only_where_the_policy_lets_them() -> None:
    words = ANY | {"reads": "raw"}
    granted = Policy(raw_may_reach=Tier.EDGE)
    with pytest.raises(PolicyViolation, match="would send raw inputs to the edge"):
        taught(raw_plan(GRAPH), words, allow=lambda origins, key: None)
    examples, inputs = taught(raw_plan(GRAPH), words, policy=granted, allow=lambda origins, key: None)
    assert examples is not None
    assert examples.targets.tolist() == labels_of(GRAPH, inputs)


def test_a_device_without_an_edge_says_so() -> None:
    async def lose(made: World) -> None:
        made.server.peer_lost("edge-1")

    with pytest.raises(Unreachable, match="reaches no node at site edge now"):
        taught(split_plan(GRAPH, threshold=0.01), ANY | {"reads": "features"}, before=lose)


def test_features_and_answers_need_a_plan_that_hands_over() -> None:
    async def run() -> None:
        async with world("edge-1") as made:
            await made.install(device_only_plan(GRAPH))
            with pytest.raises(Busy, match="no plan is in force on 'device-1' that hands over"):
                made.server.features(images())
            await made.install(raw_plan(GRAPH), revision=2)
            with pytest.raises(Busy, match="runs no stage of the plan in force"):
                made.server.features(images())

    asyncio.run(run())
