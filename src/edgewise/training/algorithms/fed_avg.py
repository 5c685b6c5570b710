"""FedAvg."""

from __future__ import annotations

from edgewise.codecs import Codec, none
from edgewise.training.aggregate import weighted_mean
from edgewise.training.algorithm import Aggregator, FederatedAlgorithm, LocalWork, Select, ServerUpdate
from edgewise.training.local_work import sgd
from edgewise.training.select import all_clients
from edgewise.training.server import step


def fed_avg(
    *,
    select: Select | None = None,
    local: LocalWork | None = None,
    uplink: Codec | None = None,
    aggregate: Aggregator | None = None,
    server: ServerUpdate | None = None,
) -> FederatedAlgorithm:
    """Local SGD on each client, the mean of their updates weighted by examples, applied as it is.

    Args:
        select: Who takes part; `all_clients()` if not given.
        local: What a client does; `sgd()`.
        uplink: How its update is coded; `none()`.
        aggregate: How updates become one; `weighted_mean()`.
        server: What is done with it; `step(1.0)`.

    Returns:
        The algorithm.

    Reference:
        McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017.
    """
    return FederatedAlgorithm(
        select or all_clients(), local or sgd(), uplink or none(), aggregate or weighted_mean(), server or step()
    )
