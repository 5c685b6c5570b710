"""One step along the mean update."""

from __future__ import annotations

import numpy as np

from edgewise.core.layout import Vector
from edgewise.core.spec import Spec
from edgewise.training.algorithm import ServerUpdate, State


def step(learning_rate: float = 1.0) -> ServerUpdate:
    """Moves the model along the mean update: w ← w + η·Δ. With η = 1 this is FedAvg's averaging.

    Args:
        learning_rate: η.

    Returns:
        The server update; it keeps no state.
    """
    rate = np.float32(learning_rate)

    def apply(model: Vector, mean: Vector, state: State) -> tuple[Vector, State]:
        return model + rate * mean, state

    return ServerUpdate(Spec("step", {"learning_rate": learning_rate}), lambda model: {}, apply)
