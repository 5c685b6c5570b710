"""`PlainGraph`: an ONNX model as plain data, with the `Tensor`s that flow through it and its operators, the `Node`s.

What reads, cuts and groups models works on these; `graph.py` puts it together in `Graph`, which is what others use.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import msgspec

from edgewise.core.errors import GraphError, nearest
from edgewise.core.ids import Digest


class PlainTensor(msgspec.Struct, frozen=True):
    """A tensor that flows through the graph, for one example.

    Attributes:
        name: Its name in the ONNX graph.
        shape: With batch 1, and some size where an axis is free.
        dtype: numpy's word, e.g. `float32`.
        symbolic_batch: Whether the first axis may be any number.
        free: Other axes that may be any number; of a size that depends on the data also the first.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    symbolic_batch: bool = False
    free: tuple[int, ...] = ()

    @property
    def open_shape(self) -> tuple[int | None, ...]:
        """The shape with None where an axis may be any number."""
        open_axes = {*self.free, *((0,) if self.symbolic_batch else ())}
        return tuple(None if axis in open_axes else size for axis, size in enumerate(self.shape))

    @property
    def num_entries(self) -> int:
        """Entries of one example."""
        return prod(self.shape)

    @property
    def size_bytes(self) -> int:
        """Bytes of one example, uncoded."""
        import numpy as np

        return self.num_entries * int(np.dtype(self.dtype).itemsize)


class PlainNode(msgspec.Struct, frozen=True):
    """One operator that depends on the input.

    Attributes:
        index: Position in the ONNX node list, which is a topological order.
        name: Unique; made up from the operator where the file gives none.
        op: Operator type.
        inputs: Flowing tensors it reads, constants left out, each once.
        outputs: Tensors it writes.
        weights: Shapes of its constant operands of two or more floats.
        flops: Floating-point operations for one example, estimated.
    """

    index: int
    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    weights: tuple[tuple[int, ...], ...]
    flops: float


@dataclass(frozen=True)
class PlainGraph:
    """What was found in an ONNX model.

    Attributes:
        name: The model's own name.
        digest: Of `model_bytes`; a node that is sent those bytes loads a graph of the same digest.
        model_bytes: What it was loaded from, unchanged, or with external data taken in and float16 widened inside
            (see `widen.py`) where there was any.
        inputs: What the model is given.
        outputs: What it answers; which of them are exits is `exits`.
        nodes: Operators that depend on the input, in topological order.
        tensors: Every flowing tensor by name.
        input_shapes: Shape of each input, symbolic axes settled.
        exits: Outputs at which a request may end, first exit first; the last is the model's end.
    """

    name: str
    digest: Digest
    model_bytes: bytes
    inputs: tuple[PlainTensor, ...]
    outputs: tuple[PlainTensor, ...]
    nodes: tuple[PlainNode, ...]
    tensors: Mapping[str, PlainTensor]
    input_shapes: Mapping[str, tuple[int, ...]]
    exits: tuple[str, ...] = ()

    def check_sizes(self) -> None:
        """Refuses what needs every size where an axis is free.

        Raises:
            GraphError: If an input has a free axis beside the batch.
        """
        for tensor in self.inputs:
            if tensor.free:
                example = ",".join("224" if axis in tensor.free else str(n) for axis, n in enumerate(tensor.shape))
                raise GraphError(
                    f"input {tensor.name!r} of graph {self.name!r} has no fixed size in dimension {tensor.free[0]}. It can "
                    "be served so; to measure and plan it a size is needed. Give it: "
                    f"--input-shape {tensor.name}={example}"
                )

    @cached_property
    def model(self) -> Any:
        """The parsed `onnx.ModelProto`; not to be changed."""
        import onnx

        return onnx.load_model_from_string(self.model_bytes)

    def tensor(self, name: str) -> PlainTensor:
        """A flowing tensor by name.

        Args:
            name: Its name.

        Returns:
            The tensor.

        Raises:
            GraphError: If there is none; the nearest is suggested.
        """
        if name not in self.tensors:
            raise GraphError(f"graph {self.name!r} has no tensor {name!r}.{nearest(name, self.tensors)}")
        return self.tensors[name]
