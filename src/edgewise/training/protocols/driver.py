"""The smallest driver of a protocol: in memory, one client after the other, no clock. The simulator's and tests' floor."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgewise.codecs import Payload, payload_to_bytes
from edgewise.core.ids import ClientId, Digest, Epoch, RoundNumber, RunId, digest_of
from edgewise.core.layout import Vector
from edgewise.core.seeds import Seeds
from edgewise.training.algorithm import FederatedAlgorithm
from edgewise.training.protocols.folding import vector_from_bytes, vector_to_bytes
from edgewise.training.protocols.messages import (
    Action,
    Event,
    RequestUpdate,
    RunConfig,
    RunStarted,
    StoreModel,
    UpdateReceived,
)
from edgewise.training.protocols.synchronous import RunState, make_step

Train = Callable[[ClientId, RoundNumber, Vector, Seeds], tuple[Vector, int, Mapping[str, float]]]
"""(client, round, received model, the client's place in the seed tree) -> (update, number of examples, metrics)."""


@dataclass(slots=True)
class MemoryDriver:
    """Runs synchronous rounds in one process, keeping the log and every blob.

    Attributes:
        algorithm: The five parts.
        train: A client's local work.
        blobs: Bytes by digest.
        log: Every event, in order.
        actions: Every action, in order.
        state: The protocol's state.

    Example:
        >>> from edgewise.training.algorithms import fed_avg
        >>> driver = MemoryDriver(fed_avg(), lambda client, number, model, seeds: (1 - model, 10, {}))
        >>> driver.run(driver.config("demo", ["a", "b"], np.zeros(2, np.float32), num_rounds=1)).tolist()
        [1.0, 1.0]
    """

    algorithm: FederatedAlgorithm
    train: Train
    blobs: dict[Digest, bytes] = field(default_factory=dict)
    log: list[Event] = field(default_factory=list)
    actions: list[Action] = field(default_factory=list)
    state: RunState | None = None
    uplink_states: dict[ClientId, Any] = field(default_factory=dict)

    def put(self, data: bytes) -> Digest:
        """Stores bytes."""
        digest = digest_of(data)
        self.blobs[digest] = data
        return digest

    def config(self, run: str, clients: Iterable[str], model: Vector, **fields: Any) -> RunConfig:
        """A config for this algorithm, its initial model stored; quorum is everyone unless given."""
        named = tuple(ClientId(c) for c in clients)
        fields = {"quorum": len(named), "num_rounds": 1, "layout": Digest(""), **fields}
        initial = self.put(vector_to_bytes(model))
        words = self.algorithm.spec.to_dict()
        return RunConfig(RunId(run), words, named, num_entries=model.size, initial_model=initial, **fields)

    def feed(self, event: Event) -> tuple[Action, ...]:
        """Logs an event, steps, stores what is to be stored.

        Args:
            event: What happened.

        Returns:
            The actions.
        """
        self.log.append(event)
        self.state, actions = make_step(self.algorithm, self.blobs)(self.state, event)
        for action in actions:
            if isinstance(action, StoreModel):
                self.blobs.update(action.blobs)
        self.actions.extend(actions)
        return actions

    def run(self, config: RunConfig) -> Vector:
        """A whole undisturbed run.

        Args:
            config: As from `config`.

        Returns:
            The final model.
        """
        pending = list(self.feed(RunStarted(config, {c: Epoch(1) for c in config.clients})))
        while pending:
            action = pending.pop(0)
            if isinstance(action, RequestUpdate):
                for client in action.clients:
                    pending.extend(self.feed(self.update(config, action, client)))
        return self.model

    def update(self, config: RunConfig, request: RequestUpdate, client: ClientId, epoch: int = 1) -> UpdateReceived:
        """What one client answers to a request, its payload stored.

        Args:
            config: The run.
            request: As emitted.
            client: Who answers.
            epoch: Its incarnation.

        Returns:
            The event.
        """
        seeds = Seeds(config.seed).at("round", request.round, "client", client)
        received = vector_from_bytes(self.blobs[request.model], config.num_entries)
        update, weight, metrics = self.train(client, request.round, received, seeds)
        payload = self._encoded(client, update, weight, seeds)
        digest = self.put(payload_to_bytes(payload))
        return UpdateReceived(config.run, request.round, client, Epoch(epoch), weight, digest, dict(metrics))

    def _encoded(self, client: ClientId, update: Vector, weight: int, seeds: Seeds) -> Payload:
        update, _ = self.algorithm.aggregate.prepare(np.asarray(update, np.float32), weight, seeds.at("prepare").rng())
        state = self.uplink_states.get(client)
        if state is None:
            state = self.algorithm.uplink.init(update.shape)
        payload, state = self.algorithm.uplink.encode(update, state, seeds.at("uplink").rng())
        self.uplink_states[client] = state
        return payload

    @property
    def model(self) -> Vector:
        """The current model."""
        assert self.state is not None
        return vector_from_bytes(self.blobs[self.state.model], self.state.config.num_entries)
