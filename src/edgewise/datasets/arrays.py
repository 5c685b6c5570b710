"""Holds inputs and targets as arrays traced as raw data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewise.core.errors import DataError
from edgewise.core.provenance import RAW, traced


@dataclass(frozen=True, slots=True)
class Arrays:
    """Holds examples as two arrays of equal length.

    Attributes:
        inputs: float32[n, *input_shape]; traced as raw.
        targets: int64[n] or float32[n, ...]; traced as raw.
    """

    inputs: NDArray[Any]
    targets: NDArray[Any]

    @staticmethod
    def of(inputs: Any, targets: Any) -> Arrays:
        """Marks both arrays as raw data.

        Args:
            inputs: n inputs.
            targets: n targets.

        Returns:
            The pair.

        Raises:
            DataError: If the lengths differ.
        """
        if len(inputs) != len(targets):
            raise DataError(f"{len(inputs)} inputs and {len(targets)} targets do not belong together. Give one each.")
        return Arrays(traced(np.ascontiguousarray(inputs), RAW), traced(np.ascontiguousarray(targets), RAW))

    def __len__(self) -> int:
        return len(self.inputs)

    def take(self, indices: NDArray[np.intp]) -> Arrays:
        """Returns the examples at these indices, in this order; still traced."""
        return Arrays.of(self.inputs[indices], self.targets[indices])
