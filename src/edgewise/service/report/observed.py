"""What a run observed, row by row: the tables and points of the report. Read `schema.py` next."""

from __future__ import annotations

import msgspec

from edgewise.models.version import GateResult


class SplitSizes(msgspec.Struct, frozen=True):
    """Examples per part of the one disjoint division of the data; `public` is the share of train anybody may pool."""

    train: int
    calibration: int
    gate: int
    stream: int
    public: int = 0


class AuditRow(msgspec.Struct, frozen=True):
    """Data of one client.

    Attributes:
        client: Who holds it.
        examples: How many.
        labels: Examples per class.
        trains: Whether it takes part in training.
    """

    client: str
    examples: int
    labels: tuple[int, ...] = ()
    trains: bool = True


class RoundRow(msgspec.Struct, frozen=True):
    """One round of one training run.

    Attributes:
        run: Which run, e.g. `first`, `after drift`, `uncoded`.
        round: From 1.
        loss: Mean training loss of its clients.
        accuracy: Of the global model after it.
        uplink_bytes: Sent by devices in it.
        downlink_bytes: Received by devices in it.
        seconds: Duration.
        clients: Updates that counted.
    """

    run: str
    round: int
    loss: float | None = None
    accuracy: float | None = None
    uplink_bytes: int | None = None
    downlink_bytes: int | None = None
    seconds: float | None = None
    clients: int | None = None


class VersionRow(msgspec.Struct, frozen=True):
    """One version and its gate.

    Attributes:
        number: In the registry.
        what: e.g. `first training`, `after drift`, `deliberately bad`.
        digest: Of the graph.
        parent: Version it started from.
        accuracy: On the gate set.
        gate: Paired comparison; None if it had none.
        outcome: `serving`, `refused`, `rolled back`, `replaced`.
    """

    number: int
    what: str = ""
    digest: str = ""
    parent: int = 0
    accuracy: float | None = None
    gate: GateResult | None = None
    outcome: str = ""


class RequestRow(msgspec.Struct, frozen=True):
    """One served request.

    Attributes:
        arrival_s: Scheduled arrival on the report's clock.
        latency_ms: From the scheduled arrival; None if it was never answered.
        predicted_ms: Of the path it took, from the plan's profile.
        exit: Exit it left at.
        phase: Phase of the stream; that of the first request counts as the fault-free one.
        by: Who answered, as in `FaultsSection.shares`.
        right: Whether the answer was right; None if unlabelled.
        warm_up: Left out of the comparison.
    """

    arrival_s: float
    latency_ms: float | None = None
    predicted_ms: float | None = None
    exit: int | None = None
    phase: str = ""
    by: str = ""
    right: bool | None = None
    warm_up: bool = False


class WayRow(msgspec.Struct, frozen=True):
    """One way of serving that was measured beside others, on the same inputs in turn.

    Attributes:
        name: Of its plan.
        variant: Of the model: `float32`, `int8`, `narrow`, …
        tiers: Who computes.
        allowed: Whether the question's policy allows it.
        recommended: Whether it is what the planner recommends there.
        requests: Sent.
        answered: Of them.
        predicted_mean_ms: Mean latency, from the profile.
        mean_ms: Measured.
        p50_ms: Measured.
        p95_ms: Measured.
        accuracy: Of its answers.
        gain: What its mean gains over the recommended way's, with its interval of 95 %: (gain, low, high); None of that
            way itself.
    """

    name: str
    variant: str
    tiers: tuple[str, ...]
    allowed: bool = True
    recommended: bool = False
    requests: int = 0
    answered: int = 0
    predicted_mean_ms: float | None = None
    mean_ms: float | None = None
    p50_ms: float | None = None
    p95_ms: float | None = None
    accuracy: float | None = None
    gain: tuple[float, float, float] | None = None


class MonitorRow(msgspec.Struct, frozen=True):
    """A drift monitor of the version that served, as it stood before retraining.

    Attributes:
        monitor: `harm`, from labels, or `change`, without.
        statistic: Evidence, an e-process.
        threshold: What it has to pass, 1/α.
        seen: Labels held, or requests looked at.
        found: What was found; "" if nothing was.
        waits_for: What would tell more.
        price: What it takes to find a fall, in labels.
    """

    monitor: str
    statistic: float
    threshold: float
    seen: int
    found: str = ""
    waits_for: str = ""
    price: str = ""


class TimelineEntry(msgspec.Struct, frozen=True):
    """Something that happened.

    Attributes:
        time_s: On the report's clock.
        phase: Phase of the loop, e.g. `serving`, `drift`, `training`.
        text: One sentence.
        kind: `step` of the loop, `fault` injected or seen, or `plan` change.
    """

    time_s: float
    phase: str
    text: str
    kind: str = "step"


class ResourceRow(msgspec.Struct, frozen=True):
    """What one node used.

    Attributes:
        node: Who.
        tier: Where it stands.
        cpu_seconds: User and system.
        peak_memory_bytes: Peak resident memory.
        energy_j: By the energy model or measured.
        energy_source: `measured` or `modelled`.
    """

    node: str
    tier: str
    cpu_seconds: float | None = None
    peak_memory_bytes: int | None = None
    energy_j: float | None = None
    energy_source: str = "modelled"
