"""DANE: the mean gradient first, then each client's own problem with its gradient corrected to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from edgewise.codecs import Codec
from edgewise.codecs.bundle import Section
from edgewise.core.spec import Spec
from edgewise.training.algorithm import MODEL, FederatedAlgorithm, Select
from edgewise.training.algorithms.fed_avg import one_exchange
from edgewise.training.local import LocalWork, Rule, descend, descent, local_work, sgd, with_rules
from edgewise.training.local.rule import VECTOR, Array, Arrays, Oracle
from edgewise.training.select import all_clients
from edgewise.training.server import keep, step

_GRADIENT = "gradient"


def full_gradient() -> Rule:
    """Takes no step: sends the gradient of all of a client's examples at the received model."""
    return Rule(
        Spec("full_gradient"),
        lambda received, kept, oracle: (received[MODEL], {_GRADIENT: oracle.gradient(received[MODEL])}),
        lambda slope, weights, carry: (weights, carry),
        lambda weights, carry, num_steps: ({_GRADIENT: carry[_GRADIENT]}, {}),
        sends=(Section(_GRADIENT, shape=VECTOR),),
    )


def shifted(learning_rate: float = 0.1, eta: float = 1.0, mu: float = 0.0) -> Rule:
    """Descends F_i(w) − ⟨∇F_i(w₀) − η·ḡ, w⟩ + μ/2·‖w − w₀‖², eq. 13, from the received w₀ and mean gradient ḡ."""

    def init(received: Arrays, kept: Arrays, oracle: Oracle) -> tuple[Array, Arrays]:
        shift = oracle.gradient(received[MODEL]) - eta * received[_GRADIENT]
        return received[MODEL], {"received": received[MODEL], "shift": shift}

    def move(slope: Array, weights: Array, carry: Arrays) -> tuple[Array, Arrays]:
        towards = slope - carry["shift"] + mu * (weights - carry["received"])
        return descend(weights, towards, learning_rate, scratch=slope), carry

    spec = Spec("shifted", {"learning_rate": learning_rate, "eta": eta, "mu": mu})
    base = descent(learning_rate)
    return replace(base, spec=spec, init=init, step=move, receives=(MODEL, _GRADIENT), plain_rate=None)


def dane(
    *,
    eta: float = 1.0,
    mu: float = 0.0,
    select: Select | None = None,
    local: LocalWork | None = None,
    uplink: Codec | Mapping[str, Codec] | None = None,
) -> FederatedAlgorithm:
    """Approximates Newton's step with gradients alone, in two exchanges a round.

    Converges in a number of rounds that falls with the likeness of the clients' data; for clients that hold very different
    data raise μ.

    Args:
        eta: Weight of the mean gradient, η in eq. 13.
        mu: Weight of the proximal term, μ in eq. 13.
        select: Who takes part; `all_clients()` if not given.
        local: As from `sgd`; its loop and learning rate solve each client's problem. Many steps on all examples at once
            (batch_size=0) come near the exact solution of the paper.
        uplink: Codecs by section (`gradient`, `model`), or one for both.

    Returns:
        The algorithm.

    Reference:
        Shamir, Srebro & Zhang, "Communication-Efficient Distributed Optimization using an Approximate Newton-type Method",
        ICML 2014. Differs: local problems are solved by descent, and weighted by examples.
    """
    codecs = dict.fromkeys((_GRADIENT, MODEL), uplink) if isinstance(uplink, Codec) else dict(uplink or {})
    own = [{name: codecs[name]} if name in codecs else {} for name in (_GRADIENT, MODEL)]
    solve = with_rules(local or sgd(batch_size=0, epochs=50), lambda rate: shifted(rate, eta, mu))
    first = one_exchange(local_work(full_gradient(), epochs=0), keep(_GRADIENT), uplink=own[0])
    second = one_exchange(solve, step(sends=(MODEL, _GRADIENT)), uplink=own[1])
    return FederatedAlgorithm(select or all_clients(), (first, second))
