"""Classes by name: those a ZipMap carries become labels of an ordinary tensor of scores.

A ZipMap, as skl2onnx writes it behind every classifier, turns scores [n, classes] into a sequence of maps, which no
inference protocol carries. Served is the tensor in front of it, under the ZipMap's name; the labels stand in the
model's metadata.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from edgewise.models.graph.metadata import read_metadata

KEY = "edgewise.labels"
"""Of the ONNX model's metadata: JSON, a list of labels by output."""


def without_zip_maps(model: Any) -> bool:
    """Turns outputs that are sequences of maps from labels to scores into scores, in place.

    Args:
        model: An `onnx.ModelProto`.

    Returns:
        Whether there was one.
    """
    from onnx import TensorProto, helper

    outputs = {output.name: output for output in model.graph.output}
    read = {name for node in model.graph.node for name in node.input}
    found = {}
    for place, node in enumerate(model.graph.node):
        if node.op_type != "ZipMap" or node.output[0] not in outputs or node.output[0] in read:
            continue
        labels = next((list(a.strings or a.ints) for a in node.attribute if a.name.startswith("classlabels_")), [])
        name = node.output[0]
        found[name] = [label.decode() if isinstance(label, bytes) else label for label in labels]
        model.graph.node[place].CopyFrom(helper.make_node("Identity", [node.input[0]], [name], name=node.name))
        outputs[name].CopyFrom(helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, len(labels)]))
    if found:
        model.metadata_props.add(key=KEY, value=json.dumps(found, ensure_ascii=False))
    return bool(found)


def labels_of(model: Any) -> Mapping[str, tuple[str, ...]]:
    """The classes of each output that has names for them.

    Args:
        model: An `onnx.ModelProto`.

    Returns:
        Labels by output, in the order of its last axis.

    Raises:
        GraphError: If they are not readable.
    """
    found = read_metadata(model, KEY, dict[str, list[str | int]], '{"label": ["cat", "dog"]}') or {}
    return {name: tuple(map(str, labels)) for name, labels in found.items()}
