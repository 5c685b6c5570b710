"""What the cloud knows of a hierarchical run, and which sums count. The step over it is `hierarchical.py`."""

from __future__ import annotations

import msgspec

from edgewise.core.errors import FrameRefused
from edgewise.core.ids import ClientId, Digest, NodeId
from edgewise.training.algorithm import FederatedAlgorithm
from edgewise.training.algorithm import State as PartState
from edgewise.training.protocols.folding import Blobs, arrays_from_bytes, blob
from edgewise.training.protocols.messages import Member, Refusal
from edgewise.training.protocols.regions import RefuseSum, RegionOrder, SumReceived, SumReport
from edgewise.training.protocols.rounds import RunState

EDGE_DEADLINE_FRACTION = 0.8
"""Share of the round's deadline after which an edge forwards what it has, so that its sum arrives in time."""


class Assignment(msgspec.Struct, frozen=True):
    """A region of the current round, as the cloud sees it.

    Attributes:
        edge: Who folds.
        clients: Whom it was told to ask.
        sum: Digest of its accepted sum; "" before.
        is_void: Its clients were given to others or given up; its sum is refused.
    """

    edge: NodeId
    clients: tuple[ClientId, ...]
    sum: Digest = Digest("")
    is_void: bool = False


class CloudState(msgspec.Struct, frozen=True):
    """Everything a hierarchical run is on the cloud.

    Attributes:
        run: As in the flat protocol; its gathering counts clients.
        homes: Edge of each client.
        edges: What is known of each edge.
        assignments: Regions of the current round by number.
        next_assignment: Number of the next region.
        waits_for_edges: As in `HierarchyStarted`.
    """

    run: RunState
    homes: dict[ClientId, NodeId]
    edges: dict[NodeId, Member]
    assignments: dict[int, Assignment] = {}
    next_assignment: int = 1
    waits_for_edges: bool = True


def candidates(state: CloudState) -> tuple[ClientId, ...]:
    """Who could take part now: clients that are there, under an edge that is there."""
    gone = Member(absence="no such edge")
    return tuple(
        c for c in state.run.gathering.candidates if state.edges.get(state.homes.get(c, NodeId("")), gone).can_work
    )


def order_of(state: CloudState, number: int) -> RegionOrder:
    """The order of one region, the same each time it is sent."""
    config, assignment = state.run.config, state.assignments[number]
    deadline = None if config.round_deadline_s is None else EDGE_DEADLINE_FRACTION * config.round_deadline_s
    return RegionOrder(
        config.run, state.run.gathering.round, number, assignment.edge, assignment.clients, state.run.model,
        config.algorithm, config.num_entries, config.seed, deadline,
    )  # fmt: skip


def refusal_of(state: CloudState, event: SumReceived) -> tuple[Refusal, str] | None:
    """Why a sum does not count, judged by its names alone.

    Args:
        state: The run.
        event: The sum.

    Returns:
        Reason and sentence, or None where its content must be looked at.
    """
    report, run = event.report, state.run
    member, assignment = state.edges.get(report.edge), state.assignments.get(report.assignment)
    if report.run != run.config.run:
        return Refusal.WRONG_RUN, f"run {report.run} is not this run, {run.config.run}."
    if member is None or (assignment is not None and assignment.edge != report.edge):
        return Refusal.NOT_ASKED, f"region {report.assignment} was not given to {report.edge}."
    if event.epoch < member.epoch:
        text = f"{report.edge} sent this as incarnation {event.epoch}; incarnation {member.epoch} has taken over."
        return Refusal.WRONG_EPOCH, text
    if member.quarantine:
        return Refusal.QUARANTINED, f"{report.edge} is in quarantine: {member.quarantine}"
    if assignment is None or assignment.is_void or report.round != run.gathering.round:
        text = f"region {report.assignment} of round {report.round} has been closed or given to others."
        return Refusal.LATE, text
    if assignment.sum:
        return Refusal.DUPLICATE, f"the sum of region {report.assignment} counts already."
    return None


def refuse_late(state: CloudState, event: SumReceived) -> RefuseSum:
    """The answer to a sum that comes after the end."""
    report = event.report
    known = state.assignments.get(report.assignment)
    counted = known is not None and known.sum == report.sum and report.run == state.run.config.run
    reason = Refusal.DUPLICATE if counted else Refusal.LATE
    return RefuseSum(report.run, report.edge, report.assignment, reason, f"run {state.run.config.run} has ended.")


def check_sum(
    algorithm: FederatedAlgorithm, blobs: Blobs, state: CloudState, assignment: Assignment, report: SumReport
) -> None:
    """Looks at a sum's content.

    Args:
        algorithm: Its aggregator made the sum.
        blobs: Holds the sum.
        state: The run.
        assignment: The region.
        report: What the edge says of it.

    Raises:
        FrameRefused: If it is not a sum of that region's clients.
    """
    total = read_sum(algorithm, blobs, report.sum, state.run.config.num_entries)
    strangers = set(report.contributions) - set(assignment.clients)
    weight = sum(p.weight for p in report.contributions.values())
    if strangers or any(p.weight < 1 for p in report.contributions.values()):
        raise FrameRefused(f"the sum of {report.edge} counts {sorted(strangers)[:10]}, who are not in its region.")
    if weight != total.total_weight:
        raise FrameRefused(f"the sum of {report.edge} has weight {total.total_weight}, its clients have {weight}.")


def read_sum(algorithm: FederatedAlgorithm, blobs: Blobs, digest: Digest, num_entries: int) -> PartState:
    """A stored sum of d entries.

    Args:
        algorithm: Its aggregator made the sum.
        blobs: Holds it.
        digest: Its name.
        num_entries: d.

    Returns:
        The aggregator's state.

    Raises:
        FrameRefused, InputError: If it is not a sum of d entries.
    """
    total = algorithm.aggregate.from_arrays(arrays_from_bytes(blob(blobs, digest)))
    return algorithm.aggregate.merge(algorithm.aggregate.init(num_entries), total)
