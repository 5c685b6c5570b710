"""What nodes say to each other while they train, and what an operator says about runs.

Everything written in a run is a letter of its protocol (`training/protocols/letters.py`) and travels in one kind of
message, `RunLetter`; no message here knows which protocol it is.
"""

from __future__ import annotations

from typing import Any

import msgspec

from edgewise.core.ids import ClientId, Generation, NodeId, RunId
from edgewise.fleet.messages.message import BlobRef, Message
from edgewise.training.protocols.letters import Address, AnyLetter
from edgewise.training.protocols.messages import Refusal
from edgewise.training.protocols.run_spec import RunSpec

_HARD_EXAMPLES = "hard_examples"


class HardExamples(msgspec.Struct, frozen=True):
    """Train on hard examples, too, those that a device kept and that have a label.

    Attributes:
        labels: Spec of the label source.
        teacher: Graph of the model that labels; None where the source needs none, or asks the model in force.
    """

    labels: dict[str, Any]
    teacher: BlobRef | None = None


def hard_examples_of(spec: RunSpec) -> HardExamples | None:
    """The hard examples that a run's clients train on, beside their own; None for none."""
    found = spec.extra.get(_HARD_EXAMPLES)
    return None if found is None else msgspec.convert(found, HardExamples)


def with_hard_examples(spec: RunSpec, hard: HardExamples | None) -> RunSpec:
    """The run with these hard examples, or without any.

    Args:
        spec: The run.
        hard: What joins its clients' data.

    Returns:
        The same run otherwise.
    """
    others = {name: value for name, value in spec.extra.items() if name != _HARD_EXAMPLES}
    extra = others if hard is None else {**others, _HARD_EXAMPLES: msgspec.to_builtins(hard)}
    return msgspec.structs.replace(spec, extra=extra)


class RunLetter(Message, frozen=True, array_like=True):
    """A letter of a run, for one role of it on the receiving node.

    Blob number i of `letter.blobs` is the frame's tensor `i`, or its sender holds it.

    Attributes:
        to: The role.
        letter: What it says.
    """

    to: Address
    letter: AnyLetter


class LetterAck(Message, frozen=True, omit_defaults=True):
    """What became of a letter: durable and counted, or refused for good.

    Attributes:
        accepted: Whether it counts.
        refusal: Why not, as far as the protocol has a word for it.
        text: Why not; a sentence.
    """

    accepted: bool = True
    refusal: Refusal | None = None
    text: str = ""


class StoreNotice(Message, frozen=True):
    """Tells a run's server why the run waits on a node: a store there takes nothing now, or has lost something.

    Attributes:
        run: The run.
        node: Whose store.
        sentence: What the store says.
    """

    run: RunId
    node: NodeId
    sentence: str


class WhereIs(Message, frozen=True):
    """Asks which node holds a client's data; a client that writes to another one does not see the fleet itself."""

    client: ClientId


class ClientPlace(Message, frozen=True):
    """Where a client is: its node and that node's incarnation; "" if it is not seen."""

    node: NodeId = NodeId("")
    generation: Generation = Generation(0)


class SubmitRun(Message, frozen=True, kw_only=True):
    """An operator's request to train.

    Attributes:
        spec: What every node of the run must know; `run` "" lets the coordinator name it.
        task: Task name.
        num_rounds: Rounds.
        layout: msgpack of the `Layout`.
        quorum: Updates a round needs; 0 needs its whole cohort.
        round_deadline_s: Deadline of a round; None waits for every live client.
        clients: Who may take part; empty for all that hold data of the task.
        start_version: Version to start from; 0 for `model`.
        register: Whether the result becomes a model version.
        teacher_version: Version whose graph labels the hard examples; 0 for none.
        template: ONNX graph whose initializers are the layout's slots; the operator holds it. None where the model cannot be
            exported, then nothing is registered.
        model: First model, float32[d] little-endian; the operator holds it.
        task_code: Digest of the operator's code of the task; "" where it has none.
    """

    spec: RunSpec
    task: str
    num_rounds: int
    layout: bytes
    quorum: int = 0
    round_deadline_s: float | None = None
    clients: tuple[ClientId, ...] = ()
    start_version: int = 0
    register: bool = True
    teacher_version: int = 0
    template: BlobRef | None = None
    model: BlobRef | None = None
    task_code: str = ""


class RunSubmitted(Message, frozen=True):
    """A run has begun under this name."""

    run: RunId


class RunRequest(Message, frozen=True):
    """Asks how a run stands."""

    run: RunId


class TrainedModelRequest(Message, frozen=True):
    """Asks for the model of a run's last closed round, also while it goes on and where it ended early."""

    run: RunId


class TrainedModel(Message, frozen=True):
    """The model of a run's last closed round.

    Attributes:
        model: float32[d] little-endian; the coordinator holds it.
        layout: msgpack of its `Layout`.
        rounds_done: Closed rounds; at 0 it is the first model.
        own: Tensors that each client keeps to itself; they have their first values in it.
    """

    model: BlobRef
    layout: bytes
    rounds_done: int
    own: tuple[str, ...] = ()


class RoundRecord(msgspec.Struct, frozen=True):
    """One closed round, as people and reports see it.

    Attributes:
        round: Its number.
        loss: Mean over the participants, of the model they received.
        accuracy: Share of the coordinator's held-out examples that its model answers rightly; NaN where nothing can be judged.
        num_updates: Updates that were folded.
        missing: Cause by client that gave none.
        seconds: What it took.
        uplink_bytes, downlink_bytes: Payloads of its letters, each once, however often one had to be sent.
        metrics: The task's own, of held-out examples, where the coordinator has a judge (`--judge`).
    """

    round: int
    loss: float
    accuracy: float
    num_updates: int
    missing: dict[str, str]
    seconds: float
    uplink_bytes: int = 0
    downlink_bytes: int = 0
    metrics: dict[str, float] = {}


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


class ListRuns(Message, frozen=True):
    """Asks for all runs."""


class RunRow(msgspec.Struct, frozen=True):
    """One run in the list of all.

    Attributes:
        run: Its name.
        task: Whose model it trains.
        protocol: Who tells whom.
        state: As `RunStatus.state`.
        cause: As `RunStatus.cause`.
        rounds_done: Closed rounds.
        num_rounds: Rounds it was to do.
        loss: Of the last closed round; NaN without any.
        accuracy: Of its model on held-out data; NaN where it was not measured.
        version: The version it made; 0 if none.
        submitted_s: When, seconds since 1970.
    """

    run: RunId
    task: str
    protocol: str
    state: str
    cause: str
    rounds_done: int
    num_rounds: int
    loss: float
    accuracy: float
    version: int
    submitted_s: float


class RunList(Message, frozen=True):
    """All runs of a coordinator, oldest first."""

    runs: tuple[RunRow, ...]


class ResumeRun(Message, frozen=True):
    """Goes on with a run that ended early, as a new run from its last closed round.

    Attributes:
        run: Which.
        name: Of the new run; "" lets the coordinator name it.
    """

    run: RunId
    name: str = ""


class CancelRun(Message, frozen=True):
    """Stops a run; what is done stays."""

    run: RunId
