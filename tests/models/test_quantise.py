"""The int8 variant is smaller, close, and a graph like any other."""

import numpy as np
import onnxruntime
import pytest

from edgewise.core.errors import DataError
from edgewise.models.compress.quantise import quantised
from edgewise.models.graph.graph import Graph
from tests.models.toys import digits_cnn, residual


def outputs(model, feeds):
    return onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, feeds)


@pytest.mark.parametrize("toy", [digits_cnn, residual])
def test_int8_is_smaller_and_answers_nearly_the_same(toy):
    graph = Graph.load(toy())
    rng = np.random.default_rng(0)
    feeds = [{t.name: rng.normal(size=t.shape).astype(np.float32) for t in graph.inputs} for _ in range(40)]
    small = quantised(graph, feeds)
    pairs = [(outputs(graph.whole, f)[-1], outputs(small, f)[-1]) for f in feeds[:10]]
    gap = np.mean([np.abs(a - b).max() for a, b in pairs])
    assert gap < 0.1 * np.mean([np.abs(a).max() for a, _ in pairs])
    assert len(small) < len(graph.whole)


def test_an_int8_graph_loads_and_keeps_its_exits():
    graph = Graph.load(digits_cnn())
    small = Graph.load(quantised(graph, [{"input": np.ones((1, 1, 8, 8), np.float32)}]))
    assert [t.name for t in small.outputs] == [t.name for t in graph.outputs]
    assert "exit_2" not in small.condensed.raw_tensors


def test_quantising_needs_calibration_inputs():
    with pytest.raises(DataError, match=r"needs calibration inputs .* found none"):
        quantised(Graph.load(digits_cnn()), [])
