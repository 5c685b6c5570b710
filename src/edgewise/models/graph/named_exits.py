"""Which outputs of a model are exits: named by its file, by our exporter's names, or by the user; else none but the end."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from edgewise.core.errors import GraphError, nearest

KEY = "edgewise.exits"
"""Of the ONNX model's metadata: the names, separated by commas."""
_EXPORTED = re.compile(r"exit_\d+")


def name_exits(model: Any, exits: Sequence[str], where: str) -> bool:
    """Writes into a model which of its outputs are exits.

    Args:
        model: An `onnx.ModelProto`; changed.
        exits: Names, first exit first; () leaves the model as it is.
        where: What the model is called in messages.

    Returns:
        Whether it was changed.

    Raises:
        GraphError: If a name is no output, or stands twice.
    """
    outputs = [output.name for output in model.graph.output]
    for place, name in enumerate(exits):
        if name not in outputs:
            raise GraphError(f"{where} has no output {name!r} that could be an exit.{nearest(name, outputs)}")
        if name in exits[:place]:
            raise GraphError(f"exit {name!r} of {where} is named twice. Name each once, in the order of the model.")
    if not exits:
        return False
    others = [prop for prop in model.metadata_props if prop.key != KEY]
    del model.metadata_props[:]
    model.metadata_props.extend(others)
    model.metadata_props.add(key=KEY, value=",".join(exits))
    return True


def exits_of(model: Any, outputs: Sequence[str]) -> tuple[str, ...]:
    """Which outputs are exits.

    Args:
        model: An `onnx.ModelProto`.
        outputs: Its outputs that depend on an input.

    Returns:
        Names, first exit first; only the last output where none are named.
    """
    named = next((prop.value.split(",") for prop in model.metadata_props if prop.key == KEY), None)
    if named is not None and set(named) <= set(outputs):
        return tuple(named)
    if all(_EXPORTED.fullmatch(name) for name in outputs):
        return tuple(outputs)
    return tuple(outputs[-1:])
