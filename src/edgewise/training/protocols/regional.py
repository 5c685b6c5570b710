"""An edge's part of a hierarchical round: gather the updates of its clients, fold them, forward one sum.

    RegionOpened ─▶ updates, losses, returns ─▶ all settled, or the deadline ─▶ ForwardSum ─▶ SumAcknowledged

An acknowledged update is in the edge's log; an edge that is killed replays it and forwards the same sum, which the
cloud counts once. The state is a few small structs; vectors are in the blobs. The cloud's side is `hierarchical.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from edgewise.core.ids import ClientId, RoundNumber, RunId, digest_of
from edgewise.training.algorithm import FederatedAlgorithm
from edgewise.training.algorithms import make_algorithm
from edgewise.training.protocols import gathering as g
from edgewise.training.protocols.admission import Judged, admit, refuse, refuse_invalid
from edgewise.training.protocols.folding import Blobs, arrays_to_bytes, fold
from edgewise.training.protocols.messages import (
    Action,
    ClientFailed,
    ClientLost,
    ClientReturned,
    Event,
    Member,
    Refusal,
    RefuseUpdate,
    RequestUpdate,
    RoundTimedOut,
    RunCancelled,
    SetRoundDeadline,
    UpdateInvalid,
    UpdateReceived,
)
from edgewise.training.protocols.regions import (
    Contribution,
    ForwardSum,
    RegionOpened,
    RegionOrder,
    RunDismissed,
    SumAcknowledged,
    SumReport,
)


class Region(msgspec.Struct, frozen=True):
    """One assignment in progress.

    Attributes:
        order: The cloud's.
        gathering: Its clients.
        report: What was forwarded; None before.
        is_acknowledged: The cloud has it.
    """

    order: RegionOrder
    gathering: g.Gathering
    report: SumReport | None = None
    is_acknowledged: bool = False


class EdgeState(msgspec.Struct, frozen=True):
    """What an edge is busy with: regions by run and assignment; those of a run's former rounds are forgotten."""

    regions: dict[str, Region] = {}


EdgeResult = tuple[EdgeState, tuple[Action, ...]]
EdgeStep = Callable[[EdgeState, Event], EdgeResult]
AlgorithmOf = Callable[[dict[str, Any]], FederatedAlgorithm]


def make_edge_step(blobs: Blobs, algorithm_of: AlgorithmOf = make_algorithm) -> EdgeStep:
    """Binds an edge's side to its store; the algorithm comes with each order.

    Args:
        blobs: Read by digest only.
        algorithm_of: Builds an algorithm from its words.

    Returns:
        `step(state, event) -> (state, actions)`; the first state is `EdgeState()`.
    """
    algorithm_of = _remembering(algorithm_of)

    def step(state: EdgeState, event: Event) -> EdgeResult:
        match event:
            case RegionOpened():
                return _opened(algorithm_of, blobs, state, event)
            case SumAcknowledged(run=run, assignment=assignment):
                name = _name(run, assignment)
                if name not in state.regions:
                    return state, ()
                return _with(state, msgspec.structs.replace(state.regions[name], is_acknowledged=True)), ()
            case RunDismissed(run=run) | RunCancelled(run=run):
                return EdgeState({n: r for n, r in state.regions.items() if r.order.run != run}), ()
            case UpdateReceived() | UpdateInvalid() | ClientFailed():
                return _addressed(algorithm_of, blobs, state, event)
            case _:
                actions: tuple[Action, ...] = ()
                for region in state.regions.values():
                    state, more = _gathered(algorithm_of, blobs, state, region, event)
                    actions += more
                return state, actions

    return step


def resume_edge(blobs: Blobs, state: EdgeState, algorithm_of: AlgorithmOf = make_algorithm) -> tuple[Action, ...]:
    """What is outstanding after a replay; carrying it out twice is harmless.

    Args:
        blobs: The edge's.
        state: As replayed.
        algorithm_of: Builds an algorithm from its words.

    Returns:
        Requests and deadlines of open regions, sums that were not acknowledged.
    """
    return tuple(a for region in state.regions.values() for a in _outstanding(algorithm_of, blobs, region))


def replay_edge(step: EdgeStep, events: Iterable[Event]) -> EdgeState:
    """Folds an edge's log to the state it leads to."""
    state = EdgeState()
    for event in events:
        state, _ = step(state, event)
    return state


def _remembering(algorithm_of: AlgorithmOf) -> AlgorithmOf:
    known: dict[bytes, FederatedAlgorithm] = {}

    def remembered(words: dict[str, Any]) -> FederatedAlgorithm:
        key = msgspec.msgpack.encode(words, order="deterministic")
        if key not in known:
            known[key] = algorithm_of(words)
        return known[key]

    return remembered


def _name(run: RunId, assignment: int) -> str:
    return f"{run}/{assignment}"


def _with(state: EdgeState, region: Region) -> EdgeState:
    return EdgeState({**state.regions, _name(region.order.run, region.order.assignment): region})


