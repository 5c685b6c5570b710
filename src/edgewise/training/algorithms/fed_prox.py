"""FedProx."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from edgewise.training.algorithm import FederatedAlgorithm, LocalWork
from edgewise.training.algorithms.fed_avg import fed_avg
from edgewise.training.local_work import proximal, sgd


def fed_prox(*, mu: float = 0.01, local: LocalWork | None = None, **settings: Any) -> FederatedAlgorithm:
    """FedAvg whose clients are pulled back to the model they received.

    Args:
        mu: Weight of the proximal term, μ in eq. 2.
        local: Epochs, batch and learning rate; its direction is replaced.
        **settings: As in `fed_avg`.

    Returns:
        The algorithm.

    Reference:
        Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020.
        Differs: partial work is not sent; a straggler's update waits for the deadline.
    """
    work = local or sgd()
    pulled = sgd(work.learning_rate, work.epochs, work.batch_size, proximal(mu))
    return replace(fed_avg(**settings), local=pulled)
