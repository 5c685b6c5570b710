"""Drives `protocols/synchronous.py` under a virtual clock: the same step, the same events, no processes, no network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from edgewise.core.clock import VirtualClock
from edgewise.core.ids import ClientId, Digest, Epoch, RoundNumber, digest_of
from edgewise.core.layout import Vector
from edgewise.simulation.cohort import CohortAnswer, VirtualClients
from edgewise.simulation.costs import VirtualCosts
from edgewise.simulation.record import RoundRecord
from edgewise.training.protocols.folding import vector_from_bytes
from edgewise.training.protocols.messages import (
    Action,
    AnnounceRound,
    ClientFailed,
    EndRun,
    Event,
    Outcome,
    RequestUpdate,
    RoundSummary,
    RoundTimedOut,
    RunConfig,
    RunStarted,
    SetRoundDeadline,
    StoreModel,
    UpdateReceived,
)
from edgewise.training.protocols.rounds import RunState
from edgewise.training.protocols.synchronous import make_step

Fails = Callable[[RoundNumber, ClientId], bool]
"""Whether a client drops out of a round."""
Evaluate = Callable[[RoundNumber, Vector], dict[str, float]]
"""Metrics of the model after a round; empty to skip it."""
OnRound = Callable[[RoundRecord], None]
FIRST_EPOCH = Epoch(1)


def never(number: RoundNumber, client: ClientId) -> bool:
    """Nobody drops out."""
    return False


@dataclass(slots=True)
class SynchronousSimulation:
    """One run.

    Attributes:
        config: The run, its initial model in `blobs`.
        clients: Who works.
        costs: What the clock charges.
        evaluate: Judges the model after each round.
        fails: Who drops out.
        on_round: Called with each closed round.
        blobs: Bytes by digest; those of a round's updates and of the former model are dropped when it closes.
        clock: The virtual clock.
        log: Every event, in order.
        rounds: Records of closed rounds.
        outcome: How it ended; None before.
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
    rounds: list[RoundRecord] = field(default_factory=list)
    outcome: Outcome | None = None
    _state: RunState | None = None
    _received: dict[Digest, int] = field(default_factory=dict)
    _sent_bytes: int = 0
    _former: Digest = Digest("")

    def run(self) -> Vector:
        """Runs to the terminal state.

        Returns:
            float32[d], the last good model.
        """
        self._feed(RunStarted(self.config, dict.fromkeys(self.config.clients, FIRST_EPOCH)))
        self.clock.run()
        assert self._state is not None
        return vector_from_bytes(self.blobs[self._state.model], self.config.num_entries)

    def _feed(self, event: Event) -> None:
        self.log.append(event)
        self._state, actions = make_step(self.clients.algorithm, self.blobs)(self._state, event)
        for action in actions:
            self._act(action)

    def _act(self, action: Action) -> None:
        match action:
            case StoreModel():
                self.blobs.update(action.blobs)
            case RequestUpdate():
                self._ask(action)
            case SetRoundDeadline(run=run, round=number, deadline_s=seconds) if seconds is not None:
                self._after(seconds, RoundTimedOut(run, number))
            case AnnounceRound(summary=summary):
                self._close(summary)
            case EndRun(outcome=outcome):
                self.outcome = outcome

    def _ask(self, request: RequestUpdate) -> None:
        failing = [client for client in request.clients if self.fails(request.round, client)]
        working = [client for client in request.clients if client not in failing]
        model = self.blobs[request.model]
        self._sent_bytes += len(model) * len(request.clients)
        for client in failing:
            lost = ClientFailed(request.run, request.round, client, FIRST_EPOCH, "dropped out of the simulation")
            self._after(self.costs.round_trip_s, lost)
        received = vector_from_bytes(model, self.config.num_entries)
        for answer in self._answers(working, request.round, received):
            digest = digest_of(answer.data)
            self.blobs[digest] = answer.data
            self._received[digest] = len(answer.data)
            event = UpdateReceived(
                request.run, request.round, answer.client, FIRST_EPOCH, answer.weight, digest, answer.metrics
            )
            self._after(self.costs.client_s(answer.client, len(model), answer.num_steps, len(answer.data)), event)

    def _answers(self, clients: list[ClientId], number: RoundNumber, received: Vector) -> Iterator[CohortAnswer]:
        if clients:
            yield from self.clients.work(clients, number, received)

    def _after(self, seconds: float, event: Event) -> None:
        self.clock.call_at(self.clock.now() + seconds, lambda: self._feed(event))

    def _close(self, summary: RoundSummary) -> None:
        vector = vector_from_bytes(self.blobs[summary.model], self.config.num_entries)
        record = RoundRecord(
            round=summary.round,
            virtual_s=self.clock.now(),
            metrics=self.evaluate(summary.round, vector),
            client_metrics=dict(summary.metrics),
            participants=len(summary.participants),
            missing=_texts(summary.missing),
            uplink_bytes=sum(self._received.values()),
            downlink_bytes=self._sent_bytes,
        )
        self.rounds.append(record)
        if self.on_round is not None:
            self.on_round(record)
        for digest in {*self._received, self._former} - {summary.model}:
            self.blobs.pop(digest, None)
        self._received, self._sent_bytes, self._former = {}, 0, summary.model


def _texts(causes: Mapping[ClientId, str]) -> dict[str, str]:
    return {str(client): cause for client, cause in causes.items()}
