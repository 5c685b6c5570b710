"""A model that needs examples or sizes is planned over a fleet with those of `--data`: they travel to every node."""

from __future__ import annotations

import asyncio
import io
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto as T

from edgewise.cli.fleet_plan import plan_and_deploy
from edgewise.cli.fleet_plan_request import FleetPlanRequest
from edgewise.cli.output import Output
from edgewise.core.errors import GraphError, InputError
from edgewise.core.ids import Tier
from edgewise.fleet.messages import Deploy
from edgewise.inference.stages import make_session
from edgewise.models.graph.graph import Graph, graph_from
from edgewise.models.graph.input_hints import InputHints, hints_of, load_with
from edgewise.planning.plan import Handover, Plan
from edgewise.testing.serving_fleet import ServingFleet
from tests.inference.tiny import D, E, exit_gate, stage
from tests.service.onnx_kinds import NODE, const, h, kinds, made, sampling_rate, value

X = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32) + 1
Y = np.arange(40) % 3


def picky() -> onnx.ModelProto:
    """A classifier of one input that runs on positive sums and fails on zeros."""
    ways = (NODE("MatMul", ["x", "w"], ["t"]), NODE("Reshape", ["x", "seven"], ["e"]))
    then, other = (h.make_graph([way], way.op_type, [], [value(way.output[0], T.FLOAT, None)]) for way in ways)
    nodes = [
        NODE("ReduceSum", ["x"], ["s"], keepdims=0),
        NODE("Greater", ["s", "zero"], ["is"]),
        NODE("If", ["is"], ["b"], then_branch=then, else_branch=other),
        NODE("MatMul", ["b", "v"], ["m"]),
        NODE("Relu", ["m"], ["r"]),
        NODE("MatMul", ["r", "u"], ["y"]),
    ]
    rng = np.random.default_rng(1)
    sizes = {"w": (4, 8), "v": (8, 2), "u": (2, 3)}
    initial = [const(name, rng.normal(size=size).astype("f4")) for name, size in sizes.items()]
    ends = [value("x", T.FLOAT, ["n", 4])], [value("y", T.FLOAT, ["n", 3])]
    return made(nodes, *ends, [*initial, const("zero", np.float32(0)), const("seven", np.int64([7, 8]))])


def sized() -> onnx.ModelProto:
    """A model whose input has an axis of any size."""
    nodes = [NODE("ReduceMean", ["x"], ["m"], axes=[1], keepdims=1), NODE("MatMul", ["m", "v"], ["y"])]
    ends = [value("x", T.FLOAT, ["n", "w"])], [value("y", T.FLOAT, ["n", 3])]
    return made(nodes, *ends, [const("v", np.ones((1, 3), "f4"))])


def on_fleet(folder: Path, model: onnx.ModelProto, scene: Any, **how: Any) -> None:
    async def run() -> None:
        async with ServingFleet(folder, http_ports={"device-1": 8000}, **how) as fleet:
            number = await fleet.register(model.SerializeToString(), "mine")
            (version,) = (await fleet.operator.versions()).versions
            assert version.number == number
            await scene(fleet, version)

    asyncio.run(run())


def request(**how: Any) -> FleetPlanRequest:
    return FleetPlanRequest("", "", budget="0.2 s", deploy=True, model="mine", **how)


@pytest.mark.parametrize(("make", "missing"), [(picky, "--data"), (sized, "--input-shape x=1,224")])
def test_data_that_a_plan_needs_travel_with_it(make: Any, missing: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=X, y=Y)
    np.savez(tmp_path / "held.npz", calibration_x=X, calibration_y=Y, gate_x=X, gate_y=Y)
    model = make()
    (want,) = make_session(model.SerializeToString()).run(None, {"x": X[:1]})

    async def scene(fleet: ServingFleet, version: Any) -> None:
        with pytest.raises(GraphError, match=missing):
            await plan_and_deploy(Output(True), request(), None, fleet.operator, version)
        done = await plan_and_deploy(Output(True), request(data=tmp_path / "x.npz"), None, fleet.operator, version)
        assert done["deployed"]["devices"] == ["device-1"]
        for _ in range(2):
            assert np.array_equal((await fleet.infer("device-1", "mine", {"x": X[:1]})).outputs["y"], want)
            await fleet.restart("device-1")  # what the device was given is on its disk

    on_fleet(tmp_path, model, scene, holdout=str(tmp_path / "held.npz"))


