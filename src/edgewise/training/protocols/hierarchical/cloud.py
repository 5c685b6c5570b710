"""The cloud's side of rounds over edges.

    RunStarted ─▶ choose a cohort ─▶ one task per edge ─▶ SumReports … ─▶ close ─▶ … ─▶ EndRun
                         ▲                                                  │
                         └──────────────────────────────────────────────────┘

An edge's sums count once. A lost edge may come back with what it acknowledged; where its clients turn up under another
edge they are asked again there, and what the lost edge had is void; at the deadline they are dropouts. The edges' side
is `edge.py`; what every server does with a run is in `opening.py`, `closing.py` and `ending.py`.
"""

from __future__ import annotations

from collections.abc import Iterable
from operator import attrgetter
from typing import Any

import msgspec

from edgewise.core.errors import EdgewiseError, StoreError
from edgewise.core.ids import ClientId, Digest, NodeId
from edgewise.training.algorithm import FederatedAlgorithm
from edgewise.training.protocols import collection as c
from edgewise.training.protocols.closing import closed
from edgewise.training.protocols.ending import cancelled as run_cancelled
from edgewise.training.protocols.ending import cannot_close, chose_too_few, failed, too_few, without_hope
from edgewise.training.protocols.folding import add_sums, blob, empty_sums
from edgewise.training.protocols.hierarchical.cloud_state import (
    Assignment,
    CloudState,
    able,
    check_sums,
    edge_fault,
    open_clients,
    refusal_of,
    task_of,
)
from edgewise.training.protocols.letters import Address, AnyLetter, EdgeTask, RunEnded, SumReport
from edgewise.training.protocols.messages import (
    Accept,
    Action,
    AnnounceWaiting,
    Answer,
    ClientLost,
    ClientReturned,
    Delivered,
    EdgeLost,
    EdgeReturned,
    EndRun,
    Event,
    LetterInvalid,
    Member,
    Quarantine,
    Received,
    Refusal,
    Refuse,
    RunCancelled,
    RunStarted,
    Send,
    TimerFired,
)
from edgewise.training.protocols.opening import begun_anew, candidates_of, cohort_of, opened, started, with_stored
from edgewise.training.protocols.part_calls import asked, ended_by_parts
from edgewise.training.protocols.protocol import COORDINATOR, Blobs, Role, RunView, Step
from edgewise.training.protocols.run_state import Phase, RunState, change, overdue, timer_name, waiting, with_collection
from edgewise.training.protocols.run_state import needs as run_needs
from edgewise.training.protocols.run_state import set_timer as run_timer
from edgewise.training.protocols.run_state import view as run_view
from edgewise.training.protocols.step_parts import StepParts
from edgewise.training.protocols.transitions import Table, dispatch, ignored, refused

CloudResult = tuple[CloudState, tuple[Action, ...]]


def make_step(algorithm: FederatedAlgorithm, blobs: Blobs) -> Step:
    """Binds the cloud's side to its algorithm and its store.

    Args:
        algorithm: Built from the spec in the run's config.
        blobs: Read by digest only.

    Returns:
        `step(state, event) -> (state, actions)`; the state before `RunStarted` is None.
    """
    parts = StepParts(algorithm, blobs)

    def step(state: CloudState | None, event: Event) -> CloudResult:
        if state is None:
            if not isinstance(event, RunStarted):
                raise StoreError(f"the log begins with {type(event).__name__}, a run begins with RunStarted.")
            return _start(parts, event)
        return dispatch(TABLE, COORDINATOR, parts, state.run.phase, state, event)

    def ended(state: CloudState | None, event: Event, fault: str) -> CloudResult:
        if state is not None:
            return _of_run(state, failed(state.run, fault), ())
        assert isinstance(event, RunStarted)
        state, actions = _begun(parts, event)
        return _of_run(state, failed(state.run, fault), actions)

    return ended_by_parts(step, ended)


def resume(state: CloudState) -> tuple[Action, ...]:
    """What is outstanding after a replay; carrying it out twice is harmless."""
    run = state.run
    if run.outcome is not None:
        return (EndRun(run.outcome), *_endings(state))
    timer = run_timer(run)
    tasks = _tasks(state, [n for n, a in state.assignments.items() if a.is_open])
    return (*timer, *tasks) if tasks else (*timer, _waiting(state))


