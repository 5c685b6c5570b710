"""FedAvgM."""

from __future__ import annotations

from typing import Any

from edgewise.training.algorithm import FederatedAlgorithm
from edgewise.training.algorithms.fed_avg import fed_avg
from edgewise.training.server import momentum as server_momentum


def fed_avg_m(*, server_learning_rate: float = 1.0, momentum: float = 0.9, **settings: Any) -> FederatedAlgorithm:
    """FedAvg with momentum on the server.

    Args:
        server_learning_rate: η of the server.
        momentum: β.
        **settings: As in `fed_avg`, without `server`.

    Returns:
        The algorithm.

    Reference:
        Hsu, Qi & Brown, "Measuring the Effects of Non-Identical Data Distribution for Federated Visual
        Classification", 2019.
    """
    return fed_avg(**settings, server=server_momentum(server_learning_rate, momentum))
