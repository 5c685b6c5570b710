"""A filter in front of every stage: a frame like the last one that was computed is answered as that one was."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf, isnan
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewise.inference.gates.gate import Answer, GateRule, Given


@dataclass(frozen=True, slots=True)
class Reference:
    """The last frame that was computed.

    Attributes:
        frame: Its inputs, by name.
        answer: What it was answered.
        num_since: Frames answered from it.
    """

    frame: dict[str, NDArray[Any]]
    answer: Answer
    num_since: int = 0


def frame_difference(threshold: float, every: int = 30, cells: int = 1) -> GateRule:
    """Answers a frame from the reference frame while they differ by less than a threshold.

    For a fixed camera, or any stream whose inputs repeat. Costs O(input) time and holds one input per stream.

    Args:
        threshold: Largest mean absolute difference that counts as unchanged, in the input's own unit. δ.
        every: Every n-th frame passes whatever it shows, so that a slow drift is noticed.
        cells: Rows and columns of a grid over the last two axes; the cell that changed most decides, so that a small
            moving thing is not averaged away.

    Returns:
        The rule; the first frame of a stream passes.

    Reference:
        Kang et al., "NoScope: Optimizing Neural Network Queries over Video at Scale", PVLDB 2017, section 4.2.
        Differs: mean absolute instead of squared difference, against the last frame that was computed.
    """

    def ask(tensors: Given, state: Reference | None) -> tuple[Answer | None, Reference | None]:
        if state is None or state.num_since >= every - 1 or difference(tensors, state.frame, cells) >= threshold:
            return None, state
        return {name: array.copy() for name, array in state.answer.items()}, replace(
            state, num_since=state.num_since + 1
        )

    def learn(tensors: Given, answer: Answer, state: Reference | None) -> Reference:
        kept = {name: np.array(array, subok=True) for name, array in answer.items()}  # whoever got it may write into it
        return Reference({name: np.array(array) for name, array in tensors.items()}, kept)

    return GateRule(ask, learn)


def difference(tensors: Given, reference: Given, cells: int = 1) -> float:
    """How far a frame is from another.

    Args:
        tensors: The frame's inputs, numbers.
        reference: The other's.
        cells: As in `frame_difference`.

    Returns:
        The mean absolute difference, of the tensor and the cell where it is largest; infinity if shapes differ or it
        is no number, as where a frame has a NaN.
    """
    largest = 0.0
    for name, other in reference.items():
        if tensors[name].shape != other.shape:
            return inf
        wide = _wide(other.dtype)
        with np.errstate(invalid="ignore"):
            gap: NDArray[Any] = np.abs(np.asarray(tensors[name], wide) - np.asarray(other, wide))
        if cells > 1 and gap.ndim >= 2:
            gap = gap.reshape(-1, *gap.shape[-2:]).mean(axis=0)
            rows = np.array_split(gap, min(cells, gap.shape[0]), axis=0)
            parts = [part for row in rows for part in np.array_split(row, min(cells, gap.shape[1]), axis=1)]
        else:
            parts = [gap]
        for part in parts:
            mean = float(part.mean())
            largest = inf if isnan(mean) else max(largest, mean)
    return largest


def _wide(dtype: np.dtype[Any]) -> type[np.floating[Any]]:
    """Where differences of a dtype are exact: of large whole numbers, as in ids and times, not in float32."""
    return np.float32 if dtype.itemsize <= 2 or dtype == np.float32 else np.float64
