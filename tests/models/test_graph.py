"""What a graph is made of, and every refusal."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgewise.core.errors import GraphError
from edgewise.core.ids import digest_of
from edgewise.models.graph.graph import Graph, graph_from
from edgewise.models.graph.load import runtime_opset
from tests.models.toys import Builder, digits_cnn, rearranged


def changed(change):
    model = onnx.load_model_from_string(digits_cnn())
    change(model)
    return model


def test_a_graph_has_its_exits_in_order_and_reads_an_open_batch_as_one():
    graph = Graph.load(digits_cnn())
    assert [t.name for t in graph.outputs] == ["exit_0", "exit_1", "exit_2"]
    assert graph.inputs[0].shape == (1, 1, 8, 8)
    assert graph.inputs[0].symbolic_batch
    assert graph.inputs[0].size_bytes == 64 * 4
    assert graph.digest == digest_of(digits_cnn())


def test_pieces_keep_the_open_batch():
    ort = pytest.importorskip("onnxruntime")
    graph = Graph.load(digits_cnn())
    session = ort.InferenceSession(graph.extract(["input"], ["exit_1"]), providers=["CPUExecutionProvider"])
    assert session.run(None, {"input": np.zeros((5, 1, 8, 8), np.float32)})[0].shape == (5, 10)


def test_flops_of_a_convolution_follow_from_its_shapes():
    node = next(n for n in Graph.load(digits_cnn()).nodes if n.op == "Conv")
    assert node.flops == 2 * (16 * 8 * 8) * (1 * 3 * 3)


def test_a_path_and_its_bytes_give_the_same_graph(tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(digits_cnn())
    assert Graph.load(path).digest == Graph.load(digits_cnn()).digest == digest_of(path.read_bytes())


@pytest.mark.parametrize("make", [lambda: onnx.load_model_from_string(digits_cnn()), lambda: halved()])
def test_a_node_that_is_sent_the_bytes_has_the_same_digest(make):
    graph = graph_from(make())
    assert Graph.load(graph.model_bytes).digest == graph.digest


def test_initializers_listed_as_inputs_are_constants():
    def list_them(model):
        model.ir_version = 3
        for value in model.graph.initializer:
            model.graph.input.append(helper.make_tensor_value_info(value.name, value.data_type, value.dims))

    graph = graph_from(changed(list_them))
    assert [t.name for t in graph.inputs] == ["input"]
    assert graph.condensed.groups == Graph.load(digits_cnn()).condensed.groups


def test_external_data_beside_the_file_is_taken_in(tmp_path):
    model = onnx.load_model_from_string(digits_cnn())
    onnx.save_model(model, str(tmp_path / "m.onnx"), save_as_external_data=True, location="w.bin", size_threshold=0)
    assert len(Graph.load(tmp_path / "m.onnx").model_bytes) > 4 * 64 * 32 * 9
    (tmp_path / "w.bin").unlink()
    with pytest.raises(GraphError, match=r"in a file beside it that is not there"):
        Graph.load(tmp_path / "m.onnx")


def test_a_missing_file_is_named():
    with pytest.raises(GraphError, match=r"'no/such.onnx' does not exist"):
        Graph.load("no/such.onnx")


@pytest.mark.parametrize("data", [b"", b"no model", digits_cnn()[:500]])
def test_corrupt_bytes_are_refused(data):
    with pytest.raises(GraphError, match=r"not readable as ONNX|has no nodes"):
        Graph.load(data)


def test_an_invalid_model_is_refused():
    def spoil(model):
        model.graph.node[0].op_type = "Convv"

    with pytest.raises(GraphError, match=r"not a valid model: .*Convv"):
        graph_from(changed(spoil))


def test_an_open_axis_that_allows_one_size_only_is_served_and_asks_for_it_to_be_planned():
    weight = onnx.numpy_helper.from_array(np.ones((5, 3), np.float32), "w")
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", "width"])
    made = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [given], [made], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with pytest.raises(GraphError, match=r"runs with none of the sizes 16, 64, 224 .*--input-shape x=1,224"):
        graph_from(model).check_sizes()
    assert graph_from(model, examples={"x": np.ones((1, 5), np.float32)}).unmeasured == ""
    assert graph_from(model, {"x": (1, 5)}).inputs[0].free == ()


def test_an_open_axis_that_allows_any_size_stays_free():
    def open_height(model):
        model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"

    assert graph_from(changed(open_height)).inputs[0].free == (2,)
    settled = graph_from(changed(open_height), {"input": (1, 1, 8, 8)}).inputs[0]
    assert (settled.shape, settled.free) == ((1, 1, 8, 8), ())


def test_a_shape_for_an_unknown_input_is_refused():
    with pytest.raises(GraphError, match=r"has no input 'x' to give a shape to. Its inputs: input"):
        Graph.load(digits_cnn(), {"x": (1, 2)})


def test_custom_operators_are_refused():
    def customise(model):
        model.graph.node[0].domain = "my.ops"

    with pytest.raises(GraphError, match=r"custom operator my.ops::Conv"):
        graph_from(changed(customise))


def test_an_opset_that_the_runtime_does_not_know_is_refused():
    def modernise(model):
        model.opset_import[0].version = 99

    with pytest.raises(GraphError, match=rf"needs ONNX opset 99, the installed runtime knows up to {runtime_opset()}"):
        graph_from(changed(modernise))


def test_a_model_that_computes_nothing_is_refused():
    x = helper.make_tensor_value_info("input", TensorProto.FLOAT, [1])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    stored = onnx.numpy_helper.from_array(np.ones(1, np.float32), "y")
    node = helper.make_node("Neg", ["input"], ["nobody_reads_it"])
    graph = helper.make_graph([node], "g", [x], [y], [stored])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with pytest.raises(GraphError, match=r"computes nothing: its outputs are stored constants"):
        graph_from(model)


def test_shapes_that_cannot_be_inferred_are_measured_by_one_run():
    b = Builder()
    x = b.op("NonZero", b.op("Abs", b.conv("input", (1, 4))))
    x = b.op("ReduceMean", b.op("Cast", x, to=TensorProto.FLOAT), axes=[1], keepdims=1)
    b.op("Gemm", b.op("Reshape", x, b.constant([1, 4], "int64")), b.weight(4, 10), out="y")
    assert Graph.load(b.model((1, 1, 8, 8), ["y"])).tensors["y"].shape == (1, 10)


def test_a_model_that_does_not_run_on_zeros_cannot_be_planned_without_examples():
    b = Builder()
    x = b.op("NonZero", b.conv("input", (1, 4)))
    b.op("Reshape", b.op("Cast", x, to=TensorProto.FLOAT), b.constant([1, 7], "int64"), out="y")
    model = b.model((1, 1, 8, 8), ["y"], classes=7)
    with pytest.raises(GraphError, match=r"cannot be inferred and the model does not run on zeros"):
        Graph.load(model).check_sizes()


def test_a_piece_must_be_given_all_it_needs():
    graph = Graph.load(digits_cnn())
    with pytest.raises(GraphError, match=r"also needs 'input', which is not given"):
        graph.extract(["exit_0"], ["exit_1"])
    with pytest.raises(GraphError, match=r"has no tensor 'exit_9'. Did you mean 'exit_"):
        graph.extract(["input"], ["exit_9"])
    with pytest.raises(GraphError, match=r"at least one output"):
        graph.extract(["input"], [])


def halved():
    """The digits network in half precision."""
    model = onnx.load_model_from_string(digits_cnn())
    for value in [*model.graph.input, *model.graph.output]:
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    for tensor in model.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor).astype(np.float16)
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    return model


def test_half_precision_is_widened_inside_and_kept_at_the_doors():
    graph = graph_from(halved())
    assert {t.dtype for t in (*graph.inputs, *graph.outputs)} == {"float16"}
    inner = {graph.tensors[t].dtype for g in graph.condensed.groups[:-1] for t in g.outputs} - {"float16"}
    assert inner == {"float32"}
    assert "exit_2" not in graph.condensed.raw_tensors


def test_a_widened_model_loads_as_it_is():
    graph = graph_from(halved())
    again = Graph.load(graph.whole)
    assert again.model_bytes == graph.whole
    assert [g.name for g in again.condensed.groups] == [g.name for g in graph.condensed.groups]


def test_only_what_no_weight_has_touched_is_raw():
    condensed = Graph.load(rearranged()).condensed
    first = condensed.groups[0]
    assert {"input", *first.outputs} <= condensed.raw_tensors
    assert "logits" not in condensed.raw_tensors
    assert not condensed.has_weights([first.name])
    assert condensed.has_weights([g.name for g in condensed.groups])
