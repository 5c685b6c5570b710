"""Small ONNX models, one for each thing that ordinary files have and servers stumble over, with inputs to try on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto as T
from onnx import helper as h
from onnx import numpy_helper

Feeds = dict[str, np.ndarray]


@dataclass(frozen=True)
class Kind:
    """One row of the page.

    Attributes:
        what: The feature, in the page's words.
        how: What the endpoint makes of it.
        model: The file.
        feeds: Requests that are compared with ONNX Runtime alone.
        tolerance: Relative; 0 compares to the last bit.
        alone: What ONNX Runtime is given instead, where it cannot run the file by itself.
        renamed: Outputs that ONNX Runtime gives in another form, and the tensor of the file that is served for them.
        bad: Requests that the model itself refuses.
    """

    what: str
    how: str
    model: onnx.ModelProto
    feeds: Sequence[Feeds]
    tolerance: float = 0.0
    alone: onnx.ModelProto | None = None
    renamed: dict[str, str] = field(default_factory=dict)
    bad: Sequence[Feeds] = ()


def value(name: str, kind: int, shape: Sequence[int | str | None] | None) -> onnx.ValueInfoProto:
    return h.make_tensor_value_info(name, kind, shape)


def const(name: str, array: Any) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(array), name)


def made(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    initial: Sequence[onnx.TensorProto] = (),
    *,
    opset: int = 17,
    ir: int = 8,
    functions: Sequence[onnx.FunctionProto] = (),
) -> onnx.ModelProto:
    graph = h.make_graph(list(nodes), "kind", list(inputs), list(outputs), list(initial))
    sets = [h.make_opsetid("", opset), h.make_opsetid("ai.onnx.ml", 3), h.make_opsetid("own", 1)]
    return h.make_model(graph, opset_imports=sets, ir_version=ir, functions=list(functions))


X = np.float32([[1.0, -2.0], [3.0, 0.5]])
TEXTS = np.array([["b"], ["a"], ["é\0x"]], object)
NODE = h.make_node


def arithmetic(kind: int, weight: np.ndarray) -> onnx.ModelProto:
    """relu(x · w) of one element type."""
    nodes = [NODE("MatMul", ["x", "w"], ["m"]), NODE("Relu", ["m"], ["y"])]
    return made(nodes, [value("x", kind, ["n", 2])], [value("y", kind, ["n", 2])], [const("w", weight)])


def branching(kind: int, dtype: Any) -> onnx.ModelProto:
    """An If whose branches read the model's own input and a tensor that is also an output."""
    branches = [
        h.make_graph([NODE(op, ["x", "a"], [out])], op, [], [value(out, kind, None)])
        for op, out in (("Add", "t"), ("Sub", "e"))
    ]
    nodes = [
        NODE("MatMul", ["x", "w"], ["a"]),
        NODE("ReduceSum", ["a"], ["s"], keepdims=0),
        NODE("Greater", ["s", "zero"], ["is"]),
        NODE("If", ["is"], ["y"], then_branch=branches[0], else_branch=branches[1]),
    ]
    initial = [const("w", np.array([[1, 2], [3, 4]], dtype)), const("zero", np.array(0, dtype))]
    outputs = [value("a", kind, ["n", 2]), value("y", kind, ["n", 2])]
    return made(nodes, [value("x", kind, ["n", 2])], outputs, initial)


