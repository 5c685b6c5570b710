"""From a device's answers to what `nodes` says: what is told along any plan, and labels that prove harm."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from edgewise.core.ids import NodeId
from edgewise.fleet.messages import Deploy, DriftStatus, Feedback
from edgewise.fleet.operator import retraining
from edgewise.fleet.operator.retraining import RetrainingLoop
from edgewise.inference.evidence import run_graph
from edgewise.inference.serving_node import device_only_plan
from edgewise.lifecycle.change import BLOCK
from edgewise.lifecycle.loop import LoopSettings, LoopState
from edgewise.models.graph.graph import Graph, graph_from
from edgewise.testing.serving_fleet import ServingFleet
from tests.fleet.test_many_models import DEVICE, holdout
from tests.inference.tiny import images, split_plan, two_exit_graph

GRAPH = two_exit_graph()
PLANS = {"split": split_plan(GRAPH), "all on device": device_only_plan(GRAPH)}
NUM = 96


async def status_of(fleet: ServingFleet, labels: int) -> DriftStatus:
    """What is known once so many labels have come."""
    async with asyncio.timeout(30):
        while True:
            known = (await fleet.operator.nodes()).monitors.get("tiny")
            if known is not None and known.num_labels >= labels:
                return known
            await asyncio.sleep(0.02)


async def alarms_of(fleet: ServingFleet) -> list[str]:
    """The monitors that gave an alarm, once one is published."""
    async with asyncio.timeout(30):
        while True:
            told = [fields["monitor"] for kind, fields in fleet.events if kind == "drift_detected"]
            if told:
                return told
            await asyncio.sleep(0.02)


async def told(fleet: ServingFleet, node: str) -> dict[str, float]:
    """What `/metrics` of a node says of drift: name, values of its labels, value."""
    samples = [row for family in await fleet.serving[node].metrics() for row in family.samples]
    mine = [(name.removeprefix("edgewise_"), labels, value) for name, labels, value in samples if "_drift_" in name]
    assert all(labels[0] == ("model", "tiny") for _, labels, _ in mine)
    return {" ".join([name, *(value for _, value in labels[1:])]): value for name, labels, value in mine}


@pytest.mark.parametrize("plan", PLANS)
def test_harm_is_proved_by_feedback_whatever_the_plan(plan: str, tmp_path: Path) -> None:
    files = holdout(tmp_path / "held.npz", GRAPH)  # on which the model is always right

    async def scene() -> None:
        async with ServingFleet(tmp_path, holdout=files) as fleet:
            await fleet.register(GRAPH.model_bytes, "tiny")
            assert (await fleet.operator.deploy(Deploy(1, (PLANS[plan],), deadline_s=20.0))).accepted
            right, wrong = {}, {}
            for seed in range(NUM):
                served = await fleet.infer(DEVICE, "tiny", {"x": images(1, 1000 + seed)})
                answer = int(np.argmax(served.outputs["end"][0]))
                (right if seed < NUM // 2 else wrong)[served.observation.request] = answer + (seed >= NUM // 2)
            await fleet.operator.feedback(fleet.nodes[DEVICE].name, Feedback("tiny", right))  # type: ignore[index]
            known = await status_of(fleet, len(right))
            assert (known.sentence, known.calls_for_training, known.risk, known.risk_reference) == ("", False, 0.0, 0.0)
            assert known.num_requests == NUM // BLOCK * BLOCK
            assert known.waits_for.startswith(f"labels, {len(right)} held")
            for node in (DEVICE, "edge-1", "cloud"):  # each tells the same, also where it answers nothing
                assert await told(fleet, node) == {
                    "drift_statistic harm": known.harm_statistic, "drift_statistic change": known.change_statistic,
                    "drift_threshold harm": 100.0, "drift_threshold change": 100.0, "drift_labels": len(right),
                    "drift_labels_needed 30": known.labels_needed[0][1],
                    "drift_labels_needed 10": known.labels_needed[1][1],
                    "drift_harm": 0.0, "drift_wrong_ratio labels": 0.0, "drift_wrong_ratio held out": 0.0,
                    "drift_info 1 none labels": 1.0,
                }  # fmt: skip
            await fleet.operator.feedback(fleet.nodes[DEVICE].name, Feedback("tiny", wrong))  # type: ignore[index]
            known = await status_of(fleet, NUM)
            assert (known.calls_for_training, known.kind, known.risk) == (True, "concept", 0.5)
            assert await alarms_of(fleet) == ["harm"]
            last = await told(fleet, "edge-1")
            assert (last["drift_harm"], last["drift_labels"], last["drift_info 1 concept examples"]) == (1.0, NUM, 1.0)
            fleet.fabric.cut("cloud")
            assert await told(fleet, DEVICE) == {}  # nothing rather than what was true once

    asyncio.run(scene())


def another_like(graph: Graph) -> Graph:
    """A model that gives the same answer to half of the inputs."""
    model = onnx.load_from_string(graph.model_bytes)
    (weights,) = (w for w in model.graph.initializer if w.name == "end.w")
    values = numpy_helper.to_array(weights)
    moved = values + np.random.default_rng(1).normal(0, 0.05, values.shape).astype(np.float32)
    weights.CopyFrom(numpy_helper.from_array(moved, weights.name))
    return graph_from(model, exits=("early", "end"))


def answers(graph: Graph, inputs: NDArray[Any]) -> NDArray[Any]:
    return np.asarray(run_graph(graph.whole, {"x": inputs}, ["end"])[0].argmax(-1))


def test_an_old_version_comes_back_when_its_drift_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Version 2 is right wherever held-out data are; then come inputs about which only version 1 is.
    for name in ("COUNT_EVERY_S", "LOOK_EVERY_S"):
        monkeypatch.setattr(retraining, name, 0.05)
    newer, inputs = another_like(GRAPH), np.random.default_rng(0).normal(size=(1200, 1, 8, 8)).astype(np.float32)
    labels, new = answers(GRAPH, inputs), answers(newer, inputs)
    x, y, only_old = inputs[labels == new], labels[labels == new], np.flatnonzero(labels != new)[:60]
    np.savez(tmp_path / "held.npz", calibration_x=x, calibration_y=y, gate_x=x, gate_y=y)
    trained: list[int] = []

    async def scene() -> LoopState:
        how: dict[str, Any] = {"holdout": str(tmp_path / "held.npz"), "http_ports": {DEVICE: 80}}
        async with ServingFleet(tmp_path, **how) as fleet:
            for number, graph in enumerate((GRAPH, newer), 1):
                await fleet.register(graph.model_bytes, "tiny", parent=number - 1)
                assert (await fleet.operator.deploy(Deploy(number, (split_plan(graph),), deadline_s=20.0))).accepted

            async def train(parent: int) -> tuple[int, str]:
                trained.append(parent)
                return 0, "nothing is trained here"

            async def roll_out(number: int, why: str) -> None:
                await fleet.operator.deploy(Deploy(number, (split_plan(GRAPH),), deadline_s=20.0, why=why))

            said: dict[str, int] = {}
            for index in only_old:
                served = await fleet.infer(DEVICE, "tiny", {"x": inputs[index][None]})
                said[served.observation.request] = int(labels[index])
            await fleet.operator.feedback(NodeId(DEVICE), Feedback("tiny", said))
            loop = RetrainingLoop(
                fleet.operator, "tiny", LoopSettings(min_labels=40), labels="feedback", train=train, roll_out=roll_out,
                on_note=lambda _: None,
            )  # fmt: skip
            state = await asyncio.wait_for(loop.run(1), 60)
            last = (await fleet.operator.versions()).history[-1]
            assert (last.version, last.note) == (1, "tried old version v1 first: drift returned")
            assert fleet.versions(DEVICE) == {"tiny": 1}
            return state

    state = asyncio.run(scene())
    assert (state.outcomes, state.version, trained) == (("done",), 1, [])
    assert any(
        "version 1, made earlier, is tried first: of 60 fresh examples it loses 0 and gains 60" in note.text
        for note in state.timeline
    )
