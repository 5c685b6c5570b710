"""FedProx."""

from __future__ import annotations

from typing import Any

from edgewise.core.errors import MisfitError
from edgewise.training.algorithm import FederatedAlgorithm
from edgewise.training.algorithms.fed_avg import fed_avg
from edgewise.training.local import LocalWork, proximal, sgd


def fed_prox(*, mu: float = 0.01, local: LocalWork | None = None, **settings: Any) -> FederatedAlgorithm:
    """FedAvg whose clients are pulled back to the model they received.

    Args:
        mu: Weight of the proximal term, μ in eq. 2.
        local: As from `sgd`: epochs, batch and learning rate; its direction is replaced.
        **settings: As in `fed_avg`.

    Returns:
        The algorithm.

    Raises:
        MisfitError: If `local` is not from `sgd`.

    Reference:
        Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020.
        Differs: partial work is not cut off by a clock, so that a run can be repeated: bound it by `max_steps` of `local`.
    """
    work = local or sgd()
    if work.spec.name != "sgd":
        raise MisfitError(f"fed_prox replaces the direction of sgd, and {work.spec} is none. Give it local=sgd(...).")
    return fed_avg(**settings, local=sgd(**(work.spec.params | {"direction": proximal(mu)})))
