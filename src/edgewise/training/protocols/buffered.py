"""Buffered asynchronous rounds: so many clients are always at work; whenever enough updates have come, the server steps.

    RunStarted ─▶ ask up to `concurrency` ─▶ update ─▶ ask another ─▶ … `buffer_size` updates ─▶ fold, step ─▶ …

No update waits for a slow client; one that was made from an older model has a staleness. A client whose update waits in the
buffer is asked again when it is folded, so that what it keeps is settled as always. A round is one step of the server.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import msgspec

from edgewise.core.errors import InputError, StoreError
from edgewise.core.ids import ClientId, Digest, RoundNumber
from edgewise.core.seeds import Seeds
from edgewise.core.spec import Spec
from edgewise.training.algorithm import ClientRecord, FederatedAlgorithm
from edgewise.training.protocols import collection as c
from edgewise.training.protocols import ending, opening
from edgewise.training.protocols import run_state as r
from edgewise.training.protocols.client_role import CLIENT_ROLE
from edgewise.training.protocols.closing import folded
from edgewise.training.protocols.letters import (
    Address,
    AnyLetter,
    RunEnded,
    SectionBlob,
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
    Quarantine,
    Received,
    Refusal,
    RunCancelled,
    RunStarted,
    Send,
    Store,
    TimerFired,
)
from edgewise.training.protocols.part_calls import ended_by_parts
from edgewise.training.protocols.protocol import CLIENT, COORDINATOR, Blobs, Protocol, Role, RunView, Step
from edgewise.training.protocols.run_state import Phase, RunState
from edgewise.training.protocols.step_parts import StepParts
from edgewise.training.protocols.transitions import Table, accepted, dispatch, ignored, refused


class Ticket(msgspec.Struct, frozen=True):
    """An order whose update is awaited, with its content, so that it can be sent again."""

    round: RoundNumber
    sections: tuple[SectionBlob, ...]
    counted: RoundNumber


class BufferedState(msgspec.Struct, frozen=True):
    """A run; its collection's answers are the buffer.

    Attributes:
        run: As in synchronous rounds.
        tickets: Clients that were asked and have not answered.
    """

    run: RunState
    tickets: dict[ClientId, Ticket] = {}


Result = tuple[BufferedState, tuple[Action, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _BufferParts(StepParts):
    concurrency: int
    buffer_size: int


def buffered(concurrency: int, buffer_size: int) -> Protocol:
    """Keeps `concurrency` clients at work and steps after every `buffer_size` updates.

    Give the aggregator a weight that falls with staleness: `weighted_mean(weigh="staleness")`. With a round deadline, what
    is in the buffer by then is folded.

    Args:
        concurrency: Clients at work at a time, M_c in the paper; at least `buffer_size`.
        buffer_size: Updates of a step, K; at least 1.

    Returns:
        The protocol.

    Raises:
        InputError: If the numbers are out of range.

    Reference:
        Nguyen et al., "Federated Learning with Buffered Asynchronous Aggregation", AISTATS 2022.
        Differs: a client is asked again only after its last update was folded.
    """
    if not 1 <= buffer_size <= concurrency:
        raise InputError(
            f"buffered takes 1 <= buffer_size <= concurrency, found buffer_size={buffer_size!r} and "
            f"concurrency={concurrency!r}. A buffer larger than what is at work never fills."
        )

    def make_step(algorithm: FederatedAlgorithm, blobs: Blobs) -> Step:
        parts = _BufferParts(algorithm, blobs, concurrency=concurrency, buffer_size=buffer_size)

        def step(state: BufferedState | None, event: Event) -> Result:
            if state is None:
                if not isinstance(event, RunStarted):
                    raise StoreError(f"the log begins with {type(event).__name__}, a run begins with RunStarted.")
                run, actions = opening.started(algorithm, blobs, event)
                state = BufferedState(run)
                return (state, actions) if run.phase is Phase.ENDED else _opened(parts, state, actions)
            return dispatch(TABLE, COORDINATOR, parts, state.run.phase, state, event)

        def ended(state: BufferedState | None, event: Event, fault: str) -> Result:
            if state is not None:
                return _ended(state, ending.failed(state.run, fault))
            assert isinstance(event, RunStarted)
            run, actions = opening.started(algorithm, blobs, event)
            run, end = ending.failed(run, fault)
            return _ended(BufferedState(run), (run, actions + end))

        return ended_by_parts(step, ended)

    role = Role(
        make_step,
        resume,
        wants,
        lambda state: state.run.phase is Phase.ENDED,
        needs,
        BufferedState,
        frozenset((WorkOrder, RunEnded)),
    )
    spec = Spec("buffered", {"concurrency": concurrency, "buffer_size": buffer_size})
    return Protocol(spec, {COORDINATOR: role, CLIENT: CLIENT_ROLE}, view, carries=_misfit)


def _misfit(algorithm: FederatedAlgorithm) -> str:
    num, server = len(algorithm.exchanges), algorithm.exchanges[0].server
    if num > 1:
        return f"its rounds have {num} exchanges with one cohort, here every client has a pace of its own."
    if server.needs_same_round:
        return f"{server.spec} reads an update by the round that it was asked in, here many are late. Take synchronous."
    return ""


def resume(state: BufferedState) -> tuple[Action, ...]:
    """What is outstanding after a replay; carrying it out twice is harmless."""
    if state.run.outcome is not None:
        return (EndRun(state.run.outcome), *ending.endings(state.run))
    orders = _orders(state, _at_work(state))
    return (*r.set_timer(state.run), *(orders or (r.waiting(state.run),)))


def wants(state: BufferedState, to: Address, letter: AnyLetter) -> bool:
    """Whether a letter still needs to be delivered: an order while its update is awaited, an ending always."""
    if isinstance(letter, WorkOrder):
        ticket = state.tickets.get(letter.client)
        return state.run.phase is Phase.OPEN and ticket is not None and ticket.round == letter.round
    return isinstance(letter, RunEnded)


def needs(state: BufferedState) -> list[Digest]:
    """Blobs that this run will still read or send."""
    return r.needs(state.run) + [s.blob.digest for ticket in state.tickets.values() for s in ticket.sections]


def view(state: BufferedState) -> RunView:
    """The run as everybody sees it."""
    return msgspec.structs.replace(r.view(state.run), outstanding=tuple(state.tickets))


def _with(state: BufferedState, collection: c.Collection, **fields: Any) -> BufferedState:
    run = r.with_collection(state.run, collection)
    return state if run is state.run and not fields else msgspec.structs.replace(state, run=run, **fields)


def _at_work(state: BufferedState) -> list[ClientId]:
    members = state.run.collection.members
    return [client for client in state.tickets if members[client].can_work]


def _orders(state: BufferedState, clients: Iterable[ClientId]) -> tuple[Action, ...]:
    spec = state.run.config.spec
    return tuple(
        Send(
            Address("client", client),
            WorkOrder(spec=spec, round=t.round, client=client, sections=t.sections, counted=t.counted),
        )
        for client, t in ((client, state.tickets[client]) for client in clients)
    )


def _opened(parts: _BufferParts, state: BufferedState, actions: tuple[Action, ...]) -> Result:
    run = state.run
    if run.phase is Phase.WAITING and len(run.collection.able) < run.config.quorum:
        return state, (*actions, *r.set_timer(run), r.waiting(run))
    state = msgspec.structs.replace(state, run=r.change(run, phase=Phase.OPEN))
    return _filled(parts, state, (*actions, *r.set_timer(run)))


def _filled(parts: _BufferParts, state: BufferedState, actions: tuple[Action, ...]) -> Result:
    """Asks as many more as there is room for, once the run has begun; who failed in this round is not asked again before the next."""
    run, collection, has_begun = state.run, state.run.collection, state.run.phase is Phase.OPEN
    busy = state.tickets.keys() | collection.answers.keys() | collection.missing.keys()
    free = [client for client in collection.able if client not in busy]
    num = min(parts.concurrency - len(_at_work(state)), len(free)) if has_begun else 0
    if num > 0:
        place = Seeds(run.config.seed).at("round", collection.round, "select", len(collection.answers), len(busy))
        rng = place.rng()
        chosen = opening.chosen(parts.algorithm, opening.candidates_of(run, free), collection.round, rng)
        asked = [chosen[i] for i in sorted(rng.permutation(len(chosen))[:num])]
        state, store = _asked(parts, state, asked, actions)
        return state, (*actions, *store, *_orders(state, asked))
    needed = parts.buffer_size if has_begun else run.config.quorum
    if run.deadline_s is None and ending.cannot_close(run, needed):
        run, end = ending.without_hope(run, needed)
        return _ended(state, (run, actions + end))
    return state, actions if _at_work(state) or not has_begun else (*actions, r.waiting(run))


def _asked(
    parts: _BufferParts, state: BufferedState, clients: list[ClientId], before: tuple[Action, ...]
) -> tuple[BufferedState, tuple[Action, ...]]:
    run, none = state.run, ClientRecord()
    blobs = opening.with_stored(parts.blobs, before)
    sent, own, data = opening.sections_down(parts.algorithm, blobs, run, 0, tuple(clients))
    tickets = {
        client: Ticket(run.collection.round, r.sections_for(sent, own, client), run.records.get(client, none).counted)
        for client in clients
    }
    run = r.change(run, records={**dict.fromkeys(clients, none), **run.records})
    state = msgspec.structs.replace(state, run=run, tickets={**state.tickets, **tickets})
    return state, (Store(data),) if data else ()


def _update(parts: _BufferParts, state: BufferedState, event: Received) -> Result:
    letter, run = event.letter, state.run
    assert isinstance(letter, UpdateReport)
    refusal = _refusal_of(state, letter, event)
    if refusal is not None:
        collection, actions = c.refuse(run.collection, *refusal)
        if refusal[0] is Refusal.NO_EXAMPLES:
            return _given_up(parts, _with(state, collection), letter.client, refusal[1], actions)
        return _with(state, collection), actions
    answer = c.answer_of(letter, run.collection.round - letter.round)
    exchange, left = parts.algorithm.exchanges[0], _without(state, letter.client)
    fault = c.fault_of(exchange, parts.decoder, answer, run.config.num_entries)
    if fault:
        collection, actions = c.refuse_invalid(run.collection, letter.client, fault)
        return _filled(parts, _with(state, collection, tickets=left), actions)
    collection = c.accepted(run.collection, letter.client, answer, event.generation)
    collection = c.change(collection, cohort=(*collection.cohort, letter.client))
    state = _with(state, collection, tickets=left)
    is_full = len(collection.answers) >= parts.buffer_size
    return _folded(parts, state, (Accept(),)) if is_full else _filled(parts, state, (Accept(),))


def _without(state: BufferedState, client: ClientId) -> dict[ClientId, Ticket]:
    return {other: ticket for other, ticket in state.tickets.items() if other != client}


def _refusal_of(state: BufferedState, letter: UpdateReport, event: Received) -> tuple[Refusal, str] | None:
    run, client, ticket = state.run, letter.client, state.tickets.get(letter.client)
    if letter.run != run.config.run or client not in run.records:
        reason = Refusal.WRONG_RUN if letter.run != run.config.run else Refusal.NOT_ASKED
        return reason, f"run {run.config.run} has not asked {client} for this."
    sender = c.sender_refusal(run.collection.members[client], letter, event.generation)
    if sender is not None:
        return sender
    if ticket is None or ticket.round != letter.round:
        answer = run.collection.answers.get(client)
        rounds = {run.records[client].counted, run.collection.round - answer.staleness if answer else None}
        reason = Refusal.DUPLICATE if letter.round in rounds else Refusal.LATE
        return reason, f"the update of {client} for round {letter.round} is not awaited."
    return c.count_refusal(letter)


def _folded(parts: _BufferParts, state: BufferedState, actions: tuple[Action, ...]) -> Result:
    run, closing = folded(parts, state.run)
    actions += closing
    if run.phase is Phase.ENDED:
        return _ended(state, (run, actions))
    return _opened(parts, msgspec.structs.replace(state, run=run), actions)


def _ended(state: BufferedState, result: r.Result) -> Result:
    run, actions = result
    return BufferedState(run), actions + ending.endings(run)


def _given_up(
    parts: _BufferParts, state: BufferedState, client: ClientId, cause: str, actions: tuple[Action, ...]
) -> Result:
    collection = state.run.collection
    collection = c.change(collection, missing={**collection.missing, client: cause})
    collection = c.failed_again(collection, client)
    return _filled(parts, _with(state, collection, tickets=_without(state, client)), actions)


def _failed(parts: _BufferParts, state: BufferedState, event: Received) -> Result:
    letter = event.letter
    assert isinstance(letter, WorkFailed)
    ticket = state.tickets.get(letter.client)
    if letter.run != state.run.config.run or ticket is None or ticket.round != letter.round:
        return state, (Accept(),)
    if letter.has_diverged:
        collection = c.quarantined(state.run.collection, letter.client, letter.cause)
        without = _with(state, collection, tickets=_without(state, letter.client))
        return _filled(parts, without, (Accept(), Quarantine(letter.client, letter.cause)))
    if letter.has_lost:  # it is asked again as one that never counted
        records = {**state.run.records, letter.client: ClientRecord()}
        state = msgspec.structs.replace(state, run=r.change(state.run, records=records))
    return _given_up(parts, state, letter.client, letter.cause, (Accept(),))


def _delivered(parts: _BufferParts, state: BufferedState, event: Delivered) -> Result:
    client = ClientId(event.to.name)
    ticket = state.tickets.get(client)
    if event.accepted or ticket is None or event.key != f"work/{client}/{ticket.round}/0":
        return state, ()
    return _given_up(parts, state, client, event.reason, ())


def _invalid(parts: _BufferParts, state: BufferedState, event: LetterInvalid) -> Result:
    collection, actions = c.refuse_invalid(state.run.collection, event.client, event.reason)
    return _filled(parts, _with(state, collection, tickets=_without(state, event.client)), actions)


def _lost(parts: _BufferParts, state: BufferedState, event: ClientLost) -> Result:
    # Its ticket stays: what it has under way counts when it comes, and others work in its place meanwhile.
    known = state.run.collection.members.get(event.client)
    if known is None or known.absence == event.cause:
        return state, ()
    state = _with(state, c.with_member(state.run.collection, event.client, absence=event.cause))
    return _filled(parts, state, ()) if state.run.phase is Phase.OPEN else (state, ())


def _returned(parts: _BufferParts, state: BufferedState, event: ClientReturned) -> Result:
    collection, _ = c.returned(state.run.collection, event.client, event.seen)
    if not c.exclusion(collection, event.client):
        missing = {client: cause for client, cause in collection.missing.items() if client != event.client}
        collection = c.change(collection, missing=missing)
    state = _with(state, collection)
    if state.run.phase is Phase.WAITING:
        return _opened(parts, state, ()) if len(collection.able) >= state.run.config.quorum else (state, ())
    again = _orders(state, (event.client,)) if event.client in _at_work(state) else ()
    return _filled(parts, state, again)


def _timed_out(parts: _BufferParts, state: BufferedState, event: TimerFired) -> Result:
    if event.name != r.timer_name(state.run):
        return state, ()
    if state.run.collection.answers:
        return _folded(parts, state, ())
    return _ended(state, ending.too_few(state.run))


def _cancelled(parts: _BufferParts, state: BufferedState, event: RunCancelled) -> Result:
    return _ended(state, ending.cancelled(state.run, event.cause)) if event.run == state.run.config.run else (state, ())


def _after_end(parts: _BufferParts, state: BufferedState, event: Received) -> Result:
    assert isinstance(event.letter, UpdateReport)
    run, actions = ending.after_end(state.run, event.letter)
    return msgspec.structs.replace(state, run=run), actions


def _end_again(parts: _BufferParts, state: BufferedState, event: ClientReturned) -> Result:
    return state, ending.endings_for(state.run, event.client)


TABLE = Table(("waiting", "open", "ended"), {
    UpdateReport:    (_update,       _update,       _after_end),
    WorkFailed:      (_failed,       _failed,       accepted),
    LetterInvalid:   (_invalid,      _invalid,      refused(Refusal.LATE, "the run has ended.")),
    Delivered:       (ignored,       _delivered,    ignored),
    ClientLost:      (_lost,         _lost,         ignored),
    ClientReturned:  (_returned,     _returned,     _end_again),
    EdgeLost:        (ignored,       ignored,       ignored),
    EdgeReturned:    (ignored,       ignored,       ignored),
    TimerFired:      (_timed_out,    _timed_out,    ignored),
    RunCancelled:    (_cancelled,    _cancelled,    ignored),
    RunStarted:      (ignored,       ignored,       ignored),
})  # fmt: skip
"""Edges are no business of this protocol; a run starts once."""
