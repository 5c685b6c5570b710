"""What a model is loaded with beside its bytes: sizes of free axes, and an example for one that does not run on zeros.

Whoever plans with them sends them along, so that every node that measures and serves the plan loads the same graph.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgewise.core.errors import InputError
from edgewise.core.units import format_bytes
from edgewise.models.graph.graph import Graph

MOST_BYTES = 2**20
"""Of an example as it is sent: it goes to every node of a deployment, and stays in the coordinator's log."""


class InputHints(msgspec.Struct, frozen=True):
    """Sizes and an example of a model's inputs.

    Attributes:
        sizes: Shape by input whose free axes have no size in the file.
        example: One example by input, as an npz; empty where zeros will do.
    """

    sizes: dict[str, tuple[int, ...]] = {}
    example: bytes = b""

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self.sizes or self.example)


NO_HINTS = InputHints()


def hints_of(graph: Graph) -> InputHints:
    """What another node must be given to load a graph as it was loaded here.

    Args:
        graph: The graph.

    Returns:
        Nothing where its bytes are enough.

    Raises:
        InputError: If its example is too large to be sent.
    """
    inputs = {value.name: value.type.tensor_type for value in graph.model.graph.input}
    sizes = {}
    for tensor in graph.inputs:
        kind = inputs[tensor.name]
        is_open = not kind.HasField("shape") or any(dim.dim_value <= 0 for dim in kind.shape.dim[1:])
        if is_open and not tensor.free and not tensor.has_any_rank:
            sizes[tensor.name] = graph.input_shapes[tensor.name]
    example = _packed(graph.examples) if graph.examples else b""
    if len(example) > MOST_BYTES:
        raise InputError(
            f"the example of {graph.name!r} takes {format_bytes(len(example))}, at most {format_bytes(MOST_BYTES)} go to the "
            "nodes of a fleet with a plan. Give --data whose first example is smaller, or export the model so that it runs "
            "on zeros."
        )
    return InputHints(sizes, example)


def load_with(data: bytes, hints: InputHints) -> Graph:
    """Loads a graph with what was sent along.

    Args:
        data: ONNX bytes.
        hints: As from `hints_of`.

    Returns:
        The graph.

    Raises:
        GraphError: As `Graph.load`.
        InputError: If the example is not readable.
    """
    return Graph.load(data, hints.sizes, examples=_unpacked(hints.example) if hints.example else None)


def _packed(example: Mapping[str, NDArray[Any]]) -> bytes:
    """An npz; strings as numpy's own, since objects would be pickled."""
    file = io.BytesIO()
    plain = {
        name: array.astype(str) if array.dtype.kind == "O" else np.asarray(array) for name, array in example.items()
    }
    arrays: dict[str, Any] = {f"input_{place}": array for place, array in enumerate(plain.values())}
    np.savez_compressed(file, names=np.array(list(plain), str), **arrays)
    return file.getvalue()


def _unpacked(data: bytes) -> dict[str, NDArray[Any]]:
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as read:
            found = {str(name): np.asarray(read[f"input_{n}"]) for n, name in enumerate(read["names"])}
            if any(array.dtype.kind in "SVO" for array in found.values()):
                raise ValueError("a member is no array of numbers or strings")
    except Exception as error:  # zipfile, zlib and numpy have errors of their own
        raise InputError(f"the example that came with a model is not readable: {error}. Plan it again.") from error
    return {name: array.astype(object) if array.dtype.kind == "U" else array for name, array in found.items()}
