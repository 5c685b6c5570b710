import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from edgewise.core.errors import GraphError, InputError
from edgewise.core.layout import Layout
from edgewise.models.graph.weights import weights_of, with_weights

LAYOUT = Layout.of([("w", (2, 3)), ("b", (3,))])
VECTOR = np.arange(9, dtype=np.float32)


@pytest.fixture
def graph():
    value = onnx.TensorProto.FLOAT
    made = helper.make_graph(
        [helper.make_node("Gemm", ["x", "w", "b"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", value, ["batch", 2])],
        [helper.make_tensor_value_info("y", value, ["batch", 3])],
        [
            numpy_helper.from_array(np.zeros((2, 3), np.float32), "w"),
            numpy_helper.from_array(np.zeros(3, np.float32), "b"),
        ],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)]).SerializeToString()


def test_weights_come_back_as_they_went_in(graph):
    assert np.array_equal(weights_of(with_weights(graph, LAYOUT, VECTOR), LAYOUT), VECTOR)


def test_equal_arguments_give_equal_bytes(graph):
    assert with_weights(graph, LAYOUT, VECTOR) == with_weights(graph, LAYOUT, VECTOR.copy())


def test_weights_land_in_their_slots(graph):
    made = onnx.load_from_string(with_weights(graph, LAYOUT, VECTOR))
    found = {t.name: numpy_helper.to_array(t) for t in made.graph.initializer}
    assert found["w"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert found["b"].tolist() == [6, 7, 8]


def test_a_slot_that_is_no_initializer_is_refused(graph):
    with pytest.raises(GraphError, match=r"no initializer 'v' of shape \(9,\), found nothing"):
        with_weights(graph, Layout.of([("v", (9,))]), VECTOR)


def test_a_vector_of_another_length_is_refused(graph):
    with pytest.raises(InputError, match="a vector of this layout has 9 entries, found 8"):
        with_weights(graph, LAYOUT, VECTOR[:8])


def test_bytes_that_are_no_graph_are_refused():
    with pytest.raises(GraphError, match="11 bytes are not an ONNX graph"):
        weights_of(b"\xff" * 11, LAYOUT)
