"""`Graph`: an ONNX model as a value: its tensors, its exits, exact pieces of it.

How to use::

    graph = Graph.load("model.onnx")               # or bytes; errors name cause and cure
    graph.inputs, graph.outputs                    # tensors with shape, dtype, bytes (batch 1); outputs are the exits
    graph.condensed                                # fusion groups, live tensors, cut candidates: `condense.py`
    head = graph.extract(["x"], ["cut"])           # ONNX bytes of the part between
    inputs, outputs = graph.condensed.boundary(["g0.Conv", "g1.Conv"])

It never runs a model, except once, with zeros or examples, where a tensor's shape cannot be inferred. Read `condense.py` next.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from edgewise.models.graph.condense import Condensed, condense
from edgewise.models.graph.extract import extract_model
from edgewise.models.graph.load import load_graph
from edgewise.models.graph.plain import PlainGraph, PlainNode, PlainTensor
from edgewise.models.graph.runtime import refusal_of_bytes


@dataclass(frozen=True)
class Graph(PlainGraph):
    """An ONNX model that can be planned: the plain data (its attributes), and what can be asked of it."""

    @staticmethod
    def load(
        source: bytes | str | Path,
        input_shapes: Mapping[str, Sequence[int]] | None = None,
        exits: Sequence[str] = (),
        examples: Mapping[str, NDArray[Any]] | None = None,
    ) -> Graph:
        """Reads a model and infers its shapes.

        Args:
            source: ONNX bytes, or the path of a file.
            input_shapes: Shapes for inputs whose axes other than the first are symbolic; without, those axes stay free:
                such a model can be served, but not planned.
            exits: Outputs at which a request may end, first exit first, written into the model; the last is its end.
                By default those that the file names or that are called `exit_0`, `exit_1`, …; without such names every
                output is part of the answer.
            examples: Inputs of one example that the model runs on, where it does not run on zeros.

        Returns:
            The graph.

        Raises:
            GraphError: If the file is missing or corrupt, has external data that is not there, operators outside ONNX,
                an opset that is too new, inputs or outputs that are no tensors, or no outputs of the names in `exits`.
        """
        shapes = {name: tuple(sizes) for name, sizes in (input_shapes or {}).items()}
        plain = load_graph(source, shapes, tuple(exits), examples)
        return Graph(**{field.name: getattr(plain, field.name) for field in fields(plain)})

    @cached_property
    def condensed(self) -> Condensed:
        """The graph of fusion groups."""
        return condense(self)

    def extract(self, inputs: Iterable[str], outputs: Iterable[str], *, has_sizes: bool | None = None) -> bytes:
        """Cuts out the part that computes some tensors from others; nothing is recomputed differently.

        Args:
            inputs: Tensors that will be given.
            outputs: Tensors wanted.
            has_sizes: Whether the sizes that are known stand in the piece; the runtime refuses some models with them, e.g.
                where a branch that is not taken does not fit. By default they do unless it refuses the whole with them.

        Returns:
            ONNX bytes of a model with exactly these inputs and outputs.

        Raises:
            GraphError: If a tensor does not exist, or the outputs need something that is not given.
        """
        return extract_model(self, tuple(inputs), tuple(outputs), self._takes_sizes if has_sizes is None else has_sizes)

    @cached_property
    def _takes_sizes(self) -> bool:
        """Whether the runtime loads the whole with the sizes that are known; asked where there are branches."""
        if not any(node.op in ("If", "Loop", "Scan") for node in self.nodes):
            return True
        ends = [t.name for t in self.inputs], [t.name for t in self.outputs]
        return not refusal_of_bytes(self.extract(*ends, has_sizes=True))

    @cached_property
    def whole(self) -> bytes:
        """The model as one piece, in the form the pieces have: what served answers are compared with."""
        return self.extract([t.name for t in self.inputs], [t.name for t in self.outputs])


def graph_from(
    model: Any,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    exits: Sequence[str] = (),
    examples: Mapping[str, NDArray[Any]] | None = None,
) -> Graph:
    """A graph from an `onnx.ModelProto` in memory.

    Args:
        model: The model.
        input_shapes: As in `Graph.load`.
        exits: As in `Graph.load`.
        examples: As in `Graph.load`.

    Returns:
        The graph.
    """
    return Graph.load(model.SerializeToString(), input_shapes, exits, examples)


__all__ = ["Graph", "PlainNode", "PlainTensor", "graph_from"]
