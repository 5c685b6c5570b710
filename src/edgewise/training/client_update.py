"""One client's part of a round, the same function in the simulator and on a device: that is what makes them twins.

received ─▶ local work ─▶ prepare ─▶ uplink.encode ─▶ payload, weight, metrics, next codec state
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgewise.codecs.codec import Payload
from edgewise.core.ids import ClientId, RoundNumber
from edgewise.core.layout import Vector
from edgewise.core.seeds import Seeds
from edgewise.models.task import Examples
from edgewise.training.algorithm import FederatedAlgorithm
from edgewise.training.local.engines.engine import LocalEngine, LocalResult, Progress


@dataclass(frozen=True, slots=True)
class ClientUpdate:
    """What a client sends, and what it keeps.

    Attributes:
        payload: The encoded update.
        weight: Its weight in the mean.
        metrics: `loss`, `num_steps`, and what the task measured.
        state: Codec state (residual) for its next round.
    """

    payload: Payload
    weight: float
    metrics: Mapping[str, float]
    state: Any


def client_seeds(seed: int, round_number: RoundNumber, client: ClientId) -> Seeds:
    """A client's place in the seed tree of a job."""
    return Seeds(seed).at("round", round_number, "client", client)


def client_update(
    algorithm: FederatedAlgorithm,
    engine: LocalEngine,
    received: Vector,
    examples: Examples,
    seeds: Seeds,
    state: Any = None,
    *,
    progress: Progress | None = None,
) -> ClientUpdate:
    """Does a client's part of a round.

    Args:
        algorithm: The five parts.
        engine: Does the local work.
        received: float32[d] from the server.
        examples: The client's.
        seeds: As from `client_seeds`.
        state: Codec state of the client's last round; None at first.
        progress: Called after every local step.

    Returns:
        What to send and what to keep.
    """
    result = engine.train(received, algorithm.local, examples, seeds.at("local"), progress=progress)
    return finish_update(algorithm, result, seeds, state)


def finish_update(algorithm: FederatedAlgorithm, result: LocalResult, seeds: Seeds, state: Any = None) -> ClientUpdate:
    """The part after local work, for a driver that trained a whole cohort at once."""
    metrics = {"loss": result.loss, "num_steps": float(result.num_steps), **result.metrics}
    return encode_update(algorithm, result.update, result.weight, metrics, seeds, state)


def encode_update(
    algorithm: FederatedAlgorithm,
    update: Vector,
    weight: float,
    metrics: Mapping[str, float],
    seeds: Seeds,
    state: Any = None,
) -> ClientUpdate:
    """Prepares and encodes an update, wherever it came from.

    Args:
        algorithm: The five parts.
        update: float32[d].
        weight: Before `prepare`, which may change it.
        metrics: What was measured.
        seeds: As from `client_seeds`.
        state: Codec state of the client's last round; None at first.

    Returns:
        What to send and what to keep.
    """
    update, weight = algorithm.aggregate.prepare(update, weight, seeds.at("prepare").rng())
    if state is None:
        state = algorithm.uplink.init(update.shape)
    payload, state = algorithm.uplink.encode(update, state, seeds.at("uplink").rng())
    return ClientUpdate(payload, weight, metrics, state)