def wants(state: CloudState, to: Address, letter: AnyLetter) -> bool:
    """Whether a letter still needs to be delivered: a task while its sums are awaited, an ending always."""
    if isinstance(letter, EdgeTask):
        assignment = state.assignments.get(letter.assignment)
        return state.run.phase is Phase.OPEN and assignment is not None and assignment.is_open
    return isinstance(letter, RunEnded)


def is_over(state: CloudState) -> bool:
    """Whether the run has ended."""
    return state.run.phase is Phase.ENDED


def needs(state: CloudState) -> list[Digest]:
    """Blobs that this run will still read or send."""
    return run_needs(state.run) + [a.sums for a in state.assignments.values() if a.sums]


def view(state: CloudState) -> RunView:
    """The run as everybody sees it."""
    return msgspec.structs.replace(run_view(state.run), edges={str(edge): m for edge, m in state.edges.items()})


def _change(state: CloudState, **fields: Any) -> CloudState:
    return msgspec.structs.replace(state, **fields)


def _with(state: CloudState, collection: c.Collection) -> CloudState:
    run = with_collection(state.run, collection)
    return state if run is state.run else _change(state, run=run)


def _of_run(state: CloudState, result: tuple[RunState, tuple[Action, ...]], before: tuple[Action, ...]) -> CloudResult:
    """The result of a step of the run itself, with letters of its end to edges where it has ended."""
    run, actions = result
    state, actions = _change(state, run=run), before + actions
    return (state, actions + _endings(state)) if run.phase is Phase.ENDED else (state, actions)


def _endings(state: CloudState) -> tuple[Action, ...]:
    by_edge: dict[NodeId, dict[ClientId, Any]] = {edge: {} for edge in state.edges}
    for client, record in state.run.records.items():
        by_edge.setdefault(state.edge_of[client], {})[client] = record.counted
    run = state.run.config.run
    return tuple(
        Send(Address("edge", edge), RunEnded(run=run, by_client=counted)) for edge, counted in sorted(by_edge.items())
    )


def _waiting(state: CloudState) -> AnnounceWaiting:
    causes = {client: edge_fault(state, client) for client in state.run.collection.able}
    return waiting(state.run, {client: cause for client, cause in causes.items() if cause})


def _start(parts: StepParts, event: RunStarted) -> CloudResult:
    state, actions = _begun(parts, event)
    return (state, actions) if state.run.phase is Phase.ENDED else _open_round(parts, state, actions)


def _begun(parts: StepParts, event: RunStarted) -> CloudResult:
    run, actions = started(parts.algorithm, parts.blobs, event)
    edge_of = {client: seen.edge for client, seen in event.present.items() if seen.edge}
    edges = {edge: Member(generation=generation) for edge, generation in event.edges.items()}
    for edge in edge_of.values():
        edges.setdefault(edge, c.NOT_SEEN)
    return CloudState(run, edge_of, edges), actions


def _open_round(parts: StepParts, state: CloudState, actions: tuple[Action, ...]) -> CloudResult:
    actions += run_timer(state.run)
    if len(able(state)) >= state.run.config.quorum:
        return _ask(parts, state, actions)
    run = change(state.run, phase=Phase.WAITING)
    if cannot_close(run, run.config.quorum):
        return _of_run(state, without_hope(run, run.config.quorum), actions)
    state = _change(state, run=run, assignments={})
    return state, (*actions, _waiting(state))


def _ask(parts: StepParts, state: CloudState, actions: tuple[Action, ...]) -> CloudResult:
    run = state.run
    cohort = cohort_of(parts.algorithm, candidates_of(run, able(state)), run.collection.round, run.config.seed)
    if len(cohort) < run.config.quorum:
        return _of_run(state, chose_too_few(parts.algorithm, run, len(cohort)), actions)
    return _open_exchange(parts, state, 0, cohort, actions)


def _open_exchange(
    parts: StepParts, state: CloudState, exchange: int, cohort: tuple[ClientId, ...], actions: tuple[Action, ...]
) -> CloudResult:
    blobs = with_stored(parts.blobs, actions)
    run, store = opened(parts.algorithm, blobs, state.run, exchange, cohort)
    state, tasks = _assigned(parts, _change(state, run=run, assignments={}), cohort)
    return _settled(parts, state, (*actions, *store, *tasks))