def _opened(algorithm_of: AlgorithmOf, blobs: Blobs, state: EdgeState, event: RegionOpened) -> EdgeResult:
    order = event.order
    known = state.regions.get(_name(order.run, order.assignment))
    if known is not None:
        return state, _outstanding(algorithm_of, blobs, known, ask_anew=True)
    newest = max((r.order.round for r in state.regions.values() if r.order.run == order.run), default=order.round)
    if newest > order.round:
        return state, ()
    kept = {n: r for n, r in state.regions.items() if r.order.run != order.run or r.order.round == order.round}
    absent = Member(absence=f"not connected to {order.edge}")
    members = {c: Member(event.present[c]) if c in event.present else absent for c in order.clients}
    gathering = g.opened(g.Gathering(members), order.round, order.clients)
    for client in order.clients:
        if client not in event.present:
            gathering = g.dropped(gathering, client, absent.absence)
    region = Region(order, gathering)
    state = _with(EdgeState(kept), region)
    return _settled(algorithm_of, blobs, state, region, _outstanding(algorithm_of, blobs, region))


def _outstanding(algorithm_of: AlgorithmOf, blobs: Blobs, region: Region, ask_anew: bool = False) -> tuple[Action, ...]:
    order = region.order
    if region.report is not None:
        if region.is_acknowledged and not ask_anew:
            return ()
        return (ForwardSum(region.report, _folded(algorithm_of(order.algorithm), blobs, region)),)
    actions: tuple[Action, ...] = (SetRoundDeadline(order.run, order.round, order.deadline_s),)
    if region.gathering.outstanding:
        actions += (RequestUpdate(order.run, order.round, region.gathering.outstanding, order.model),)
    return actions


def _addressed(
    algorithm_of: AlgorithmOf, blobs: Blobs, state: EdgeState, event: UpdateReceived | UpdateInvalid | ClientFailed
) -> EdgeResult:
    of_run = [r for r in state.regions.values() if r.order.run == event.run]
    mine = [r for r in of_run if event.client in r.order.clients]
    # Of several regions that know the client (it was moved away and back) the newest counts.
    region = max(mine, key=lambda r: r.order.assignment, default=None)
    if region is None:
        if not isinstance(event, UpdateReceived):
            return state, ()
        late = any(r.order.round > event.round for r in of_run)
        reason = Refusal.LATE if late else Refusal.NOT_ASKED if of_run else Refusal.WRONG_RUN
        text = f"no region of run {event.run} on this edge has asked {event.client}."
        return state, (RefuseUpdate(event.run, event.round, event.client, reason, text),)
    return _gathered(algorithm_of, blobs, state, region, event)


def _gathered(algorithm_of: AlgorithmOf, blobs: Blobs, state: EdgeState, region: Region, event: Event) -> EdgeResult:
    if region.report is not None:
        return _after_forwarding(state, region, event)
    gathering, actions = _changed(algorithm_of, blobs, region, event)
    region = msgspec.structs.replace(region, gathering=gathering)
    return _settled(algorithm_of, blobs, _with(state, region), region, actions)


def _changed(algorithm_of: AlgorithmOf, blobs: Blobs, region: Region, event: Event) -> Judged:
    gathering, order = region.gathering, region.order
    match event:
        case UpdateReceived():
            return admit(algorithm_of(order.algorithm), blobs, gathering, event, order.num_entries)
        case UpdateInvalid(run=run, round=number, client=client, reason=reason):
            return refuse_invalid(gathering, run, number, client, reason)
        case ClientFailed(round=number, client=client, cause=cause) if number == order.round:
            return g.dropped(gathering, client, cause), ()
        case ClientLost(client=client, cause=cause):
            return g.lost(gathering, client, cause), ()
        case ClientReturned(client=client, epoch=epoch) if client in order.clients:
            gathering, ask_again = g.returned(gathering, client, epoch)
            request = RequestUpdate(order.run, order.round, (client,), order.model)
            return gathering, (request,) if ask_again else ()
        case RoundTimedOut(run=run, round=number) if (run, number) == (order.run, order.round):
            for client in gathering.outstanding:
                gathering = g.dropped(gathering, client, f"no update by the deadline of {order.edge}")
            return gathering, ()
        case _:
            return gathering, ()


def _after_forwarding(state: EdgeState, region: Region, event: Event) -> EdgeResult:
    if not isinstance(event, UpdateReceived):
        return state, ()
    reason, text = g.refusal_of(region.gathering, event) or (
        Refusal.LATE,
        f"the sum of round {region.order.round} has been forwarded without {event.client}.",
    )
    gathering, actions = refuse(region.gathering, event, reason, text)
    return _with(state, msgspec.structs.replace(region, gathering=gathering)), actions


def _settled(
    algorithm_of: AlgorithmOf, blobs: Blobs, state: EdgeState, region: Region, actions: tuple[Action, ...]
) -> EdgeResult:
    if not region.gathering.is_settled:
        return state, actions
    data = _folded(algorithm_of(region.order.algorithm), blobs, region)
    report = _report(region, data)
    state = _with(state, msgspec.structs.replace(region, report=report))
    return state, (*actions, ForwardSum(report, data))


def _folded(algorithm: FederatedAlgorithm, blobs: Blobs, region: Region) -> bytes:
    total = fold(algorithm, blobs, region.gathering.answers.values(), region.order.num_entries)
    return arrays_to_bytes(algorithm.aggregate.to_arrays(total))


def _report(region: Region, data: bytes) -> SumReport:
    order, gathering = region.order, region.gathering
    answered: list[ClientId] = [c for c in gathering.cohort if c in gathering.answers]
    return SumReport(
        order.run,
        RoundNumber(order.round),
        order.assignment,
        order.edge,
        digest_of(data),
        {c: Contribution(gathering.answers[c].weight, gathering.answers[c].metrics) for c in answered},
        gathering.missing,
        {c: m.quarantine for c, m in gathering.members.items() if m.quarantine},
    )