def classifier(labels: Sequence[str | int], *, has_zip_map: bool) -> onnx.ModelProto:
    """A linear classifier as skl2onnx writes it."""
    is_text = isinstance(labels[0], str)
    kind = {"classlabels_strings" if is_text else "classlabels_ints": labels}
    nodes = [
        NODE(
            "LinearClassifier",
            ["x"],
            ["label", "scores"],
            domain="ai.onnx.ml",
            coefficients=[1.0, 0.0, 0.0, 1.0, -1.0, -1.0],
            intercepts=[0.0, 0.0, 0.0],
            post_transform="SOFTMAX",
            **kind,
        )
    ]
    outputs = [value("label", T.STRING if is_text else T.INT64, ["n"])]
    if has_zip_map:
        word = {"classlabels_strings" if is_text else "classlabels_int64s": labels}
        nodes.append(NODE("ZipMap", ["scores"], ["chances"], domain="ai.onnx.ml", **word))
        entry = h.make_map_type_proto(T.STRING if is_text else T.INT64, h.make_tensor_type_proto(T.FLOAT, []))
        outputs.append(h.make_value_info("chances", h.make_sequence_type_proto(entry)))
    else:
        outputs.append(value("scores", T.FLOAT, ["n", 3]))
    return made(nodes, [value("x", T.FLOAT, ["n", 2])], outputs)


def picking() -> onnx.ModelProto:
    """Non-maximum suppression: how many boxes it keeps depends on the scores."""
    limits = [const("most", np.int64([3])), const("iou", np.float32([0.5])), const("least", np.float32([0.5]))]
    nodes = [NODE("NonMaxSuppression", ["boxes", "scores", "most", "iou", "least"], ["picked"])]
    inputs = [value("boxes", T.FLOAT, [1, 4, 4]), value("scores", T.FLOAT, [1, 1, 4])]
    return made(nodes, inputs, [value("picked", T.INT64, ["k", 3])], limits)


BOXES = np.float32([[[0, 0, 1, 1], [2, 2, 3, 3], [4, 4, 5, 5], [6, 6, 7, 7]]])


def chance(*scores: float) -> Feeds:
    return {"boxes": BOXES, "scores": np.float32(scores).reshape(1, 1, 4)}


def sequences_inside() -> onnx.ModelProto:
    """Rows apart and together again: a sequence flows inside, past an ordinary tensor."""
    nodes = [
        NODE("SplitToSequence", ["x"], ["rows"], axis=0),
        NODE("Relu", ["x"], ["r"]),
        NODE("SequenceAt", ["rows", "first"], ["row"]),
        NODE("ConcatFromSequence", ["rows"], ["whole"], axis=1),
        NODE("Add", ["r", "row"], ["y"]),
    ]
    outputs = [value("y", T.FLOAT, ["n", 2]), value("whole", T.FLOAT, [1, "m"])]
    return made(nodes, [value("x", T.FLOAT, ["n", 2])], outputs, [const("first", np.int64(0))])


def looping() -> onnx.ModelProto:
    """y = x · 2^trips, by a loop whose number of rounds is an input."""
    body = h.make_graph(
        [NODE("Add", ["v", "v"], ["v_out"]), NODE("Identity", ["go"], ["go_out"])],
        "body",
        [value("i", T.INT64, []), value("go", T.BOOL, []), value("v", T.FLOAT, None)],
        [value("go_out", T.BOOL, []), value("v_out", T.FLOAT, None)],
    )
    nodes = [NODE("Loop", ["trips", "yes", "x"], ["y"], body=body)]
    inputs = [value("x", T.FLOAT, ["n", 2]), value("trips", T.INT64, [])]
    return made(nodes, inputs, [value("y", T.FLOAT, ["n", 2])], [const("yes", np.array(True))])


def scanning() -> onnx.ModelProto:
    """Running sums of x times a sparse matrix."""
    body = h.make_graph(
        [NODE("Add", ["s", "e"], ["so"]), NODE("Identity", ["so"], ["o"])],
        "body",
        [value("s", T.FLOAT, [2]), value("e", T.FLOAT, [2])],
        [value("so", T.FLOAT, [2]), value("o", T.FLOAT, [2])],
    )
    nodes = [
        NODE("MatMul", ["x", "w"], ["m"]),
        NODE("Scan", ["start", "m"], ["last", "sums"], body=body, num_scan_inputs=1),
    ]
    inputs = [value("start", T.FLOAT, [2]), value("x", T.FLOAT, ["n", 2])]
    model = made(nodes, inputs, [value("last", T.FLOAT, [2]), value("sums", T.FLOAT, ["n", 2])])
    sparse = h.make_sparse_tensor(const("w", np.float32([1, 2])), const("at", np.int64([0, 3])), [2, 2])
    model.graph.sparse_initializer.append(sparse)
    return model


