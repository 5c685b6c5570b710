"""What nodes of a fleet say to each other: orders, reports and answers, each a typed struct.

The struct's frame kind is its snake-case name (`kind_of`). Orders travel outward on `control`, updates and sums inward
on `report`; both are signed. Tensors (updates, models small enough) travel beside the struct in the same frame.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from edgewise.core.ids import ClientId, Digest, Epoch, NodeId, RoundNumber, RunId, Tier
from edgewise.ledger.entry import LedgerEntry
from edgewise.models.version import ModelVersion
from edgewise.planning.plan import Plan
from edgewise.planning.profile import LinkState, Profile

INLINE_BYTES = 64 * 1024
"""Values up to this size travel in the frame; larger ones are announced by digest and pulled."""


class Message(msgspec.Struct, frozen=True):
    """Base of everything said here."""


def kind_of(message: type[Message] | Message) -> str:
    """The frame kind of a message: `TrainOrder` -> `train_order`."""
    name = (message if isinstance(message, type) else type(message)).__name__
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


class Ack(Message):
    """Yes, or why not.

    Attributes:
        accepted: Whether it was taken (durably, where it changes state).
        reason: Why not; a sentence.
        details: More, for people.
    """

    accepted: bool = True
    reason: str = ""
    details: dict[str, Any] = {}


class BlobRef(msgspec.Struct, frozen=True):
    """A large value by name; whoever announces it serves it on its `blob` service."""

    digest: Digest
    size_bytes: int
    holder: NodeId


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


class InfoRequest(Message):
    """Asks a node who it is."""


class NodeInfo(Message):
    """Who a node is.

    Attributes:
        node: Name.
        tier: Where it stands.
        epoch: Incarnation.
        certificate: PEM, for checking what it signs.
        parent: The node its home link leads to; "" at the root.
        capability: Measured.
        coordinator: Whether it decides for the fleet.
        client: The training client it is; "" if it only infers.
        task: Task installed on it.
        num_examples: Examples it holds.
        label_counts: Examples per label, for the data-split audit.
        http_port: Port of its inference endpoint; 0 if none.
        version: Model version it serves; 0 if none.
        plan_epoch: Plan in force; 0 if none.
    """

    node: NodeId
    tier: Tier
    epoch: Epoch
    certificate: str
    parent: NodeId
    capability: Capability
    coordinator: bool = False
    client: ClientId = ClientId("")
    task: str = ""
    num_examples: int = 0
    label_counts: dict[str, int] = {}
    http_port: int = 0
    version: int = 0
    plan_epoch: int = 0


class ProgressRequest(Message):
    """Asks the worker's counter."""


class Progress(Message):
    """The worker's own counter: it moves while the worker works.

    Attributes:
        counter: Steps done since start.
        busy: Whether it has work.
        work: What, e.g. `train run-1 round 3`.
    """

    counter: int
    busy: bool
    work: str = ""


class TrainOrder(Message):
    """Do local work on a model and report the update.

    Attributes:
        run: Run.
        round: Round.
        algorithm: Words of the five parts.
        seed: The job's seed.
        layout: Digest of the layout the model has.
        model: Where the model is, if it does not travel in the frame as tensor `model`.
        report_to: Server that takes the update.
        clients: For an edge: clients to ask; empty for a device.
        quorum: For an edge: updates it needs.
        deadline_s: Work deadline of the round; None for none.
        collected: Whether labelled hard examples join the client's data.
    """

    run: RunId
    round: RoundNumber
    algorithm: dict[str, Any]
    seed: int
    layout: Digest
    report_to: NodeId
    model: BlobRef | None = None
    clients: tuple[ClientId, ...] = ()
    quorum: int = 1
    deadline_s: float | None = None
    collected: bool = False


class UpdateReport(Message):
    """A client's update; the payload's arrays travel in the frame, or as one blob.

    Attributes:
        run: Run.
        round: Round.
        client: Who.
        weight: Number of examples behind it.
        metrics: Loss and so on, of the local data.
        shape: Shape the payload stands for.
        payload: Where the encoded payload is, if not in the frame.
        seconds: Time of local work.
    """

    run: RunId
    round: RoundNumber
    client: ClientId
    weight: float
    metrics: dict[str, float]
    shape: tuple[int, ...]
    payload: BlobRef | None = None
    seconds: float = 0.0


class SumReport(Message):
    """An edge's folded sum of a round; forwarded once.

    Attributes:
        run: Run.
        round: Round.
        edge: Who folded.
        clients: Whose updates are in it.
        missing: Who is not, and why.
        weight: Sum of weights.
        metrics: Weighted means of what clients measured.
        payload: Where the arrays are, if not in the frame.
    """

    run: RunId
    round: RoundNumber
    edge: NodeId
    clients: tuple[ClientId, ...]
    missing: dict[str, str]
    weight: float
    metrics: dict[str, float]
    payload: BlobRef | None = None


