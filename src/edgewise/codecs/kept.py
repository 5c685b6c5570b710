"""Converts a codec's state (the residual) to named arrays and back, so that a client keeps it over a restart."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewise.codecs.codec import Codec, Shape, State
from edgewise.core.errors import StoreError


def state_to_arrays(state: State) -> dict[str, NDArray[Any]]:
    """Converts a state to named arrays.

    Args:
        state: As returned by `init` or `encode`: arrays in nested tuples.

    Returns:
        Arrays by their place, e.g. `{"0": residual}`; empty where a codec keeps no state.
    """
    return dict(_walk(state, ""))


def state_from_arrays(codec: Codec, shape: Shape, arrays: dict[str, NDArray[Any]]) -> State:
    """Rebuilds a state from named arrays.

    Args:
        codec: Whose state it is.
        shape: Of the arrays it encodes.
        arrays: As from `state_to_arrays`.

    Returns:
        The state.

    Raises:
        StoreError: If they are not the state of that codec for that shape.
    """
    fresh = codec.init(shape)
    expected = {name: (a.shape, a.dtype) for name, a in _walk(fresh, "")}
    found = {name: (a.shape, a.dtype) for name, a in arrays.items()}
    if expected != found:
        raise StoreError(
            f"stored arrays {sorted(found)} are not the state of {codec} for shape {shape}. "
            "Start from codec.init(shape); what earlier updates held back is lost."
        )
    return _filled(fresh, "", arrays)


def _walk(state: State, place: str) -> list[tuple[str, NDArray[Any]]]:
    if isinstance(state, np.ndarray):
        return [(place, state)]
    return [found for i, inner in enumerate(state) for found in _walk(inner, f"{place}.{i}" if place else str(i))]


def _filled(fresh: State, place: str, arrays: dict[str, NDArray[Any]]) -> State:
    if isinstance(fresh, np.ndarray):
        return arrays[place]
    return tuple(_filled(inner, f"{place}.{i}" if place else str(i), arrays) for i, inner in enumerate(fresh))
