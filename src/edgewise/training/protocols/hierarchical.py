"""Hierarchical rounds as a pure function: clients answer their edge, edges forward sums, the cloud folds sums.

    HierarchyStarted ─▶ choose a cohort ─▶ one region per edge ─▶ SumReceived … ─▶ close ─▶ … ─▶ EndRun
                               ▲                                                     │
                               └─────────────────────────────────────────────────────┘

Sums are exact, so the model equals the flat protocol's over the same survivors, bit for bit. A region is counted once.
A lost edge may come back with what it acknowledged, or its clients are asked again under another edge, or they are
dropouts. The edges' side is `regional.py`; what both protocols do with a run is `rounds.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, MutableMapping

import msgspec

from edgewise.core.errors import EdgewiseError, StoreError
from edgewise.core.ids import ClientId, Digest, NodeId, RoundNumber
from edgewise.training.algorithm import FederatedAlgorithm
from edgewise.training.protocols import gathering as g
from edgewise.training.protocols.cloud_state import (
    Assignment,
    CloudState,
    candidates,
    check_sum,
    order_of,
    read_sum,
    refusal_of,
    refuse_late,
)
from edgewise.training.protocols.folding import Blobs
from edgewise.training.protocols.messages import (
    Action,
    AnnounceWaiting,
    Answer,
    ClientLost,
    ClientReturned,
    EndRun,
    Event,
    Member,
    Quarantine,
    Refusal,
    RoundTimedOut,
    RunCancelled,
    RunStarted,
    SetRoundDeadline,
    StoreModel,
)
from edgewise.training.protocols.regions import (
    AcceptSum,
    ClientHomed,
    EdgeLost,
    EdgeReturned,
    HierarchyStarted,
    OpenRegion,
    RefuseSum,
    SumReceived,
    SumReport,
)
from edgewise.training.protocols.rounds import (
    Phase,
    cancelled,
    chose_too_few,
    closed,
    cohort_of,
    overdue,
    started,
    too_few,
    waiting,
    with_gathering,
)

CloudResult = tuple[CloudState, tuple[Action, ...]]
CloudStep = Callable[[CloudState | None, Event], CloudResult]


def make_cloud_step(algorithm: FederatedAlgorithm, blobs: Blobs) -> CloudStep:
    """Binds the cloud's side to its algorithm and its store.

    Args:
        algorithm: Built from the words in the run's config.
        blobs: Read by digest only.

    Returns:
        `step(state, event) -> (state, actions)`; the state before `HierarchyStarted` is None.
    """

    def step(state: CloudState | None, event: Event) -> CloudResult:
        if isinstance(event, HierarchyStarted):
            return _start(algorithm, blobs, event) if state is None else (state, ())
        if state is None:
            raise StoreError(f"the log begins with {type(event).__name__}, a run begins with HierarchyStarted.")
        if state.run.phase is Phase.ENDED:
            return (state, (refuse_late(state, event),)) if isinstance(event, SumReceived) else (state, ())
        match event:
            case SumReceived():
                state, actions = _sum_received(algorithm, blobs, state, event)
            case EdgeLost():
                state, actions = _edge_lost(algorithm, state, event)
            case EdgeReturned(edge=edge, epoch=epoch):
                state, actions = _edge_returned(algorithm, state, edge, epoch)
            case ClientLost(client=client, cause=cause):
                state, actions = _with(state, _absent(state.run.gathering, client, cause)), ()
            case ClientReturned():
                state, actions = _client_returned(algorithm, state, event)
            case ClientHomed(client=client, edge=edge):
                state, actions = msgspec.structs.replace(state, homes={**state.homes, client: edge}), ()
            case RoundTimedOut(run=run, round=number):
                is_now = (run, number) == (state.run.config.run, state.run.gathering.round)
                return _timed_out(algorithm, blobs, state) if is_now else (state, ())
            case RunCancelled(cause=cause):
                run_state, actions = cancelled(state.run, cause)
                return msgspec.structs.replace(state, run=run_state), actions
            case _:
                return state, ()
        return _settled(algorithm, blobs, state, actions)

    return step


def resume_cloud(state: CloudState) -> tuple[Action, ...]:
    """What is outstanding after a replay; carrying it out twice is harmless."""
    run = state.run
    if run.outcome is not None:
        return (EndRun(run.config.run, run.outcome),)
    orders = tuple(OpenRegion(order_of(state, n)) for n, a in state.assignments.items() if not a.sum and not a.is_void)
    deadline = SetRoundDeadline(run.config.run, run.gathering.round, run.config.round_deadline_s)
    return (deadline, *orders) if orders else (deadline, waiting(run))


def replay_cloud(step: CloudStep, events: Iterable[Event], store: MutableMapping[Digest, bytes]) -> CloudState | None:
    """Folds the cloud's log; models that were not stored before the crash are stored now."""
    state: CloudState | None = None
    for event in events:
        state, actions = step(state, event)
        for action in actions:
            if isinstance(action, StoreModel):
                store.update(action.blobs)
    return state


