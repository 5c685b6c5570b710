"""Makes a version that a gate must refuse: a graph with noise on its weights."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from edgewise.core.seeds import Seeds

BAD_NOISE = 0.5
"""Of a weight's own spread."""


def spoiled(graph: bytes, seed: int, *, noise: float = BAD_NOISE) -> bytes:
    """A graph with noise on every weight, so many times as wide as the weights spread; the shape is kept."""
    model = onnx.load_from_string(graph)
    rng = Seeds(seed).at("spoiled").rng()
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype == np.float32 and array.size > 1:
            noisy = array + noise * array.std() * rng.standard_normal(array.shape).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(noisy.astype(np.float32), tensor.name))
    return bytes(model.SerializeToString())
