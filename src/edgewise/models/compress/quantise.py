"""The int8 variant of a model: what a device could run alone, as a baseline for every split."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewise.core.errors import DataError
from edgewise.models.graph.graph import Graph

_OLDEST_OPSET = 13

Feeds = Mapping[str, NDArray[Any]]


def quantised(graph: Graph, calibration: Sequence[Feeds]) -> bytes:
    """Quantises weights per channel and activations per tensor to int8, ranges from calibration inputs.

    Args:
        graph: The float32 model.
        calibration: Inputs by name, one entry per batch; a hundred examples are enough.

    Returns:
        ONNX bytes with the same inputs and outputs; `Graph.load` reads them as any model.

    Raises:
        DataError: If there are no calibration inputs.

    Reference:
        Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference",
        CVPR 2018. Differs: after training only; weights per channel.
    """
    if not calibration:
        raise DataError(
            f"quantising graph {graph.name!r} needs calibration inputs to find the ranges of activations, found none. "
            "Give some examples of real data."
        )
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the quantiser's own deprecations, and advice to preprocess
        source, target = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        source.write_bytes(_modern(graph))
        _quantise(source, target, calibration)
        return target.read_bytes()


def _quantise(source: Path, target: Path, calibration: Sequence[Feeds]) -> None:
    import logging

    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._feeds: Iterator[Feeds] = iter(calibration)

        def get_next(self) -> dict[str, NDArray[Any]] | None:
            feeds = next(self._feeds, None)
            return None if feeds is None else {name: np.asarray(array) for name, array in feeds.items()}

    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        quantize_static(
            str(source),
            str(target),
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            # Without VNNI, products of two full-range int8 overflow their 16-bit sums.
            reduce_range=True,
        )
    finally:
        logger.setLevel(level)


def _modern(graph: Graph) -> bytes:
    """The whole model at an opset that has per-channel quantisation."""
    import onnx

    model = onnx.load_model_from_string(graph.whole)
    version = max(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
    if version < _OLDEST_OPSET:
        model = onnx.version_converter.convert_version(model, _OLDEST_OPSET)
    data: bytes = model.SerializeToString()
    return data
