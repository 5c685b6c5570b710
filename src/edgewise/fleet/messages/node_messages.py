"""Who a node is, whether its worker moves, what it counted, and who is in the fleet."""

from __future__ import annotations

from typing import Annotated

import msgspec

from edgewise.core.ids import ClientId, Generation, NodeId, Revision, Tier
from edgewise.fleet.messages.message import Message
from edgewise.ledger.entry import LedgerEntry
from edgewise.lifecycle.drift_finding import DriftFinding


class Capability(msgspec.Struct, frozen=True):
    """What a node measured of itself at start.

    Attributes:
        cores: Processors it may use.
        memory_bytes: Memory of the machine.
        flops: float32 multiply-adds per second ×2 of a 256³ matrix product on one thread, dilation included.
        dilation: Factor by which its inference compute is stretched.
        active_power_w: Modelled power while computing.
        python: Interpreter version.
    """

    cores: int
    memory_bytes: int
    flops: float
    dilation: float
    active_power_w: float
    python: str


class InfoRequest(Message, frozen=True):
    """Asks a node who it is.

    Attributes:
        nonce: Drawn by who asks; it comes back in the answer, so that no older answer is one.
    """

    nonce: Annotated[str, msgspec.Meta(max_length=64)] = ""


class InForce(msgspec.Struct, frozen=True):
    """What a node serves of one model.

    Attributes:
        version: Version number.
        revision: Plan in force; a device may have switched to an alternative.
        digest: What is installed, as `InstallOrder.digest`.
    """

    version: int
    revision: Revision
    digest: str = ""


class NodeInfo(Message, frozen=True):
    """Who a node is.

    Attributes:
        node: Name.
        tier: Where it stands.
        generation: Incarnation.
        certificate: PEM, for checking what it signs.
        parent: The node its primary uplink leads to; "" at the root.
        capability: Measured.
        coordinator: Whether it decides for the fleet.
        client: The training client it is; "" if it only infers.
        task: Task installed on it.
        num_examples: Examples it holds.
        label_counts: Examples per label, for the data-split audit.
        data_notes: What was found in its examples, or done to them, for the audit.
        http_port: Port of its inference endpoint; 0 if none.
        models: What it serves, by model.
        raw_may_reach: Outermost tier that raw data of this node may reach, as its own operator granted.
        task_code: Digest of the code of its task; "" without a task.
        nonce: Of the question that this answers.
    """

    node: NodeId
    tier: Tier
    generation: Generation
    certificate: str
    parent: NodeId
    capability: Capability
    coordinator: bool = False
    client: ClientId = ClientId("")
    task: str = ""
    num_examples: int = 0
    label_counts: dict[str, int] = msgspec.field(default_factory=dict)
    data_notes: tuple[str, ...] = ()
    http_port: int = 0
    models: dict[str, InForce] = msgspec.field(default_factory=dict)
    raw_may_reach: Tier = Tier.DEVICE
    task_code: str = ""
    nonce: str = ""


class ProgressRequest(Message, frozen=True):
    """Asks the worker's counter."""


class Progress(Message, frozen=True):
    """The worker's own counter: it moves while the worker works.

    Attributes:
        counter: Steps done since start.
        busy: Whether it has work.
        work: What, e.g. `train run-1 round 3`.
        patience: Answers without a move that this work may take, where that is more than the watch gives any: before the
            first step torch is imported.
    """

    counter: int
    busy: bool
    work: str = ""
    patience: int = 0


class LedgerRequest(Message, frozen=True):
    """Asks a node what it counted."""


class LedgerAnswer(Message, frozen=True):
    """What a node counted and used."""

    entries: tuple[LedgerEntry, ...]
    cpu_s: float
    peak_memory_bytes: int
    inference_s: float = 0.0
    training_s: float = 0.0


class FleetRequest(Message, frozen=True):
    """Asks the coordinator for its view of the fleet."""


