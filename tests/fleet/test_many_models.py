"""Two models on one device: each with its version, rollout, gate, drift watch and way back; neither starves the other."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from edgewise.core.errors import Busy, RemoteError
from edgewise.core.ids import NodeId
from edgewise.fleet.messages import Ack, Deploy
from edgewise.fleet.operator.operator import Operator
from edgewise.fleet.serving.drift_watch import Confidences
from edgewise.inference.serving_node import device_only_plan
from edgewise.models.graph.graph import Graph
from edgewise.planning.plan import Plan
from edgewise.testing.serving_fleet import ServingFleet
from tests.inference.tiny import images, rescaling_graph, split_plan, two_exit_graph

GRAPHS = {"digits": two_exit_graph(), "faces": two_exit_graph(seed=1)}
NEWER = {"digits": two_exit_graph(seed=2), "faces": two_exit_graph(seed=3)}
DEVICE = "device-1"
Scene = Callable[[ServingFleet], Awaitable[None]]


def on_fleet(folder: Path, scene: Scene, **how: Any) -> None:
    async def run() -> None:
        async with ServingFleet(folder, **how) as fleet:
            await scene(fleet)

    asyncio.run(run())


def plans(graph: Graph) -> tuple[Plan, ...]:
    return (split_plan(graph),)


async def both_in_force(fleet: ServingFleet) -> dict[str, int]:
    """Versions 1 and 2 serve, one of each model; 3 and 4 wait in the registry."""
    for graphs in (GRAPHS, NEWER):
        for name, graph in graphs.items():
            await fleet.register(graph.model_bytes, name)
    for number, graph in enumerate(GRAPHS.values(), 1):
        ack = await fleet.operator.deploy(Deploy(number, plans(graph), deadline_s=5.0))
        assert ack.accepted, ack.reason
    return (await fleet.operator.versions()).in_force


async def ask(fleet: ServingFleet, model: str, number: int = 1) -> list[tuple[int, bytes]]:
    """Version and answer of so many requests, which the edge completes."""
    found = []
    for seed in range(number):
        served = await fleet.infer(DEVICE, model, {"x": images(1, seed)})
        assert served.observation.served_by == (DEVICE, "edge-1")
        found.append((served.observation.version, served.outputs["end"].tobytes()))
    return found


def whole(graph: Graph, seed: int = 0) -> bytes:
    from edgewise.inference.evidence import run_graph

    return np.asarray(run_graph(graph.whole, {"x": images(1, seed)}, ["end"])[0]).tobytes()


def test_each_model_is_answered_along_its_own_plan(tmp_path: Path) -> None:
    async def scene(fleet: ServingFleet) -> None:
        assert await both_in_force(fleet) == {"digits": 1, "faces": 2}
        assert await ask(fleet, "digits") == [(1, whole(GRAPHS["digits"]))]
        assert await ask(fleet, "faces") == [(2, whole(GRAPHS["faces"]))]

    on_fleet(tmp_path, scene)


def test_two_versions_roll_out_at_once_and_one_is_rolled_back_while_the_other_stays(tmp_path: Path) -> None:
    async def scene(fleet: ServingFleet) -> None:
        await both_in_force(fleet)
        rollouts = {
            name: asyncio.create_task(
                fleet.operator.deploy(Deploy(number, plans(graph), min_requests=3, deadline_s=5.0, ungated=True))
            )
            for number, (name, graph) in enumerate(NEWER.items(), 3)
        }
        await fleet.until(lambda: fleet.versions(DEVICE) == {"digits": 3, "faces": 4})
        assert not any(task.done() for task in rollouts.values())
        ack = await fleet.operator.rollback("digits")
        assert (ack.version, ack.taken_back) == (1, 3)
        assert "an operator asked for the former version" in (await rollouts["digits"]).reason
        assert (fleet.versions(DEVICE), rollouts["faces"].done()) == ({"digits": 1, "faces": 4}, False)
        assert await ask(fleet, "faces", 3) == [(4, whole(NEWER["faces"], seed)) for seed in range(3)]
        assert (await rollouts["faces"]).accepted
        assert (await fleet.operator.versions()).in_force == {"digits": 1, "faces": 4}
        assert await ask(fleet, "digits") == [(1, whole(GRAPHS["digits"]))]
        ended = [f for kind, f in fleet.events if kind == "rollout_ended"]
        assert [(f["model"], f["outcome"]) for f in ended[-2:]] == [("digits", "rolled_back"), ("faces", "completed")]

    on_fleet(tmp_path, scene)


def test_who_deploys_waits_for_as_long_as_the_rollout_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each device serves some requests first, and a large graph takes its time to each."""
    monkeypatch.setitem(Operator._ask.__kwdefaults__, "timeout_s", 0.3)

    async def scene(fleet: ServingFleet) -> None:
        number, graph = await fleet.register(GRAPHS["digits"].model_bytes, "digits"), GRAPHS["digits"]
        order = Deploy(number, plans(graph), deadline_s=5.0, min_requests=1)
        deploying = asyncio.create_task(fleet.operator.deploy(order))
        await fleet.until(lambda: fleet.versions(DEVICE) == {"digits": number})
        await asyncio.sleep(0.5)
        assert not deploying.done()
        await ask(fleet, "digits")
        assert (await deploying).accepted

    on_fleet(tmp_path, scene)


