"""`Graph`: an ONNX model as a value: its tensors, its exits, exact pieces of it.

How to use::

    graph = Graph.load("model.onnx")               # or bytes; errors name cause and cure
    graph.inputs, graph.outputs                    # tensors with shape, dtype, bytes (batch 1); outputs are the exits
    graph.condensed                                # fusion groups, live tensors, cut candidates: `condense.py`
    head = graph.extract(["x"], ["cut"])           # ONNX bytes of the part between
    inputs, outputs = graph.condensed.boundary(["g0.Conv", "g1.Conv"])

It never runs a model, except once with zeros where a tensor's shape cannot be inferred. Read `condense.py` next.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from edgewise.core.errors import GraphError, nearest
from edgewise.core.ids import Digest, digest_of

if TYPE_CHECKING:
    from edgewise.models.condense import Condensed


class Tensor(msgspec.Struct, frozen=True):
    """A tensor that flows through the graph, for one example.

    Attributes:
        name: Its name in the ONNX graph.
        shape: With batch 1.
        dtype: numpy's word, e.g. `float32`.
        symbolic_batch: Whether the first axis may be any number.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    symbolic_batch: bool = False

    @property
    def num_entries(self) -> int:
        """Entries of one example."""
        return prod(self.shape)

    @property
    def size_bytes(self) -> int:
        """Bytes of one example, uncoded."""
        import numpy as np

        return self.num_entries * int(np.dtype(self.dtype).itemsize)


class Node(msgspec.Struct, frozen=True):
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
class Graph:
    """An ONNX model that can be planned.

    Attributes:
        name: The model's own name.
        digest: Of `model_bytes`; a node that is sent those bytes loads a graph of the same digest.
        model_bytes: What it was loaded from, unchanged, or with external data taken in and float16 widened inside
            (see `widen.py`) where there was any.
        inputs: What the model is given.
        outputs: The exits' logits, first exit first.
        nodes: Operators that depend on the input, in topological order.
        tensors: Every flowing tensor by name.
        input_shapes: Shape of each input, symbolic axes settled.
    """

    name: str
    digest: Digest
    model_bytes: bytes
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    nodes: tuple[Node, ...]
    tensors: Mapping[str, Tensor]
    input_shapes: Mapping[str, tuple[int, ...]]

    @staticmethod
    def load(source: bytes | str | Path, input_shapes: Mapping[str, Sequence[int]] | None = None) -> Graph:
        """Reads a model and infers its shapes.

        Args:
            source: ONNX bytes, or the path of a file.
            input_shapes: Shapes for inputs whose axes other than the first are symbolic.

        Returns:
            The graph.

        Raises:
            GraphError: If the file is missing or corrupt, has symbolic axes that `input_shapes` does not settle,
                external data that is not there, operators outside ONNX, or an opset that is too new.
        """
        from edgewise.models.load import load_graph

        return load_graph(source, {k: tuple(v) for k, v in (input_shapes or {}).items()})

    @cached_property
    def model(self) -> Any:
        """The parsed `onnx.ModelProto`; not to be changed."""
        import onnx

        return onnx.load_model_from_string(self.model_bytes)

    @cached_property
    def condensed(self) -> Condensed:
        """The graph of fusion groups."""
        from edgewise.models.condense import condense

        return condense(self)

    def tensor(self, name: str) -> Tensor:
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

    def extract(self, inputs: Iterable[str], outputs: Iterable[str]) -> bytes:
        """Cuts out the part that computes some tensors from others; nothing is recomputed differently.

        Args:
            inputs: Tensors that will be given.
            outputs: Tensors wanted.

        Returns:
            ONNX bytes of a model with exactly these inputs and outputs.

        Raises:
            GraphError: If a tensor does not exist, or the outputs need something that is not given.
        """
        from edgewise.models.extract import extract_model

        return extract_model(self, tuple(inputs), tuple(outputs))

    @cached_property
    def whole(self) -> bytes:
        """The model as one piece, in the form the pieces have: what served answers are compared with."""
        return self.extract([t.name for t in self.inputs], [t.name for t in self.outputs])


def graph_from(model: Any, input_shapes: Mapping[str, Sequence[int]] | None = None) -> Graph:
    """A graph from an `onnx.ModelProto` in memory.

    Args:
        model: The model.
        input_shapes: As in `Graph.load`.

    Returns:
        The graph.
    """
    return Graph.load(model.SerializeToString(), input_shapes)


__all__ = ["Digest", "Graph", "Node", "Tensor", "digest_of", "graph_from"]
