"""`OperatingPoint`: how a model behaves under a choice of exits, looked up by `moves/exits.py`, priced by `predict.py`."""

from __future__ import annotations

import msgspec

ExitPolicy = tuple[tuple[int, float], ...]
"""Exits in use as (exit index, threshold), in order; the last has threshold 0."""


class OperatingPoint(msgspec.Struct, frozen=True):
    """How a model behaves under an exit policy, with given codecs in front of its exits.

    Attributes:
        policy: Exits and thresholds.
        fractions: Share of all requests that leaves at each exit in use; they sum to 1.
        accuracy: Of all requests.
        num_examples: Calibration examples behind it; 0 if there is no evidence, only the whole model.
    """

    policy: ExitPolicy
    fractions: tuple[float, ...]
    accuracy: float
    num_examples: int
