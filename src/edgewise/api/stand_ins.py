"""Graphs that may stand in for a model: it in int8, made here from real inputs, and others that a user has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from edgewise.core.errors import InputError

if TYPE_CHECKING:
    from edgewise.api.source import Source
    from edgewise.models.graph.graph import Graph

INT8 = "int8"
MOST_CALIBRATED = 100


@dataclass(frozen=True, slots=True)
class StandIns:
    """What may be served in a model's place, where it is as accurate.

    Attributes:
        graphs: By name.
        int8_bytes: The model in int8, ONNX; empty if it cannot be made.
        notes: Why something is no candidate, a sentence each.
    """

    graphs: dict[str, Graph] = field(default_factory=dict)
    int8_bytes: bytes = b""
    notes: tuple[str, ...] = ()


def stand_ins(graph: Graph, source: Source, files: Sequence[str | Path] = ()) -> StandIns:
    """Makes a model's int8 variant and reads the others.

    Args:
        graph: The model.
        source: Real inputs; the first hundred tell the ranges of activations.
        files: ONNX files, e.g. of a narrower model.

    Returns:
        The graphs.

    Raises:
        InputError: If a file has other inputs or outputs than the model, or two have one name.
        GraphError: If a file is no model.
    """
    from edgewise.models.compress.quantise import quantised
    from edgewise.models.graph.graph import Graph

    found, notes, data = dict[str, Graph](), list[str](), b""
    try:
        data = quantised(graph, [source.example(i) for i in range(min(MOST_CALIBRATED, len(source)))])
        found[INT8] = Graph.load(data, exits=graph.exits if len(graph.exits) > 1 else ())
    except Exception as error:  # the quantiser knows fewer operators than the runtime, and says so in many ways
        data = b""
        why = (str(error).strip().splitlines() or ["no word"])[0][:160]
        notes.append(f"int8 is no candidate: the model cannot be quantised ({type(error).__name__}: {why})")
    for path in map(Path, files):
        other = Graph.load(path)
        for what in ("inputs", "outputs"):
            mine, its = ([(t.name, t.dtype, t.shape) for t in getattr(g, what)] for g in (graph, other))
            if mine != its:
                raise InputError(
                    f"{str(path)!r} has {what} {its}, the model has {mine}. A variant answers the same requests: export "
                    "it with the same names and shapes."
                )
        if path.stem in found:
            raise InputError(f"two variants are called {path.stem!r}. Rename one of the files.")
        found[path.stem] = other
    return StandIns(found, data, tuple(notes))
