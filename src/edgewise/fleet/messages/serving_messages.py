"""What is said about versions, plans and serving: profile, install, deploy, roll back, feedback, health, drift.

A model is named after its task. A node serves many, and what is said of one names it; a version's number is of one model
only, so a `Deploy` needs no name.
"""

from __future__ import annotations

import msgspec

from edgewise.core.ids import Digest, NodeId, Revision, digest_of
from edgewise.fleet.messages.message import Ack, BlobRef, Message
from edgewise.models.graph.input_hints import NO_HINTS, InputHints
from edgewise.models.version import ExitEvidence, GateResult, ModelVersion
from edgewise.planning.plan import Plan, Site
from edgewise.planning.policy import Policy
from edgewise.planning.profile import LinkState, Profile


class ProfileOrder(Message, frozen=True):
    """Measure a graph's segments here, and the link to the parent.

    Attributes:
        graph: The ONNX bytes.
        budget_s: Seconds of measuring.
        cadence_s: Gap between runs, as in serving.
        link_to: Node whose link is measured as well; "" for none.
        endpoint_overhead_s: Seconds a request spends at the node's HTTP endpoint, as measured by whoever asks; 0 lets a node
            that has one measure it.
        measures_memory: Whether to measure the session's memory too, which takes a process of its own.
        hints: What the graph is loaded with.
    """

    graph: BlobRef
    budget_s: float = 3.0
    cadence_s: float = 0.0
    link_to: NodeId = NodeId("")
    endpoint_overhead_s: float = 0.0
    measures_memory: bool = True
    hints: InputHints = NO_HINTS


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


class NodesAt(msgspec.Struct, frozen=True):
    """Nodes that may stand at a site, in order of preference."""

    site: Site
    nodes: tuple[NodeId, ...]


class InstallOrder(Message, frozen=True):
    """Prepare a version of a model and its plans; activate the first.

    Attributes:
        model: Which model; what the node serves of others stays as it is.
        version: Version number.
        graph: Its ONNX bytes.
        plans: The plan, then the alternatives of its plan map, best first.
        revision: Of the first plan; alternatives follow.
        nodes_at: Nodes by the site of the plans they may stand at, nearest site first.
        deadline_s: Deadline of a request under these plans.
        inputs: What the plans were made from; a device given them may switch among the plans by what it observes.
        share: The model's weight among those of the node, for computing time and open requests.
        hints: What the graph is loaded with.
    """

    model: str
    version: int
    graph: BlobRef
    plans: tuple[Plan, ...]
    revision: Revision
    nodes_at: tuple[NodesAt, ...] = ()
    deadline_s: float = 1.0
    inputs: PlanInputs | None = None
    share: float = 1.0
    hints: InputHints = NO_HINTS

    @property
    def digest(self) -> Digest:
        """Names what is served, apart from where on the fleet it is: equal on every node of a deployment."""
        return deployment_digest(self.version, self.graph.digest, self.plans, self.revision)


def deployment_digest(version: int, graph: Digest, plans: tuple[Plan, ...], revision: Revision) -> Digest:
    """Names a deployment by its content.

    Args:
        version: Version number.
        graph: Digest of its ONNX bytes.
        plans: Its plans, best first.
        revision: Of the first plan.

    Returns:
        The name.
    """
    return digest_of(msgspec.msgpack.encode((version, graph, plans, revision), order="deterministic"))


class UninstallOrder(Message, frozen=True):
    """Serve a model no longer: its first rollout was taken back, or it is not in force."""

    model: str


class Deploy(Message, frozen=True):
    """Serve a version along plans, device by device.

    Attributes:
        version: Version number; it says which model.
        plans: The plan, then the alternatives of its plan map.
        deadline_s: Deadline of a request.
        inputs: What the plans were made from; given, devices may switch among the plans by what they observe.
        staged: Whether to go stage by stage and watch each stage's health.
        shares: Of all devices that have it when a stage ends, rising to 1; () makes every device a stage of its own.
        share: The model's weight among those of a node, for computing time and open requests.
        min_requests: Requests a device serves before its stage is evaluated; 0 goes on at once.
        force: Serve the version whatever its gate says, and although its `caution` says that it lacks its clients' own
            tensors; what it overrides is written into the history.
        ungated: Serve it although nothing says whether it is worse than the one in force.
        why: What it is put in force for, for the history; "" where an operator asks for it.
        policy: What the operator asked for, to which plans of this model keep until another is given; None leaves the one
            in force. `inputs.policy` is what is left of it under the grants of the devices.
        hints: What the graph was planned with, and is loaded with on every node.
    """

    version: int
    plans: tuple[Plan, ...]
    deadline_s: float = 1.0
    inputs: PlanInputs | None = None
    staged: bool = True
    min_requests: int = 0
    shares: tuple[float, ...] = ()
    share: float = 1.0
    force: bool = False
    ungated: bool = False
    policy: Policy | None = None
    hints: InputHints = NO_HINTS
    why: str = ""


