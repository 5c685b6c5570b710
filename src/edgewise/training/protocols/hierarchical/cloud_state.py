"""What the cloud knows of a hierarchical run, and which sums count. The step over it is `cloud.py`."""

from __future__ import annotations

import msgspec

from edgewise.core.errors import FrameRefused
from edgewise.core.ids import ClientId, Digest, Generation, NodeId, RoundNumber
from edgewise.training.algorithm import Counted, Exchange
from edgewise.training.protocols.collection import NOT_SEEN
from edgewise.training.protocols.folding import add_sums, blob, empty_sums
from edgewise.training.protocols.letters import EdgeTask, SumReport
from edgewise.training.protocols.messages import Member, Refusal
from edgewise.training.protocols.protocol import Blobs
from edgewise.training.protocols.run_state import RunState

EDGE_DEADLINE_FRACTION = 0.8
"""Share of the deadline after which an edge forwards what it has, so that its sum arrives in time."""


class Assignment(msgspec.Struct, frozen=True):
    """An edge's task of the open exchange, as the cloud sees it.

    Attributes:
        edge: Who folds.
        clients: Whom it asks.
        sums: Digest of its sums that count; "" before.
        is_void: Its clients were given to others or given up; its sums are refused.
    """

    edge: NodeId
    clients: tuple[ClientId, ...]
    sums: Digest = Digest("")
    is_void: bool = False

    @property
    def is_open(self) -> bool:
        """Its sums are awaited."""
        return not self.sums and not self.is_void


class CloudState(msgspec.Struct, frozen=True):
    """Everything a hierarchical run is on the cloud.

    Attributes:
        run: As in synchronous rounds; its collection counts clients.
        edge_of: Edge of each client.
        edges: What is known of each edge.
        assignments: Tasks of the open exchange by number.
        next_assignment: Number of the next task.
    """

    run: RunState
    edge_of: dict[ClientId, NodeId]
    edges: dict[NodeId, Member]
    assignments: dict[int, Assignment] = {}
    next_assignment: int = 1


def able(state: CloudState) -> tuple[ClientId, ...]:
    """Who could take part now: clients that are there, under an edge that is there."""
    return tuple(client for client in state.run.collection.able if not edge_fault(state, client))


def edge_fault(state: CloudState, client: ClientId) -> str:
    """Why a client cannot take part for its edge's sake; "" if nothing is wrong with it."""
    edge = state.edge_of.get(client)
    if edge is None:
        return "it stands under no edge; start it with --connect to one, or take the protocol synchronous"
    member = state.edges.get(edge, NOT_SEEN)
    if member.quarantine:
        return f"its edge {edge} is in quarantine: {member.quarantine}"
    return f"its edge {edge} is not there: {member.absence}" if member.absence else ""


def open_clients(state: CloudState, edge: NodeId) -> tuple[ClientId, ...]:
    """Clients whose updates an edge holds, or may hold, for sums that are awaited."""
    return tuple(c for a in state.assignments.values() if a.edge == edge and a.is_open for c in a.clients)


def task_of(state: CloudState, number: int) -> EdgeTask:
    """The letter of one assignment, the same each time it is sent."""
    run, assignment = state.run, state.assignments[number]
    mine = set(assignment.clients)
    return EdgeTask(
        spec=run.config.spec,
        round=run.collection.round,
        assignment=number,
        edge=assignment.edge,
        clients={c: run.records[c].counted if c in run.records else RoundNumber(0) for c in assignment.clients},
        sections=run.sent,
        exchange=run.collection.exchange,
        own={c: sections for c, sections in run.own.items() if c in mine},
        deadline_s=None if run.deadline_s is None else EDGE_DEADLINE_FRACTION * run.deadline_s,
    )


def refusal_of(state: CloudState, report: SumReport, generation: Generation) -> tuple[Refusal, str] | None:
    """Why sums do not count, judged by their names alone.

    Args:
        state: The run.
        report: What the edge says of them.
        generation: Incarnation of the edge when they were sent.

    Returns:
        Reason and sentence, or None where their content must be looked at.
    """
    run = state.run
    member, assignment = state.edges.get(report.edge), state.assignments.get(report.assignment)
    if report.run != run.config.run:
        return Refusal.WRONG_RUN, f"run {report.run} is not this run, {run.config.run}."
    if member is None or (assignment is not None and assignment.edge != report.edge):
        return Refusal.NOT_ASKED, f"task {report.assignment} was not given to {report.edge}."
    if generation < member.generation:
        text = f"{report.edge} sent this as incarnation {generation}; incarnation {member.generation} has taken over."
        return Refusal.WRONG_GENERATION, text
    if member.quarantine:
        return Refusal.QUARANTINED, f"{report.edge} is in quarantine: {member.quarantine}"
    if assignment is None or assignment.is_void or not run.collection.is_current(report):
        return Refusal.LATE, f"task {report.assignment} of round {report.round} has been closed or given to others."
    if assignment.sums:
        return Refusal.DUPLICATE, f"the sum of task {report.assignment} counts already."
    return None


def check_sums(exchange: Exchange, blobs: Blobs, assignment: Assignment, report: SumReport, num_entries: int) -> None:
    """Looks at the content of sums.

    Args:
        exchange: Its aggregators made them.
        blobs: Holds them.
        assignment: The task.
        report: What the edge says of them.
        num_entries: d.

    Raises:
        FrameRefused, InputError: If they are not sums of that task's clients.
    """
    strangers = set(report.contributions) - set(assignment.clients)
    if strangers or any(p.num_examples < 1 for p in report.contributions.values()):
        raise FrameRefused(f"the sum of {report.edge} counts {sorted(strangers)[:10]}, who are not in its task.")
    sums = add_sums(exchange, empty_sums(exchange, num_entries), blob(blobs, report.sums.digest))
    counted = [Counted(p.num_examples, 0, p.metrics) for p in report.contributions.values()]
    for name, total in sums.items():
        aggregator = exchange.aggregate[name]
        found, expected = aggregator.weight_of(total), aggregator.units([aggregator.weigh.weight(c) for c in counted])
        if found != expected:
            raise FrameRefused(f"the sum of {report.edge} has weight {found}, its clients have {expected}.")
