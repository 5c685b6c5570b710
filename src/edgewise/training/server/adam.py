"""Adam on the server."""

from __future__ import annotations

import numpy as np

from edgewise.codecs.bundle import Bundle
from edgewise.core.layout import Vector
from edgewise.core.spec import Spec
from edgewise.training.algorithm import MODEL, Closed, ServerRule


def adam(learning_rate: float = 0.01, beta_1: float = 0.9, beta_2: float = 0.99, tau: float = 1e-3) -> ServerRule:
    """Adapts the step of each entry: m ← β₁m + (1−β₁)Δ, v ← β₂v + (1−β₂)Δ², w ← w + η·m/(√v + τ).

    Args:
        learning_rate: η.
        beta_1: β₁, in [0, 1).
        beta_2: β₂, in [0, 1).
        tau: τ, degree of adaptivity, above 0; v starts at τ².

    Returns:
        The rule; state `first` and `second`, float32[d] each.

    Reference:
        Reddi et al., "Adaptive Federated Optimization", ICLR 2021, algorithm 2 (FedAdam); no bias correction there.
    """
    rate, b1, b2, t = np.float32(learning_rate), np.float32(beta_1), np.float32(beta_2), np.float32(tau)
    one = np.float32(1)

    def init(model: Vector) -> Bundle:
        return {"first": np.zeros_like(model), "second": np.full_like(model, t * t)}

    def apply(state: Bundle, folded: Bundle, closed: Closed) -> Bundle:
        mean = folded[MODEL]
        first = b1 * state["first"] + (one - b1) * mean
        second = b2 * state["second"] + (one - b2) * mean * mean
        return {MODEL: state[MODEL] + rate * first / (np.sqrt(second) + t), "first": first, "second": second}

    params = {"learning_rate": learning_rate, "beta_1": beta_1, "beta_2": beta_2, "tau": tau}
    return ServerRule(Spec("adam", params), init, apply)
