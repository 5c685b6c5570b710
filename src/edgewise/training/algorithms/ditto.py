"""Ditto: beside the model all share, every client trains one of its own that is drawn towards it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from edgewise.core.errors import InputError
from edgewise.core.spec import Spec
from edgewise.models.personal_version import PERSONAL
from edgewise.training.algorithm import MODEL, FederatedAlgorithm
from edgewise.training.algorithms.fed_avg import fed_avg
from edgewise.training.local import LocalWork, Rule, descend, descent, sgd, with_rules
from edgewise.training.local.rule import Array, Arrays, Oracle


def drawn(learning_rate: float = 0.1, pull: float = 0.1) -> Rule:
    """v ← v − η·(∇F(v) + λ·(v − w)) on the client's own model v, where w is the received one.

    Args:
        learning_rate: η.
        pull: λ, at least 0.

    Returns:
        The rule; it sends nothing and keeps `personal`, float32[d].

    Raises:
        InputError: If a number is out of range.
    """
    if not pull >= 0:
        raise InputError(f"drawn takes pull >= 0, found {pull!r}. 0.01 to 1 is usual.")

    def init(received: Arrays, kept: Arrays, oracle: Oracle) -> tuple[Array, Arrays]:
        return kept.get(PERSONAL, received[MODEL]), {"towards": received[MODEL]}

    def step(gradient: Array, weights: Array, carry: Arrays) -> tuple[Array, Arrays]:
        direction = gradient + pull * (weights - carry["towards"])
        return descend(weights, direction, learning_rate, scratch=gradient), carry

    return replace(
        descent(learning_rate),
        spec=Spec("drawn", {"learning_rate": learning_rate, "pull": pull}),
        init=init,
        step=step,
        finish=lambda weights, carry, num_steps: ({}, {PERSONAL: weights}),
        sends=(),
        keeps=(PERSONAL,),
        plain_rate=None,
    )


def ditto(*, pull: float = 0.1, local: LocalWork | None = None, **settings: Any) -> FederatedAlgorithm:
    """FedAvg, and on each client a personal model that is drawn towards the shared one.

    Costs a second pass of local work and float32[d] on each client; nothing more travels.

    Args:
        pull: λ, how strongly; 0 trains alone, much makes all alike.
        local: As from `sgd`, without a direction: learning rate, epochs, batch of both models.
        **settings: As in `fed_avg`.

    Returns:
        The algorithm.

    Reference:
        Li et al., "Ditto: Fair and Robust Federated Learning Through Personalization", ICML 2021, algorithm 1.
        Differs: both models take the same number of steps.
    """
    return fed_avg(local=with_rules(local or sgd(), descent, lambda rate: drawn(rate, pull)), **settings)