def _assigned(parts: StepParts, state: CloudState, clients: Iterable[ClientId]) -> CloudResult:
    by_edge: dict[NodeId, list[ClientId]] = {}
    for client in clients:
        by_edge.setdefault(state.edge_of[client], []).append(client)
    for edge in [edge for edge in by_edge if state.edges[edge].quarantine]:  # its sums would be refused
        for client in by_edge.pop(edge):
            state = _with(state, c.dropped(state.run.collection, client, edge_fault(state, client)))
    numbers = []
    for edge in sorted(by_edge):
        numbers.append(state.next_assignment)
        assignments = {**state.assignments, state.next_assignment: Assignment(edge, tuple(by_edge[edge]))}
        state = _change(state, assignments=assignments, next_assignment=state.next_assignment + 1)
    return state, _tasks(state, numbers)


def _tasks(state: CloudState, numbers: Iterable[int]) -> tuple[Action, ...]:
    return tuple(Send(Address("edge", state.assignments[n].edge), task_of(state, n)) for n in numbers)


def _sums(parts: StepParts, state: CloudState, event: Received) -> CloudResult:
    report, run = event.letter, state.run
    assert isinstance(report, SumReport)
    refusal = refusal_of(state, report, event.generation)
    if refusal is not None:
        collection, actions = c.refuse(run.collection, *refusal)
        return _with(state, collection), actions
    assignment, exchange = state.assignments[report.assignment], parts.algorithm.exchanges[run.collection.exchange]
    try:
        with asked("its sums"):
            check_sums(exchange, parts.blobs, assignment, report, run.config.num_entries)
    except StoreError:
        raise
    except EdgewiseError as error:
        return _settled(parts, *_edge_quarantined(state, report, error.message))
    collection, actions = _counted(run.collection, assignment, report)
    settled = msgspec.structs.replace(assignment, sums=report.sums.digest)
    # Sums were sent before they arrived: an edge that was lost since stays absent until an event brings it back.
    member = msgspec.structs.replace(state.edges[report.edge], generation=event.generation)
    state = _change(
        _with(state, collection),
        assignments={**state.assignments, report.assignment: settled},
        edges={**state.edges, report.edge: member},
    )
    # Who moved to another edge while this one worked is asked again there.
    moved = [client for client in report.missing if state.edge_of.get(client) != report.edge]
    for client in [each for each in assignment.clients if each in report.have_lost and each in report.missing]:
        run, store = begun_anew(parts.algorithm, parts.blobs, state.run, client)
        moved += [client] if run.own != state.run.own else []  # there is another letter for it
        state, actions = _change(state, run=run), actions + store
    state, again = _asked_again(parts, state, moved)
    return _settled(parts, state, actions + again)


def _counted(
    collection: c.Collection, assignment: Assignment, report: SumReport
) -> tuple[c.Collection, tuple[Action, ...]]:
    answers = {
        client: Answer(update=Digest(""), num_examples=p.num_examples, metrics=c.finite(p.metrics))
        for client, p in report.contributions.items()
    }
    missing = {
        client: report.missing.get(client, "not in its edge's sum")
        for client in assignment.clients
        if client not in answers
    }
    kept = {client: cause for client, cause in collection.missing.items() if client not in answers}
    actions: tuple[Action, ...] = (Accept(),)
    members = dict(collection.members)
    for client, answer in answers.items():
        if members[client].num_examples != answer.num_examples:
            members[client] = msgspec.structs.replace(members[client], num_examples=answer.num_examples)
    for client, reason in report.quarantined.items():
        if client in assignment.clients:
            members[client] = msgspec.structs.replace(members[client], quarantine=reason)
            actions += (Quarantine(client, reason),)
    collection = c.change(
        collection, members=members, answers={**collection.answers, **answers}, missing={**kept, **missing}
    )
    failed = [client for client in assignment.clients if client in report.failed and client in missing]
    return c.failed_again(collection, *failed), actions


def _edge_quarantined(state: CloudState, report: SumReport, reason: str) -> CloudResult:
    member = msgspec.structs.replace(state.edges[report.edge], quarantine=reason)
    collection, actions = c.refuse(state.run.collection, Refusal.INVALID, reason)
    state = _with(_change(state, edges={**state.edges, report.edge: member}), collection)
    state = _voided(state, report.edge, f"{report.edge} is in quarantine: {reason}")
    return state, (*actions, Quarantine(ClientId(report.edge), reason))


