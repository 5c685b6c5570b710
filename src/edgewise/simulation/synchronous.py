"""Drives `protocols/synchronous.py` under a virtual clock: the same step, the same events, no processes, no network."""

from __future__ import annotations

from dataclasses import dataclass

from edgewise.core.layout import Vector
from edgewise.simulation.rounds import FIRST_EPOCH, Rounds
from edgewise.training.protocols.messages import (
    Action,
    AnnounceRound,
    EndRun,
    Event,
    RequestUpdate,
    RoundTimedOut,
    RunStarted,
    SetRoundDeadline,
    StoreModel,
)
from edgewise.training.protocols.rounds import RunState
from edgewise.training.protocols.synchronous import make_step


@dataclass(slots=True)
class SynchronousSimulation:
    """One flat run.

    Attributes:
        rounds: Clients, clock, blobs and records.
    """

    rounds: Rounds
    _state: RunState | None = None

    def run(self) -> Vector:
        """Runs to the terminal state.

        Returns:
            float32[d], the last good model.
        """
        config = self.rounds.config
        self._feed(RunStarted(config, dict.fromkeys(config.clients, FIRST_EPOCH)))
        self.rounds.clock.run()
        assert self._state is not None
        return self.rounds.model(self._state.model)

    def _feed(self, event: Event) -> None:
        self.rounds.log.append(event)
        step = make_step(self.rounds.clients.algorithm, self.rounds.blobs)
        self._state, actions = step(self._state, event)
        for action in actions:
            self._act(action)

    def _act(self, action: Action) -> None:
        match action:
            case StoreModel():
                self.rounds.blobs.update(action.blobs)
            case RequestUpdate():
                self.rounds.ask(action, self._feed)
            case SetRoundDeadline(run=run, round=number, deadline_s=seconds) if seconds is not None:
                self.rounds.after(seconds, RoundTimedOut(run, number), self._feed)
            case AnnounceRound(summary=summary):
                self.rounds.close(summary)
            case EndRun(outcome=outcome):
                self.rounds.outcome = outcome
