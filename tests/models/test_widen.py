"""Half precision inside becomes single precision; the model's own inputs and outputs keep their type."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgewise.models.graph.graph import Graph
from edgewise.models.graph.widen import widen


def half_model(*, casts: bool = False) -> onnx.ModelProto:
    """y = relu(x · w) in float16; with casts, x is float32 and cast down inside."""
    weight = numpy_helper.from_array(np.linspace(-1, 1, 12).reshape(4, 3).astype(np.float16), "w")
    nodes = [
        *([helper.make_node("Cast", ["x"], ["h"], to=TensorProto.FLOAT16)] if casts else []),
        helper.make_node("MatMul", ["h" if casts else "x", "w"], ["m"]),
        helper.make_node("Relu", ["m"], ["y"]),
    ]
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT if casts else TensorProto.FLOAT16, ["n", 4])
    made = helper.make_tensor_value_info("y", TensorProto.FLOAT16, ["n", 3])
    graph = helper.make_graph(nodes, "half", [given], [made], [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def types_inside(model: onnx.ModelProto) -> set[int]:
    return {tensor.data_type for tensor in model.graph.initializer}


@pytest.mark.parametrize("casts", [False, True])
def test_weights_are_single_precision_and_the_ends_keep_their_types(casts: bool) -> None:
    model = half_model(casts=casts)
    before = [v.type.tensor_type.elem_type for v in (*model.graph.input, *model.graph.output)]
    assert widen(model)
    onnx.checker.check_model(model, full_check=True)
    assert types_inside(model) == {TensorProto.FLOAT}
    assert [v.type.tensor_type.elem_type for v in (*model.graph.input, *model.graph.output)] == before


def test_the_widened_model_computes_what_single_precision_does() -> None:
    import onnxruntime

    model = half_model()
    widen(model)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    x = np.random.default_rng(0).normal(size=(2, 4)).astype(np.float16)
    weight = np.linspace(-1, 1, 12).reshape(4, 3).astype(np.float16).astype(np.float32)
    want = np.maximum(x.astype(np.float32) @ weight, 0).astype(np.float16)
    assert np.array_equal(session.run(None, {"x": x})[0], want)


def test_a_widened_model_needs_no_more_widening() -> None:
    model = half_model()
    assert widen(model)
    assert not widen(model)


def test_single_precision_is_left_alone() -> None:
    weight = numpy_helper.from_array(np.ones((4, 3), np.float32), "w")
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])
    made = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "single", [given], [made], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    before = model.SerializeToString()
    assert not widen(model)
    assert model.SerializeToString() == before
    assert Graph.load(before).model_bytes == before
