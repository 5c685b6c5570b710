"""Momentum on the server."""

from __future__ import annotations

import numpy as np

from edgewise.codecs.bundle import Bundle
from edgewise.core.spec import Spec
from edgewise.training.algorithm import MODEL, Closed, ServerRule


def momentum(learning_rate: float = 1.0, momentum: float = 0.9) -> ServerRule:
    """Moves along a running sum of folded updates: v ← β·v + Δ, w ← w + η·v.

    Args:
        learning_rate: η.
        momentum: β, in [0, 1).

    Returns:
        The rule; state `velocity` float32[d].

    Reference:
        Hsu, Qi & Brown, "Measuring the Effects of Non-Identical Data Distribution for Federated Visual
        Classification", 2019.
    """
    rate, beta = np.float32(learning_rate), np.float32(momentum)

    def apply(state: Bundle, folded: Bundle, closed: Closed) -> Bundle:
        velocity = beta * state["velocity"] + folded[MODEL]
        return {MODEL: state[MODEL] + rate * velocity, "velocity": velocity}

    spec = Spec("momentum", {"learning_rate": learning_rate, "momentum": momentum})
    return ServerRule(spec, lambda model: {"velocity": np.zeros_like(model)}, apply)