def sampling_rate() -> onnx.ModelProto:
    """A rate of 16,000 takes the branch that fits; a rate of 0, as in a trial run, one that fails."""
    then = h.make_graph([NODE("MatMul", ["x", "w16"], ["t"])], "then", [], [value("t", T.FLOAT, None)])
    other = h.make_graph([NODE("MatMul", ["x", "w8"], ["e"])], "else", [], [value("e", T.FLOAT, None)])
    nodes = [NODE("Equal", ["sr", "rate"], ["is"]), NODE("If", ["is"], ["y"], then_branch=then, else_branch=other)]
    initial = [const("w16", np.ones((6, 2), "f4")), const("w8", np.ones((3, 2), "f4")), const("rate", np.int64(16000))]
    inputs = [value("x", T.FLOAT, ["n", "samples"]), value("sr", T.INT64, [])]
    return made(nodes, inputs, [value("y", T.FLOAT, ["n", 2])], initial)


def optional_type(element: onnx.TypeProto, *, is_needed: bool = False) -> onnx.ModelProto:
    """y = x + mask where a mask is given, else −x; or just what is given."""
    given = h.make_value_info("mask", h.make_optional_type_proto(element))
    kind = element.tensor_type.elem_type
    get = NODE("OptionalGetElement", ["mask"], ["m"])
    then = h.make_graph([get, NODE("Add", ["x", "m"], ["t"])], "then", [], [value("t", kind, None)])
    other = h.make_graph([NODE("Neg", ["x"], ["e"])], "else", [], [value("e", kind, None)])
    ends = [value("x", kind, ["n", 2]), given], [value("y", kind, ["n", 2]), value("has", T.BOOL, [])]
    nodes = [
        NODE("OptionalHasElement", ["mask"], ["has"]),
        get if is_needed else NODE("If", ["has"], ["y"], then_branch=then, else_branch=other),
    ]
    if is_needed:
        nodes.append(NODE("Add", ["x", "m"], ["y"]))
    return made(nodes, *ends, opset=18)


def negative_sizes() -> onnx.ModelProto:
    """A batch axis of size −1 instead of one without a size."""
    model = made([NODE("Neg", ["x"], ["y"])], [value("x", T.FLOAT, [1, 2])], [value("y", T.FLOAT, [1, 2])])
    for end in (model.graph.input[0], model.graph.output[0]):
        end.type.tensor_type.shape.dim[0].dim_value = -1
    return model


def labelled(text: str) -> onnx.ModelProto:
    """A model with something in its metadata where labels are read."""
    model = arithmetic(T.FLOAT, np.ones((2, 2), "f4"))
    model.metadata_props.add(key="edgewise.labels", value=text)
    return model


def own_function() -> onnx.ModelProto:
    """A function of the file itself, in half precision."""
    half = const("two", np.float16(2))
    nodes = [NODE("Constant", [], ["two"], value=half), NODE("Mul", ["a", "two"], ["b"])]
    twice = h.make_function("own", "Twice", ["a"], ["b"], nodes, [h.make_opsetid("", 17)])
    call = [NODE("Twice", ["x"], ["d"], domain="own"), NODE("Add", ["d", "one"], ["y"])]
    ends = [value("x", T.FLOAT16, ["n", 2])], [value("y", T.FLOAT16, ["n", 2])]
    return made(call, *ends, [const("one", np.float16(1))], functions=[twice])


