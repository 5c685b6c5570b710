"""A served model's configuration in Triton's words: what it takes and gives, optional inputs and class labels with it. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgewise.models.graph.graph import PlainTensor
from edgewise.service.tensor_data import DATATYPES

_WORDS = {"object": "TYPE_STRING"}


def describe_config(
    name: str,
    inputs: Sequence[PlainTensor],
    outputs: Sequence[PlainTensor],
    *,
    optional: Sequence[PlainTensor] = (),
    labels: Mapping[str, Sequence[str]] | None = None,
    state: Sequence[tuple[str, str]] = (),
    exits: Sequence[str] = (),
) -> dict[str, Any]:
    """Describes a model as Triton's model configuration extension does.

    Args:
        name: Of the model.
        inputs: What a request must bring.
        outputs: What it answers.
        optional: What a request may bring; without, the file's default counts.
        labels: Names of the classes, by output.
        state: Pairs (input, output) that are kept between the requests of a sequence.
        exits: Outputs at which a request may end, the model's end last.

    Returns:
        A JSON object; sizes are whole, the batch axis among them, so `max_batch_size` is 0.
    """
    given = [{**_described(tensor), "optional": False} for tensor in inputs]
    given += [{**_described(tensor), "optional": True} for tensor in optional]
    known = labels or {}
    made = [{**_described(tensor), "labels": list(known.get(tensor.name, ()))} for tensor in outputs]
    config: dict[str, Any] = {
        "name": name,
        "platform": "onnxruntime_onnx",
        "backend": "onnxruntime",
        "max_batch_size": 0,
        "input": given,
        "output": made,
    }
    if len(exits) > 1:
        config["parameters"] = {"exits": {"string_value": ",".join(exits)}}
    if state:
        config["sequence_batching"] = {"state": [{"input_name": i, "output_name": o} for i, o in state]}
    return config


def _described(tensor: PlainTensor) -> dict[str, Any]:
    dtype = tensor.declared or tensor.dtype
    dims = [-1] if tensor.has_any_rank else [-1 if size is None else size for size in tensor.open_shape]
    return {"name": tensor.name, "data_type": _WORDS.get(dtype, f"TYPE_{DATATYPES[dtype]}"), "dims": dims}
