"""Every output of a model is answered, wherever its parts run and whoever is lost; strings cross the wire like numbers."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgewise.core.errors import FrameRefused
from edgewise.core.provenance import RAW, origins_of, traced
from edgewise.inference.session import AnswerSource
from edgewise.inference.stages import make_session
from edgewise.inference.text_tensors import pack_text_tensors, unpack_text_tensors
from edgewise.models.graph.graph import Graph, graph_from
from edgewise.planning.plan import EXIT, INPUT, Gate, Handover, Plan
from tests.inference.loopback_world import world
from tests.inference.tiny import D, E, stage


def tagging_graph() -> Graph:
    """x float32[n, 3] ─ product `r` ─ `posture` [n, 2]; `r` + threshold ─ `emotion` [n, 2], its `label`, a string [n].

    word, a string [n, 1], is answered as `same`; `anchors` is stored; `threshold` has a default.
    """
    rng = np.random.default_rng(0)
    weights = {n: rng.normal(size=s).astype(np.float32) for n, s in (("w", (3, 4)), ("v", (4, 2)), ("u", (4, 2)))}
    stored = {**weights, "anchors": np.float32([1, 2]), "threshold": np.float32([0.5])}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["r"]),
        helper.make_node("MatMul", ["r", "v"], ["posture"]),
        helper.make_node("Add", ["r", "threshold"], ["moved"]),
        helper.make_node("MatMul", ["moved", "u"], ["emotion"]),
        helper.make_node("ArgMax", ["emotion"], ["best"], axis=1, keepdims=0),
        helper.make_node(
            "LabelEncoder",
            ["best"],
            ["label"],
            domain="ai.onnx.ml",
            keys_int64s=[0, 1],
            values_strings=["glad", "très"],
        ),
        helper.make_node("Identity", ["word"], ["same"]),
    ]
    floats, texts = TensorProto.FLOAT, TensorProto.STRING
    value = helper.make_tensor_value_info
    inputs = [value("x", floats, ["n", 3]), value("word", texts, ["n", 1]), value("threshold", floats, [1])]
    outputs = [
        value("label", texts, ["n"]),
        value("anchors", floats, [2]),
        value("posture", floats, ["n", 2]),
        value("same", texts, ["n", 1]),
        value("emotion", floats, ["n", 2]),
    ]
    initial = [numpy_helper.from_array(array, name) for name, array in stored.items()]
    sets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    graph = helper.make_graph(nodes, "tagging", inputs, outputs, initial)
    return graph_from(helper.make_model(graph, opset_imports=sets, ir_version=8))


GRAPH = tagging_graph()
ANSWERED = ("posture", "same", "label", "emotion")
GIVEN = {"x": np.float32([[1, 2, 3], [-3, 0, 1]]), "word": np.array([["é"], [""]], object)}


def plans() -> dict[str, Plan]:
    """The whole at the edge; a cut where `posture` is there already; one where strings are."""
    gate = Gate(EXIT, "edge", 0.0, 1.0, 1.0, ANSWERED, 0)

    def split(outputs: str, inputs: str, beyond: str) -> Plan:
        stages = (stage(GRAPH, "x word", outputs, D), stage(GRAPH, inputs, beyond, E))
        crossing = tuple(dict.fromkeys([*outputs.split(), *inputs.split()]))
        return Plan("split", GRAPH.digest, stages, (Handover("device", "edge", crossing, "none"),), (gate,))

    whole = stage(GRAPH, "x word", "label posture same emotion", E)
    raw = Handover(INPUT, "edge", ("x", "word"), "none", carries_raw=True)
    return {
        "all on the edge": Plan("raw", GRAPH.digest, (whole,), (raw,), (gate,)),
        "an output in front of the cut": split("r posture", "r word", "label emotion same"),
        "strings in front of the cut": split("r same", "r", "label emotion posture"),
    }


def agree(served: Any, **changed: np.ndarray) -> None:
    names = [tensor.name for tensor in GRAPH.answers]
    values = make_session(GRAPH.model_bytes).run(names, {**GIVEN, **changed})
    for name, value in zip(names, values, strict=True):
        assert np.array_equal(served.outputs[name], value), name


@pytest.mark.parametrize("name", plans())
def test_every_output_is_answered_and_also_when_the_edge_is_lost(name: str) -> None:
    async def run() -> None:
        async with world("edge-1") as made:
            await made.install(plans()[name], graph=GRAPH)
            served = await made.server.infer(GIVEN)
            assert (served.observation.source, served.observation.cause) == (AnswerSource.PLAN, "")
            assert "edge-1" in served.observation.served_by
            agree(served)
            made.fabric.cut("edge-1")
            lost = await made.server.infer(GIVEN, deadline_s=60.0)
            assert lost.observation.source is AnswerSource.LOCAL_TAIL
            assert lost.observation.latency_s < 30.0  # at once, not by the deadline
            agree(lost)

    asyncio.run(run())


@pytest.mark.parametrize("name", plans())
def test_an_optional_input_is_computed_by_the_whole_model_on_the_device(name: str) -> None:
    async def run() -> None:
        async with world("edge-1") as made:
            await made.install(plans()[name], graph=GRAPH)
            threshold = np.float32([-9])
            served = await made.server.infer({**GIVEN, "threshold": threshold})
            assert served.observation.served_by == ("device-1",)
            agree(served, threshold=threshold)

    asyncio.run(run())


def test_strings_stay_raw_on_the_wire_and_nothing_in_their_bytes_is_trusted() -> None:
    texts = traced(np.array([["a", "é\0"]], object), RAW)
    packed = pack_text_tensors({"t": texts, "x": np.zeros(2)})
    assert [origins_of(array) for array in packed.values()] == [{RAW}, set()]
    found = unpack_text_tensors(packed)
    assert (found["t"].tolist(), origins_of(found["t"])) == ([["a", "é\0"]], {RAW})
    (wire, data), *_ = packed.items()
    cases = [data[:5], data[:-1], data[:0], np.zeros(3), np.full(9, 255, np.uint8), data[::-1].copy()]
    for broken in cases:
        with pytest.raises(FrameRefused, match=r"holds .* bytes that are no strings"):
            unpack_text_tensors({wire: broken})