def _with(state: CloudState, gathering: g.Gathering) -> CloudState:
    return msgspec.structs.replace(state, run=with_gathering(state.run, gathering))


def _absent(gathering: g.Gathering, client: ClientId, cause: str) -> g.Gathering:
    # The client's edge decides whether it is a dropout of this round; here it only leaves the next rounds.
    return g.with_member(gathering, client, absence=cause) if client in gathering.members else gathering


def _start(algorithm: FederatedAlgorithm, blobs: Blobs, event: HierarchyStarted) -> CloudResult:
    run, actions = started(algorithm, blobs, RunStarted(event.config, event.present))
    edges = {edge: Member(epoch) for edge, epoch in event.edges.items()}
    for edge in event.homes.values():
        edges.setdefault(edge, Member(absence="not seen yet"))
    state = CloudState(run, event.homes, edges, waits_for_edges=event.waits_for_edges)
    return (state, actions) if run.phase is Phase.ENDED else _open(algorithm, state, actions)


def _open(algorithm: FederatedAlgorithm, state: CloudState, actions: tuple[Action, ...]) -> CloudResult:
    config, number = state.run.config, state.run.gathering.round
    actions += (SetRoundDeadline(config.run, number, config.round_deadline_s),)
    if len(candidates(state)) >= config.quorum:
        return _ask(algorithm, state, actions)
    run = with_gathering(state.run, g.opened(state.run.gathering, number, ()), Phase.WAITING)
    state = msgspec.structs.replace(state, run=run, assignments={})
    return state, (*actions, waiting(run))


def _ask(algorithm: FederatedAlgorithm, state: CloudState, actions: tuple[Action, ...]) -> CloudResult:
    config, number = state.run.config, state.run.gathering.round
    cohort = cohort_of(algorithm, candidates(state), number, config.seed)
    if len(cohort) < config.quorum:
        run, ending = chose_too_few(algorithm, state.run, len(cohort))
        return msgspec.structs.replace(state, run=run), actions + ending
    run = with_gathering(state.run, g.opened(state.run.gathering, number, cohort), Phase.OPEN)
    state = msgspec.structs.replace(state, run=run, assignments={})
    state, orders = _assigned(algorithm, state, cohort)
    return state, actions + orders


def _assigned(algorithm: FederatedAlgorithm, state: CloudState, clients: Iterable[ClientId]) -> CloudResult:
    by_edge: dict[NodeId, list[ClientId]] = {}
    for client in clients:
        by_edge.setdefault(state.homes[client], []).append(client)
    actions: tuple[Action, ...] = ()
    for edge in sorted(by_edge):
        number = state.next_assignment
        assignments = {**state.assignments, number: Assignment(edge, tuple(by_edge[edge]))}
        state = msgspec.structs.replace(state, assignments=assignments, next_assignment=number + 1)
        actions += (OpenRegion(order_of(state, number)),)
    return state, actions


