"""FedNova: updates are normalised by how many steps made them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from edgewise.codecs.bundle import Bundle, Section
from edgewise.core.spec import Spec
from edgewise.training.aggregate import weighted_mean
from edgewise.training.algorithm import MODEL, Aggregator, Closed, FederatedAlgorithm, ServerRule
from edgewise.training.algorithms.fed_avg import fed_avg
from edgewise.training.local import LocalWork, Rule, descent, sgd, with_rules
from edgewise.training.local.rule import VECTOR, Array, Arrays, Oracle

STEPS = "steps"


def normalised(learning_rate: float = 0.1) -> Rule:
    """Descent that sends how far the model moved per step, and how many steps it took.

    Args:
        learning_rate: η.

    Returns:
        The rule; it sends `model` float32[d] and `steps` float32[1].
    """
    plain = descent(learning_rate)

    def init(received: Arrays, kept: Arrays, oracle: Oracle) -> tuple[Array, Arrays]:
        return received[MODEL], {"received": received[MODEL], "trained": oracle.trained}

    def finish(weights: Array, carry: Arrays, num_steps: Array) -> tuple[Arrays, Arrays]:
        sent, _ = plain.finish(weights, carry, num_steps)
        # Buffers are statistics, not sums over steps.
        return {MODEL: sent[MODEL] / (1 + (num_steps - 1) * carry["trained"]), STEPS: num_steps}, {}

    sends = (Section(MODEL, shape=VECTOR), Section(STEPS, shape=(1,)))
    return replace(
        plain, spec=Spec("normalised", {"learning_rate": learning_rate}), init=init, finish=finish, sends=sends
    )


def normalised_step(learning_rate: float = 1.0) -> ServerRule:
    """x ← x + η·τ·d, where τ is the mean number of steps and d the mean movement per step.

    Args:
        learning_rate: η of the server.

    Returns:
        The rule; it keeps no state.
    """
    rate = np.float32(learning_rate)

    def apply(state: Bundle, folded: Bundle, closed: Closed) -> Bundle:
        return {MODEL: state[MODEL] + rate * folded[STEPS] * folded[MODEL]}

    return ServerRule(Spec("normalised_step", {"learning_rate": learning_rate}), lambda model: {}, apply)


def fed_nova(
    *,
    server_learning_rate: float = 1.0,
    local: LocalWork | None = None,
    aggregate: Aggregator | Mapping[str, Aggregator] | None = None,
    **settings: Any,
) -> FederatedAlgorithm:
    """FedAvg that stays at the joint optimum where clients do unequal numbers of steps.

    Args:
        server_learning_rate: η of the server.
        local: As from `sgd`, without a direction: learning rate, epochs, batch.
        aggregate: Folds both movements and steps, or by section with the same weights; `weighted_mean()`.
        **settings: As in `fed_avg`, without `server`.

    Returns:
        The algorithm.

    Reference:
        Wang et al., "Tackling the Objective Inconsistency Problem in Heterogeneous Federated Optimization", NeurIPS 2020,
        eq. 6 with plain local SGD, where aᵢ is a vector of ones.
    """
    folds = aggregate if isinstance(aggregate, Mapping) else dict.fromkeys((MODEL, STEPS), aggregate or weighted_mean())
    return fed_avg(
        local=with_rules(local or sgd(), normalised),
        server=normalised_step(server_learning_rate),
        aggregate=folds,
        **settings,
    )