def _voided(state: CloudState, edge: NodeId, cause: str) -> CloudState:
    assignments, collection = dict(state.assignments), state.run.collection
    for number, assignment in state.assignments.items():
        if assignment.edge == edge and assignment.is_open:
            assignments[number] = msgspec.structs.replace(assignment, is_void=True)
            for client in assignment.clients:
                collection = c.dropped(collection, client, cause)
    return _change(_with(state, collection), assignments=assignments)


def _edge_lost(parts: StepParts, state: CloudState, event: EdgeLost) -> CloudResult:
    if event.edge not in state.edges:
        return state, ()
    member = msgspec.structs.replace(state.edges[event.edge], absence=event.cause)
    state = _change(state, edges={**state.edges, event.edge: member})
    held = open_clients(state, event.edge)
    if not held:
        return state, ()
    number = state.run.collection.round
    sentence = (
        f"round {number} waits for edge {event.edge} ({event.cause}), which holds the updates of "
        f"{len(held)} clients, until it returns or the round's deadline"
    )
    return state, (AnnounceWaiting(number, sentence),)


def _delivered(parts: StepParts, state: CloudState, event: Delivered) -> CloudResult:
    """A task that its edge refuses for good loses the edge."""
    if event.accepted or event.to.role != "edge" or not event.key.startswith("task/"):
        return state, ()
    assignment = state.assignments.get(int(event.key.removeprefix("task/")))
    if assignment is None or not assignment.is_open or assignment.edge != event.to.name:
        return state, ()
    return _edge_lost(parts, state, EdgeLost(assignment.edge, f"it refuses the order: {event.reason}"))


def _asked_again(parts: StepParts, state: CloudState, clients: Iterable[ClientId]) -> CloudResult:
    missing, ready = state.run.collection.missing, set(able(state))
    collection = state.run.collection
    again = [
        client for client in clients if client in ready and client in missing and not c.exclusion(collection, client)
    ]
    if not again or state.run.phase is not Phase.OPEN:
        return state, ()
    left = {client: cause for client, cause in missing.items() if client not in again}
    return _assigned(parts, _with(state, c.change(state.run.collection, missing=left)), again)


def _edge_returned(parts: StepParts, state: CloudState, event: EdgeReturned) -> CloudResult:
    known = state.edges.get(event.edge, Member())
    if event.generation < known.generation:
        return state, ()
    member = msgspec.structs.replace(known, generation=event.generation, absence="")
    if member != state.edges.get(event.edge):
        state = _change(state, edges={**state.edges, event.edge: member})
    if state.run.phase is Phase.WAITING:
        return _ask_if_enough(parts, state)
    numbers = [n for n, a in state.assignments.items() if a.edge == event.edge and a.is_open]
    tasks = _tasks(state, numbers)
    # Clients that were given up with this edge, and did not turn up elsewhere, are asked again under it.
    under = [client for client in state.run.collection.missing if state.edge_of.get(client) == event.edge]
    state, again = _asked_again(parts, state, under if known.absence else ())
    return state, tasks + again


def _client_lost(parts: StepParts, state: CloudState, event: ClientLost) -> CloudResult:
    # The client's edge decides whether it is a dropout of this exchange; here it only leaves the next rounds.
    collection = state.run.collection
    known = collection.members.get(event.client)
    if known is None or known.absence == event.cause:
        return state, ()
    return _with(state, c.with_member(collection, event.client, absence=event.cause)), ()


def _client_returned(parts: StepParts, state: CloudState, event: ClientReturned) -> CloudResult:
    client, seen, collection = event.client, event.seen, state.run.collection
    if seen.generation < collection.members.get(client, c.NOT_SEEN).generation:
        return state, ()
    former = state.edge_of.get(client)
    if seen.edge and seen.edge != former:
        edges = {seen.edge: c.NOT_SEEN, **state.edges}
        state = _change(state, edge_of={**state.edge_of, client: seen.edge}, edges=edges)
        failures = {other: n for other, n in collection.failures.items() if other != client}
        state = _with(state, c.change(collection, failures=failures))  # those under its former edge
        if former is not None and state.edges[former].absence and client in open_clients(state, former):
            state = _voided(state, former, f"its edge {former} is lost: {state.edges[former].absence}")
    missing = state.run.collection.missing
    collection, _ = c.returned(state.run.collection, client, seen)
    # `returned` forgets that it is missing; only a new task may do so here.
    state = _with(state, c.change(collection, missing=missing))
    if state.run.phase is Phase.WAITING:
        return _ask_if_enough(parts, state)
    if client in missing and state.edges.get(state.edge_of.get(client, NodeId("")), c.NOT_SEEN).quarantine:
        # It may still move; how often it is asked for is bounded, or a run without a deadline would never end.
        return _settled(parts, _with(state, c.failed_again(state.run.collection, client)), ())
    return _asked_again(parts, state, (client,))


