"""Zeroth order: two losses a round, one number up; devices move their own copy of the model."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from edgewise.codecs.bundle import Bundle, Section
from edgewise.core.errors import KeptLost, MisfitError
from edgewise.core.ids import ClientId
from edgewise.core.layout import Vector
from edgewise.core.seeds import Seeds
from edgewise.core.spec import Spec
from edgewise.training.algorithm import MODEL, Aggregator, ClientRecord, Closed, FederatedAlgorithm, Select, ServerRule
from edgewise.training.algorithms.fed_avg import one_exchange
from edgewise.training.local import LOSS, Rule, local_work
from edgewise.training.local.rule import Array, Arrays, Oracle
from edgewise.training.select import all_clients

_SLOPE, _SLOPES = "slope", "slopes"


def _direction(seed: int, number: int, size: int) -> Vector:
    """The direction of a round, the same on every node: float32[d], standard normal."""
    return Seeds(seed).at("zeroth_order", number).rng().standard_normal(size, np.float32)


def _shift(learning_rate: float, slope: float) -> float:
    """η·g, rounded to float32 so that every node moves by the same bits."""
    return float(np.float32(learning_rate) * np.float32(slope))


def two_point(learning_rate: float = 0.01, mu: float = 1e-3, seed: int = 0) -> Rule:
    """Moves the kept model by the slopes it missed, and sends the slope of its loss along the round's direction u.

    (F(w + μu) − F(w − μu)) / 2μ. `slopes` is the round's number, then the mean slopes since the client last counted.
    """

    def init(received: Arrays, kept: Arrays, oracle: Oracle) -> tuple[Array, Arrays]:
        if not isinstance(oracle.trained, float):
            raise MisfitError(
                "zeroth_order moves every entry along a random direction, and this model keeps running statistics. "
                "Use a model without batch norm, or with group norm."
            )
        slopes = np.asarray(received[_SLOPES])
        number, *missed = slopes.reshape(-1, slopes.shape[-1])[0].tolist()  # the same for all of a cohort
        if MODEL not in received and MODEL not in kept:
            raise KeptLost(
                "the model that this device moves by slopes is gone from its disk. Its server sends it anew."
            )
        weights = received[MODEL] if MODEL in received else kept[MODEL]
        for past, slope in enumerate(missed, int(number) - len(missed)):
            weights = weights - _shift(learning_rate, slope) * oracle.like(_direction(seed, past, weights.shape[-1]))
        ahead = mu * oracle.like(_direction(seed, int(number), weights.shape[-1]))
        slope = (oracle.loss(weights + ahead) - oracle.loss(weights - ahead)) / (2 * mu)
        return weights, {_SLOPE: oracle.like(np.asarray(slope, np.float32)[..., None])}

    def finish(weights: Array, carry: Arrays, num_steps: Array) -> tuple[Arrays, Arrays]:
        return carry, {MODEL: weights}

    params = {"learning_rate": learning_rate, "mu": mu, "seed": seed}
    return Rule(
        Spec("two_point", params), init, lambda slope, weights, carry: (weights, carry), finish,
        (_SLOPES,), (Section(_SLOPE, shape=(1,)),), (MODEL,), frozenset((LOSS,)),
    )  # fmt: skip


def along_slopes(learning_rate: float = 0.01, seed: int = 0) -> ServerRule:
    """w ← w − η·g·u(round); sends a client the slopes g of the rounds since it last counted, or the model where that is less."""

    def init(model: Vector) -> Bundle:
        return {_SLOPES: np.zeros(1, np.float32)}  # by round, from 1

    def apply(state: Bundle, folded: Bundle, closed: Closed) -> Bundle:
        slope = folded[_SLOPE][0]
        direction = _direction(seed, state[_SLOPES].size, state[MODEL].size)
        return {
            MODEL: state[MODEL] - _shift(learning_rate, slope) * direction,
            _SLOPES: np.append(state[_SLOPES], slope),
        }

    def letters(state: Bundle, client: ClientId, record: ClientRecord | None) -> Bundle:
        number, since = state[_SLOPES].size, record.counted if record is not None and record.num_counted else 0
        if not since or number - since > state[MODEL].size:
            return {MODEL: state[MODEL], _SLOPES: np.array([number], np.float32)}
        return {_SLOPES: np.append(np.float32(number), state[_SLOPES][since:])}

    spec = Spec("along_slopes", {"learning_rate": learning_rate, "seed": seed})
    return ServerRule(spec, init, apply, sends=(), letters=letters, is_elementwise=False, needs_same_round=True)


def zeroth_order(
    *,
    learning_rate: float = 0.01,
    mu: float = 1e-3,
    seed: int = 0,
    select: Select | None = None,
    aggregate: Aggregator | Mapping[str, Aggregator] | None = None,
) -> FederatedAlgorithm:
    """Trains by the losses at two points along a shared random direction: 4 bytes up, 4 down for each round missed.

    For devices that can infer but not differentiate, and for links that carry next to nothing. Needs O(d) times as many
    rounds as descent, and a learning rate of about 1/(d·L). A device that never counted is sent the model.

    Args:
        learning_rate: η.
        mu: Half the distance of the two points, μ; small against the curvature, large against float32's noise.
        seed: Of the directions.
        select: Who takes part; `all_clients()` if not given.
        aggregate: How slopes become one; `weighted_mean()`.

    Returns:
        The algorithm.

    Reference:
        Nesterov & Spokoiny, "Random Gradient-Free Minimization of Convex Functions", 2017, two-point oracle;
        Qin et al., "Federated Full-Parameter Tuning of Billion-Sized Language Models with Communication Cost under 18
        Kilobytes" (FedKSeed), ICML 2024, scalars and seeds. Differs: one direction a round, shared by all.
    """
    local, server = two_point(learning_rate, mu, seed), along_slopes(learning_rate, seed)
    folded = {_SLOPE: aggregate} if isinstance(aggregate, Aggregator) else aggregate
    exchange = one_exchange(local_work(local, epochs=0), server, folded)
    return FederatedAlgorithm(select or all_clients(), (exchange,))
