"""An edge's side of rounds over edges: collect the updates of some clients, fold them, forward one sum per section.

    EdgeTask ─▶ updates, losses, returns ─▶ all settled, or the deadline ─▶ SumReport ─▶ Delivered

An acknowledged update is in the edge's log; an edge that is killed replays it and forwards the same sum, which the
cloud counts once. The state is a few small structs; vectors are in the blobs. The cloud's side is `cloud.py`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from edgewise.core.errors import PartFailed
from edgewise.core.ids import ClientId, Digest, digest_of
from edgewise.training.algorithm import FederatedAlgorithm
from edgewise.training.protocols import collection as c
from edgewise.training.protocols.folding import blob, empty_sums, fold, sums_to_bytes
from edgewise.training.protocols.letters import (
    COORDINATOR_ADDRESS,
    Address,
    AnyLetter,
    BlobName,
    Contribution,
    EdgeTask,
    RunEnded,
    SumReport,
    UpdateReport,
    WorkFailed,
    WorkOrder,
)
from edgewise.training.protocols.messages import (
    Accept,
    Action,
    ClientLost,
    ClientReturned,
    Delivered,
    EdgeLost,
    EdgeReturned,
    EndRun,
    Event,
    LetterInvalid,
    Member,
    Received,
    Refusal,
    Refuse,
    RunCancelled,
    Send,
    SetTimer,
    Store,
    TimerFired,
)
from edgewise.training.protocols.part_calls import asked
from edgewise.training.protocols.protocol import EDGE, Blobs, Role, Step
from edgewise.training.protocols.run_state import sections_for
from edgewise.training.protocols.step_parts import StepParts
from edgewise.training.protocols.transitions import Table, accepted, dispatch, ignored, refused


class OpenTask(msgspec.Struct, frozen=True):
    """One task in progress.

    Attributes:
        letter: The cloud's.
        collection: Its clients.
        report: What was forwarded; None before.
        is_delivered: The cloud has it, or has refused it.
        have_lost: Clients whose kept state is gone.
    """

    letter: EdgeTask
    collection: c.Collection
    report: SumReport | None = None
    is_delivered: bool = False
    have_lost: tuple[ClientId, ...] = ()


class EdgeState(msgspec.Struct, frozen=True):
    """What an edge is busy with in one run: tasks by number; those of former exchanges are forgotten.

    Attributes:
        tasks: By number.
        ended: The letter of the end of the run; None before.
    """

    tasks: dict[int, OpenTask] = {}
    ended: RunEnded | None = None


EdgeResult = tuple[EdgeState, tuple[Action, ...]]
SERVING, OVER = "serving", "over"
_NEW = EdgeState()


def make_step(algorithm: FederatedAlgorithm, blobs: Blobs) -> Step:
    """Binds an edge's side to its algorithm and its store.

    Args:
        algorithm: Of the run.
        blobs: Read by digest only.

    Returns:
        `step(state, event) -> (state, actions)`; the state before the first letter is None.
    """
    parts = StepParts(algorithm, blobs)

    def step(state: EdgeState | None, event: Event) -> EdgeResult:
        state = _NEW if state is None else state
        return dispatch(TABLE, EDGE, parts, phase(state), state, event)

    return step


def resume(state: EdgeState) -> tuple[Action, ...]:
    """What is outstanding after a replay: orders and timers of open tasks, sums that were not acknowledged."""
    if state.ended is not None:
        return (EndRun(), *_endings(state.ended, state.ended.by_client))
    return tuple(action for task in state.tasks.values() for action in _outstanding(task))


def wants(state: EdgeState, to: Address, letter: AnyLetter) -> bool:
    """Whether a letter still needs to be delivered."""
    if isinstance(letter, WorkOrder):
        return any(
            task.report is None and task.collection.is_current(letter) and letter.client in task.collection.outstanding
            for task in state.tasks.values()
        )
    if isinstance(letter, SumReport):
        task = state.tasks.get(letter.assignment)
        return task is not None and not task.is_delivered
    return isinstance(letter, RunEnded)


def is_over(state: EdgeState) -> bool:
    """Whether the run has ended."""
    return state.ended is not None


def reports(state: EdgeState) -> list[AnyLetter]:
    """Its sums, also once they were acknowledged."""
    return [task.report for task in state.tasks.values() if task.report is not None]


def without_order(state: EdgeState) -> EdgeState:
    """What is left where a blob of a task is gone: the cloud gives its tasks again, and tells this edge of the end to hand on."""
    return EdgeState(ended=state.ended)


def phase(state: EdgeState) -> str:
    """Whether it serves the run still: the column of its table."""
    return OVER if is_over(state) else SERVING


def needs(state: EdgeState) -> list[Digest]:
    """Blobs that this edge will still read, send or hand on."""
    found = []
    for task in state.tasks.values():
        found += [name.digest for name in task.letter.blobs]
        if task.report is None:
            found += [answer.update for answer in task.collection.answers.values()]
        else:
            found.append(task.report.sums.digest)
    return found


def _with(state: EdgeState, task: OpenTask) -> EdgeState:
    return EdgeState({**state.tasks, task.letter.assignment: task})


def _place(letter: Any) -> tuple[int, int]:
    return letter.round, letter.exchange


def _timer_name(letter: EdgeTask) -> str:
    return f"task/{letter.assignment}"


def _tasked(parts: StepParts, state: EdgeState, event: Received) -> EdgeResult:
    letter = event.letter
    assert isinstance(letter, EdgeTask)
    known = state.tasks.get(letter.assignment)
    if known is not None:  # it may have lost the sum, or refused it for its own sake: what it has not, it gets
        if known.is_delivered:
            known = msgspec.structs.replace(known, is_delivered=False)
            state = _with(state, known)
        return state, (Accept(), *_outstanding(known))
    newest = max((_place(task.letter) for task in state.tasks.values()), default=_place(letter))
    if newest > _place(letter):
        return state, (Refuse(Refusal.LATE, f"{letter.edge} works for round {newest[0]} already."),)
    kept = {n: task for n, task in state.tasks.items() if _place(task.letter) == _place(letter)}
    absent = f"not connected to {letter.edge}"
    members, missing = {}, {}
    for client in letter.clients:
        seen = event.present.get(client)
        members[client] = (
            Member(absence=absent) if seen is None else Member(seen.generation, num_examples=seen.num_examples)
        )
        if seen is None:
            missing[client] = absent
    collection = c.Collection(members, letter.round, letter.exchange, tuple(letter.clients), missing=missing)
    task = OpenTask(letter, collection)
    return _settled(parts, _with(EdgeState(kept), task), task, (Accept(), *_outstanding(task)))


def _outstanding(task: OpenTask) -> tuple[Action, ...]:
    letter = task.letter
    if task.report is not None:
        return () if task.is_delivered else (Send(COORDINATOR_ADDRESS, task.report),)
    timer = () if letter.deadline_s is None else (SetTimer(_timer_name(letter), letter.deadline_s),)
    return (*timer, *_orders(letter, task.collection.outstanding))


def _orders(letter: EdgeTask, clients: Iterable[ClientId]) -> tuple[Action, ...]:
    reply_to = Address("edge", letter.edge)
    return tuple(
        Send(
            Address("client", client),
            WorkOrder(
                spec=letter.spec,
                round=letter.round,
                client=client,
                sections=sections_for(letter.sections, letter.own, client),
                exchange=letter.exchange,
                counted=letter.clients[client],
                reply_to=reply_to,
            ),
        )
        for client in clients
    )


def _newest(state: EdgeState, client: ClientId) -> OpenTask | None:
    # Of several tasks that know the client (it was moved away and back) the newest counts.
    mine = [task for task in state.tasks.values() if client in task.letter.clients]
    return max(mine, key=lambda task: task.letter.assignment, default=None)


def _update(parts: StepParts, state: EdgeState, event: Received) -> EdgeResult:
    letter = event.letter
    assert isinstance(letter, UpdateReport)
    task = _newest(state, letter.client)
    run = next((t.letter.spec.run for t in state.tasks.values()), None)
    if task is None or letter.run != run:
        late = any(_place(t.letter) > _place(letter) for t in state.tasks.values())
        reason = Refusal.WRONG_RUN if letter.run != run else Refusal.LATE if late else Refusal.NOT_ASKED
        return state, (Refuse(reason, f"no task of run {letter.run} on this edge has asked {letter.client}."),)
    if task.report is not None:
        reason, text = c.refusal_of(task.collection, letter, event.generation) or (
            Refusal.LATE,
            f"the sum of round {task.letter.round} has been forwarded without {letter.client}.",
        )
        collection, actions = c.refuse(task.collection, reason, text)
        return _with(state, msgspec.structs.replace(task, collection=collection)), actions
    exchange = parts.algorithm.exchanges[task.letter.exchange]
    collection, actions = c.validate_update(
        exchange, parts.decoder, task.collection, letter, event.generation, task.letter.spec.num_entries
    )
    return _collected(parts, state, task, collection, actions)


def _failed(parts: StepParts, state: EdgeState, event: Received) -> EdgeResult:
    letter = event.letter
    assert isinstance(letter, WorkFailed)
    task = _newest(state, letter.client)
    if task is None or task.letter.spec.run != letter.run or not task.collection.is_current(letter):
        return state, (Accept(),)
    if letter.has_lost and letter.client not in task.have_lost:
        task = msgspec.structs.replace(task, have_lost=(*task.have_lost, letter.client))
    return _collected(parts, state, task, *c.work_failed(task.collection, letter))


def _invalid(parts: StepParts, state: EdgeState, event: LetterInvalid) -> EdgeResult:
    task = _newest(state, event.client)
    if task is None or task.letter.spec.run != event.run or task.report is not None:
        return state, (Refuse(Refusal.INVALID, event.reason),)
    return _collected(parts, state, task, *c.refuse_invalid(task.collection, event.client, event.reason))


def _delivered(parts: StepParts, state: EdgeState, event: Delivered) -> EdgeResult:
    if event.key.startswith("sum/"):
        task = state.tasks.get(int(event.key.removeprefix("sum/")))
        if task is None or task.report is None or task.is_delivered:
            return state, ()
        return _with(state, msgspec.structs.replace(task, is_delivered=True)), ()
    task = _newest(state, ClientId(event.to.name))
    if event.accepted or task is None:
        return state, ()
    # An order that its client refuses for good is that client's dropout.
    if event.key != f"work/{event.to.name}/{task.letter.round}/{task.letter.exchange}":
        return state, ()
    return _collected(parts, state, task, c.failed(task.collection, ClientId(event.to.name), event.reason), ())


def _lost(parts: StepParts, state: EdgeState, event: ClientLost) -> EdgeResult:
    return _for_each(parts, state, event.client, lambda task: (c.lost(task.collection, event.client, event.cause), ()))


def _returned(parts: StepParts, state: EdgeState, event: ClientReturned) -> EdgeResult:
    def back(task: OpenTask) -> tuple[c.Collection, tuple[Action, ...]]:
        collection, ask_again = c.returned(task.collection, event.client, event.seen)
        return collection, _orders(task.letter, (event.client,)) if ask_again else ()

    return _for_each(parts, state, event.client, back)


def _for_each(parts: StepParts, state: EdgeState, client: ClientId, judge: Any) -> EdgeResult:
    actions: tuple[Action, ...] = ()
    for task in state.tasks.values():
        if task.report is None and client in task.letter.clients:
            state, more = _collected(parts, state, task, *judge(task))
            actions += more
    return state, actions


def _timed_out(parts: StepParts, state: EdgeState, event: TimerFired) -> EdgeResult:
    for task in state.tasks.values():
        if _timer_name(task.letter) == event.name and task.report is None:
            cause = f"no update by the deadline of {task.letter.edge}"
            return _collected(parts, state, task, c.overdue(task.collection, cause), ())
    return state, ()


def _collected(
    parts: StepParts, state: EdgeState, task: OpenTask, collection: c.Collection, actions: tuple[Action, ...]
) -> EdgeResult:
    if collection is task.collection:
        return state, actions
    task = msgspec.structs.replace(task, collection=collection)
    return _settled(parts, _with(state, task), task, actions)


def _settled(parts: StepParts, state: EdgeState, task: OpenTask, actions: tuple[Action, ...]) -> EdgeResult:
    if task.report is not None or not task.collection.is_settled:
        return state, actions
    letter, collection = task.letter, task.collection
    answered = {client: collection.answers[client] for client in collection.cohort if client in collection.answers}
    exchange = parts.algorithm.exchanges[letter.exchange]
    missing, size = collection.missing, letter.spec.num_entries
    failed = tuple(client for client in collection.failures if client in missing)
    try:
        with asked(f"{letter.edge} cannot fold the updates of round {letter.round}"):
            data = sums_to_bytes(exchange, fold(exchange, parts.decoder, answered.values(), size))
    except PartFailed as error:  # the cloud must not wait for it
        missing = {**missing, **dict.fromkeys(answered, error.message)}
        failed += tuple(answered)
        answered, data = {}, sums_to_bytes(exchange, empty_sums(exchange, size))
    report = SumReport(
        run=letter.spec.run,
        round=letter.round,
        assignment=letter.assignment,
        edge=letter.edge,
        sums=BlobName(digest_of(data), len(data)),
        contributions={client: Contribution(a.num_examples, a.metrics) for client, a in answered.items()},
        exchange=letter.exchange,
        missing=missing,
        quarantined={client: m.quarantine for client, m in collection.members.items() if m.quarantine},
        uplink_bytes=sum(len(blob(parts.blobs, a.update)) for a in answered.values()),
        have_lost=task.have_lost,
        failed=failed,
    )
    state = _with(state, msgspec.structs.replace(task, report=report))
    timer = () if letter.deadline_s is None else (SetTimer(_timer_name(letter), None),)
    return state, (*actions, *timer, Store({report.sums.digest: data}), Send(COORDINATOR_ADDRESS, report))


def _ended(parts: StepParts, state: EdgeState, event: Received) -> EdgeResult:
    letter = event.letter
    assert isinstance(letter, RunEnded)
    return EdgeState(ended=letter), (Accept(), *_endings(letter, letter.by_client), EndRun())


def _endings(ended: RunEnded, clients: Iterable[ClientId]) -> tuple[Action, ...]:
    return tuple(
        Send(Address("client", client), RunEnded(run=ended.run, counted=ended.by_client[client]))
        for client in clients
        if client in ended.by_client
    )


def _cancelled(parts: StepParts, state: EdgeState, event: RunCancelled) -> EdgeResult:
    return EdgeState(ended=RunEnded(run=event.run)), (EndRun(),)


def _after_end(parts: StepParts, state: EdgeState, event: Received) -> EdgeResult:
    letter = event.letter
    assert isinstance(letter, UpdateReport)
    assert state.ended is not None
    counted = state.ended.by_client.get(letter.client) == letter.round and state.ended.run == letter.run
    return state, (Refuse(Refusal.DUPLICATE if counted else Refusal.LATE, f"run {state.ended.run} has ended."),)


def _end_again(parts: StepParts, state: EdgeState, event: ClientReturned) -> EdgeResult:
    assert state.ended is not None
    return state, _endings(state.ended, (event.client,))


TABLE = Table((SERVING, OVER), {
    EdgeTask:        (_tasked,    refused(Refusal.LATE, "the run has ended on this edge.")),
    UpdateReport:    (_update,    _after_end),
    WorkFailed:      (_failed,    accepted),
    RunEnded:        (_ended,     accepted),
    LetterInvalid:   (_invalid,   refused(Refusal.LATE, "the run has ended.")),
    Delivered:       (_delivered, ignored),
    ClientLost:      (_lost,      ignored),
    ClientReturned:  (_returned,  _end_again),
    TimerFired:      (_timed_out, ignored),
    RunCancelled:    (_cancelled, ignored),
    EdgeLost:        (ignored,    ignored),
    EdgeReturned:    (ignored,    ignored),
})  # fmt: skip
"""Other edges are no business of an edge."""

EDGE_ROLE = Role(
    make_step,
    resume,
    wants,
    is_over,
    needs,
    EdgeState,
    frozenset((WorkOrder, RunEnded)),
    without_order=without_order,
    reports=reports,
    phases=TABLE.phases,
    phase=phase,
)