def test_a_rollout_that_goes_wrong_takes_back_its_own_model_only(tmp_path: Path) -> None:
    async def scene(fleet: ServingFleet) -> None:
        await both_in_force(fleet)
        rollouts = [
            fleet.operator.deploy(Deploy(number, plans(graph), min_requests=2, deadline_s=deadline_s, ungated=True))
            for number, graph, deadline_s in ((3, NEWER["digits"], 1e-6), (4, NEWER["faces"], 5.0))
        ]
        tasks = [asyncio.create_task(rollout) for rollout in rollouts]
        await fleet.until(lambda: fleet.versions(DEVICE) == {"digits": 3, "faces": 4})
        for name in ("digits", "faces"):
            for seed in range(2):
                with contextlib.suppress(Busy):  # it cannot be done in a microsecond, and is refused at once
                    await fleet.infer(DEVICE, name, {"x": images(1, seed)})
        bad, good = await asyncio.gather(*tasks)
        assert (good.accepted, bad.accepted) == (True, False)
        assert "2 of 2 requests without an answer in time" in bad.reason
        assert fleet.versions(DEVICE) == {"digits": 1, "faces": 4}

    on_fleet(tmp_path, scene)


def test_a_device_that_starts_again_serves_all_its_models_and_missed_versions_are_caught_up(tmp_path: Path) -> None:
    async def scene(fleet: ServingFleet) -> None:
        await both_in_force(fleet)
        await fleet.restart(DEVICE)
        assert fleet.versions(DEVICE) == {"digits": 1, "faces": 2}  # from its own disk
        await ask(fleet, "digits")
        fleet.fabric.cut(NodeId(DEVICE))
        await fleet.until(lambda: not any(m.node == DEVICE for m in fleet.coordinator.watch.members.alive()))
        assert (await fleet.operator.deploy(Deploy(4, plans(NEWER["faces"]), deadline_s=5.0, ungated=True))).accepted
        fleet.fabric.heal(NodeId(DEVICE))
        await fleet.until(lambda: fleet.versions(DEVICE) == {"digits": 1, "faces": 4})
        assert await ask(fleet, "faces") == [(4, whole(NEWER["faces"]))]

    on_fleet(tmp_path, scene)


def holdout(path: Path, graph: Graph) -> str:
    """Held-out data on which a model is always right."""
    from edgewise.inference.evidence import run_graph

    inputs = np.random.default_rng(5).normal(size=(400, 1, 8, 8)).astype(np.float32)
    labels = run_graph(graph.whole, {"x": inputs}, ["end"])[0].argmax(-1)
    np.savez(path, calibration_x=inputs, calibration_y=labels, gate_x=inputs, gate_y=labels)
    return str(path)