class Rollback(Message, frozen=True):
    """Restore the version of a model that served before; a rollout in progress is taken back.

    Attributes:
        model: Which; "" for the only one in force.
    """

    model: str = ""


class RegisterAck(Ack, frozen=True):
    """Answers `RegisterVersion`.

    Attributes:
        version: The version's number, whether or not it passed its gate; 0 where it was only judged.
        gate: What its gate said; None without held-out data, or without a version to compare it with.
    """

    version: int = 0
    gate: GateResult | None = None


class DeployAck(Ack, frozen=True):
    """Answers `Deploy`.

    Attributes:
        model: Which.
        version: What serves now.
        revision: Of the plan in force.
        devices: Who serves it.
        codec_gates: What the gates of coded hand-overs said.
        overridden: What spoke against it and was overridden; it is in the history.
        note: What to know of it.
    """

    model: str = ""
    version: int = 0
    revision: int = 0
    devices: tuple[str, ...] = ()
    codec_gates: tuple[str, ...] = ()
    overridden: str = ""
    note: str = ""


class RollbackAck(Ack, frozen=True):
    """Answers `Rollback`.

    Attributes:
        model: Which.
        version: What serves again; 0 for nothing.
        revision: Of the plan in force.
        taken_back: The version that served, or was on its way.
    """

    model: str = ""
    version: int = 0
    revision: int = 0
    taken_back: int = 0


class FeedbackAck(Ack, frozen=True):
    """Answers `Feedback`: how many of the labels belong to examples that are kept."""

    taken: int = 0


class PutInForce(msgspec.Struct, frozen=True):
    """One line of the history of what served.

    Attributes:
        model: Which model.
        version: What served from then on.
        time_s: When, seconds since 1970.
        note: Why, where no operator just asked for it: what was overridden, from what it was rolled back, that a drift
            returned.
    """

    model: str
    version: int
    time_s: float
    note: str = ""


class ListVersions(Message, frozen=True):
    """Asks the registry."""


class Versions(Message, frozen=True):
    """The registry.

    Attributes:
        versions: Of all models, oldest first.
        in_force: Version number by model; without those of which none is.
        policies: What plans of a model in force keep to, as its operator asked for.
        shares: Weight of a model in force where a node serves several.
        history: What came into force, oldest first.
        damaged: What is wrong with versions whose rows are not as they were written, by number; they are in no other field.
        changing: Models that are being deployed, or rolled back, now.
    """

    versions: tuple[ModelVersion, ...]
    in_force: dict[str, int]
    policies: dict[str, Policy] = msgspec.field(default_factory=dict)
    shares: dict[str, float] = msgspec.field(default_factory=dict)
    history: tuple[PutInForce, ...] = ()
    damaged: dict[int, str] = msgspec.field(default_factory=dict)
    changing: tuple[str, ...] = ()


class GraphRequest(Message, frozen=True):
    """Asks for a version's ONNX bytes."""

    version: int


class GraphAnswer(Message, frozen=True):
    """Names a version's ONNX bytes, to be pulled: they may be larger than a frame."""

    graph: BlobRef


class RegisterVersion(Message, frozen=True):
    """A candidate from outside a run (imported, or deliberately bad); its graph is pulled from whoever sends it.

    Attributes:
        task: Of which model.
        graph: ONNX.
        origin: Where it comes from, a few words.
        parent: Version it was made from.
        is_trial: Whether it is only to be judged: it becomes no version.
    """

    task: str
    graph: BlobRef
    origin: str = "imported"
    parent: int = 0
    is_trial: bool = False


class Feedback(Message, frozen=True):
    """True labels of requests a device answered; they stay on the device.

    Attributes:
        model: Which model answered.
        labels: Label by request id.
    """

    model: str
    labels: dict[str, int]


class ExampleCountsRequest(Message, frozen=True):
    """Asks a device how many examples it has collected for a model."""

    model: str


class ExampleCounts(Message, frozen=True):
    """What a device has collected: numbers, no examples.

    Attributes:
        num_hard: Hard examples kept.
        num_labelled: Those of them it was told the label of.
    """

    num_hard: int
    num_labelled: int


class HealthRequest(Message, frozen=True):
    """Asks a device how requests under a deployment went.

    Attributes:
        model: Which model.
        revision: Of the deployment's first plan; requests of its later plans count.
    """

    model: str
    revision: Revision


class Health(Message, frozen=True):
    """How requests under a deployment went.

    Attributes:
        node: Who served.
        model: Which model.
        revision: Of the deployment's first plan.
        num_requests: All since it was installed.
        num_errors: Those of them without an answer by their deadline.
        p95_latency_s: Of the last ones; 0 without any.
        time: Seconds on the device's clock.
    """

    node: NodeId
    model: str
    revision: Revision
    num_requests: int
    num_errors: int
    p95_latency_s: float
    time: float