def kinds() -> dict[str, Kind]:
    """Every kind that is served, by a short name."""
    f32, i64 = ["x", T.FLOAT], ["x", T.INT64]
    x, y = value(*f32, ["n", 2]), value("y", T.FLOAT, ["n", 2])
    bf16 = ml_dtypes.bfloat16
    weight = np.float32([[1.0, 2.0], [3.0, 4.0]])
    neg = NODE("Neg", ["x"], ["y"])
    return {
        "rank_0": Kind(
            "Inputs and outputs of rank 0",
            "shape `[]`",
            made(
                [NODE("Mul", ["x", "by"], ["m"]), NODE("ReduceSum", ["m"], ["energy"], keepdims=0), neg],
                [x, value("by", T.FLOAT, [])],
                [value("energy", T.FLOAT, []), y],
            ),
            [{"x": X, "by": np.array(2, "f4")}],
        ),
        "zero_sizes": Kind(
            "Sizes of 0: an empty batch, no rows found",
            "an answer like any other",
            arithmetic(T.FLOAT, weight),
            [{"x": np.zeros((0, 2), "f4")}, {"x": X}],
        ),
        "varying_sizes": Kind(
            "Output sizes that depend on the data",
            "-1 in the metadata",
            picking(),
            [chance(0.9, 0.1, 0.8, 0.2), chance(0.1, 0.1, 0.1, 0.1)],
        ),
        "fixed_batch": Kind(
            "A fixed batch",
            "requests bring just that many",
            made([neg], [value(*f32, [2, 2])], [value("y", T.FLOAT, [2, 2])]),
            [{"x": X}],
            bad=[{"x": X[:1]}],
        ),
        "symbolic_axes": Kind(
            "Symbolic axes",
            "any size, -1 in the metadata; batch axes of one name must agree",
            made([neg], [value(*f32, ["n", "height", "width"])], [value("y", T.FLOAT, ["n", "height", "width"])]),
            [{"x": np.ones((1, 3, 5), "f4")}, {"x": np.ones((4, 1, 1), "f4")}],
        ),
        "unnamed_axes": Kind(
            "Axes without a name",
            "any size; batches may differ between inputs",
            made(
                [NODE("MatMul", ["x", "z"], ["y"])],
                [value(*f32, [None, None]), value("z", T.FLOAT, [None, None])],
                [value("y", T.FLOAT, [None, None])],
            ),
            [{"x": np.ones((1, 3), "f4"), "z": np.ones((3, 5), "f4")}],
            bad=[{"x": np.ones((1, 3), "f4"), "z": np.ones((4, 5), "f4")}],
        ),
        "negative_sizes": Kind(
            "Axes of size −1, as older exporters write",
            "any size",
            negative_sizes(),
            [{"x": X}, {"x": X[:1]}],
        ),
        "four_bits": Kind(
            "Weights of 4 bits",
            "as they are",
            made(
                [NODE("DequantizeLinear", ["w", "s"], ["wf"]), NODE("MatMul", ["x", "wf"], ["y"])],
                [x],
                [y],
                [h.make_tensor("w", T.INT4, [2, 2], [1, -2, 3, 4]), const("s", np.float32(0.5))],
                opset=21,
                ir=10,
            ),
            [{"x": X}],
        ),
        "no_shape": Kind(
            "Inputs and outputs without a shape",
            "any rank, shape `[-1]` in the metadata",
            made([neg], [value(*f32, None)], [value("y", T.FLOAT, None)]),
            [{"x": np.ones((1, 3, 5), "f4")}, {"x": np.array(3, "f4")}],
        ),
        "varying_rank": Kind(
            "Outputs whose rank depends on an input",
            "shape `[-1]` in the metadata",
            made(
                [NODE("Reshape", ["x", "s"], ["y"])],
                [value(*f32, ["a", "b"]), value("s", T.INT64, ["r"])],
                [value("y", T.FLOAT, None)],
            ),
            [{"x": np.ones((2, 3), "f4"), "s": np.int64(sizes)} for sizes in ([3, 2], [6], [1, 6, 1])],
            bad=[{"x": np.ones((2, 3), "f4"), "s": np.int64([4])}],
        ),
        "scan": Kind(
            "Scan, sparse weights",
            "as they are",
            scanning(),
            [{"start": np.zeros(2, "f4"), "x": X}],
        ),
        "strings": Kind(
            "Strings in and out",
            "BYTES, UTF-8",
            made(
                [
                    NODE(
                        "LabelEncoder",
                        ["word"],
                        ["code"],
                        domain="ai.onnx.ml",
                        keys_strings=["a", "b"],
                        values_floats=[1.0, 2.0],
                        default_float=0.0,
                    ),
                    NODE("Identity", ["word"], ["same"]),
                ],
                [value("word", T.STRING, ["n", 1])],
                [value("code", T.FLOAT, ["n", 1]), value("same", T.STRING, ["n", 1])],
            ),
            [{"word": TEXTS}, {"word": TEXTS[:0]}],
        ),
        "string_labels": Kind(
            "A classifier with labels as strings",
            "BYTES, and scores as a tensor",
            classifier(["no", "yes", "other"], has_zip_map=False),
            [{"x": X}],
        ),
        "zip_map": Kind(
            "ZipMap: a sequence of maps from labels to scores",
            "the scores as a tensor under the ZipMap's name, labels in `/config` and by the classification extension",
            classifier(["no", "yes", "other"], has_zip_map=True),
            [{"x": X}],
            renamed={"chances": "scores"},
        ),
        "zip_map_of_numbers": Kind(
            "ZipMap with whole numbers as labels",
            "likewise",
            classifier([3, 5, 7], has_zip_map=True),
            [{"x": X}],
            renamed={"chances": "scores"},
        ),
        "optional_inputs": Kind(
            "Initializers that are inputs too (defaults, IR 4 on)",
            "optional: the file's value, or the request's; `optional` in `/config`",
            made(
                [NODE("Sub", ["x", "threshold"], ["y"])],
                [x, value("threshold", T.FLOAT, [1])],
                [y],
                [const("threshold", np.float32([1]))],
            ),
            [{"x": X}, {"x": X, "threshold": np.float32([2])}],
        ),
        "optional_type": Kind(
            "Inputs of an optional type",
            "absent where the request leaves them out or says `null`; `optional` in `/config`",
            optional_type(h.make_tensor_type_proto(T.FLOAT, ["n", 2])),
            [{"x": X}, {"x": X, "mask": 2 * X}],
        ),
        "optional_half": Kind(
            "Optional inputs of float16, without a shape",
            "likewise",
            optional_type(h.make_tensor_type_proto(T.FLOAT16, None)),
            [{"x": X.astype("f2")}, {"x": X.astype("f2"), "mask": np.float16([[2, 3]])}],
            tolerance=2e-3,
        ),
        "optional_needed": Kind(
            "Inputs of an optional type that the model cannot do without",
            "400 with the model's reason where they are absent",
            optional_type(h.make_tensor_type_proto(T.FLOAT, ["n", 2]), is_needed=True),
            [{"x": X, "mask": 2 * X}],
            bad=[{"x": X}],
        ),
        "weights_as_inputs": Kind(
            "Initializers listed as inputs (IR 3)",
            "constants",
            made(
                [NODE("MatMul", ["x", "w"], ["y"])],
                [x, value("w", T.FLOAT, [2, 2])],
                [y],
                [const("w", weight)],
                ir=3,
                opset=9,
            ),
            [{"x": X}],
        ),
        "constant_outputs": Kind(
            "Outputs that are initializers or constants, inputs that are outputs or that nobody reads",
            "answered like any other",
            made(
                [neg, NODE("Constant", [], ["c"], value=const("", np.int64([7, 8]))), NODE("Add", ["c", "c"], ["cc"])],
                [x, value("unused", T.FLOAT, ["n", 1])],
                [value("anchors", T.FLOAT, [1, 2]), y, x, value("cc", T.INT64, [2])],
                [const("anchors", X[:1])],
            ),
            [{"x": X, "unused": np.ones((2, 1), "f4")}],
        ),
        "only_constants": Kind(
            "A model whose outputs no input changes",
            "answered like any other",
            made([NODE("Constant", [], ["y"], value=const("", X))], [x], [value("y", T.FLOAT, [2, 2])]),
            [{"x": X}],
        ),
        "constant_of_default": Kind(
            "An output that only an optional input changes",
            "computed anew where the request gives it",
            made(
                [neg, NODE("Add", ["t", "t"], ["twice"])],
                [x, value("t", T.FLOAT, [1])],
                [value("twice", T.FLOAT, [1]), y],
                [const("t", np.float32([1]))],
            ),
            [{"x": X}, {"x": X, "t": np.float32([4])}],
        ),
        "half": Kind(
            "float16",
            "FP16; computed in float32, rounded at the end",
            arithmetic(T.FLOAT16, weight.astype("f2")),
            [{"x": X.astype("f2")}],
            tolerance=2e-3,
        ),
        "half_beyond_range": Kind(
            "float16 beyond its range",
            "infinity, in JSON too",
            made(
                [NODE("Mul", ["x", "x"], ["y"])], [value("x", T.FLOAT16, ["n", 2])], [value("y", T.FLOAT16, ["n", 2])]
            ),
            [{"x": np.float16([[300, 2], [np.nan, -np.inf]])}],
            tolerance=2e-3,
        ),
        "half_branches": Kind(
            "float16 with branches that read inputs and outputs",
            "likewise",
            branching(T.FLOAT16, np.float16),
            [{"x": X.astype("f2")}, {"x": -X.astype("f2")}],
            tolerance=2e-3,
        ),
        "half_function": Kind(
            "float16 with functions of the file",
            "likewise",
            own_function(),
            [{"x": X.astype("f2")}],
            tolerance=2e-3,
        ),
        "brain_float": Kind(
            "bfloat16, which ONNX Runtime does not compute on a processor",
            "BF16; computed in float32, rounded at the end",
            arithmetic(T.BFLOAT16, weight.astype(bf16)),
            [{"x": X.astype(bf16)}],
            tolerance=1e-2,
            alone=arithmetic(T.FLOAT, weight),
        ),
        "branches": Kind("If on a tensor", "as it is", branching(T.FLOAT, np.float32), [{"x": X}, {"x": -X}]),
        "sampling_rate": Kind(
            "If on an input, which fails on zeros",
            "served; to plan it, also over a fleet, `--data` gives an example that it runs on",
            sampling_rate(),
            [{"x": np.ones((1, 6), "f4"), "sr": np.array(16000)}, {"x": np.ones((2, 3), "f4"), "sr": np.array(8000)}],
            bad=[{"x": np.ones((1, 6), "f4"), "sr": np.array(0)}],
        ),
        "loop": Kind(
            "Loop over an input",
            "as it is",
            looping(),
            [{"x": X, "trips": np.array(3)}, {"x": X, "trips": np.array(0)}],
        ),
        "sequences_inside": Kind(
            "Sequences inside the model",
            "served; they are no place to cut",
            sequences_inside(),
            [{"x": X}, {"x": X[:1]}],
        ),
        "several_tasks": Kind(
            "Several outputs",
            "all of them, in the file's order, unless exits are named",
            made(
                [NODE("MatMul", ["x", "w"], ["a"]), NODE("Relu", ["a"], ["b"]), NODE("ArgMax", ["b"], ["c"], axis=1)],
                [x],
                [value("c", T.INT64, ["n", 1]), value("a", T.FLOAT, ["n", 2]), value("b", T.FLOAT, ["n", 2])],
                [const("w", weight)],
            ),
            [{"x": X}],
        ),
        "element_types": Kind(
            "Every other element type",
            "as the protocol calls it",
            made(
                [NODE("Identity", [f"{name}_in"], [name]) for name in ELEMENTS],
                [value(f"{name}_in", kind, ["n"]) for name, (kind, _) in ELEMENTS.items()],
                [value(name, kind, ["n"]) for name, (kind, _) in ELEMENTS.items()],
            ),
            [{f"{name}_in": array for name, (_, array) in ELEMENTS.items()}],
        ),
        "index_in_table": Kind(
            "Inputs that the model itself refuses",
            "400 at once, with the model's reason",
            made(
                [NODE("Gather", ["table", "x"], ["y"])],
                [value(*i64, ["n"])],
                [value("y", T.FLOAT, ["n", 2])],
                [const("table", X)],
            ),
            [{"x": np.int64([1, 0])}],
            bad=[{"x": np.int64([9])}],
        ),
    }


