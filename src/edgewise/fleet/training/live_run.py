"""One run at the coordinator: what the log keeps of it, what it is while it runs, how it stands for people."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import Any

import msgspec

from edgewise.core.ids import ClientId, Digest, RunId
from edgewise.fleet.messages import RoundRecord, RunStatus, SubmitRun
from edgewise.fleet.training.round_intake import RunDriver
from edgewise.training.protocols import messages as m


class Submitted(msgspec.Struct, frozen=True):
    """A run as the log keeps it.

    Attributes:
        run: Its id.
        wish: What was asked for.
        template: Digest of the template graph.
        config: The protocol's.
        parent: Version it starts from; 0 for none.
        first: Its first event, encoded: who was there when it was submitted, also if the process ends right after.
    """

    run: RunId
    wish: SubmitRun
    template: Digest
    config: m.RunConfig
    parent: int
    first: bytes


class RoundTold(msgspec.Struct, frozen=True):
    """What people are told of a closed round, kept beside the protocol's own events.

    Attributes:
        run: Its id.
        record: The round.
    """

    run: RunId
    record: RoundRecord


class Registered(msgspec.Struct, frozen=True):
    """A run is over and done with.

    Attributes:
        run: Its id.
        version: The version it made; 0 if none.
        failure: Why it made none though it should; "" where nothing is wrong.
    """

    run: RunId
    version: int
    failure: str = ""


@dataclass(slots=True)
class LiveRun:
    """A run with its driver.

    Attributes:
        submitted: What was asked for.
        driver: Folds its events.
        rounds: Closed rounds, for people.
        version: The version it made; 0 if none yet.
        failure: Why it could make no version.
        registered: Whether its end is in the log.
        opened_s: When the current round began.
        uplink_bytes, downlink_bytes: Payloads of the current round.
        timer: Of the round's deadline.
        waiting: What the round waits for; "" while it goes on.
        retries: How often missing clients were asked again in this round.
        recording: Evaluates and keeps the record of the last closed round.
    """

    submitted: Submitted
    driver: RunDriver
    rounds: list[RoundRecord] = field(default_factory=list)
    version: int = 0
    failure: str = ""
    registered: bool = False
    opened_s: float = field(default_factory=time.monotonic)
    uplink_bytes: int = 0
    downlink_bytes: int = 0
    timer: asyncio.TimerHandle | None = None
    waiting: str = ""
    retries: int = 0
    recording: asyncio.Task[None] | None = None

    @property
    def hierarchical(self) -> bool:
        """Whether edges fold."""
        return self.submitted.wish.protocol == "hierarchical"

    @property
    def state(self) -> Any:
        """The protocol's `RunState`, whichever protocol it is."""
        return self.driver.state.run if self.hierarchical and self.driver.state else self.driver.state

    @property
    def is_open(self) -> bool:
        """Begun and not ended."""
        return self.state is not None and self.state.outcome is None

    @property
    def status(self) -> RunStatus:
        """How it stands, for people: one terminal state with its cause, else what it waits for."""
        run, state, rounds = self.submitted.run, self.state, tuple(self.rounds)
        outcome = state.outcome if state is not None else None
        model = state.model if state is not None else ""
        if outcome is None:
            return RunStatus(run, "running", self._waits_for(), rounds, self.version, model)
        if self.failure:
            return RunStatus(run, str(m.OutcomeKind.FAILED), self.failure, rounds, 0, model)
        # Terminal only once its end is in the log: before, rounds and version may still be on their way here.
        cause = f"{outcome.sentence} {outcome.cure}".strip()
        return RunStatus(run, str(outcome.kind) if self.registered else "running", cause, rounds, self.version, model)

    def asks(self, number: int, client: ClientId) -> bool:
        """Whether the update of a client for a round is still awaited."""
        return self.is_open and self.state.gathering.round == number and client in self.state.gathering.outstanding

    def _waits_for(self) -> str:
        if self.state is None or self.waiting:
            return self.waiting or "not started"
        gathering = self.state.gathering
        return f"round {gathering.round} waits for {', '.join(gathering.outstanding)}" if gathering.outstanding else ""


def record_of(
    summary: m.RoundSummary, *, accuracy: float, seconds: float, uplink_bytes: int, downlink_bytes: int
) -> RoundRecord:
    """A closed round as people and reports see it.

    Args:
        summary: The protocol's.
        accuracy: Of its model on held-out data; NaN without.
        seconds: How long it took; 0 if the process ended as it was closed.
        uplink_bytes, downlink_bytes: Payloads, as far as one process saw them.

    Returns:
        The record.
    """
    missing = {str(c): cause for c, cause in summary.missing.items()}
    return RoundRecord(
        summary.round, summary.metrics.get("loss", float("nan")), accuracy, len(summary.weights), missing, seconds,
        uplink_bytes, downlink_bytes,
    )  # fmt: skip