class SubmitRun(Message):
    """An operator's wish to train. The template graph and, for a new model, the start travel as tensors.

    Attributes:
        name: The wanted run id; "" lets the coordinator name it.
        task: Task name.
        algorithm: Words.
        protocol: `synchronous` or `hierarchical`.
        num_rounds: Rounds.
        seed: The job's seed.
        quorum_fraction: Share of a cohort that must answer.
        round_deadline_s: Deadline of a round; None waits for every live client.
        clients: Who may take part; empty for all that hold data of the task.
        start_version: Version to start from; 0 for the given start.
        layout: msgpack of the `Layout`.
        collected: Whether labelled hard examples join the clients' data.
        register: Whether the result becomes a model version.
    """

    task: str
    algorithm: dict[str, Any]
    num_rounds: int
    seed: int
    layout: bytes
    protocol: str = "hierarchical"
    name: str = ""
    quorum_fraction: float = 0.5
    round_deadline_s: float | None = None
    clients: tuple[ClientId, ...] = ()
    start_version: int = 0
    collected: bool = False
    register: bool = True


class RunRequest(Message):
    """Asks how a run stands."""

    run: RunId


class RoundRecord(msgspec.Struct, frozen=True):
    """One closed round, as people and reports see it."""

    round: int
    loss: float
    accuracy: float
    num_updates: int
    missing: dict[str, str]
    seconds: float
    uplink_bytes: int = 0
    downlink_bytes: int = 0


class RunStatus(Message):
    """How a run stands: running or in its one terminal state, with the cause.

    Attributes:
        run: Run.
        state: `running`, `completed`, `too_few_clients`, `cancelled` or `failed`.
        cause: Why, with node and cure where it failed.
        rounds: What is done.
        version: The version it made; 0 if none.
        model: Digest of the model's bytes.
    """

    run: RunId
    state: str
    cause: str = ""
    rounds: tuple[RoundRecord, ...] = ()
    version: int = 0
    model: str = ""


class CancelRun(Message):
    """Stops a run; what is done stays."""

    run: RunId


class ProfileOrder(Message):
    """Measure a graph's segments here, and the link to the parent.

    Attributes:
        graph: The ONNX bytes.
        budget_s: Seconds of measuring.
        cadence_s: Gap between runs, as in serving.
        probe_link: Whether to measure the home link as well.
    """

    graph: BlobRef
    budget_s: float = 3.0
    cadence_s: float = 0.0
    probe_link: bool = True


class ProfileAnswer(Message):
    """A node's costs."""

    profile: Profile
    link: LinkState | None = None


class InstallOrder(Message):
    """Prepare a version and plans; activate one.

    Attributes:
        version: Version number.
        graph: Its ONNX bytes.
        plans: The plan, then the alternatives of its plan map, best first.
        epoch: Epoch of the first plan; alternatives follow.
        activate: Whether to switch to it once warm.
        stage_nodes: For a device: nodes that run the next stage, in order of preference.
        deadline_s: Deadline of a request under these plans.
    """

    version: int
    graph: BlobRef
    plans: tuple[Plan, ...]
    epoch: Epoch
    activate: bool = True
    stage_nodes: tuple[NodeId, ...] = ()
    deadline_s: float = 1.0


class Deploy(Message):
    """An operator's wish to serve a version along plans, device by device."""

    version: int
    plans: tuple[Plan, ...]
    deadline_s: float = 1.0
    nodes: tuple[NodeId, ...] = ()
    staged: bool = True


class Rollback(Message):
    """Restores the version that served before."""


class ListVersions(Message):
    """Asks the registry."""


class Versions(Message):
    """The registry, oldest first, and the current version."""

    versions: tuple[ModelVersion, ...]
    current: int


class GraphRequest(Message):
    """Asks for a version's ONNX bytes, which travel as tensor `graph`."""

    version: int


class RegisterVersion(Message):
    """A candidate from outside a run (imported, or deliberately bad); its graph travels as tensor `graph`."""

    task: str
    origin: str = "imported"
    parent: int = 0


class LedgerRequest(Message):
    """Asks a node what it counted."""


class LedgerAnswer(Message):
    """What a node counted and used."""

    entries: tuple[LedgerEntry, ...]
    cpu_s: float
    peak_memory_bytes: int
    inference_s: float = 0.0
    training_s: float = 0.0


class FleetRequest(Message):
    """Asks the coordinator for its view of the fleet."""


class NodeRow(msgspec.Struct, frozen=True):
    """One node as the coordinator sees it: alive, gone or suspected, and why."""

    info: NodeInfo
    state: str
    cause: str = ""


class FleetAnswer(Message):
    """The coordinator's view."""

    nodes: tuple[NodeRow, ...]
    refused: dict[str, int] = {}


class DriftReport(Message):
    """A device's inputs have drifted."""

    node: NodeId
    statistic: float
    threshold: float
    num_observed: int
    num_hard: int


class StopOrder(Message):
    """Ends the process cleanly."""
