"""FedBN: batch norm stays personal."""

from __future__ import annotations

from typing import Any

from edgewise.training.algorithm import FederatedAlgorithm
from edgewise.training.algorithms.fed_per import fed_per


def fed_bn(**settings: Any) -> FederatedAlgorithm:
    """FedAvg of all but batch norm, whose scales, shifts and running statistics each client keeps to itself.

    For clients whose inputs differ in kind (other sensors, other light). As in `fed_per`, the server's model is not whole.

    Args:
        **settings: As in `fed_per`, without `own`.

    Returns:
        The algorithm.

    Reference:
        Li et al., "FedBN: Federated Learning on Non-IID Features via Local Batch Normalization", ICLR 2021.
    """
    return fed_per(own=("batch_norm",), **settings)
