"""What this package writes into an ONNX model's metadata, read back: the file may come from anywhere, and say anything."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from edgewise.core.errors import GraphError
from edgewise.core.unreadable import UNREADABLE

T = TypeVar("T")


def read_metadata(model: Any, key: str, kind: type[T], example: str) -> T | None:
    """A JSON value in a model's metadata.

    Args:
        model: An `onnx.ModelProto`.
        key: Of the property.
        kind: What it must be.
        example: What it should look like, for the message.

    Returns:
        The value; None without that property.

    Raises:
        GraphError: If it is something else.
    """
    text = next((prop.value for prop in model.metadata_props if prop.key == key), None)
    if text is None:
        return None
    try:
        return msgspec.json.decode(text, type=kind)
    except UNREADABLE as error:
        shown = text if len(text) <= 60 else f"{text[:60]}…"
        raise GraphError(
            f"the model's metadata has {key!r} with {shown!r}, which is not what is read there: {error}. Write it like "
            f"{example}, or take it out."
        ) from error