ELEMENTS = {
    "bool": (T.BOOL, np.array([True, False])),
    "uint8": (T.UINT8, np.uint8([0, 255])),
    "uint16": (T.UINT16, np.uint16([0, 65535])),
    "uint32": (T.UINT32, np.uint32([0, 2**32 - 1])),
    "uint64": (T.UINT64, np.uint64([0, 2**64 - 1])),
    "int8": (T.INT8, np.int8([-128, 127])),
    "int16": (T.INT16, np.int16([-32768, 32767])),
    "int32": (T.INT32, np.int32([-(2**31), 2**31 - 1])),
    "int64": (T.INT64, np.int64([-(2**63), 2**63 - 1])),
    "float64": (T.DOUBLE, np.float64([np.nan, -np.inf])),
    "float32": (T.FLOAT, np.float32([np.inf, 1e-45])),
}


def refused() -> dict[str, tuple[str, Callable[[], onnx.ModelProto], str]]:
    """What is refused at the start: (what, model, words of the reason)."""
    tensor = h.make_tensor_type_proto(T.FLOAT, [None])
    x, y = value("x", T.FLOAT, ["n", 2]), value("y", T.FLOAT, ["n", 2])
    sequence = h.make_value_info("rows", h.make_sequence_type_proto(tensor))
    optional = h.make_value_info("x", h.make_optional_type_proto(h.make_sequence_type_proto(tensor)))
    mapping = h.make_value_info("m", h.make_map_type_proto(T.STRING, tensor))
    words = {"string_vocabulary": ["a", "b"], "domain": "ai.onnx.ml"}
    vectors = [NODE("DictVectorizer", ["m"], ["y"], **words)]
    float8 = [value(name, T.FLOAT8E4M3FN, ["n"]) for name in "xy"]
    odd = [NODE("Bernoulli", ["x"], ["y"], domain="odd")]
    return {
        "sequence_output": (
            "An output that is a sequence",
            lambda: made([NODE("SplitToSequence", ["x"], ["rows"])], [x], [sequence]),
            "output 'rows', which is a sequence",
        ),
        "sequence_input": (
            "An input that is a sequence",
            lambda: made(
                [NODE("ConcatFromSequence", ["rows"], ["y"], axis=0)], [sequence], [value("y", T.FLOAT, ["n"])]
            ),
            "input 'rows', which is a sequence",
        ),
        "map_input": ("An input that is a map", lambda: made(vectors, [mapping], [y]), "input 'm', which is a map"),
        "optional_sequence": (
            "An input that is an optional sequence",
            lambda: made([NODE("OptionalHasElement", ["x"], ["y"])], [optional], [value("y", T.BOOL, [])], opset=18),
            "input 'x', which is an optional sequence",
        ),
        "float8": (
            "Element types without a word in the protocol",
            lambda: made([NODE("Identity", ["x"], ["y"])], float8[:1], float8[1:], opset=21, ir=10),
            "of element type FLOAT8E4M3FN",
        ),
        "odd_metadata": (
            "Metadata under our keys that is something else",
            lambda: labelled("cat, dog"),
            "metadata has 'edgewise.labels' with 'cat, dog', which is not what is read there",
        ),
        "own_operators": (
            "Operators that the runtime does not have",
            lambda: made(odd, [x], [y]),
            "custom operator odd::Bernoulli",
        ),
        "no_kernel": (
            "Operators that it does not have for a type",
            lambda: made([NODE("Erf", ["x"], ["y"])], [value("x", T.INT32, ["n"])], [value("y", T.INT32, ["n"])]),
            "cannot run the model: .*Erf",
        ),
    }
