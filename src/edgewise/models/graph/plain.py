"""`PlainGraph`: an ONNX model as plain data, with the `Tensor`s that flow through it and its operators, the `Node`s.

What reads, cuts and groups models works on these; `graph.py` puts it together in `Graph`, which is what others use.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Any

import msgspec
from numpy.typing import NDArray

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
        symbols: What the file calls its axes; "" for one without a name. Of inputs and outputs.
        declared: Element type at the endpoint where it is another, e.g. `bfloat16`; "" otherwise.
        has_any_rank: Whether the file does not say how many axes it has.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    symbolic_batch: bool = False
    free: tuple[int, ...] = ()
    symbols: tuple[str, ...] = ()
    declared: str = ""
    has_any_rank: bool = False

    @property
    def batch_symbol(self) -> str:
        """What the file calls its batch axis; "" if it has none, or no name for it."""
        return self.symbols[0] if self.symbolic_batch and self.symbols else ""

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
        outputs: What it computes from its inputs, not the inputs themselves; which of them are exits is `exits`.
        nodes: Operators that depend on the input, in topological order.
        tensors: Every flowing tensor by name.
        input_shapes: Shape of each input, symbolic axes settled.
        exits: Outputs at which a request may end, first exit first; the last is the model's end.
        constants: Outputs that no input changes.
        optional: Inputs that have a default in the file, or are absent unless they are given. They count as constants
            here: a request that brings another value is computed by the whole model.
        labels: Names of the classes, by output, where the file has them.
        examples: Inputs that the model is known to run on; without, zeros are tried.
        unmeasured: Why the shapes inside are not all known; "" if they are. Such a model can be served, but not planned.
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
    constants: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    optional: tuple[PlainTensor, ...] = ()
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    examples: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    unmeasured: str = ""

    @cached_property
    def answers(self) -> tuple[PlainTensor, ...]:
        """Everything that the model answers, constants among it, in the file's order."""
        fixed = {name: PlainTensor(name, array.shape, str(array.dtype)) for name, array in self.constants.items()}
        flowing = {tensor.name: tensor for tensor in (*self.inputs, *self.outputs)}
        return tuple({**flowing, **fixed}[output.name] for output in self.model.graph.output)

    @cached_property
    def echoes(self) -> tuple[str, ...]:
        """Inputs that are outputs too, as they are given."""
        given = {tensor.name for tensor in self.inputs}
        return tuple(tensor.name for tensor in self.answers if tensor.name in given)

    def check_sizes(self) -> None:
        """Refuses what needs every size where an axis is free, or where the model could not be run.

        Raises:
            GraphError: If an input has a free axis beside the batch, or shapes inside are not known.
        """
        if self.unmeasured:
            raise GraphError(f"graph {self.name!r} can be served, but not measured or planned: {self.unmeasured}")
        for tensor in self.inputs:
            if tensor.has_any_rank:
                raise GraphError(
                    f"input {tensor.name!r} of graph {self.name!r} has no shape in the file. It can be served so; to measure and "
                    f"plan it one is needed. Give it, e.g. --input-shape {tensor.name}=1,224"
                )
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