def _sum_received(algorithm: FederatedAlgorithm, blobs: Blobs, state: CloudState, event: SumReceived) -> CloudResult:
    report, gathering = event.report, state.run.gathering
    refusal = refusal_of(state, event)
    if refusal is not None:
        state = _with(state, g.counted_refusal(gathering, refusal[0]))
        return state, (RefuseSum(report.run, report.edge, report.assignment, *refusal),)
    assignment = state.assignments[report.assignment]
    try:
        check_sum(algorithm, blobs, state, assignment, report)
    except StoreError:
        raise
    except EdgewiseError as error:
        return _quarantined(state, report, error.message)
    answers = {c: Answer(report.sum, p.weight, p.metrics) for c, p in report.contributions.items()}
    missing = {c: report.missing.get(c, "not in its edge's sum") for c in assignment.clients if c not in answers}
    gathering = g.change(gathering, answers={**gathering.answers, **answers}, missing={**gathering.missing, **missing})
    actions: tuple[Action, ...] = (AcceptSum(report.run, report.edge, report.assignment),)
    for client, reason in report.quarantined.items():
        if client in assignment.clients:
            gathering = g.with_member(gathering, client, quarantine=reason)
            actions += (Quarantine(client, reason),)
    settled = msgspec.structs.replace(assignment, sum=report.sum)
    state = msgspec.structs.replace(
        _with(state, gathering), assignments={**state.assignments, report.assignment: settled}
    )
    return _edge_seen(state, report.edge, event), actions


def _edge_seen(state: CloudState, edge: NodeId, event: SumReceived) -> CloudState:
    # A sum was sent before it arrived: an edge that was lost since stays absent until it is said to be back.
    member = msgspec.structs.replace(state.edges[edge], epoch=event.epoch)
    return msgspec.structs.replace(state, edges={**state.edges, edge: member})


def _quarantined(state: CloudState, report: SumReport, reason: str) -> CloudResult:
    member = msgspec.structs.replace(state.edges[report.edge], quarantine=reason)
    state = msgspec.structs.replace(state, edges={**state.edges, report.edge: member})
    state = _with(state, g.counted_refusal(state.run.gathering, Refusal.INVALID))
    state = _voided(state, report.edge, f"{report.edge} is in quarantine: {reason}")
    refuse = RefuseSum(report.run, report.edge, report.assignment, Refusal.INVALID, reason)
    return state, (refuse, Quarantine(ClientId(report.edge), reason))


def _voided(state: CloudState, edge: NodeId, cause: str) -> CloudState:
    assignments, gathering = dict(state.assignments), state.run.gathering
    for number, assignment in state.assignments.items():
        if assignment.edge == edge and not assignment.sum and not assignment.is_void:
            assignments[number] = msgspec.structs.replace(assignment, is_void=True)
            for client in assignment.clients:
                gathering = g.dropped(gathering, client, cause)
    return msgspec.structs.replace(_with(state, gathering), assignments=assignments)


def _edge_lost(algorithm: FederatedAlgorithm, state: CloudState, event: EdgeLost) -> CloudResult:
    if event.edge not in state.edges:
        return state, ()
    member = msgspec.structs.replace(state.edges[event.edge], absence=event.cause)
    homes = {**state.homes, **event.homes}
    open_clients = [
        c for a in state.assignments.values() if a.edge == event.edge and not a.sum and not a.is_void for c in a.clients
    ]
    state = msgspec.structs.replace(state, edges={**state.edges, event.edge: member}, homes=homes)
    if state.waits_for_edges and not event.homes:
        if not open_clients:
            return state, ()
        sentence = (
            f"round {state.run.gathering.round} waits for edge {event.edge} ({event.cause}), which holds the updates of "
            f"{len(open_clients)} clients, until it returns or the round's deadline"
        )
        return state, (AnnounceWaiting(state.run.config.run, state.run.gathering.round, sentence),)
    state = _voided(state, event.edge, f"its edge {event.edge} is lost: {event.cause}")
    # A client that was given up with its edge before may turn up elsewhere later in the round.
    given_up = [c for c in event.homes if c in state.run.gathering.missing]
    return _asked_again(algorithm, state, [c for c in dict.fromkeys((*open_clients, *given_up)) if c in event.homes])


