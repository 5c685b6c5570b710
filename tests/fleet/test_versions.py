"""Versions of models whose outputs are not their exits, or stand in another order, at the coordinator."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from edgewise.core.errors import GraphError, InputError, StoreDamaged, StoreError
from edgewise.fleet.serving.holdout import Holdout
from edgewise.fleet.serving.versions import VersionStore
from edgewise.fleet.store.registry import Registry
from edgewise.inference.gates.exit import confidence
from edgewise.inference.serving_node import local_server
from edgewise.inference.stages import make_session
from edgewise.models.graph.graph import Graph, graph_from
from edgewise.transport.bulk.blobs import FolderBlobs
from tests.inference.tiny import images, two_exit_graph

NUM = 400


def turned(exits: tuple[str, ...], seed: int = 0) -> Graph:
    """The model of two exits, its outputs the other way round: end, early."""
    model = onnx.load_model_from_string(two_exit_graph(seed, named=False).model_bytes)
    outputs = list(reversed(model.graph.output))
    del model.graph.output[:]
    model.graph.output.extend(outputs)
    return graph_from(model, exits=exits)


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Callable[[Graph], VersionStore]]:
    with ExitStack() as stack:

        def store(graph: Graph) -> VersionStore:
            """A registry whose held-out labels are what the model's end answers."""
            folder = tmp_path / graph.digest[:8]
            folder.mkdir()
            x = images(NUM)
            y = make_session(graph.whole).run([graph.exits[-1]], {"x": x})[0].argmax(-1)
            registry = Registry.open(folder / "registry.sqlite")
            stack.callback(registry.close)
            return VersionStore(registry, FolderBlobs(folder / "blobs"), Holdout(x, y, x, y))

        yield store


def test_drift_is_looked_for_in_the_exits_that_devices_see(opened: Callable[[Graph], VersionStore]) -> None:
    for exits in (("early", "end"), ("end",), ("early",)):
        graph = turned(exits)
        versions = opened(graph)
        version = versions.register_graph(graph.model_bytes, task="tiny", origin="test", parent=0)
        seen = versions.calibration_answers(version.number)
        right = make_session(graph.whole).run(list(exits), {"x": images(NUM)})
        assert {index: [a.confidence for a in answers] for index, answers in seen.items()} == {
            index: confidence(logits).tolist() for index, logits in enumerate(right)
        }


def test_the_gate_compares_the_models_end(opened: Callable[[Graph], VersionStore]) -> None:
    graph = turned(("early", "end"))
    versions = opened(graph)
    first = versions.register_graph(graph.model_bytes, task="tiny", origin="test", parent=0)
    other = turned(("early", "end"), seed=1)
    second = versions.register_graph(other.model_bytes, task="tiny", origin="test", parent=first.number)
    x = {"x": images(NUM)}
    right, found = (make_session(g.whole).run(["end"], x)[0].argmax(-1) for g in (graph, other))
    assert second.gate is not None
    assert second.gate.reference_only_right == (right != found).sum()
    assert second.gate.candidate_only_right == 0


@pytest.mark.parametrize("graph", [b"", b"garbage", two_exit_graph().model_bytes[:-100]])
def test_what_is_no_model_becomes_no_version(opened: Callable[[Graph], VersionStore], graph: bytes) -> None:
    versions = opened(two_exit_graph())
    with pytest.raises(GraphError, match="Export"):
        versions.register_graph(graph, task="tiny", origin="test", parent=0)
    assert list(versions.registry.versions()) == []


@pytest.mark.parametrize("name", ["", "a/b", "..", "two\nlines", " a", "x" * 129, "stats", "\x1b[31m"])
def test_what_cannot_stand_in_an_address_is_no_models_name(opened: Callable[[Graph], VersionStore], name: str) -> None:
    graph = two_exit_graph()
    with pytest.raises(InputError, match="cannot be a model's name"):
        opened(graph).register_graph(graph.model_bytes, task=name, origin="test", parent=0)
    with pytest.raises(InputError, match="cannot be a model's name"):
        asyncio.run(local_server(graph, name=name))


def other_kind(ends: str) -> bytes:
    """A model of the held-out examples' shape that no labels can judge."""
    shapes: dict[str, list[Any]] = {"scalar": [], "picture": ["n", 1, 8, 8], "class": ["n"], "ids": ["n", 64]}
    taken = TensorProto.INT64 if ends == "ids" else TensorProto.FLOAT
    nodes = {
        "scalar": [helper.make_node("ReduceMean", ["x"], ["y"], keepdims=0)],
        "picture": [helper.make_node("Relu", ["x"], ["y"])],
        "class": [
            helper.make_node("Flatten", ["x"], ["f"]),
            helper.make_node("ArgMax", ["f"], ["y"], axis=1, keepdims=0),
        ],
        "ids": [helper.make_node("Flatten", ["x"], ["y"])],
    }[ends]
    x = helper.make_tensor_value_info("x", taken, ["n", 1, 8, 8])
    y = helper.make_tensor_value_info("y", TensorProto.INT64 if ends in ("class", "ids") else taken, shapes[ends])
    graph = helper.make_graph(nodes, ends, [x], [y])
    made: bytes = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    ).SerializeToString()
    return made


@pytest.mark.parametrize("ends", ["scalar", "picture", "class", "ids"])
def test_a_model_that_labels_cannot_judge_becomes_a_version_without_evidence(
    opened: Callable[[Graph], VersionStore], ends: str, caplog: pytest.LogCaptureFixture
) -> None:
    versions, graph = opened(two_exit_graph()), other_kind(ends)
    first = versions.register_graph(graph, task="other", origin="test", parent=0)
    second = versions.register_graph(graph, task="other", origin="test", parent=first.number)
    assert (second.evidence, second.gate) == ((), None)
    assert versions.calibration_answers(second.number) == {}
    assert "give it its own with --holdout other=FILE" in caplog.text


def test_a_damaged_graph_is_named_with_its_file_and_the_other_versions_stand(
    opened: Callable[[Graph], VersionStore],
) -> None:
    graph = turned(("end",))
    versions = opened(graph)
    first, second = (
        versions.register_graph(data, task="tiny", origin="test", parent=0)
        for data in (graph.model_bytes, turned(("end",), seed=1).model_bytes)
    )
    path = versions.blobs.path(first.graph)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(
        StoreDamaged, match=f"blob {first.graph[:12]} is damaged on disk: '{path}' is not what its name says"
    ):
        versions.graph(first.number)
    with pytest.raises(StoreError, match="is not in this node's store"):  # it waits beside to be fetched again
        versions.graph_size(first.number)
    assert Graph.load(versions.graph(second.number)).digest == Graph.load(turned(("end",), seed=1).model_bytes).digest
