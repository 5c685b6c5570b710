"""Messages of the hierarchical protocol: what the cloud orders, what an edge reports, and both sides' events.

A *region* is one assignment: some clients of one round, folded by one edge. Its number is never reused in a run, so a
sum is known by (run, assignment) and counted once, whichever incarnation of the edge sends it.
"""

from __future__ import annotations

from typing import Any

import msgspec

from edgewise.core.ids import ClientId, Digest, Epoch, NodeId, RoundNumber, RunId
from edgewise.training.protocols.messages import Action, Event, Refusal, RunConfig


class RegionOrder(msgspec.Struct, frozen=True):
    """What an edge must know to fold its part of a round.

    Attributes:
        run: The run.
        round: The round.
        assignment: Number of the region in the run.
        edge: Who folds.
        clients: Whom to ask.
        model: Digest of the model to send them.
        algorithm: Words of the algorithm.
        num_entries: d.
        seed: The job's seed.
        deadline_s: Seconds until the edge forwards what it has; None waits for all.
    """

    run: RunId
    round: RoundNumber
    assignment: int
    edge: NodeId
    clients: tuple[ClientId, ...]
    model: Digest
    algorithm: dict[str, Any]
    num_entries: int
    seed: int = 0
    deadline_s: float | None = None


class Contribution(msgspec.Struct, frozen=True):
    """A client's part in a sum: its examples and its metrics."""

    weight: int
    metrics: dict[str, float] = {}


class SumReport(msgspec.Struct, frozen=True):
    """What an edge forwards beside the sum.

    Attributes:
        run: The run.
        round: The round.
        assignment: Which region.
        edge: Who folded.
        sum: Digest of the sum's bytes (`arrays_to_bytes(aggregate.to_arrays(...))`).
        contributions: Who is in the sum.
        missing: Cause by client that is not.
        quarantined: Reason by client that must not be asked again.
    """

    run: RunId
    round: RoundNumber
    assignment: int
    edge: NodeId
    sum: Digest
    contributions: dict[ClientId, Contribution]
    missing: dict[ClientId, str] = {}
    quarantined: dict[ClientId, str] = {}


class RegionOpened(Event, frozen=True, tag="region_opened"):
    """On an edge: an order of the cloud is stored durably. The same order again repeats what is outstanding.

    Attributes:
        order: The cloud's.
        present: Incarnation of each of the edge's clients that is there.
    """

    order: RegionOrder
    present: dict[ClientId, Epoch]


class SumAcknowledged(Event, frozen=True, tag="sum_acknowledged"):
    """On an edge: the cloud has the sum durably, or has refused it for good."""

    run: RunId
    assignment: int


class RunDismissed(Event, frozen=True, tag="run_dismissed"):
    """On an edge: the run has ended; its regions may be forgotten."""

    run: RunId


class HierarchyStarted(Event, frozen=True, tag="hierarchy_started"):
    """On the cloud: the first event of a hierarchical run.

    Attributes:
        config: The run; `clients` are all clients of all edges.
        present: Incarnation of each client that is there.
        homes: Edge of each client.
        edges: Incarnation of each edge that is there.
        waits_for_edges: A lost edge may return until the round's deadline with what it acknowledged; otherwise its
            clients are dropouts at once.
    """

    config: RunConfig
    present: dict[ClientId, Epoch]
    homes: dict[ClientId, NodeId]
    edges: dict[NodeId, Epoch]
    waits_for_edges: bool = True


class SumReceived(Event, frozen=True, tag="sum_received"):
    """On the cloud: an edge's signed sum is stored durably."""

    report: SumReport
    epoch: Epoch


class EdgeLost(Event, frozen=True, tag="edge_lost"):
    """On the cloud: an edge is unreachable. May be reported again with `homes` once its clients turned up elsewhere.

    Attributes:
        edge: Which.
        cause: Why.
        homes: New edge by client; these are asked again there, and what the lost edge had of them is void.
    """

    edge: NodeId
    cause: str
    homes: dict[ClientId, NodeId] = msgspec.field(default_factory=dict)


class EdgeReturned(Event, frozen=True, tag="edge_returned"):
    """On the cloud: an edge is there (again); older incarnations of it are fenced."""

    edge: NodeId
    epoch: Epoch


class ClientHomed(Event, frozen=True, tag="client_homed"):
    """On the cloud: a client stands under an edge from the next round on."""

    client: ClientId
    edge: NodeId


class OpenRegion(Action, frozen=True, tag="open_region"):
    """Cloud: send this order to its edge; sending it twice is harmless."""

    order: RegionOrder


class ForwardSum(Action, frozen=True, tag="forward_sum"):
    """Edge: store these bytes by `report.sum`, send both to the cloud, and again until it acknowledges."""

    report: SumReport
    data: bytes


class AcceptSum(Action, frozen=True, tag="accept_sum"):
    """Cloud: tell the edge that its sum counts; it may forget it."""

    run: RunId
    edge: NodeId
    assignment: int


class RefuseSum(Action, frozen=True, tag="refuse_sum"):
    """Cloud: tell the edge that its sum does not count, and why. `duplicate` is an acknowledgement."""

    run: RunId
    edge: NodeId
    assignment: int
    reason: Refusal
    text: str
