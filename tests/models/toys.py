"""Small ONNX models with random weights, built without torch: a chain with exits, a residual, an inception block."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


class Builder:
    """Collects nodes and weights."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def weight(self, *shape: int) -> str:
        name = f"w{len(self.weights)}"
        values = self.rng.normal(size=shape) / np.sqrt(max(1, np.prod(shape[1:])))
        self.weights.append(numpy_helper.from_array(values.astype(np.float32), name))
        return name

    def constant(self, values: object, dtype: str) -> str:
        name = f"c{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.array(values, dtype), name))
        return name

    def op(self, kind: str, *inputs: str, out: str = "", **attributes: object) -> str:
        out = out or f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [out], name=f"n{len(self.nodes)}", **attributes))
        return out

    def conv(self, x: str, channels: tuple[int, int], kernel: int = 3, stride: int = 1, relu: bool = True) -> str:
        pad = kernel // 2
        w, b = self.weight(channels[1], channels[0], kernel, kernel), self.weight(channels[1])
        y = self.op("Conv", x, w, b, kernel_shape=[kernel] * 2, pads=[pad] * 4, strides=[stride] * 2)
        return self.op("Relu", y) if relu else y

    def head(self, x: str, channels: int, out: str, classes: int = 10) -> str:
        flat = self.op("Flatten", self.op("GlobalAveragePool", x))
        return self.op("Gemm", flat, self.weight(classes, channels), self.weight(classes), transB=1, out=out)

    def model(self, shape: tuple[object, ...], outputs: list[str], opset: int = 17, classes: int = 10) -> bytes:
        x = helper.make_tensor_value_info("input", TensorProto.FLOAT, list(shape))
        ys = [helper.make_tensor_value_info(o, TensorProto.FLOAT, [shape[0], classes]) for o in outputs]
        graph = helper.make_graph(self.nodes, "toy", [x], ys, self.weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
        return model.SerializeToString()


def digits_cnn() -> bytes:
    """Three convolutions with an exit after each; batch axis open."""
    b = Builder()
    x = b.conv("input", (1, 16))
    b.head(x, 16, "exit_0")
    x = b.conv(x, (16, 32), stride=2)
    b.head(x, 32, "exit_1")
    x = b.conv(b.conv(x, (32, 32)), (32, 64), stride=2)
    b.head(x, 64, "exit_2")
    return b.model(("batch", 1, 8, 8), ["exit_0", "exit_1", "exit_2"])


def residual() -> bytes:
    """Two residual blocks, the second with a convolution on the skip."""
    b = Builder(1)
    x = b.conv("input", (3, 16))
    y = b.conv(b.conv(x, (16, 16)), (16, 16), relu=False)
    x = b.op("Relu", b.op("Add", y, x))
    y = b.conv(b.conv(x, (16, 32), stride=2), (32, 32), relu=False)
    skip = b.conv(x, (16, 32), kernel=1, stride=2, relu=False)
    x = b.op("Relu", b.op("Add", y, skip))
    b.head(x, 32, "logits")
    return b.model((1, 3, 16, 16), ["logits"])


def inception() -> bytes:
    """One tensor read by three branches that meet in a concatenation, and x·sigmoid(x)."""
    b = Builder(2)
    x = b.conv("input", (3, 16), relu=False)
    x = b.op("Mul", x, b.op("Sigmoid", x))
    pool = b.op("MaxPool", x, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    branches = [b.conv(x, (16, 16), 1), b.conv(b.conv(x, (16, 8), 1), (8, 16)), b.conv(pool, (16, 16), 1)]
    x = b.conv(b.op("Concat", *branches, axis=1), (48, 32))
    b.head(x, 32, "logits")
    return b.model((1, 3, 16, 16), ["logits"])


def rearranged() -> bytes:
    """Scales and slices the input before the first weights."""
    b = Builder(3)
    x = b.op("Mul", "input", b.constant(1 / 16, "float32"))
    ends = [b.constant([v], "int64") for v in (0, 4, 8, 3)]
    upper = b.op("Slice", x, ends[0], ends[1], ends[3])
    lower = b.op("Slice", x, ends[1], ends[2], ends[3])
    x = b.conv(b.op("Concat", upper, lower, axis=1), (2, 16))
    b.head(x, 16, "logits")
    return b.model((1, 1, 8, 8), ["logits"])
