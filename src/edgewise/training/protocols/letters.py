"""What nodes of a run write to each other: typed letters with the names of the blobs that travel with them.

A driver delivers a letter until it is acknowledged or its protocol wants it no more; at the other end its blobs are
fetched, `Received` is logged, the step answers. A letter holds all that a node needs which never heard of the run before;
on the wire an order leaves that out for a node that has taken one (`letter_delivery.py`).
"""

from __future__ import annotations

import msgspec

from edgewise.core.ids import ClientId, Digest, NodeId, RoundNumber, RunId
from edgewise.training.protocols.run_spec import RunSpec

SERVER = "server"
"""Author of what both a coordinator and an edge may write."""


class BlobName(msgspec.Struct, frozen=True, array_like=True):
    """Bytes by their digest."""

    digest: Digest
    size_bytes: int


class SectionBlob(msgspec.Struct, frozen=True, array_like=True):
    """A section on its way down, as a blob of its own: a model that all get is stored and sent by one name.

    Attributes:
        name: Of the section.
        blob: float32 little-endian bytes, or a coded bundle of this one section where `is_coded`.
        is_coded: Whether the exchange's downlink codec was used.
    """

    name: str
    blob: BlobName
    is_coded: bool = False


class Address(msgspec.Struct, frozen=True, array_like=True):
    """Whom a letter is for.

    Attributes:
        role: `client`, `edge` or `coordinator`.
        name: The client's or the edge node's; "" for the run's coordinator.
    """

    role: str
    name: str = ""


COORDINATOR_ADDRESS = Address("coordinator")


class Letter(msgspec.Struct, frozen=True, omit_defaults=True):
    """Base of everything written in a run."""

    @property
    def key(self) -> str:
        """Names the letter in its run, for `Delivered` and for repeated attempts."""
        raise NotImplementedError

    @property
    def blobs(self) -> tuple[BlobName, ...]:
        """What must be at the receiver before its step sees the letter."""
        return ()

    @property
    def passed_on(self) -> tuple[BlobName, ...]:
        """Those of `blobs` that the receiver only hands on: it takes the letter as soon as they begin to come."""
        return ()

    @property
    def author(self) -> Address:
        """Who may sign it: a client for itself, an edge for itself, `coordinator`, or `server` for either of the last two."""
        raise NotImplementedError


class WorkOrder(Letter, frozen=True, kw_only=True, tag="work_order"):
    """Server to client: do the local work of an exchange.

    Attributes:
        spec: The run.
        round, exchange: Which.
        client: Whose data.
        sections: What it gets.
        counted: Round of the client's last update that counted; what it kept from any other does not stand.
        reply_to: Whom the client answers.
    """

    spec: RunSpec
    round: RoundNumber
    client: ClientId
    sections: tuple[SectionBlob, ...]
    exchange: int = 0
    counted: RoundNumber = RoundNumber(0)
    reply_to: Address = COORDINATOR_ADDRESS

    @property
    def key(self) -> str:
        return f"work/{self.client}/{self.round}/{self.exchange}"

    @property
    def author(self) -> Address:
        return Address(SERVER)

    @property
    def blobs(self) -> tuple[BlobName, ...]:
        return tuple([section.blob for section in self.sections])


class UpdateReport(Letter, frozen=True, kw_only=True, tag="update_report"):
    """Client to server: what came of the local work.

    Attributes:
        run, round, exchange, client: Whose, for which exchange.
        update: A coded bundle.
        num_examples: Behind it.
        metrics: Numbers of the local work, e.g. loss of the received model on the client's data, `seconds`.
    """

    run: RunId
    round: RoundNumber
    client: ClientId
    update: BlobName
    num_examples: int
    exchange: int = 0
    metrics: dict[str, float] = {}

    @property
    def key(self) -> str:
        return f"update/{self.client}/{self.round}/{self.exchange}"

    @property
    def author(self) -> Address:
        return Address("client", self.client)

    @property
    def blobs(self) -> tuple[BlobName, ...]:
        return (self.update,)


class WorkFailed(Letter, frozen=True, kw_only=True, tag="work_failed"):
    """Client to server: it cannot do an exchange (no data, another model, a broken task, an update that is not finite).

    `has_lost`: what it kept is gone, it is to be asked as one that never counted. `has_diverged`: it is not to be asked again.
    """

    run: RunId
    round: RoundNumber
    client: ClientId
    cause: str
    exchange: int = 0
    has_lost: bool = False
    has_diverged: bool = False

    @property
    def key(self) -> str:
        return f"failed/{self.client}/{self.round}/{self.exchange}"  # an attempt that fails anew says so under it, too

    @property
    def author(self) -> Address:
        return Address("client", self.client)


class EdgeTask(Letter, frozen=True, kw_only=True, tag="edge_task"):
    """Cloud to edge: gather the updates of some clients, fold them, forward one sum. Its number is never reused in a run.

    Attributes:
        spec: The run.
        round, exchange: Which.
        assignment: Number of the task in the run.
        edge: Who folds.
        clients: Whom to ask, with the `counted` of each.
        sections: What all clients get.
        own: Sections of one client alone.
        deadline_s: Seconds until the edge forwards what it has; None waits for all.
    """

    spec: RunSpec
    round: RoundNumber
    assignment: int
    edge: NodeId
    clients: dict[ClientId, RoundNumber]
    sections: tuple[SectionBlob, ...]
    exchange: int = 0
    own: dict[ClientId, tuple[SectionBlob, ...]] = {}
    deadline_s: float | None = None

    @property
    def key(self) -> str:
        return f"task/{self.assignment}"

    @property
    def author(self) -> Address:
        return Address("coordinator")

    @property
    def passed_on(self) -> tuple[BlobName, ...]:
        return self.blobs

    @property
    def blobs(self) -> tuple[BlobName, ...]:
        own = (section.blob for sections in self.own.values() for section in sections)
        return (*(section.blob for section in self.sections), *own)


