"""What coordinator, edges and devices say to each other while they train, and what an operator says about runs."""

from __future__ import annotations

from typing import Any

import msgspec

from edgewise.core.ids import ClientId, Digest, NodeId, RoundNumber, RunId
from edgewise.fleet.messages.message import BlobRef, Message
from edgewise.training.protocols.regions import RegionOrder, SumReport


class HardExamples(msgspec.Struct, frozen=True):
    """Train on hard examples, too, those that a device kept and that have a label.

    Attributes:
        labels: Words of the label source.
        teacher: Graph of the model that labels; None where the source needs none, or asks the model in force.
    """

    labels: dict[str, Any]
    teacher: BlobRef | None = None


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
        hard_examples: What joins the client's data; None for nothing.
    """

    run: RunId
    round: RoundNumber
    algorithm: dict[str, Any]
    seed: int
    layout: Digest
    report_to: NodeId
    model: BlobRef | None = None
    hard_examples: HardExamples | None = None


class FoldOrder(Message, frozen=True):
    """For an edge: gather a region's updates, fold them, forward one sum.

    Attributes:
        region: The protocol's order.
        layout: Digest of the layout.
        model: Where the model is.
        hard_examples: What joins the clients' data; None for nothing.
    """

    region: RegionOrder
    layout: Digest
    model: BlobRef
    hard_examples: HardExamples | None = None


class DismissOrder(Message, frozen=True):
    """For an edge: these runs have ended; an edge that was away hears of them when it is back."""

    runs: tuple[RunId, ...]


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
        hard_examples: What joins the clients' data; None for nothing.
        register: Whether the result becomes a model version.
        teacher_version: Version whose graph labels the hard examples; 0 for none.
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
    hard_examples: HardExamples | None = None
    register: bool = True
    teacher_version: int = 0


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
