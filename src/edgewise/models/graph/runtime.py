"""What the installed ONNX Runtime can load; asked, not known by heart."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

_CODE = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ")
OPSET_SURE = 21
"""Every runtime that we allow loads it."""


def probe_session(model: bytes) -> Any:
    """A session for one question: nothing is optimised, nothing is logged.

    Args:
        model: ONNX bytes.

    Returns:
        An `onnxruntime.InferenceSession`.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def refusal_of(model: Any) -> str:
    """Why the runtime does not load a model.

    Args:
        model: An `onnx.ModelProto`.

    Returns:
        Its first line; "" if it loads.
    """
    return refusal_of_bytes(model.SerializeToString())


def refusal_of_bytes(model: bytes) -> str:
    """Why the runtime does not load a model.

    Args:
        model: ONNX bytes.

    Returns:
        Its first line; "" if it loads.
    """
    try:
        probe_session(model)
    except Exception as error:
        return first_line(error)
    return ""


def first_line(error: Exception) -> str:
    """What an error of the runtime says, without its code.

    Args:
        error: Any.
    """
    text = next(iter(str(error).strip().splitlines()), "no word")
    return _CODE.sub("", text).rpartition("Status Message: ")[2].removesuffix(".")


@cache
def runtime_opset() -> int:
    """The newest ONNX opset that the installed runtime loads; found by asking it.

    Returns:
        The opset number.
    """
    import onnx
    from onnx import helper

    value = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1]) for n in "xy"]
    for version in range(onnx.defs.onnx_opset_version(), OPSET_SURE, -1):
        graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "probe", value[:1], value[1:])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", version)], ir_version=8)
        if not refusal_of(model):
            return version
    return OPSET_SURE
