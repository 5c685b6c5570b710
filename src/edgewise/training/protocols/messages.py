"""Events and actions of every training protocol and role, as they stand in a node's log. Vectors are named by digest.

Events are facts in the past tense; a driver appends one to its log, then calls `step`, then carries out the actions.
A driver knows these few types and no protocol's name. Letters are in `letters.py`; `event_log.py` is the log's format.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from edgewise.core.ids import ClientId, Digest, Generation, NodeId, RoundNumber, RunId
from edgewise.training.algorithm import ClientRecord
from edgewise.training.protocols.letters import Address, AnyLetter, BlobName, SectionBlob, WorkOrder
from edgewise.training.protocols.run_spec import RunSpec

FORMER_RUNS = "former_runs"
"""In `RunSpec.extra`: names of the runs that a run goes on with, the last first, whose kept state stands on its clients."""


class FormerRun(msgspec.Struct, frozen=True, kw_only=True):
    """What a run goes on from: the state of one that ended early, after its last closed round.

    Attributes:
        sections: What its server kept, each section as a blob; `model` among them.
        records: What it knew of each client; what a client kept from its last update that counted stands.
        rounds: Its closed rounds; the next number is theirs.
    """

    sections: dict[str, SectionBlob]
    records: dict[ClientId, ClientRecord]
    rounds: tuple[RoundSummary, ...]


class RunConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What a run is; everything its result depends on, besides data.

    Attributes:
        spec: What every node must know of it.
        clients: Who may take part, in the order that selection sees.
        num_rounds: Rounds to do.
        quorum: Updates a round needs, at least 1.
        initial_model: Digest of the first model's bytes (float32, little-endian).
        round_deadline_s: Seconds a round may take; None waits for its cohort without limit.
        former: The run that it goes on with; None begins anew.
    """

    spec: RunSpec
    clients: tuple[ClientId, ...]
    num_rounds: int
    quorum: int
    initial_model: Digest
    round_deadline_s: float | None = None
    former: FormerRun | None = None

    @property
    def run(self) -> RunId:
        """Name of the run."""
        return self.spec.run

    @property
    def num_entries(self) -> int:
        """d, entries of the flat vector."""
        return self.spec.num_entries

    @property
    def seed(self) -> int:
        """The job's seed."""
        return self.spec.seed


class OutcomeKind(StrEnum):
    """How a run ended."""

    COMPLETED = "completed"
    TOO_FEW_CLIENTS = "too_few_clients"
    CANCELLED = "cancelled"
    FAILED = "failed"


class Outcome(msgspec.Struct, frozen=True):
    """The terminal state of a run.

    Attributes:
        kind: How it ended.
        sentence: What happened, with names and numbers.
        cure: What to do about it; "" where nothing is wrong.
        model: Digest of the last good model.
        num_rounds: Rounds completed.
    """

    kind: OutcomeKind
    sentence: str
    cure: str
    model: Digest
    num_rounds: int


class Refusal(StrEnum):
    """Why a letter does not count.

    `duplicate` means it was counted before: its sender hears yes. `run_unknown`: the order has only the run's name, its
    receiver needs the whole spec.
    """

    DUPLICATE = "duplicate"
    LATE = "late"
    WRONG_ROUND = "wrong_round"
    WRONG_RUN = "wrong_run"
    WRONG_GENERATION = "wrong_generation"
    NOT_ASKED = "not_asked"
    QUARANTINED = "quarantined"
    INVALID = "invalid"
    NO_EXAMPLES = "no_examples"
    RUN_UNKNOWN = "run_unknown"


class SeenClient(msgspec.Struct, frozen=True):
    """A client that is there.

    Attributes:
        generation: Its node's incarnation.
        num_examples: How many it holds.
        edge: The edge it stands under; "" for none.
    """

    generation: Generation
    num_examples: int = 0
    edge: NodeId = NodeId("")


class Event(msgspec.Struct, frozen=True):
    """Something that happened to a run on one node."""


class RunStarted(Event, frozen=True, tag="run_started"):
    """On the coordinator: the first event of every run.

    Attributes:
        config: The run.
        present: Clients that are there; the others are lost until they return.
        edges: Incarnation of each edge that is there.
    """

    config: RunConfig
    present: dict[ClientId, SeenClient]
    edges: dict[NodeId, Generation] = {}


class Received(Event, frozen=True, kw_only=True, tag="received"):
    """A signed letter has come and is stored with its blobs.

    Attributes:
        letter: What it says.
        sender: Who wrote it, as its certificate says.
        generation: The sender's incarnation when it was sent.
        present: On an edge: its clients that are there, for an `EdgeTask`; empty elsewhere.
    """

    letter: AnyLetter
    sender: NodeId
    generation: Generation
    present: dict[ClientId, SeenClient] = {}


class LetterInvalid(Event, frozen=True, kw_only=True, tag="letter_invalid"):
    """A letter came whose content cannot even be stored. Its sender goes into quarantine."""

    run: RunId
    client: ClientId
    round: RoundNumber
    generation: Generation
    reason: str


class Delivered(Event, frozen=True, kw_only=True, tag="delivered"):
    """The receiver of a letter has it durably, or has refused it for good.

    Attributes:
        to: Whose answer this is.
        key: Of the letter.
        accepted: Whether it counts there.
        reason: Why not.
    """

    to: Address
    key: str
    accepted: bool = True
    reason: str = ""


