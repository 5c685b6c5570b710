"""What an operator does in a disturbed fleet while a run goes on: versions come and go, plans change, a drift is trained on.

Nothing of it must succeed while faults last; all of it has to end, and never with a version that the gate refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools

from edgewise.chaos.live.live_scene import LiveScene, split_plan
from edgewise.chaos.live.live_schedule import LOCAL, LiveRunKind, LiveSchedule
from edgewise.core.errors import EdgewiseError, RemoteError
from edgewise.fleet.messages import HardExamples
from edgewise.fleet.operator.retraining import RetrainingLoop
from edgewise.inference.serving_node import device_only_plan
from edgewise.lifecycle.labels import feedback
from edgewise.lifecycle.loop import LoopSettings
from edgewise.models.graph.graph import Graph
from edgewise.testing.spoiled_graph import spoiled

BETWEEN_DEPLOYMENTS_S = 1.0
RUINOUS_NOISE = 3.0
"""Of a version that nobody can take for a good one, as `spoiled` has it: where versions learn little, less may pass by luck."""
MIN_LABELS = 20
"""Labelled hard examples on the devices before the drift is trained on."""
RETRAINING_ROUNDS = 2
TRAINED_S = 90.0
"""Within so many seconds a retraining ends, or its turn has failed."""
RETRAINING = LiveRunKind(
    "retraining", {"name": "fed_avg", "local": {**LOCAL, "epochs": 2}, "uplink": "int8"}, "hierarchical"
)
MOST_TURNS = 3
"""Turns that may fail because somebody was away just then; as many in a row end `edgewise retrain`."""


class BrokenPromise(Exception):
    """What must never come of an operator's orders."""


async def act(scene: LiveScene, schedule: LiveSchedule, faults_over: asyncio.Event) -> str:
    """Does what a campaign's schedule says an operator does.

    Args:
        scene: The fleet.
        schedule: The campaign.
        faults_over: Set when its last fault is healed.

    Returns:
        What came of it, in a few words; "" where nothing was to be done.

    Raises:
        BrokenPromise: If something came of it that must never be.
        EdgewiseError: If a fault came between.
    """
    match schedule.beside:
        case "offer a bad version":
            return await _offer_bad(scene, schedule.seed)
        case "roll out":
            return await _roll_out_again(scene)
        case "roll back":
            ack = await scene.operator.rollback(scene.task.name)
            return f"version {ack.version} again" if ack.accepted else "not rolled back"
        case "deploy other plans":
            return await _deploy_other_plans(scene, faults_over)
        case "retrain":
            return await _retrain(scene, f"retraining-{schedule.seed}")
    return ""


async def _offer_bad(scene: LiveScene, seed: int) -> str:
    good = await scene.operator.graph(scene.good)
    ack = await scene.operator.register(
        spoiled(good, seed, noise=RUINOUS_NOISE), task=scene.task.name, origin="spoiled"
    )
    if ack.gate is None or ack.gate.passed:
        raise BrokenPromise(f"the gate let a spoiled version through: {ack.gate}")
    with contextlib.suppress(EdgewiseError):
        if not (await scene.deploy(ack.version)):
            raise BrokenPromise(f"version {ack.version}, which the gate refused, was deployed")
    return "refused"


async def _roll_out_again(scene: LiveScene) -> str:
    good = await scene.operator.graph(scene.good)
    ack = await scene.operator.register(good, task=scene.task.name, origin="the same again")
    return await scene.deploy(ack.version, staged=True) or "rolled out"


async def _deploy_other_plans(scene: LiveScene, faults_over: asyncio.Event) -> str:
    """Another plan of the served version every second: on the device alone, split at the edge, coded at the cut."""
    graph = await asyncio.to_thread(Graph.load, await scene.operator.graph(scene.good))
    alone, split, coded = device_only_plan(graph), split_plan(graph), split_plan(graph, "int8")
    num_accepted = num = 0
    for plans in itertools.cycle(((alone,), (split, alone), (coded, alone))):
        num += 1
        with contextlib.suppress(EdgewiseError):
            num_accepted += not await scene.deploy(scene.good, plans=plans)
        if faults_over.is_set() and num >= 3:
            break
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(faults_over.wait(), BETWEEN_DEPLOYMENTS_S)
    return f"{num_accepted} of {num} deployments"


async def _retrain(scene: LiveScene, name: str) -> str:
    """`edgewise retrain` until something came of a drift: labels prove it, and devices train on what they kept."""
    numbers = itertools.count()

    async def train(parent: int) -> tuple[int, str]:
        run = await scene.submit(
            RETRAINING,
            f"{name}-{next(numbers)}",
            num_rounds=RETRAINING_ROUNDS,
            seed=0,
            register=True,
            start_version=parent,
            hard_examples=HardExamples(feedback().spec.to_dict()),
        )
        status = await scene.end_of(run, TRAINED_S)
        return status.version, status.cause or f"it is {status.state}, without a version"

    async def roll_out(version: int, why: str) -> None:
        if refusal := await scene.deploy(version, staged=True, why=why):
            raise RemoteError(refusal)

    loop = RetrainingLoop(
        scene.operator, scene.task.name, LoopSettings(MIN_LABELS), labels=str(feedback().spec), train=train,
        roll_out=roll_out, on_note=lambda _: None,
    )  # fmt: skip
    for _ in range(MOST_TURNS):
        state = await loop.run(turns=1)
        last = state.timeline[-1].text
        if state.outcomes[-1] != "failed":
            return last.partition(";")[0].partition(" (")[0]
    raise BrokenPromise(f"{MOST_TURNS} retrainings in a row came to nothing, the last {last}")