def test_each_model_has_its_own_held_out_data_and_gate(tmp_path: Path) -> None:
    files = ",".join(f"{name}={holdout(tmp_path / f'{name}.npz', graph)}" for name, graph in GRAPHS.items())

    async def scene(fleet: ServingFleet) -> None:
        await both_in_force(fleet)
        same = await fleet.register(GRAPHS["digits"].model_bytes, "digits", parent=1)
        swapped = await fleet.register(GRAPHS["digits"].model_bytes, "faces", parent=2)
        found = {v.number: v for v in (await fleet.operator.versions()).versions}
        assert found[same].gate is not None
        assert found[same].gate.passed
        assert found[swapped].gate is not None
        assert not found[swapped].gate.passed  # right about digits, and wrong about faces
        ack = await fleet.operator.deploy(Deploy(swapped, plans(GRAPHS["digits"])))
        assert "did not pass its gate" in ack.reason

    on_fleet(tmp_path, scene, holdout=files)


def test_held_out_data_of_another_kind_are_not_asked(tmp_path: Path) -> None:
    files = holdout(tmp_path / "digits.npz", GRAPHS["digits"])

    async def scene(fleet: ServingFleet) -> None:
        await fleet.register(GRAPHS["digits"].model_bytes, "digits")
        number = await fleet.register(rescaling_graph().model_bytes, "other")
        first, other = (await fleet.operator.versions()).versions
        assert (bool(first.evidence), other.evidence, other.gate) == (True, (), None)
        ack = await fleet.operator.deploy(Deploy(number, (device_only_plan(rescaling_graph()),)))
        assert ack.accepted, ack.reason

    on_fleet(tmp_path, scene, holdout=files)


def test_held_out_data_of_its_own_must_fit_the_model(tmp_path: Path) -> None:
    files = "other=" + holdout(tmp_path / "digits.npz", GRAPHS["digits"])

    async def scene(fleet: ServingFleet) -> None:
        with pytest.raises(RemoteError, match=r"held-out examples float32\[1, 8, 8\] are not what model 'other' takes"):
            await fleet.register(rescaling_graph().model_bytes, "other")

    on_fleet(tmp_path, scene, holdout=files)


def test_each_model_has_its_own_drift_watch(tmp_path: Path) -> None:
    files = holdout(tmp_path / "both.npz", GRAPHS["digits"])

    async def scene(fleet: ServingFleet) -> None:
        await both_in_force(fleet)
        device = fleet.nodes[NodeId(DEVICE)]
        usual = [a.confidence for a in fleet.coordinator.versions.calibration_answers(2)[0]]

        async def report(model: str, version: int, values: tuple[float, ...]) -> None:
            seen = Confidences(device.name, version, values, 1.0, 0, model=model)
            assert (await device.ask(NodeId("cloud"), "report", seen, Ack)).accepted

        for _ in range(4):
            await report("digits", 1, (0.01,) * 50)
            await report("faces", 2, tuple(usual[:50]))
        drift = (await fleet.operator.nodes()).drift
        assert list(drift) == ["digits"]
        assert "the inputs did not look like those of the held-out data" in drift["digits"]
        alarms = [fields for kind, fields in fleet.events if kind == "drift_detected"]
        assert {fields["model"] for fields in alarms} == {"digits"}

    on_fleet(tmp_path, scene, holdout=files)


def test_a_verb_without_a_model_names_those_there_are(tmp_path: Path) -> None:
    async def scene(fleet: ServingFleet) -> None:
        await both_in_force(fleet)
        with pytest.raises(
            RemoteError, match=r"several models are in force: digits, faces\. Say which, with --model NAME"
        ):
            await fleet.operator.rollback()
        with pytest.raises(RemoteError, match="no model 'digit' is in force here"):
            await fleet.operator.example_counts(NodeId(DEVICE), "digit")

    on_fleet(tmp_path, scene)