def _asked_again(algorithm: FederatedAlgorithm, state: CloudState, clients: list[ClientId]) -> CloudResult:
    able = [c for c in clients if c in set(candidates(state)) and c in state.run.gathering.missing]
    missing = {c: cause for c, cause in state.run.gathering.missing.items() if c not in able}
    return _assigned(algorithm, _with(state, g.change(state.run.gathering, missing=missing)), able)


def _edge_returned(algorithm: FederatedAlgorithm, state: CloudState, edge: NodeId, epoch: int) -> CloudResult:
    known = state.edges.get(edge, Member())
    if epoch < known.epoch:
        return state, ()
    member = msgspec.structs.replace(known, epoch=epoch, absence="")
    state = msgspec.structs.replace(state, edges={**state.edges, edge: member})
    if state.run.phase is Phase.WAITING:
        return _ask_if_enough(algorithm, state)
    numbers = [n for n, a in state.assignments.items() if a.edge == edge and not a.sum and not a.is_void]
    return state, tuple(OpenRegion(order_of(state, n)) for n in numbers)


def _client_returned(algorithm: FederatedAlgorithm, state: CloudState, event: ClientReturned) -> CloudResult:
    was_missing = event.client in state.run.gathering.missing
    gathering, _ = g.returned(state.run.gathering, event.client, event.epoch)
    # `returned` forgets that it is missing; only a new region may do so here.
    kept = g.change(gathering, missing=state.run.gathering.missing)
    state = _with(state, kept)
    if state.run.phase is Phase.WAITING:
        return _ask_if_enough(algorithm, state)
    return _asked_again(algorithm, state, [event.client]) if was_missing else (state, ())


def _ask_if_enough(algorithm: FederatedAlgorithm, state: CloudState) -> CloudResult:
    enough = len(candidates(state)) >= state.run.config.quorum
    return _ask(algorithm, state, ()) if enough else (state, ())


def _timed_out(algorithm: FederatedAlgorithm, blobs: Blobs, state: CloudState) -> CloudResult:
    state = _with(state, overdue(state.run))
    enough = len(state.run.gathering.answers) >= state.run.config.quorum
    if state.run.phase is Phase.OPEN and enough:
        return _close(algorithm, blobs, state, ())
    run, actions = too_few(state.run)
    return msgspec.structs.replace(state, run=run), actions


def _settled(
    algorithm: FederatedAlgorithm, blobs: Blobs, state: CloudState, actions: tuple[Action, ...]
) -> CloudResult:
    gathering = state.run.gathering
    if state.run.phase is not Phase.OPEN or not gathering.is_settled:
        return state, actions
    if len(gathering.answers) >= state.run.config.quorum:
        return _close(algorithm, blobs, state, actions)
    return state, (*actions, waiting(state.run))


def _close(algorithm: FederatedAlgorithm, blobs: Blobs, state: CloudState, actions: tuple[Action, ...]) -> CloudResult:
    total = algorithm.aggregate.init(state.run.config.num_entries)
    for assignment in state.assignments.values():
        if assignment.sum:
            part = read_sum(algorithm, blobs, assignment.sum, state.run.config.num_entries)
            total = algorithm.aggregate.merge(total, part)
    run, closing = closed(algorithm, blobs, state.run, total)
    if run.phase is Phase.ENDED:
        return msgspec.structs.replace(state, run=run), actions + closing
    gathering = g.opened(run.gathering, RoundNumber(run.gathering.round + 1), ())
    state = msgspec.structs.replace(state, run=with_gathering(run, gathering))
    return _open(algorithm, state, actions + closing)
