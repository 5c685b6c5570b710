"""The device's role, the same in every protocol a server leads: work on an order, report, settle what is kept.

    WorkOrder ─▶ Work ─▶ WorkDone ─▶ UpdateReport ─▶ Delivered ─▶ the next WorkOrder, or RunEnded: what counted is kept

What a client keeps from its work is provisional: it stands when a later order or the end of the run says that the
update of that round counted, else the former stands. So what a server and its clients know of each other never parts,
whatever is lost on the way. Local work is done once for a round and exchange; asked again, the report is repeated. A
client that keeps nothing, and whose work is short, has nothing to lose: it writes no log, and after a crash its server
asks again.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import msgspec

from edgewise.core.ids import Digest, RoundNumber
from edgewise.training.algorithm import FederatedAlgorithm
from edgewise.training.protocols.letters import (
    Address,
    AnyLetter,
    RunEnded,
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
    Received,
    Refusal,
    Refuse,
    RunCancelled,
    Send,
    TimerFired,
    Work,
    WorkDone,
    WorkGivenUp,
)
from edgewise.training.protocols.protocol import CLIENT, Blobs, Role, Step
from edgewise.training.protocols.transitions import Table, accepted, dispatch, ignored

LONG_WORK_S = 1.0
"""Local work from so many seconds on outlives its process: it is not asked for again after a crash."""


class ClientPhase(StrEnum):
    """What a client is busy with."""

    IDLE = "idle"
    WORKING = "working"
    REPORTING = "reporting"
    OVER = "over"


class Provisional(msgspec.Struct, frozen=True):
    """What a client keeps if its update of that round counts.

    Attributes:
        round, exchange: Of the update.
        kept: The bundle; None for nothing.
    """

    round: RoundNumber
    exchange: int
    kept: Digest | None = None


class ClientState(msgspec.Struct, frozen=True, kw_only=True):
    """One client in one run.

    Attributes:
        phase: What it is busy with.
        order: The newest order.
        base: What it kept when it began to work on it.
        report: What came of it, for when it is asked again.
        kept: What it keeps from its last update that counted.
        provisional: What it keeps instead if its newest update counts.
    """

    phase: ClientPhase = ClientPhase.IDLE
    order: WorkOrder | None = None
    base: Digest | None = None
    report: UpdateReport | WorkFailed | None = None
    kept: Digest | None = None
    provisional: Provisional | None = None


ClientResult = tuple[ClientState, tuple[Action, ...]]
_NEW = ClientState()


def make_step(algorithm: FederatedAlgorithm, blobs: Blobs) -> Step:
    """The client's step; it needs neither the algorithm nor any blob.

    Args:
        algorithm: Of the run.
        blobs: The client's.

    Returns:
        `step(state, event) -> (state, actions)`; the state before the first letter is None.
    """

    def step(state: ClientState | None, event: Event) -> ClientResult:
        state = _NEW if state is None else state
        result: ClientResult = dispatch(TABLE, CLIENT, None, state.phase, state, event)
        return result

    return step


def resume(state: ClientState) -> tuple[Action, ...]:
    """What is outstanding after a replay: the work, or its report."""
    if state.phase is ClientPhase.WORKING:
        assert state.order is not None
        return (Work(state.order, state.base),)
    if state.phase is ClientPhase.REPORTING:
        return (_report(state),)
    return (EndRun(),) if state.phase is ClientPhase.OVER else ()


def wants(state: ClientState, to: Address, letter: AnyLetter) -> bool:
    """Whether a report still needs to be delivered: until it is, or a newer order has come."""
    return state.phase is ClientPhase.REPORTING and state.report is not None and state.report.key == letter.key


def is_over(state: ClientState) -> bool:
    """Whether the run has ended for this client; `kept` stays for whoever serves it."""
    return state.phase is ClientPhase.OVER


def needs(state: ClientState) -> list[Digest]:
    """Blobs that this client will still read or send."""
    found = [state.kept, state.provisional.kept if state.provisional else None]
    if state.phase is ClientPhase.OVER:
        return [digest for digest in found if digest]
    found.append(state.base)
    if state.order is not None and state.phase is ClientPhase.WORKING:
        found += [section.blob.digest for section in state.order.sections]
    if isinstance(state.report, UpdateReport):
        found.append(state.report.update.digest)
    return [digest for digest in found if digest]


def reports(state: ClientState) -> tuple[AnyLetter, ...]:
    """What its server was told of its newest work, also once that was acknowledged."""
    return () if state.report is None else (state.report,)


def needs_log(event: Event) -> bool:
    """Whether an event brings what nobody could give this client again: something kept, or the fruit of long work."""
    return isinstance(event, WorkDone) and (event.kept is not None or is_long(event.metrics.get("seconds", 0.0)))


def is_long(seconds: float) -> bool:
    """Whether local work took so long that it is not done twice.

    Args:
        seconds: What it took.

    Returns:
        If not, its result need not be on disk before it is delivered.
    """
    return seconds >= LONG_WORK_S


def _place(order: WorkOrder) -> tuple[int, int]:
    return order.round, order.exchange


def _ordered(parts: Any, state: ClientState, event: Received) -> ClientResult:
    order, former = event.letter, state.order
    assert isinstance(order, WorkOrder)
    if former is None:
        return _begun(state, order)
    if order.spec is not former.spec and order.spec.run != former.spec.run:
        return state, (Refuse(Refusal.WRONG_RUN, f"run {order.spec.run} is not {former.spec.run}."),)
    asked, at_hand = _place(order), _place(former)
    if asked < at_hand:
        return state, (Refuse(Refusal.LATE, f"{order.client} works for round {former.round} already."),)
    if asked > at_hand or order.sections != former.sections:
        return _begun(state, order)
    # The same again, perhaps from another server: the work is done once, its report goes to who asks now.
    state = msgspec.structs.replace(state, order=order) if order != former else state
    if state.phase is ClientPhase.WORKING:
        return state, (Accept(),)
    if isinstance(state.report, UpdateReport):
        state = msgspec.structs.replace(state, phase=ClientPhase.REPORTING)
        return state, (Accept(), _report(state))
    state = msgspec.structs.replace(state, phase=ClientPhase.WORKING, report=None)
    return state, (Accept(), Work(order, state.base))


def _begun(state: ClientState, order: WorkOrder) -> ClientResult:
    former, provisional = state.order, state.provisional
    if former is not None and _place(former) == _place(order):
        base = state.base  # another content for the same question: it is answered anew from the same ground
    elif order.exchange and provisional is not None and provisional.round == order.round:
        base = provisional.kept  # who is asked on in a round was counted in its former exchange
    else:
        state = _settled(state, order.counted)
        base = state.kept
    state = ClientState(
        phase=ClientPhase.WORKING,
        order=order,
        base=base,
        kept=state.kept,
        provisional=state.provisional,
    )
    return state, (Accept(), Work(order, base))


def _settled(state: ClientState, counted: RoundNumber) -> ClientState:
    provisional = state.provisional
    if provisional is None:
        return state
    kept = provisional.kept if provisional.round == counted else state.kept
    return msgspec.structs.replace(state, kept=kept, provisional=None)


def _done(parts: Any, state: ClientState, event: WorkDone) -> ClientResult:
    order = state.order
    assert order is not None
    if (event.round, event.exchange) != _place(order):
        return state, ()
    report = UpdateReport(
        run=order.spec.run,
        round=order.round,
        client=order.client,
        update=event.update,
        num_examples=event.num_examples,
        exchange=order.exchange,
        metrics=event.metrics,
    )
    state = ClientState(
        phase=ClientPhase.REPORTING,
        order=order,
        base=state.base,
        report=report,
        kept=state.kept,
        provisional=Provisional(order.round, order.exchange, event.kept),
    )
    return state, (Send(order.reply_to, report),)


def _given_up(parts: Any, state: ClientState, event: WorkGivenUp) -> ClientResult:
    order = state.order
    assert order is not None
    if (event.round, event.exchange) != _place(order):
        return state, ()
    failed = WorkFailed(
        run=order.spec.run,
        round=order.round,
        client=order.client,
        cause=event.cause,
        exchange=order.exchange,
        has_lost=event.has_lost,
        has_diverged=event.has_diverged,
    )
    state = msgspec.structs.replace(state, phase=ClientPhase.REPORTING, report=failed)
    return state, (_report(state),)


def _report(state: ClientState) -> Send:
    assert state.order is not None
    assert state.report is not None
    return Send(state.order.reply_to, state.report)


def _delivered(parts: Any, state: ClientState, event: Delivered) -> ClientResult:
    # A refusal settles nothing here: whether the update counted is said by the next order, or by the end.
    if state.report is None or event.key != state.report.key:
        return state, ()
    return msgspec.structs.replace(state, phase=ClientPhase.IDLE), ()


def _ended(parts: Any, state: ClientState, event: Received) -> ClientResult:
    letter = event.letter
    assert isinstance(letter, RunEnded)
    state = _settled(state, letter.counted)
    return ClientState(phase=ClientPhase.OVER, kept=state.kept), (Accept(), EndRun())


def _cancelled(parts: Any, state: ClientState, event: RunCancelled) -> ClientResult:
    return ClientState(phase=ClientPhase.OVER, kept=state.kept), (EndRun(),)


def _too_late(parts: Any, state: ClientState, event: Event) -> ClientResult:
    return state, (Refuse(Refusal.LATE, "the run has ended on this client."),)


TABLE = Table(("idle", "working", "reporting", "over"), {
    #                           idle                working             reporting             over
    WorkOrder:      (_ordered,    _ordered,   _ordered,   _too_late),
    RunEnded:       (_ended,      _ended,     _ended,     accepted),
    WorkDone:       (ignored,     _done,      ignored,    ignored),
    WorkGivenUp:    (ignored,     _given_up,  ignored,    ignored),
    Delivered:      (ignored,     ignored,    _delivered, ignored),
    RunCancelled:   (_cancelled,  _cancelled, _cancelled, ignored),
    ClientLost:     (ignored,     ignored,    ignored,    ignored),
    ClientReturned: (ignored,     ignored,    ignored,    ignored),
    EdgeLost:       (ignored,     ignored,    ignored,    ignored),
    EdgeReturned:   (ignored,     ignored,    ignored,    ignored),
    TimerFired:     (ignored,     ignored,    ignored,    ignored),
})  # fmt: skip
"""Work that was replaced may still end: its `WorkDone` is ignored. Sightings of others are no business of a client."""


def after(kept: Digest) -> ClientState:
    """A client that begins a run which goes on with another.

    Args:
        kept: What it kept at the end of that.
    """
    return ClientState(kept=kept)


def without_order(state: ClientState) -> ClientState:
    """A client that has lost what its order came with: it waits for the next, and what it keeps stands.

    Args:
        state: Before.
    """
    return ClientState(kept=state.kept, provisional=state.provisional)


CLIENT_ROLE = Role(
    make_step,
    resume,
    wants,
    is_over,
    needs,
    ClientState,
    needs_log=needs_log,
    after=after,
    without_order=without_order,
    reports=reports,
    phases=TABLE.phases,
)
