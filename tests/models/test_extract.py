"""Pieces of a graph: what they contain, what they refuse, and that they round as the whole does."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from edgewise.core.errors import GraphError
from edgewise.models.graph.extract import extract_model
from edgewise.models.graph.plain import PlainTensor
from tests.inference.tiny import two_exit_graph

GRAPH = two_exit_graph()


def test_a_piece_has_the_nodes_between_and_the_constants_they_read() -> None:
    piece = onnx.load_model_from_string(extract_model(GRAPH, ("a",), ("b",)))
    assert [node.op_type for node in piece.graph.node] == ["Conv", "Relu"]
    assert sorted(tensor.name for tensor in piece.graph.initializer) == ["b.b", "b.w"]
    assert ([v.name for v in piece.graph.input], [v.name for v in piece.graph.output]) == (["a"], ["b"])


def test_a_piece_that_lacks_an_input_names_it() -> None:
    with pytest.raises(GraphError, match=r"the piece \['b'\] to \['early', 'end'\] of graph .* also needs 'x'"):
        extract_model(GRAPH, ("b",), ("early", "end"))


def test_a_piece_without_outputs_or_of_an_unknown_tensor_is_refused() -> None:
    with pytest.raises(GraphError, match="must have at least one output tensor"):
        extract_model(GRAPH, ("x",), ())
    with pytest.raises(GraphError, match="has no tensor 'z'"):
        extract_model(GRAPH, ("x",), ("z",))


def test_a_tensor_says_which_axes_are_open_and_how_large_it_is() -> None:
    tensor = PlainTensor("t", (1, 16, 8), "float32", symbolic_batch=True, free=(1,))
    assert tensor.open_shape == (None, None, 8)
    assert (tensor.num_entries, tensor.size_bytes) == (128, 512)


def test_free_axes_stay_free_in_a_piece() -> None:
    from tests.inference.test_free_axes import GRAPH as TEXT

    piece = onnx.load_model_from_string(TEXT.extract(["h"], ["tags"]))
    dims = piece.graph.input[0].type.tensor_type.shape.dim
    assert [dim.dim_param or dim.dim_value for dim in dims] == ["batch", "h_1", 8]
    assert np.dtype(TEXT.tensor("h").dtype) == np.float32