def test_sizes_may_be_said_instead(tmp_path: Path) -> None:
    async def scene(fleet: ServingFleet, version: Any) -> None:
        shapes = {"x": (1, 6)}
        await plan_and_deploy(Output(True), request(input_shapes=shapes), None, fleet.operator, version)
        served = await fleet.infer("device-1", "mine", {"x": np.ones((2, 6), "f4")})
        assert np.array_equal(served.outputs["y"], np.ones((2, 3), "f4"))

    on_fleet(tmp_path, sized(), scene)


def test_a_split_plan_is_served_with_the_example_on_both_sides(tmp_path: Path) -> None:
    model = picky()
    graph = graph_from(model, examples={"x": X[:1]})

    async def scene(fleet: ServingFleet, version: Any) -> None:
        stages = stage(graph, "x", "r", D), stage(graph, "r", "y", E)
        handover = Handover("device", "edge", ("r",), "none", payload_bytes=8)
        plan = Plan("split", graph.digest, stages, (handover,), (exit_gate(0, "y", "edge"),))
        without = await fleet.operator.deploy(Deploy(version.number, (plan,), deadline_s=20.0))
        assert "could not install version 1: 'device-1' refused: graph 'kind' has no tensor 'r'" in without.reason
        ack = await fleet.operator.deploy(Deploy(version.number, (plan,), deadline_s=20.0, hints=hints_of(graph)))
        assert ack.accepted, ack.reason
        served = await fleet.infer("device-1", "mine", {"x": X[:1]})
        assert "edge-1" in served.observation.served_by
        assert np.allclose(served.outputs["y"], make_session(model.SerializeToString()).run(None, {"x": X[:1]})[0])

    on_fleet(tmp_path, model, scene, raw_may_reach=Tier.EDGE)


def test_hints_are_what_another_node_needs_and_no_more() -> None:
    example = {"x": np.ones((1, 6), "f4"), "sr": np.array(16000)}
    graph = graph_from(sampling_rate(), {"x": (1, 6)}, examples=example)
    hints = hints_of(graph)
    again = load_with(graph.model_bytes, hints)
    assert (again.tensors, again.digest, again.unmeasured) == (graph.tensors, graph.digest, "")
    assert {name: array.tolist() for name, array in again.examples.items()} == {
        name: array.tolist() for name, array in example.items()
    }
    assert not hints_of(graph_from(kinds()["half"].model))
    words = np.array([["a", "é"]], object).reshape(2, 1)
    strings = graph_from(kinds()["strings"].model, examples={"word": words})
    assert load_with(strings.model_bytes, hints_of(strings)).examples["word"].tolist() == words.tolist()


def test_what_is_too_large_or_damaged_is_refused() -> None:
    noise = np.random.default_rng(0).normal(size=(1, 600, 600)).astype("f4")
    model = kinds()["symbolic_axes"].model
    with pytest.raises(InputError, match=r"the example of 'kind' takes 1\.\d+ MB, at most 1\.0\d* MB go to the nodes"):
        hints_of(Graph.load(model.SerializeToString(), {"x": noise.shape}, examples={"x": noise}))
    for data in (b"no npz", _npz(names=np.array([1])), b"PK\5\6" + b"\0" * 18):
        with pytest.raises(InputError, match="the example that came with a model is not readable"):
            load_with(model.SerializeToString(), InputHints(example=data))


def _npz(**arrays: Any) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()
