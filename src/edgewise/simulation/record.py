"""What a simulated run was, round by round."""

from __future__ import annotations

import msgspec

from edgewise.core.layout import Vector
from edgewise.training.protocols.messages import Outcome


class SimulatedRound(msgspec.Struct, frozen=True):
    """One closed round.

    Attributes:
        round: Its number, from 1.
        virtual_s: When it closed, on the virtual clock.
        metrics: Of the model after the round, on the task's test data; empty if not evaluated.
        client_metrics: Means over the participants, of the model they received; `loss` is the training loss.
        participants: How many updates were folded.
        missing: Cause by client of the cohort that gave none.
        uplink_bytes: Coded updates of this round, without frames.
        downlink_bytes: Sections sent to clients in this round, as they were coded, without frames.
        wan_bytes: Between edges and cloud, both ways; 0 without edges.
    """

    round: int
    virtual_s: float
    metrics: dict[str, float]
    client_metrics: dict[str, float]
    participants: int
    missing: dict[str, str]
    uplink_bytes: int
    downlink_bytes: int
    wan_bytes: int = 0


class RunRecord(msgspec.Struct, frozen=True):
    """A simulated run; every number is of the virtual fleet, not of this machine.

    Attributes:
        task: Task name.
        algorithm: Its spec.
        protocol: Name of the protocol.
        engine: The local engine that did the work.
        seed: The job's seed.
        rounds: In order.
        outcome: How it ended.
    """

    task: str
    algorithm: str
    protocol: str
    engine: str
    seed: int
    rounds: tuple[SimulatedRound, ...]
    outcome: Outcome

    @property
    def metrics(self) -> dict[str, float]:
        """Of the last evaluated model."""
        return next((record.metrics for record in reversed(self.rounds) if record.metrics), {})

    @property
    def uplink_bytes(self) -> int:
        """Of all rounds."""
        return sum(record.uplink_bytes for record in self.rounds)

    @property
    def downlink_bytes(self) -> int:
        """Of all rounds."""
        return sum(record.downlink_bytes for record in self.rounds)

    @property
    def virtual_s(self) -> float:
        """When the last round closed."""
        return self.rounds[-1].virtual_s if self.rounds else 0.0


class SimulatedRun(msgspec.Struct, frozen=True):
    """A record and the model that came out.

    Attributes:
        record: The numbers.
        vector: float32[d], the last good model.
    """

    record: RunRecord
    vector: Vector
