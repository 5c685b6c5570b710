"""A cohort's part of a round: the same functions that run on a device, worked together by one engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from edgewise.codecs import payload_to_bytes
from edgewise.core.ids import ClientId, RoundNumber
from edgewise.core.layout import Vector
from edgewise.models.task import Examples, Task
from edgewise.training.algorithm import FederatedAlgorithm
from edgewise.training.client_update import client_seeds, finish_update
from edgewise.training.local.engines.engine import LocalEngine
from edgewise.training.protocols.messages import examples


@dataclass(frozen=True, slots=True)
class CohortAnswer:
    """What one client sends.

    Attributes:
        client: Who.
        data: Bytes of its coded update.
        weight: Its number of examples.
        num_steps: Local steps it did.
        metrics: What it measured.
    """

    client: ClientId
    data: bytes
    weight: int
    num_steps: int
    metrics: dict[str, float]


@dataclass(slots=True)
class VirtualClients:
    """All clients of a simulation: their data, and what each keeps between rounds.

    Attributes:
        task: Gives each client's examples.
        algorithm: The five parts.
        engine: Does the local work.
        seed: The job's seed.
    """

    task: Task
    algorithm: FederatedAlgorithm
    engine: LocalEngine
    seed: int
    _states: dict[ClientId, Any] = field(default_factory=dict)
    _held: dict[ClientId, Examples] = field(default_factory=dict)

    def examples(self, client: ClientId) -> Examples:
        """A client's examples, asked for once."""
        if client not in self._held:
            self._held[client] = self.task.data(client)
        return self._held[client]

    def work(self, clients: Sequence[ClientId], number: RoundNumber, received: Vector) -> list[CohortAnswer]:
        """What these clients answer to a model.

        Args:
            clients: Who; each holds examples.
            number: The round.
            received: float32[d].

        Returns:
            One answer per client, in order.
        """
        places = [client_seeds(self.seed, number, client) for client in clients]
        held = [self.examples(client) for client in clients]
        local = [place.at("local") for place in places]
        results = self.engine.train_cohort(received, self.algorithm.local, held, local)
        answers = []
        for client, place, result in zip(clients, places, results, strict=True):
            update = finish_update(self.algorithm, result, place, self._states.get(client))
            self._states[client] = update.state
            data = payload_to_bytes(update.payload)
            answers.append(CohortAnswer(client, data, examples(update.weight), result.num_steps, dict(update.metrics)))
        return answers
