"""Momentum on the server."""

from __future__ import annotations

import numpy as np

from edgewise.core.layout import Vector
from edgewise.core.spec import Spec
from edgewise.training.algorithm import ServerUpdate, State


def momentum(learning_rate: float = 1.0, momentum: float = 0.9) -> ServerUpdate:
    """Moves along a running sum of mean updates: v ← β·v + Δ, w ← w + η·v.

    Args:
        learning_rate: η.
        momentum: β, in [0, 1).

    Returns:
        The server update; state `velocity` float32[d].

    Reference:
        Hsu, Qi & Brown, "Measuring the Effects of Non-Identical Data Distribution for Federated Visual
        Classification", 2019.
    """
    rate, beta = np.float32(learning_rate), np.float32(momentum)

    def apply(model: Vector, mean: Vector, state: State) -> tuple[Vector, State]:
        velocity = beta * state["velocity"] + mean
        return model + rate * velocity, {"velocity": velocity}

    spec = Spec("momentum", {"learning_rate": learning_rate, "momentum": momentum})
    return ServerUpdate(spec, lambda model: {"velocity": np.zeros_like(model)}, apply)
