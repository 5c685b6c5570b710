"""Events and actions of a training run, as they stand in the coordinator's log. Vectors are named by digest.

Events are facts in the past tense; a driver appends one to its log, then calls `step`, then carries out the actions.
All of them are frozen msgspec structs with tags; `event_log.py` is the log's format, `regions.py` has the messages
between cloud and edges.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import msgspec

from edgewise.core.ids import ClientId, Digest, Epoch, RoundNumber, RunId


class RunConfig(msgspec.Struct, frozen=True):
    """What a run is; everything its result depends on, besides data.

    Attributes:
        run: Name of the run.
        algorithm: Words of the algorithm, as `FederatedAlgorithm.spec.to_dict()` or a job's table.
        clients: Who may take part, in the order that selection sees.
        num_rounds: Rounds to do.
        quorum: Updates a round needs, at least 1.
        layout: Digest of the model's layout.
        num_entries: d, entries of the flat vector.
        initial_model: Digest of the first model's bytes (float32, little-endian).
        seed: The job's seed.
        round_deadline_s: Seconds a round may take; None waits for its cohort without limit.
    """

    run: RunId
    algorithm: dict[str, Any]
    clients: tuple[ClientId, ...]
    num_rounds: int
    quorum: int
    layout: Digest
    num_entries: int
    initial_model: Digest
    seed: int = 0
    round_deadline_s: float | None = None


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
    """Why an update does not count. `duplicate` means it was counted before: a driver acknowledges it again."""

    DUPLICATE = "duplicate"
    LATE = "late"
    WRONG_ROUND = "wrong_round"
    WRONG_RUN = "wrong_run"
    WRONG_EPOCH = "wrong_epoch"
    NOT_ASKED = "not_asked"
    QUARANTINED = "quarantined"
    INVALID = "invalid"
    NO_EXAMPLES = "no_examples"


def examples(weight: float) -> int:
    """A weight as a number of examples: 14.0 is 14; what counts no examples becomes -1, which no round accepts."""
    return int(weight) if float(weight).is_integer() else -1


class Event(msgspec.Struct, frozen=True):
    """Something that happened to a run."""


class RunStarted(Event, frozen=True, tag="run_started"):
    """The first event of every run.

    Attributes:
        config: The run.
        present: Incarnation of each client that is there; the others are lost until they return.
    """

    config: RunConfig
    present: dict[ClientId, Epoch]


class UpdateReceived(Event, frozen=True, tag="update_received"):
    """A client's signed update is stored durably.

    Attributes:
        run: Run it is for.
        round: Round it is for.
        client: Who made it.
        epoch: Its incarnation when it was sent.
        weight: Number of examples.
        payload: Digest of `payload_to_bytes(...)` of the coded update.
        metrics: Numbers of the local work, e.g. loss and accuracy of the received model on the client's data.
    """

    run: RunId
    round: RoundNumber
    client: ClientId
    epoch: Epoch
    weight: int
    payload: Digest
    metrics: dict[str, float] = {}

    def __post_init__(self) -> None:
        msgspec.structs.force_setattr(self, "weight", examples(self.weight))


class UpdateInvalid(Event, frozen=True, tag="update_invalid"):
    """An update came that cannot even be stored: the driver could not read it. Quarantines its sender."""

    run: RunId
    round: RoundNumber
    client: ClientId
    epoch: Epoch
    reason: str


class ClientFailed(Event, frozen=True, tag="client_failed"):
    """A client reports that it cannot do this round (no data, a broken task): a dropout with its own cause."""

    run: RunId
    round: RoundNumber
    client: ClientId
    epoch: Epoch
    cause: str


class ClientLost(Event, frozen=True, tag="client_lost"):
    """A client is unreachable, dead, frozen or hung; `cause` says which."""

    client: ClientId
    cause: str


class ClientReturned(Event, frozen=True, tag="client_returned"):
    """A client is there (again), or for the first time; older incarnations of it are fenced."""

    client: ClientId
    epoch: Epoch


class RoundTimedOut(Event, frozen=True, tag="round_timed_out"):
    """The deadline set by `SetRoundDeadline` has passed."""

    run: RunId
    round: RoundNumber


class RunCancelled(Event, frozen=True, tag="run_cancelled"):
    """Somebody stops the run."""

    run: RunId
    cause: str


class Action(msgspec.Struct, frozen=True):
    """Something a driver must do."""


class RequestUpdate(Action, frozen=True, tag="request_update"):
    """Ask these clients to work on this model; asking twice is harmless."""

    run: RunId
    round: RoundNumber
    clients: tuple[ClientId, ...]
    model: Digest


class SetRoundDeadline(Action, frozen=True, tag="set_round_deadline"):
    """Report `RoundTimedOut` after so many seconds, unless the round has closed; None sets none."""

    run: RunId
    round: RoundNumber
    deadline_s: float | None


class StoreModel(Action, frozen=True, tag="store_model"):
    """Keep these bytes by digest before the next event: the model after `round`, and the server's state.

    Attributes:
        run: The run.
        round: Round that made it; 0 is the initial server state.
        model: Digest of `data`.
        data: float32[d], little-endian; b"" where the model is stored already.
        server: Digest of `server_data`.
        server_data: The server's state as a payload's bytes.
    """

    run: RunId
    round: RoundNumber
    model: Digest
    data: bytes
    server: Digest
    server_data: bytes

    @property
    def blobs(self) -> dict[Digest, bytes]:
        """What to store, by digest."""
        return {d: b for d, b in ((self.model, self.data), (self.server, self.server_data)) if b}


class RefuseUpdate(Action, frozen=True, tag="refuse_update"):
    """Tell the sender that its update does not count, and why."""

    run: RunId
    round: RoundNumber
    client: ClientId
    reason: Refusal
    text: str


class AcceptUpdate(Action, frozen=True, tag="accept_update"):
    """Tell the sender that its update counts; it may forget it."""

    run: RunId
    round: RoundNumber
    client: ClientId


class Quarantine(Action, frozen=True, tag="quarantine"):
    """This node takes no further part in the run."""

    client: ClientId
    reason: str


class RoundSummary(msgspec.Struct, frozen=True):
    """What a closed round was.

    Attributes:
        round: Its number, from 1.
        model: Digest of the model after it.
        weights: Examples of each participant.
        metrics: Means of the participants' metrics, weighted by examples; they judge the model *before* the round.
        missing: Cause by client of the cohort that did not take part.
        update_norm: Euclidean norm of the mean update.
    """

    round: RoundNumber
    model: Digest
    weights: dict[ClientId, int]
    metrics: dict[str, float]
    missing: dict[ClientId, str]
    update_norm: float

    @property
    def participants(self) -> tuple[ClientId, ...]:
        """Who took part."""
        return tuple(self.weights)


class AnnounceRound(Action, frozen=True, tag="announce_round"):
    """Tell whoever watches that a round has closed."""

    run: RunId
    summary: RoundSummary


class AnnounceWaiting(Action, frozen=True, tag="announce_waiting"):
    """Tell whoever watches that a round cannot go on, and what it waits for."""

    run: RunId
    round: RoundNumber
    sentence: str


class EndRun(Action, frozen=True, tag="end_run"):
    """The run is over; this is its one terminal state."""

    run: RunId
    outcome: Outcome


class Answer(msgspec.Struct, frozen=True):
    """An accepted update, by reference."""

    payload: Digest
    weight: int
    metrics: dict[str, float] = {}


class Member(msgspec.Struct, frozen=True):
    """What a run knows of a client.

    Attributes:
        epoch: Newest incarnation seen.
        absence: Why it is not there; "" if it is.
        quarantine: Why it takes no part any more; "" if it does.
    """

    epoch: Epoch = Epoch(0)
    absence: str = ""
    quarantine: str = ""

    @property
    def can_work(self) -> bool:
        """There, and trusted."""
        return not self.absence and not self.quarantine
