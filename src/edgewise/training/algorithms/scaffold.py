"""SCAFFOLD: clients correct their steps by control variates, one they keep and one the server keeps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from edgewise.codecs.bundle import Bundle, Section
from edgewise.core.spec import Spec
from edgewise.training.aggregate import weighted_mean
from edgewise.training.algorithm import MODEL, Closed, FederatedAlgorithm, ServerRule
from edgewise.training.algorithms.fed_avg import fed_avg
from edgewise.training.local import LocalWork, Rule, descend, descent, sgd, with_rules
from edgewise.training.local.rule import VECTOR, Array, Arrays, Oracle

CONTROL = "control"


def controlled(learning_rate: float = 0.1) -> Rule:
    """Descent along gradient − cᵢ + c, where cᵢ is the client's own control and c the server's.

    Args:
        learning_rate: η_l.

    Returns:
        The rule; it sends the change of the model and of cᵢ, and keeps cᵢ, float32[d] each.
    """

    def init(received: Arrays, kept: Arrays, oracle: Oracle) -> tuple[Array, Arrays]:
        own = kept.get(CONTROL, 0 * received[CONTROL])
        carry = {"received": received[MODEL], "own": own, "towards": received[CONTROL] - own}
        return received[MODEL], {**carry, "trained": oracle.trained}

    def step(gradient: Array, weights: Array, carry: Arrays) -> tuple[Array, Arrays]:
        return descend(weights, gradient + carry["towards"], learning_rate, scratch=gradient), carry

    def finish(weights: Array, carry: Arrays, num_steps: Array) -> tuple[Arrays, Arrays]:
        weights -= carry["received"]
        # Option II: cᵢ ← cᵢ − c + (x − y) / (K η_l), the mean gradient along the way.
        new = -carry["towards"] - weights * carry["trained"] / (num_steps * learning_rate)
        return {MODEL: weights, CONTROL: new - carry["own"]}, {CONTROL: new}

    return replace(
        descent(learning_rate),
        spec=Spec("controlled", {"learning_rate": learning_rate}),
        init=init,
        step=step,
        finish=finish,
        receives=(MODEL, CONTROL),
        sends=(Section(MODEL, shape=VECTOR), Section(CONTROL, shape=VECTOR)),
        keeps=(CONTROL,),
        plain_rate=None,
    )


def control_step(learning_rate: float = 1.0) -> ServerRule:
    """x ← x + η_g·Δx, c ← c + Δc.

    Args:
        learning_rate: η_g.

    Returns:
        The rule; state `control`, float32[d].
    """
    rate = np.float32(learning_rate)

    def apply(state: Bundle, folded: Bundle, closed: Closed) -> Bundle:
        return {MODEL: state[MODEL] + rate * folded[MODEL], CONTROL: state[CONTROL] + folded[CONTROL]}

    spec = Spec("control_step", {"learning_rate": learning_rate})
    return ServerRule(spec, lambda model: {CONTROL: np.zeros_like(model)}, apply, sends=(MODEL, CONTROL))


def scaffold(
    *, server_learning_rate: float = 1.0, local: LocalWork | None = None, **settings: Any
) -> FederatedAlgorithm:
    """Removes the drift of clients whose data differ: local steps are steered towards where all are going.

    Costs twice the bytes of FedAvg both ways, and float32[d] on each client. The server's control is the mean of the controls
    of all N clients of the run, those that never took part counting as 0; updates weigh alike.

    Args:
        server_learning_rate: η_g.
        local: As from `sgd`, without a direction: learning rate, epochs, batch.
        **settings: As in `fed_avg`, without `server` and `aggregate`; an uplink may name the section `control` too.

    Returns:
        The algorithm.

    Reference:
        Karimireddy et al., "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning", ICML 2020, option II.
    """
    return fed_avg(
        local=with_rules(local or sgd(), controlled),
        server=control_step(server_learning_rate),
        aggregate={MODEL: weighted_mean("uniform"), CONTROL: weighted_mean("uniform", divisor="all")},
        **settings,
    )
