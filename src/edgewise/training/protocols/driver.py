"""The smallest drivers of the protocols: in memory, no clock, one thing after the other. Tests and twins stand on them.

`MemoryDriver` runs synchronous rounds, `MemoryHierarchy` (in `hierarchy_driver.py`) rounds over edges. A live driver
does the same with a durable log, signed frames and a clock.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from edgewise.core.ids import ClientId, Digest, Epoch, RunId, digest_of
from edgewise.core.layout import Vector
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
from edgewise.training.protocols.rounds import RunState
from edgewise.training.protocols.synchronous import make_step
from edgewise.training.protocols.virtual_clients import Asked, Train, VirtualClients


def make_config(
    blobs: dict[Digest, bytes],
    algorithm: FederatedAlgorithm,
    run: str,
    clients: Iterable[str],
    model: Vector,
    **fields: Any,
) -> RunConfig:
    """A config whose initial model is stored; one round, quorum is everyone, unless given.

    Args:
        blobs: Gets the initial model.
        algorithm: Its words go into the config.
        run: Name of the run.
        clients: Who takes part.
        model: float32[d].
        **fields: Other fields of `RunConfig`.

    Returns:
        The config.
    """
    named, data = tuple(ClientId(c) for c in clients), vector_to_bytes(model)
    initial = digest_of(data)
    blobs[initial] = data
    fields = {"quorum": len(named), "num_rounds": 1, "layout": Digest(""), **fields}
    words = algorithm.spec.to_dict()
    return RunConfig(RunId(run), words, named, num_entries=model.size, initial_model=initial, **fields)


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
        >>> import numpy as np
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
    clients: VirtualClients = field(init=False)

    def __post_init__(self) -> None:
        self.clients = VirtualClients(self.algorithm, self.train)

    def put(self, data: bytes) -> Digest:
        """Stores bytes."""
        digest = digest_of(data)
        self.blobs[digest] = data
        return digest

    def config(self, run: str, clients: Iterable[str], model: Vector, **fields: Any) -> RunConfig:
        """As `make_config`, with this driver's blobs and algorithm."""
        return make_config(self.blobs, self.algorithm, run, clients, model, **fields)

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
        received = vector_from_bytes(self.blobs[request.model], config.num_entries)
        event, data = self.clients.answer(Asked(request.run, request.round, config.seed, received), client, epoch)
        self.put(data)
        return event

    @property
    def model(self) -> Vector:
        """The current model."""
        assert self.state is not None
        return vector_from_bytes(self.blobs[self.state.model], self.state.config.num_entries)