class NodeRow(msgspec.Struct, frozen=True):
    """One node as the coordinator sees it: joining, alive, gone or suspected, and why."""

    info: NodeInfo
    state: str
    cause: str = ""


class DriftStatus(DriftFinding, frozen=True, kw_only=True):
    """What the drift monitors of a model's version know.

    Attributes:
        version: In force.
    """

    version: int


class MonitorsRequest(Message, frozen=True):
    """Asks what the drift monitors know of models.

    Attributes:
        models: Which; those that are not in force are left out.
    """

    models: tuple[str, ...]


class MonitorsAnswer(Message, frozen=True):
    """What is known, by model."""

    monitors: dict[str, DriftStatus]


class FleetAnswer(Message, frozen=True):
    """The coordinator's view.

    Attributes:
        nodes: Itself first.
        refused: How often what was refused at it.
        drift: What it found of the inputs of a model's version in force, by model; without those it found nothing of.
        monitors: What its monitors know, by model; without those that have seen nothing.
    """

    nodes: tuple[NodeRow, ...]
    refused: dict[str, int] = msgspec.field(default_factory=dict)
    drift: dict[str, str] = msgspec.field(default_factory=dict)
    monitors: dict[str, DriftStatus] = msgspec.field(default_factory=dict)


class StateRequest(Message, frozen=True):
    """Asks a node what it keeps on its disk, and may have it let go of what nobody needs.

    Attributes:
        prune: Whether what can go goes now.
        keep_bytes: Budget to judge by; 0 for the node's own.
    """

    prune: bool = False
    keep_bytes: int = 0


class StateRow(msgspec.Struct, frozen=True):
    """What one part of a node keeps.

    Attributes:
        what: Why: `run digits-3`, `version 2 of digits`, …
        num_blobs: Blobs that nobody named before it holds.
        size_bytes: What they take.
        is_needed: Whether they stay whatever they take.
        stays: Whether they do.
    """

    what: str
    num_blobs: int
    size_bytes: int
    is_needed: bool
    stays: bool


class StateAnswer(Message, frozen=True):
    """Answers `StateRequest`.

    Attributes:
        rows: What is needed first, then what is wanted, newest first.
        keep_bytes: The budget.
        records_bytes: Logs, registry and other small files.
        num_going, going_bytes: Blobs that can go: nobody holds them, or they do not fit.
        num_gone: Of these, how many went.
        cause: Why nothing can be judged; "" where it can.
    """

    rows: tuple[StateRow, ...] = ()
    keep_bytes: int = 0
    records_bytes: int = 0
    num_going: int = 0
    going_bytes: int = 0
    num_gone: int = 0
    cause: str = ""


class LogRequest(Message, frozen=True):
    """Asks for the last lines that a node's process logged.

    Attributes:
        after: Leaves out those up to this number.
        most: At most so many, the newest.
    """

    after: int = 0
    most: int = 100


class LogLine(msgspec.Struct, frozen=True):
    """One line.

    Attributes:
        number: Counts the lines of this process, from 1.
        time_s: When, seconds since 1970.
        level: `INFO`, `WARNING`, …
        text: What.
    """

    number: int
    time_s: float
    level: str
    text: str


class LogAnswer(Message, frozen=True):
    """Answers `LogRequest`, oldest line first."""

    lines: tuple[LogLine, ...]


class TakeOver(Message, frozen=True):
    """Tells a process that another one of the same node, by its certificate and newer, takes its place; it stops.

    Attributes:
        certificate: Of whoever takes over, PEM: one that was renewed is not the one that the first process knows.
    """

    certificate: str = ""


class Displaced(Message, frozen=True):
    """Tells all processes of a name that a newer one proved itself; who is older asks for that proof and gives way.

    Attributes:
        newer: The incarnation that proved itself.
    """

    newer: Generation


class StopOrder(Message, frozen=True):
    """Ends the process cleanly."""