class Contribution(msgspec.Struct, frozen=True, omit_defaults=True):
    """A client's part in a sum."""

    num_examples: int
    metrics: dict[str, float] = {}


class SumReport(Letter, frozen=True, kw_only=True, tag="sum_report"):
    """Edge to cloud: folded sections, and who is in them.

    Attributes:
        run, round, exchange, assignment, edge: Whose, of which task.
        sums: The fold of each section (`Aggregator.to_arrays`) in one blob.
        contributions: Who is in it.
        missing: Cause by client that is not.
        quarantined: Reason by client that must not be asked again.
        uplink_bytes: Updates the edge took in for it.
        have_lost, failed: Clients whose kept state is gone (`WorkFailed.has_lost`); who is there without an update.
    """

    run: RunId
    round: RoundNumber
    assignment: int
    edge: NodeId
    sums: BlobName
    contributions: dict[ClientId, Contribution]
    exchange: int = 0
    missing: dict[ClientId, str] = {}
    quarantined: dict[ClientId, str] = {}
    uplink_bytes: int = 0
    have_lost: tuple[ClientId, ...] = ()
    failed: tuple[ClientId, ...] = ()

    @property
    def key(self) -> str:
        return f"sum/{self.assignment}"

    @property
    def author(self) -> Address:
        return Address("edge", self.edge)

    @property
    def blobs(self) -> tuple[BlobName, ...]:
        return (self.sums,)


class RunEnded(Letter, frozen=True, kw_only=True, tag="run_ended"):
    """Server to edges and clients: the run is over; what was provisional is settled, the rest may be forgotten.

    Attributes:
        run: Which.
        counted: Round of the client's last update that counted; for an edge, by client in `by_client`.
        by_client: For an edge to pass on.
    """

    run: RunId
    counted: RoundNumber = RoundNumber(0)
    by_client: dict[ClientId, RoundNumber] = {}

    @property
    def key(self) -> str:
        return "ended"

    @property
    def author(self) -> Address:
        return Address(SERVER)


class GossipTask(Letter, frozen=True, kw_only=True, tag="gossip_task"):
    """Coordinator to client, once: the run, and to whom it writes; after it no coordinator is needed.

    Attributes:
        spec: The run.
        client: Whose data.
        sections: The first model.
        peers: Neighbours out, each with its part of what the client has; own part is what is left of 1.
        listens_to: Neighbours in.
        num_rounds: Rounds of local work.
        mixing: Rounds of shares after each.
        round_deadline_s: After so long a round of shares goes on without neighbours that are silent; None waits.
    """

    spec: RunSpec
    client: ClientId
    sections: tuple[SectionBlob, ...]
    peers: dict[ClientId, float]
    listens_to: tuple[ClientId, ...]
    num_rounds: int
    mixing: int = 1
    round_deadline_s: float | None = None

    @property
    def key(self) -> str:
        return f"gossip/{self.client}"

    @property
    def author(self) -> Address:
        return Address("coordinator")

    @property
    def blobs(self) -> tuple[BlobName, ...]:
        return tuple([section.blob for section in self.sections])


class PeerShare(Letter, frozen=True, kw_only=True, tag="peer_share"):
    """Client to client: its share of a value and of the weight (push-sum).

    Attributes:
        run, round: Which; rounds of shares are counted through the run, from 1.
        sender: From whom.
        receiver: For whom.
        share: A mass in one blob (`gossip/mass.py`).
    """

    run: RunId
    round: RoundNumber
    sender: ClientId
    receiver: ClientId
    share: BlobName

    @property
    def key(self) -> str:
        return f"share/{self.sender}/{self.receiver}/{self.round}"

    @property
    def author(self) -> Address:
        return Address("client", self.sender)

    @property
    def blobs(self) -> tuple[BlobName, ...]:
        return (self.share,)


class GossipReport(Letter, frozen=True, kw_only=True, tag="gossip_report"):
    """Client to coordinator, at the end: the model it came to.

    Attributes:
        run, round, client: Whose, after how many rounds of shares.
        value: float32 little-endian bytes of its model.
        num_examples: Behind what it brought.
        metrics: Numbers of its local work, and of its mass: `brought`, `weight` now, `unconfirmed` under way to others.
        lost: Why, by neighbour that it takes for lost; by its own name, why its last work failed.
    """

    run: RunId
    round: RoundNumber
    client: ClientId
    value: BlobName
    num_examples: int = 0
    metrics: dict[str, float] = {}
    lost: dict[ClientId, str] = {}

    @property
    def key(self) -> str:
        return f"gossip_report/{self.client}"

    @property
    def author(self) -> Address:
        return Address("client", self.client)

    @property
    def blobs(self) -> tuple[BlobName, ...]:
        return (self.value,)


Order = WorkOrder | EdgeTask | GossipTask
"""What begins a role at its receiver: it says what the run is."""
AnyLetter = (
    WorkOrder | UpdateReport | WorkFailed | EdgeTask | SumReport | RunEnded | GossipTask | PeerShare | GossipReport
)
"""What a log or a frame may hold."""