def test_a_model_without_room_is_refused_before_it_is_rolled_out(tmp_path: Path) -> None:
    async def scene(fleet: ServingFleet) -> None:
        for name, graph in GRAPHS.items():
            await fleet.register(graph.model_bytes, name)
        assert (await fleet.operator.deploy(Deploy(1, plans(GRAPHS["digits"])))).accepted
        ack = await fleet.operator.deploy(Deploy(2, plans(GRAPHS["faces"])))
        assert "device-1 serves 1 models (digits) and takes no more, so not 'faces'" in ack.reason
        assert fleet.versions(DEVICE) == fleet.versions("edge-1") == {"digits": 1}

    on_fleet(tmp_path, scene, max_models=1)


async def steady(fleet: ServingFleet, number: int, gap_s: float, deadline_s: float) -> list[float]:
    """Latencies of requests of `faces` at a steady pace; one without an answer counts its whole deadline."""
    found = []
    for seed in range(number):
        try:
            served = await fleet.infer(DEVICE, "faces", {"x": images(1, seed)}, deadline_s=deadline_s)
            found.append(served.observation.latency_s if served.outputs else float("inf"))
        except Busy:  # it would have been late
            found.append(float("inf"))
        await asyncio.sleep(gap_s)
    return found


def test_a_flood_of_one_model_leaves_the_other_its_share(tmp_path: Path) -> None:
    """The thread computes one request at a time; with two models a request waits for one of the other, not for all.

    The flood's deadlines are the earlier ones: served by deadline alone, it would leave the other model nothing at all.
    """

    async def scene(fleet: ServingFleet) -> None:
        for number, (name, graph) in enumerate(GRAPHS.items(), 1):
            await fleet.register(graph.model_bytes, name)
            assert (await fleet.operator.deploy(Deploy(number, (device_only_plan(graph),)))).accepted
        one_s = float(np.median(await steady(fleet, 20, 0.0, 5.0)))
        counts = {"refused": 0, "answered": 0}
        is_over = asyncio.Event()

        async def flood() -> None:
            while not is_over.is_set():
                try:
                    served = await fleet.infer(DEVICE, "digits", {"x": images()}, deadline_s=7 * one_s)
                    counts["answered"] += bool(served.outputs)
                except Busy:
                    counts["refused"] += 1
                    await asyncio.sleep(one_s)

        floods = [asyncio.create_task(flood()) for _ in range(60)]
        await asyncio.sleep(10 * one_s)
        # Half of the thread is this model's: a request takes its own time, and at most about one of the other's.
        beside = await steady(fleet, 40, one_s, 8 * one_s)
        is_over.set()
        await asyncio.gather(*floods)
        assert sum(np.isfinite(beside)) >= 38, (one_s, beside)
        assert np.median(beside) < 4 * one_s
        assert counts["refused"] > 0  # more than its share of open requests
        assert counts["answered"] > 5  # and it went on meanwhile

    on_fleet(tmp_path, scene, dilation=1500.0)  # a request takes many times what the event loop takes for it


def test_a_share_is_what_the_operator_gives(tmp_path: Path) -> None:
    async def scene(fleet: ServingFleet) -> None:
        for number, (name, share) in enumerate((("digits", 3.0), ("faces", 1.0)), 1):
            await fleet.register(GRAPHS[name].model_bytes, name)
            ack = await fleet.operator.deploy(Deploy(number, plans(GRAPHS[name]), share=share))
            assert ack.accepted, ack.reason
        models = fleet.serving[DEVICE].models
        open_requests = [models[name].served.max_in_flight for name in ("digits", "faces")]
        assert open_requests[0] == 3 * open_requests[1] == 48
        assert fleet.serving["edge-1"].host is not None
        assert fleet.serving["edge-1"].host._shares == {"digits": 3.0, "faces": 1.0}
        with pytest.raises(RemoteError, match=r"the share of 'digits' is 0\.0, it must be a number > 0"):
            await fleet.operator.deploy(Deploy(1, plans(GRAPHS["digits"]), share=0.0))

    on_fleet(tmp_path, scene)


def test_messages_name_their_model() -> None:
    from edgewise.fleet import messages

    named = (messages.InstallOrder, messages.UninstallOrder, messages.Feedback, messages.Health, messages.HealthRequest)
    for message in (*named, messages.Rollback, messages.ExampleCountsRequest, Confidences):
        assert "model" in {field.name for field in msgspec.structs.fields(message)}
