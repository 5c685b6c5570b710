"""What both simulated protocols share: asking clients, charging the clock, and a record of each closed round."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from edgewise.core.clock import VirtualClock
from edgewise.core.ids import ClientId, Digest, Epoch, RoundNumber, digest_of
from edgewise.core.layout import Vector
from edgewise.simulation.cohort import VirtualClients
from edgewise.simulation.costs import VirtualCosts
from edgewise.simulation.record import SimulatedRound
from edgewise.training.protocols.folding import vector_from_bytes
from edgewise.training.protocols.messages import (
    ClientFailed,
    Event,
    Outcome,
    RequestUpdate,
    RoundSummary,
    RunConfig,
    UpdateReceived,
)

Fails = Callable[[RoundNumber, ClientId], bool]
"""Whether a client drops out of a round."""
Evaluate = Callable[[RoundNumber, Vector], dict[str, float]]
"""Metrics of the model after a round; empty to skip it."""
OnRound = Callable[[SimulatedRound], None]
Feed = Callable[[Event], None]
FIRST_EPOCH = Epoch(1)


def never(number: RoundNumber, client: ClientId) -> bool:
    """Nobody drops out."""
    return False


@dataclass(slots=True)
class Rounds:
    """Clients, clock, blobs and records of one simulated run.

    Attributes:
        config: The run.
        clients: Who works.
        blobs: Bytes by digest, the initial model in it; a round's updates are dropped when it closes.
        costs: What the clock charges.
        evaluate: Judges the model after each round.
        fails: Who drops out.
        on_round: Called with each closed round.
        clock: The virtual clock.
        log: Every event, in order.
        records: Of closed rounds.
        outcome: How the run ended; None before.
        wan_bytes: Between edges and cloud in the open round.
    """

    config: RunConfig
    clients: VirtualClients
    blobs: dict[Digest, bytes]
    costs: VirtualCosts
    evaluate: Evaluate
    fails: Fails = never
    on_round: OnRound | None = None
    clock: VirtualClock = field(default_factory=VirtualClock)
    log: list[Event] = field(default_factory=list)
    records: list[SimulatedRound] = field(default_factory=list)
    outcome: Outcome | None = None
    wan_bytes: int = 0
    _updates: dict[Digest, int] = field(default_factory=dict)
    _sent_bytes: int = 0
    _former: Digest = Digest("")

    def ask(self, request: RequestUpdate, feed: Feed) -> None:
        """Has clients work on a model; their answers are fed when the clock gets there.

        Args:
            request: As emitted by a protocol.
            feed: Takes the events.
        """
        model = self.blobs[request.model]
        self._sent_bytes += len(model) * len(request.clients)
        failing = [client for client in request.clients if self.fails(request.round, client)]
        for client in failing:
            lost = ClientFailed(request.run, request.round, client, FIRST_EPOCH, "dropped out of the simulation")
            self.after(self.costs.round_trip_s, lost, feed)
        working = [client for client in request.clients if client not in failing]
        if not working:
            return
        received = vector_from_bytes(model, self.config.num_entries)
        for answer in self.clients.work(working, request.round, received):
            digest = self.put(answer.data)
            seconds = self.costs.client_s(answer.client, len(model), answer.num_steps, len(answer.data))
            event = UpdateReceived(
                request.run, request.round, answer.client, FIRST_EPOCH, answer.weight, digest, answer.metrics
            )
            self.after(seconds, event, feed)

    def put(self, data: bytes) -> Digest:
        """Keeps a client's bytes until the round closes."""
        digest = digest_of(data)
        self.blobs[digest] = data
        self._updates[digest] = self._updates.get(digest, 0) + len(data)
        return digest

    def after(self, seconds: float, event: Event, feed: Feed) -> None:
        """Feeds an event so many virtual seconds from now."""
        self.clock.call_at(self.clock.now() + seconds, lambda: feed(event))

    def close(self, summary: RoundSummary) -> None:
        """Records a closed round and drops what it needed.

        Args:
            summary: As announced; the model is in the blobs.
        """
        vector = vector_from_bytes(self.blobs[summary.model], self.config.num_entries)
        record = SimulatedRound(
            round=summary.round,
            virtual_s=self.clock.now(),
            metrics=self.evaluate(summary.round, vector),
            client_metrics=dict(summary.metrics),
            participants=len(summary.participants),
            missing={str(client): cause for client, cause in summary.missing.items()},
            uplink_bytes=sum(self._updates.values()),
            downlink_bytes=self._sent_bytes,
            wan_bytes=self.wan_bytes,
        )
        self.records.append(record)
        if self.on_round is not None:
            self.on_round(record)
        for digest in {*self._updates, self._former} - {summary.model}:
            self.blobs.pop(digest, None)
        self._updates, self._sent_bytes, self._former, self.wan_bytes = {}, 0, summary.model, 0

    def model(self, digest: Digest) -> Vector:
        """A model by digest, float32[d]."""
        return vector_from_bytes(self.blobs[digest], self.config.num_entries)
