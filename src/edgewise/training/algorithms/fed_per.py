"""FedPer: layers that stay personal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgewise.training.algorithm import FederatedAlgorithm
from edgewise.training.algorithms.fed_avg import fed_avg
from edgewise.training.local import LocalWork, personal, sgd, with_each


def fed_per(*, own: Sequence[str], local: LocalWork | None = None, **settings: Any) -> FederatedAlgorithm:
    """FedAvg of a part of the model; every client keeps the rest, e.g. the head, to itself.

    The server's model is not whole: its own entries are those of the first model. `models/personal_version.py` joins it on a device.

    Args:
        own: Which tensors stay: names with `*` and `?` (`head.*`), or `batch_norm`.
        local: What trains both parts; `sgd()`.
        **settings: As in `fed_avg`.

    Returns:
        The algorithm.

    Reference:
        Arivazhagan et al., "Federated Learning with Personalization Layers", 2019.
    """
    return fed_avg(local=with_each(local or sgd(), lambda rule: personal(rule, own)), **settings)
