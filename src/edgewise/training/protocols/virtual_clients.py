"""Clients in memory for the drivers in memory: local work as a function, uplink state kept, answers repeatable."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np

from edgewise.codecs import payload_to_bytes
from edgewise.core.ids import ClientId, Epoch, RoundNumber, RunId, digest_of
from edgewise.core.layout import Vector
from edgewise.core.seeds import Seeds
from edgewise.training.algorithm import FederatedAlgorithm
from edgewise.training.client_update import client_seeds, encode_update
from edgewise.training.protocols.messages import UpdateReceived, examples

Train = Callable[[ClientId, RoundNumber, Vector, Seeds], tuple[Vector, int, Mapping[str, float]]]
"""(client, round, received model, the client's place in the seed tree) -> (update, number of examples, metrics)."""


@dataclass(frozen=True, slots=True)
class Asked:
    """One question to one client.

    Attributes:
        run: The run.
        round: The round.
        seed: The job's seed.
        received: float32[d], the model it gets.
    """

    run: RunId
    round: RoundNumber
    seed: int
    received: Vector


@dataclass(slots=True)
class VirtualClients:
    """Every client of a run. Asked twice in a round, a client repeats its answer, as an agent does.

    Attributes:
        algorithm: The five parts.
        train: Local work.
        states: Uplink state (residual) by client.
    """

    algorithm: FederatedAlgorithm
    train: Train
    states: dict[ClientId, Any] = field(default_factory=dict)
    _last: dict[ClientId, tuple[UpdateReceived, bytes]] = field(default_factory=dict)

    def answer(self, asked: Asked, client: ClientId, epoch: int = 1) -> tuple[UpdateReceived, bytes]:
        """What a client answers.

        Args:
            asked: The question.
            client: Who.
            epoch: Its incarnation.

        Returns:
            The event, and the payload's bytes that it names.
        """
        known = self._last.get(client)
        if known is not None and (known[0].run, known[0].round) == (asked.run, asked.round):
            return msgspec.structs.replace(known[0], epoch=Epoch(epoch)), known[1]
        seeds = client_seeds(asked.seed, asked.round, client)
        vector, weight, metrics = self.train(client, asked.round, asked.received, seeds)
        local, state = np.asarray(vector, np.float32), self.states.get(client)
        update = encode_update(self.algorithm, local, weight, metrics, seeds, state)
        self.states[client] = update.state
        data = payload_to_bytes(update.payload)
        count, metrics = examples(update.weight), dict(update.metrics)
        event = UpdateReceived(asked.run, asked.round, client, Epoch(epoch), count, digest_of(data), metrics)
        self._last[client] = (event, data)
        return event, data