def _ask_if_enough(parts: StepParts, state: CloudState) -> CloudResult:
    return _ask(parts, state, ()) if len(able(state)) >= state.run.config.quorum else (state, ())


def _timed_out(parts: StepParts, state: CloudState, event: TimerFired) -> CloudResult:
    if event.name != timer_name(state.run):
        return state, ()
    state = _change(state, run=overdue(state.run))
    if state.run.phase is Phase.OPEN and len(state.run.collection.answers) >= state.run.config.quorum:
        return _close(parts, state, ())
    return _of_run(state, too_few(state.run, _waiting(state)), ())


def _cancelled(parts: StepParts, state: CloudState, event: RunCancelled) -> CloudResult:
    if event.run != state.run.config.run:
        return state, ()
    return _of_run(state, run_cancelled(state.run, event.cause), ())


def _settled(parts: StepParts, state: CloudState, actions: tuple[Action, ...]) -> CloudResult:
    run = state.run
    if run.phase is not Phase.ENDED and cannot_close(run, run.config.quorum, run.collection.cohort):
        return _of_run(state, without_hope(run, run.config.quorum), actions)
    if run.phase is not Phase.OPEN or not run.collection.is_settled:
        return state, actions
    if len(run.collection.answers) >= run.config.quorum:
        return _close(parts, state, actions)
    return state, (*actions, _waiting(state))


def _close(parts: StepParts, state: CloudState, actions: tuple[Action, ...]) -> CloudResult:
    run = state.run
    exchange = parts.algorithm.exchanges[run.collection.exchange]
    with asked(f"the sums of round {run.collection.round} are folded"):
        sums = empty_sums(exchange, run.config.num_entries)
        for assignment in state.assignments.values():
            if assignment.sums:
                sums = add_sums(exchange, sums, blob(parts.blobs, assignment.sums))
    run, closing = closed(parts, run, sums)
    actions += closing
    if run.phase is Phase.ENDED:
        return _of_run(state, (run, ()), actions)
    state = _change(state, run=run)
    if run.collection.exchange:
        actions += run_timer(run)
        return _open_exchange(parts, state, run.collection.exchange, run.collection.cohort, actions)
    return _open_round(parts, state, actions)


def _after_end(parts: StepParts, state: CloudState, event: Received) -> CloudResult:
    report = event.letter
    assert isinstance(report, SumReport)
    known = state.assignments.get(report.assignment)
    counted = known is not None and known.sums == report.sums.digest and report.run == state.run.config.run
    return state, (Refuse(Refusal.DUPLICATE if counted else Refusal.LATE, f"run {state.run.config.run} has ended."),)


def _end_again(parts: StepParts, state: CloudState, event: EdgeReturned) -> CloudResult:
    """An edge that comes back after the end gets the letter of it again."""
    to = Address("edge", event.edge)
    return state, tuple(a for a in _endings(state) if isinstance(a, Send) and a.to == to)


_NO_UPDATES = refused(Refusal.NOT_ASKED, "in this run updates go to an edge.")

TABLE = Table(("waiting", "open", "ended"), {
    SumReport:       (_sums,            _sums,            _after_end),
    EdgeLost:        (_edge_lost,       _edge_lost,       ignored),
    EdgeReturned:    (_edge_returned,   _edge_returned,   _end_again),
    ClientLost:      (_client_lost,     _client_lost,     ignored),
    ClientReturned:  (_client_returned, _client_returned, ignored),
    Delivered:       (ignored,          _delivered,       ignored),
    TimerFired:      (_timed_out,       _timed_out,       ignored),
    RunCancelled:    (_cancelled,       _cancelled,       ignored),
    LetterInvalid:   (_NO_UPDATES,      _NO_UPDATES,      _NO_UPDATES),
    RunStarted:      (ignored,          ignored,          ignored),
})  # fmt: skip
"""Clients get the letter of the end from their edge; a run starts once."""

CLOUD_ROLE = Role(
    make_step,
    resume,
    wants,
    is_over,
    needs,
    CloudState,
    frozenset((EdgeTask, RunEnded)),
    phases=TABLE.phases,
    phase=attrgetter("run.phase"),
)
