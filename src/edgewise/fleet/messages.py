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
from edgewise.models.version import ExitEvidence, ModelVersion
from edgewise.planning.plan import Plan
from edgewise.planning.policy import Policy
from edgewise.planning.profile import LinkState, Profile
from edgewise.training.protocols.regions import RegionOrder, SumReport

INLINE_BYTES = 64 * 1024
"""Values up to this size travel in the frame; larger ones are announced by digest and pulled."""


class Message(msgspec.Struct, frozen=True):
    """Base of everything said here."""


def kind_of(message: type[Message] | Message) -> str:
    """The frame kind of a message: `TrainOrder` -> `train_order`."""
    name = (message if isinstance(message, type) else type(message)).__name__
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


class Ack(Message, frozen=True):
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


class InfoRequest(Message, frozen=True):
    """Asks a node who it is."""


class NodeInfo(Message, frozen=True):
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


class ProgressRequest(Message, frozen=True):
    """Asks the worker's counter."""


class Progress(Message, frozen=True):
    """The worker's own counter: it moves while the worker works.

    Attributes:
        counter: Steps done since start.
        busy: Whether it has work.
        work: What, e.g. `train run-1 round 3`.
    """

    counter: int
    busy: bool
    work: str = ""


class TrainOrder(Message, frozen=True):
    """Do local work on a model and report the update.

    Attributes:
        run: Run.
        round: Round.
        algorithm: Words of the five parts.
        seed: The job's seed.
        layout: Digest of the layout the model has.
        report_to: Server that takes the update.
        model: Where the model is, if it does not travel in the frame as tensor `model`.
        collected: Whether labelled hard examples join the client's data.
    """

    run: RunId
    round: RoundNumber
    algorithm: dict[str, Any]
    seed: int
    layout: Digest
    report_to: NodeId
    model: BlobRef | None = None
    collected: bool = False


class FoldOrder(Message, frozen=True):
    """For an edge: gather a region's updates, fold them, forward one sum.

    Attributes:
        region: The protocol's order.
        layout: Digest of the layout.
        model: Where the model is.
        collected: Whether labelled hard examples join the clients' data.
    """

    region: RegionOrder
    layout: Digest
    model: BlobRef
    collected: bool = False


class DismissOrder(Message, frozen=True):
    """For an edge: the run has ended."""

    run: RunId


class UpdateReport(Message, frozen=True):
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


class EdgeSum(Message, frozen=True):
    """An edge's folded sum of a round; forwarded until it is acknowledged, counted once.

    Attributes:
        report: The protocol's report.
        sum: Where the sum's bytes are.
        uplink_bytes: Bytes of updates the edge took in for it.
    """

    report: SumReport
    sum: BlobRef
    uplink_bytes: int = 0


class SubmitRun(Message, frozen=True):
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


class RunRequest(Message, frozen=True):
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


class RunStatus(Message, frozen=True):
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


class CancelRun(Message, frozen=True):
    """Stops a run; what is done stays."""

    run: RunId


class ProfileOrder(Message, frozen=True):
    """Measure a graph's segments here, and the link to the parent.

    Attributes:
        graph: The ONNX bytes.
        budget_s: Seconds of measuring.
        cadence_s: Gap between runs, as in serving.
        link_to: Node whose link is measured as well; "" for none.
        door_overhead_s: Seconds a request spends at the node's HTTP door, as measured by whoever asks.
    """

    graph: BlobRef
    budget_s: float = 3.0
    cadence_s: float = 0.0
    link_to: NodeId = NodeId("")
    door_overhead_s: float = 0.0


class ProfileAnswer(Message, frozen=True):
    """A node's costs."""

    profile: Profile
    link: LinkState | None = None


class PlanInputs(msgspec.Struct, frozen=True):
    """What plans were made from, so that a device can weigh them anew when its link changes.

    Attributes:
        profiles: One per tier.
        links: Device-edge, edge-cloud.
        policy: Objective and limits.
        evidence: Of the version, one row per exit, codec and threshold.
        codecs: Names tried at the cut.
    """

    profiles: tuple[Profile, ...]
    links: tuple[LinkState, ...]
    policy: Policy
    evidence: tuple[ExitEvidence, ...] = ()
    codecs: tuple[str, ...] = ("none",)


class InstallOrder(Message, frozen=True):
    """Prepare a version and plans; activate one.

    Attributes:
        version: Version number.
        graph: Its ONNX bytes.
        plans: The plan, then the alternatives of its plan map, best first.
        epoch: Epoch of the first plan; alternatives follow.
        stage_nodes: For a device: nodes that run the next stage, in order of preference.
        deadline_s: Deadline of a request under these plans.
        inputs: What the plans were made from; a device given them may switch among the plans by what it observes.
    """

    version: int
    graph: BlobRef
    plans: tuple[Plan, ...]
    epoch: Epoch
    stage_nodes: tuple[NodeId, ...] = ()
    deadline_s: float = 1.0
    inputs: PlanInputs | None = None


class Deploy(Message, frozen=True):
    """An operator's wish to serve a version along plans, device by device.

    Attributes:
        version: Version number.
        plans: The plan, then the alternatives of its plan map.
        deadline_s: Deadline of a request.
        inputs: What the plans were made from; given, devices may switch among the plans by what they observe.
        staged: Whether to go device by device and watch each stage's health.
        min_requests: Requests a device serves before its stage is judged; 0 goes on at once.
    """

    version: int
    plans: tuple[Plan, ...]
    deadline_s: float = 1.0
    inputs: PlanInputs | None = None
    staged: bool = True
    min_requests: int = 0


class Rollback(Message, frozen=True):
    """Restores the version that served before."""


class ListVersions(Message, frozen=True):
    """Asks the registry."""


class Versions(Message, frozen=True):
    """The registry, oldest first, and the current version."""

    versions: tuple[ModelVersion, ...]
    current: int


class GraphRequest(Message, frozen=True):
    """Asks for a version's ONNX bytes, which travel as tensor `graph`."""

    version: int


class RegisterVersion(Message, frozen=True):
    """A candidate from outside a run (imported, or deliberately bad); its graph travels as tensor `graph`."""

    task: str
    origin: str = "imported"
    parent: int = 0


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
    """One node as the coordinator sees it: alive, gone or suspected, and why."""

    info: NodeInfo
    state: str
    cause: str = ""


class FleetAnswer(Message, frozen=True):
    """The coordinator's view."""

    nodes: tuple[NodeRow, ...]
    refused: dict[str, int] = {}


class TrainFailed(Message, frozen=True):
    """A client cannot do a round: no examples, another model, a broken task.

    Attributes:
        run: Run.
        round: Round.
        client: Who.
        cause: Why; a sentence.
    """

    run: RunId
    round: RoundNumber
    client: ClientId
    cause: str


class Feedback(Message, frozen=True):
    """True labels of requests a device answered; they stay on the device.

    Attributes:
        labels: Label by request id.
    """

    labels: dict[str, int]


class HealthRequest(Message, frozen=True):
    """Asks a device how its last requests under a version went."""

    version: int
    last: int = 50


class Health(Message, frozen=True):
    """How a device's last requests under a version went."""

    node: NodeId
    version: int
    num_requests: int
    num_errors: int
    p95_latency_s: float
    time: float


class StopOrder(Message, frozen=True):
    """Ends the process cleanly."""
