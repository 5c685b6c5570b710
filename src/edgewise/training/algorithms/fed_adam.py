"""FedAdam."""

from __future__ import annotations

from typing import Any

from edgewise.training.algorithm import FederatedAlgorithm
from edgewise.training.algorithms.fed_avg import fed_avg
from edgewise.training.server import adam


def fed_adam(
    *,
    server_learning_rate: float = 0.01,
    beta_1: float = 0.9,
    beta_2: float = 0.99,
    tau: float = 1e-3,
    **settings: Any,
) -> FederatedAlgorithm:
    """FedAvg with Adam on the server.

    Args:
        server_learning_rate: η of the server.
        beta_1: β₁.
        beta_2: β₂.
        tau: τ, degree of adaptivity.
        **settings: As in `fed_avg`, without `server`.

    Returns:
        The algorithm.

    Reference:
        Reddi et al., "Adaptive Federated Optimization", ICLR 2021.
    """
    return fed_avg(**settings, server=adam(server_learning_rate, beta_1, beta_2, tau))
