"""No example leaves its device, in any encoding: searched in the plain bytes of every frame of a whole fleet.

One fleet of processes trains and serves with raw data kept on its device, then one device restarts with a grant and
sends its inputs to the edge: the same search finds them, so it can fail. What the processes trained is compared with the
simulator's model, byte by byte.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from edgewise.chaos.live.live_scene import split_plan
from edgewise.codecs import png
from edgewise.core.ids import ClientId, NodeId, Tier, digest_of
from edgewise.core.png_file import encode_png
from edgewise.core.seeds import Seeds
from edgewise.fleet.messages import Deploy, RunStatus
from edgewise.fleet.operator.operator import Operator, connect_operator
from edgewise.fleet.operator.submission import task_request
from edgewise.models.export import INPUT
from edgewise.models.flat import initial_vector
from edgewise.models.graph.graph import Graph
from edgewise.planning.plan import EXIT, Gate, Handover, Plan, Site, Stage
from edgewise.planning.plan import INPUT as REQUEST
from edgewise.service.client import InferenceClient, Reply
from edgewise.simulation.emulated.emulated_fleet import CLOUD, OPERATOR, EmulatedFleet
from edgewise.simulation.emulated.fleet_file import CloudClass, DeviceClass, EdgeClass, FleetFile
from edgewise.simulation.simulate import SimulationOptions, simulate_rounds
from edgewise.training.algorithms import make_algorithm
from edgewise.training.tasks.digits_task import DigitsTask

pytestmark = [pytest.mark.live, pytest.mark.slow]

GRANTED, PRIVATE = "device-1", "device-2"
FLEET = FleetFile(
    name="canary",
    cloud=CloudClass(),
    edges=EdgeClass(count=1, dilation=1.0),
    devices=DeviceClass(per_edge=2, trainers_per_edge=2, dilation=1.0, standby=False),
)
LEVELS = "png(low=0.0, high=1.0, num_levels=17)"
ROUNDS, REQUESTS = 2, 16
UPLINKS = ("none", "int8")
CLIENTS = (ClientId("client-0"), ClientId("client-1"))


@dataclass(frozen=True)
class Seen:
    """What left, as one string of bytes per process, and what was answered."""

    private: dict[str, bytes]
    after_grant: dict[str, bytes]
    runs: dict[str, RunStatus]
    replies: dict[str, list[Reply]]


@pytest.fixture(scope="module")
def task() -> DigitsTask:
    return DigitsTask(**FLEET.task_settings)


@pytest.fixture(scope="module")
def seen(task: DigitsTask, tmp_path_factory: pytest.TempPathFactory) -> Seen:
    return asyncio.run(whole_life(task, tmp_path_factory.mktemp("canary")))


async def whole_life(task: DigitsTask, folder: Path) -> Seen:
    fleet = EmulatedFleet(FLEET, folder, capture=folder / "frames")
    replies: dict[str, list[Reply]] = {}
    try:
        await fleet.start()
        where = fleet.identity(OPERATOR), fleet.endpoint(CLOUD), folder / "operator", FLEET.name
        async with connect_operator(*where) as operator:
            await operator.wait_for_nodes(lambda rows: {GRANTED, PRIVATE} <= alive(rows), 20.0)
            runs = {uplink: await train(operator, task, uplink) for uplink in UPLINKS}
            graph = Graph.load(await operator.graph(1))
            for codec in ("none", "int8"):
                await deploy(operator, split_plan(graph, codec))
                replies[f"split {codec}"] = await ask(fleet, task, (GRANTED, PRIVATE))
            private = frames(folder / "frames")
            await restart_with_grant(fleet, operator)
            for codec in ("none", LEVELS):
                await deploy(operator, raw_plan(graph, codec))
                for device in (GRANTED, PRIVATE):
                    replies[f"raw {codec} {device}"] = await ask(fleet, task, (device,))
    finally:
        await fleet.stop()
    everything = frames(folder / "frames")
    return Seen(private, {n: d[len(private.get(n, b"")) :] for n, d in everything.items()}, runs, replies)


def alive(rows: list[Any]) -> set[str]:
    return {row.info.node for row in rows if row.state == "alive"}


def words(uplink: str) -> dict[str, Any]:
    return {"name": "fed_avg", "uplink": uplink, "local": {"name": "sgd", "learning_rate": 0.1, "epochs": 1}}


async def train(operator: Operator, task: DigitsTask, uplink: str) -> RunStatus:
    run = await operator.submit(*task_request(task, words(uplink), num_rounds=ROUNDS))
    async for status in operator.watch(run):
        last = status
    assert last.state == "completed", last.cause
    return last


async def deploy(operator: Operator, plan: Plan) -> None:
    ack = await operator.deploy(Deploy(1, (plan,), deadline_s=5.0, staged=False))
    assert ack.accepted, ack.reason


async def ask(fleet: EmulatedFleet, task: DigitsTask, devices: tuple[str, ...]) -> list[Reply]:
    found = []
    for device in devices:
        async with InferenceClient("127.0.0.1", fleet.children[device].ready["http_port"]) as client:
            for image in requests(task):
                found.append(await client.infer(task.name, {INPUT: image[None]}))
    return found


async def restart_with_grant(fleet: EmulatedFleet, operator: Operator) -> None:
    """Returns when the coordinator knows the new incarnation; what is in force is installed on it first."""
    before = {row.info.node: row.info.generation for row in (await operator.nodes()).nodes}[GRANTED]
    await fleet.children[GRANTED].stop()
    granted = msgspec.structs.replace(fleet.settings[GRANTED], raw_may_reach=Tier.EDGE, task="", client="", engine="")
    await fleet.start_node(granted)
    await operator.wait_for_nodes(
        lambda rows: any(r.info.node == GRANTED and r.info.generation > before and r.state == "alive" for r in rows),
        20.0,
    )


def raw_plan(graph: Graph, codec: str) -> Plan:
    """The device is to send its input, the edge runs the whole model; it does not say so, or it would not be deployed."""
    end = graph.outputs[-1].name
    return Plan(
        f"raw to edge {codec}", graph.digest,
        (Stage("edge", graph.digest, (INPUT,), (end,), Site(Tier.EDGE)),),
        (Handover(REQUEST, "edge", (INPUT,), codec, payload_bytes=256),),
        (Gate(EXIT, "edge", 0.0, 1.0, 1.0, (end,), 1),),
    )  # fmt: skip


def frames(folder: Path) -> dict[str, bytes]:
    """The captured frames of each process, one after the other, their length prefixes left out."""
    found = {}
    for file in sorted(folder.glob("*.frames")):
        data, parts, place = file.read_bytes(), [], 0
        while place < len(data):
            end = place + 4 + int.from_bytes(data[place : place + 4], "little")
            parts.append(data[place + 4 : end])
            place = end
        found[file.name] = b"".join(parts)
    return found


def requests(task: DigitsTask) -> np.ndarray[Any, Any]:
    return np.asarray(task.parts.stream.inputs)[:REQUESTS]


def canaries(task: DigitsTask) -> Iterator[np.ndarray[Any, Any]]:
    """Examples that are trained on, and inputs that are asked about: float32[8, 8] in 0…1."""
    for client in CLIENTS:
        yield from np.asarray(task.data(client).inputs)[:8, 0]
    yield from requests(task)[:, 0]


def encodings(image: np.ndarray[Any, Any]) -> dict[str, bytes]:
    """Every form the picture could have on a wire; of plain arrays the middle rows are enough to give it away."""
    middle, sixteenths = image[2:6], np.rint(image[2:6] * 16)
    whole = np.rint(image * 16).astype(np.uint8)
    payload, _ = png(0.0, 1.0, 17).encode(image[None, None], None, np.random.default_rng(0))
    return {
        "float32 0…1": middle.tobytes(),
        "float32 0…16": sixteenths.astype(np.float32).tobytes(),
        "float64 0…1": middle.astype(np.float64).tobytes(),
        "float16 0…1": middle.astype(np.float16).tobytes(),
        "float16 0…16": sixteenths.astype(np.float16).tobytes(),
        "uint8 0…16": sixteenths.astype(np.uint8).tobytes(),
        "uint8 0…255": np.rint(middle * 255).astype(np.uint8).tobytes(),
        "int64 0…16": sixteenths.astype(np.int64).tobytes(),
        "PNG": bytes(memoryview(encode_png(whole))),
        "PNG 0…255": bytes(memoryview(encode_png(image))),
        "PNG by Pillow": pillow(whole),
        "PNG payload": payload.arrays["values"].tobytes(),
    }


def pillow(picture: np.ndarray[Any, Any]) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(picture, "L").save(buffer, "PNG")
    return buffer.getvalue()


def sightings(task: DigitsTask, sent: dict[str, bytes]) -> set[tuple[str, str]]:
    """(process, encoding) wherever a canary was seen."""
    forms = [item for image in canaries(task) for item in encodings(image).items()]
    return {(file.rpartition("-")[0], name) for file, data in sent.items() for name, form in forms if form in data}


def test_no_example_is_in_any_frame_of_training_and_serving(task: DigitsTask, seen: Seen) -> None:
    assert sightings(task, seen.private) == set()


def test_the_frames_that_were_searched_are_those_of_a_whole_fleet(task: DigitsTask, seen: Seen) -> None:
    assert {name.rpartition("-")[0] for name in seen.private} == {CLOUD, "edge-1", GRANTED, PRIVATE}
    assert [r.num_updates for run in seen.runs.values() for r in run.rounds] == len(UPLINKS) * ROUNDS * [len(CLIENTS)]
    update_bytes = 4 * initial_vector(task, Seeds(0)).size
    assert all(len(d) > ROUNDS * update_bytes for n, d in seen.private.items() if n.startswith("device"))
    split = [*seen.replies["split none"], *seen.replies["split int8"]]
    assert [r.error for r in split] == [""] * 4 * REQUESTS
    assert {(r.parameters["source"], r.parameters["exit_index"]) for r in split} == {("plan", 1)}


def test_with_a_grant_the_same_search_finds_them_at_the_granted_device_alone(task: DigitsTask, seen: Seen) -> None:
    assert sightings(task, seen.after_grant) == {(GRANTED, "float32 0…1"), (GRANTED, "PNG payload")}


@pytest.mark.parametrize("codec", ["none", LEVELS])
def test_without_the_grant_a_raw_plan_is_answered_on_the_device(codec: str, seen: Seen) -> None:
    served = {d: {r.parameters["source"] for r in seen.replies[f"raw {codec} {d}"]} for d in (GRANTED, PRIVATE)}
    assert served == {GRANTED: {"plan"}, PRIVATE: {"local_tail"}}


def test_raw_serving_gives_the_split_plans_answers(seen: Seen) -> None:
    split = [r.outputs for r in seen.replies["split none"][:REQUESTS]]
    raw = [r.outputs for r in seen.replies[f"raw none {GRANTED}"]]
    for one, other in zip(split, raw, strict=True):
        assert [a.argmax() for a in one.values()] == [a.argmax() for a in other.values()]


@pytest.mark.parametrize("uplink", UPLINKS)
def test_the_fleet_of_processes_ends_byte_equal_with_the_simulator(uplink: str, task: DigitsTask, seen: Seen) -> None:
    edge_of = dict.fromkeys(CLIENTS, NodeId("edge-1"))
    options = SimulationOptions(FLEET.devices.engine, evaluate_every=0)
    twin = simulate_rounds(
        task, make_algorithm(words(uplink)), rounds=ROUNDS, clients=CLIENTS, edge_of=edge_of, options=options
    )
    assert seen.runs[uplink].model == digest_of(twin.vector.tobytes())