class WorkDone(Event, frozen=True, kw_only=True, tag="work_done"):
    """On a client: the local work of an order is done, its results are stored.

    Attributes:
        round, exchange: Of the order.
        update: The coded bundle to send.
        kept: What the client keeps if this update counts; None for nothing.
        num_examples, metrics: As in `UpdateReport`.
    """

    round: RoundNumber
    update: BlobName
    num_examples: int
    exchange: int = 0
    kept: Digest | None = None
    metrics: dict[str, float] = {}


class WorkGivenUp(Event, frozen=True, tag="work_given_up"):
    """On a client: the local work of an order cannot be done; `has_lost` and `has_diverged` as in `WorkFailed`."""

    round: RoundNumber
    exchange: int
    cause: str
    has_lost: bool = False
    has_diverged: bool = False


class ClientLost(Event, frozen=True, tag="client_lost"):
    """A client is unreachable, dead, frozen or hung; `cause` says which."""

    client: ClientId
    cause: str


class ClientReturned(Event, frozen=True, tag="client_returned"):
    """A client is there (again), or for the first time; older incarnations of it are fenced."""

    client: ClientId
    seen: SeenClient


class EdgeLost(Event, frozen=True, tag="edge_lost"):
    """An edge is unreachable."""

    edge: NodeId
    cause: str


class EdgeReturned(Event, frozen=True, tag="edge_returned"):
    """An edge is there (again); older incarnations of it are fenced."""

    edge: NodeId
    generation: Generation


class TimerFired(Event, frozen=True, tag="timer_fired"):
    """A timer set by `SetTimer` has run out."""

    name: str


class RunCancelled(Event, frozen=True, tag="run_cancelled"):
    """Somebody stops the run."""

    run: RunId
    cause: str


class Action(msgspec.Struct, frozen=True):
    """Something a driver must do."""


class Send(Action, frozen=True, tag="send"):
    """Deliver a letter; again and again until it is acknowledged, or `Protocol.wants` says no. Sending twice is harmless."""

    to: Address
    letter: AnyLetter


class Accept(Action, frozen=True, tag="accept"):
    """Tell the sender of the letter in hand that it counts."""


class Refuse(Action, frozen=True, tag="refuse"):
    """Tell the sender of the letter in hand that it does not count, and why. `duplicate` is a yes."""

    reason: Refusal
    text: str


class Store(Action, frozen=True, tag="store"):
    """Keep these bytes by digest before the next event."""

    blobs: dict[Digest, bytes]


class SetTimer(Action, frozen=True, tag="set_timer"):
    """Report `TimerFired` after so many seconds; a timer of that name is replaced, None only takes it back."""

    name: str
    seconds: float | None


class Work(Action, frozen=True, tag="work"):
    """On a client: do the local work of an order; report `WorkDone` or `WorkGivenUp`. Another `Work` ends this one.

    Attributes:
        order: What to do; its sections are stored.
        kept: What the client kept from its last update that counted; None for nothing.
    """

    order: WorkOrder
    kept: Digest | None = None


class Quarantine(Action, frozen=True, tag="quarantine"):
    """This node takes no further part in the run."""

    client: ClientId
    reason: str


class RoundSummary(msgspec.Struct, frozen=True, kw_only=True):
    """What a closed round was.

    Attributes:
        round: Its number, from 1.
        model: Digest of the model after it.
        num_examples: Of each participant.
        metrics: Means of the participants' metrics, weighted by examples; they judge the model *before* the round.
        missing: Cause by client of the cohort that did not take part.
        update_norm: Euclidean norm of the folded `model` section.
        staleness: Mean staleness of the updates; 0 in a synchronous round.
    """

    round: RoundNumber
    model: Digest
    num_examples: dict[ClientId, int]
    metrics: dict[str, float]
    missing: dict[ClientId, str]
    update_norm: float
    staleness: float = 0.0

    @property
    def participants(self) -> tuple[ClientId, ...]:
        """Who took part."""
        return tuple(self.num_examples)


class AnnounceRound(Action, frozen=True, tag="announce_round"):
    """Tell whoever watches that a round has closed."""

    summary: RoundSummary


class AnnounceWaiting(Action, frozen=True, tag="announce_waiting"):
    """Tell whoever watches that a round cannot go on, and what it waits for."""

    round: RoundNumber
    sentence: str


class EndRun(Action, frozen=True, tag="end_run"):
    """The run is over on this node; on the coordinator `outcome` is its one terminal state, elsewhere None."""

    outcome: Outcome | None = None


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """An update that counts, by reference.

    Attributes:
        update: Its coded bundle; "" where it is inside a sum.
        num_examples: Behind it.
        metrics: Of its local work.
        staleness: Rounds behind.
    """

    update: Digest
    num_examples: int
    metrics: dict[str, float] = {}
    staleness: int = 0


class Member(msgspec.Struct, frozen=True):
    """What a run knows of a client, or of an edge.

    Attributes:
        generation: Newest incarnation seen.
        absence: Why it is not there; "" if it is.
        quarantine: Why it takes no part any more; "" if it does.
        num_examples: How many it holds; 0 where that is not known.
    """

    generation: Generation = Generation(0)
    absence: str = ""
    quarantine: str = ""
    num_examples: int = 0

    @property
    def can_work(self) -> bool:
        """There, and trusted."""
        return not self.absence and not self.quarantine
