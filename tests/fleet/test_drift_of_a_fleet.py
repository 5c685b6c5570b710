"""From a device's answers to what `nodes` says: what is told along any plan, and labels that prove harm."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from edgewise.fleet.messages import Deploy, DriftStatus, Feedback
from edgewise.inference.serving_node import device_only_plan
from edgewise.lifecycle.change import BLOCK
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
            await fleet.operator.feedback(fleet.nodes[DEVICE].name, Feedback("tiny", wrong))  # type: ignore[index]
            known = await status_of(fleet, NUM)
            assert (known.calls_for_training, known.kind, known.risk) == (True, "concept", 0.5)
            assert await alarms_of(fleet) == ["harm"]

    asyncio.run(scene())
