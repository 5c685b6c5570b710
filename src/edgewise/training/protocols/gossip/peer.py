"""A client that gossips: local work on its own model, shares to and from its neighbours, a report at the end.

    GossipTask ─▶ Work ─▶ a share to each neighbour ⇄ theirs, `mixing` times ─▶ Work ─▶ … ─▶ GossipReport ─▶ RunEnded

What it has is a mass. A share that a neighbour refuses for good is taken back; one that nobody acknowledged is said to be
unconfirmed. A neighbour that is silent beyond the deadline gets no more shares until it is heard again; what comes late is
added when it comes. No coordinator is needed between task and report.
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

from edgewise.core.errors import EdgewiseError, FrameRefused, StoreError
from edgewise.core.ids import ClientId, Digest, RoundNumber, digest_of
from edgewise.core.layout import Vector
from edgewise.training.algorithm import MODEL, Counted, FederatedAlgorithm
from edgewise.training.protocols.collection import finite
from edgewise.training.protocols.folding import blob, decode_update, section_from_blob, section_to_blob
from edgewise.training.protocols.gossip.mass import Mass, checked, mass_from_bytes, mass_of
from edgewise.training.protocols.letters import (
    COORDINATOR_ADDRESS,
    Address,
    AnyLetter,
    BlobName,
    GossipReport,
    GossipTask,
    PeerShare,
    RunEnded,
    SectionBlob,
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
    SetTimer,
    Store,
    TimerFired,
    Work,
    WorkDone,
    WorkGivenUp,
)
from edgewise.training.protocols.opening import with_stored
from edgewise.training.protocols.protocol import CLIENT, Blobs, Role, Step
from edgewise.training.protocols.step_parts import StepParts
from edgewise.training.protocols.transitions import Table, accepted, dispatch, ignored, refused

IDLE, WORKING, MIXING, REPORTING, OVER = "idle", "working", "mixing", "reporting", "over"


class PeerState(msgspec.Struct, frozen=True, kw_only=True):
    """One client that gossips.

    Attributes:
        phase: `idle`, `working`, `mixing`, `reporting` or `over`.
        task: What it was given.
        round: Rounds of local work begun.
        step: Rounds of shares begun.
        mass: What it has; "" before its first work.
        model: What it works on.
        kept: What its rules keep.
        heard: Rounds of shares that came, by neighbour.
        early: Shares of rounds that it has not begun, by neighbour and round.
        sent: Shares that nobody acknowledged, by key.
        newest: The share of this round to each neighbour; sent again it asks whether the neighbour lives.
        lost: Why, by neighbour that it does not wait for.
        num_examples, brought, metrics, fault: Of its local work; why the last one failed.
        report: Its last letter.
        is_heard: The coordinator has it.
    """

    phase: str = IDLE
    task: GossipTask | None = None
    round: int = 0
    step: int = 0
    mass: Digest = Digest("")
    model: SectionBlob | None = None
    kept: Digest | None = None
    heard: dict[ClientId, tuple[int, ...]] = {}
    early: dict[str, Digest] = {}
    sent: dict[str, PeerShare] = {}
    newest: dict[ClientId, PeerShare] = {}
    lost: dict[ClientId, str] = {}
    num_examples: int = 0
    brought: float = 0.0
    metrics: dict[str, float] = {}
    fault: str = ""
    report: GossipReport | None = None
    is_heard: bool = False


PeerResult = tuple[PeerState, tuple[Action, ...]]
_NEW = PeerState()


def make_step(algorithm: FederatedAlgorithm, blobs: Blobs) -> Step:
    """Binds the client to its algorithm and its store; the state before the first letter is None."""
    parts = StepParts(algorithm, blobs)

    def step(state: PeerState | None, event: Event) -> PeerResult:
        state = _NEW if state is None else state
        return dispatch(TABLE, CLIENT, parts, state.phase, state, event)

    return step


def resume(state: PeerState) -> tuple[Action, ...]:
    """What is outstanding after a replay; carrying it out twice is harmless."""
    shares = tuple(Send(Address("client", s.receiver), s) for s in state.sent.values() if s.receiver not in state.lost)
    if state.phase == WORKING:
        return (*shares, Work(_order(state), state.kept))
    if state.phase == MIXING:
        return (*shares, *_timer(state))
    if state.phase == REPORTING and state.report is not None and not state.is_heard:
        return (*shares, Send(COORDINATOR_ADDRESS, state.report))
    return (EndRun(),) if state.phase == OVER else shares


def wants(state: PeerState, to: Address, letter: AnyLetter) -> bool:
    """Whether a letter still needs to be delivered: a share until it is acknowledged or its neighbour is given up."""
    if isinstance(letter, PeerShare):
        return state.phase != OVER and letter.key in state.sent and letter.receiver not in state.lost
    return state.phase == REPORTING and not state.is_heard


def is_over(state: PeerState) -> bool:
    """Whether the run has ended for this client."""
    return state.phase == OVER


def needs(state: PeerState) -> list[Digest]:
    """Blobs that this client will still read or send."""
    shares = (*state.sent.values(), *state.newest.values())
    found = [state.mass, state.kept, *state.early.values(), *(s.share.digest for s in shares)]
    found += [state.model.blob.digest] if state.model else []
    found += [state.report.value.digest] if state.report else []
    return [digest for digest in found if digest]


def reports(state: PeerState) -> tuple[AnyLetter, ...]:
    """Its last letter."""
    return () if state.report is None else (state.report,)


def _change(state: PeerState, **fields: Any) -> PeerState:
    return msgspec.structs.replace(state, **fields)


def _size(state: PeerState) -> int:
    assert state.task is not None
    return state.task.spec.num_entries


def _read(parts: StepParts, state: PeerState, digest: Digest, before: tuple[Action, ...]) -> Mass:
    if not digest:
        return Mass(np.zeros(_size(state), np.int64), 0)
    return mass_from_bytes(blob(with_stored(parts.blobs, before), digest), _size(state))


def _stored(state: PeerState, mass: Mass) -> PeerResult:
    data = mass.to_bytes()
    return _change(state, mass=digest_of(data)), (Store({digest_of(data): data}),)


def _order(state: PeerState) -> WorkOrder:
    assert state.task is not None
    assert state.model is not None
    number = RoundNumber(state.round)
    return WorkOrder(spec=state.task.spec, round=number, client=state.task.client, sections=(state.model,))


def _timer(state: PeerState) -> tuple[Action, ...]:
    assert state.task is not None
    seconds = state.task.round_deadline_s
    return () if seconds is None else (SetTimer(f"shares/{state.step}", seconds),)


def _tasked(parts: StepParts, state: PeerState, event: Received) -> PeerResult:
    assert isinstance(event.letter, GossipTask)
    model = next(section for section in event.letter.sections if section.name == MODEL)
    state = _change(state, phase=WORKING, task=event.letter, round=1, model=model)
    return state, (Accept(), Work(_order(state), None))


def _tasked_again(parts: StepParts, state: PeerState, event: Received) -> PeerResult:
    return state, (Accept(), *resume(_change(state, is_heard=False)))


def _received(parts: StepParts, state: PeerState) -> Vector:
    """The model that the client works on, or last worked on."""
    assert state.model is not None
    data = blob(parts.blobs, state.model.blob.digest)
    found: Vector = section_from_blob(state.model, data, parts.algorithm.exchanges[0].downlink)
    return found


def _done(parts: StepParts, state: PeerState, event: WorkDone) -> PeerResult:
    if event.round != state.round:
        return state, ()
    exchange = parts.algorithm.exchanges[0]
    try:
        update = decode_update(exchange, blob(parts.blobs, event.update.digest), _size(state))[MODEL]
        exchange.aggregate[MODEL].check(update)
        metrics = finite(event.metrics)
        if state.mass:
            mass = _read(parts, state, state.mass, ())
            mass = checked(Mass(mass.vector + np.rint(update * float(mass.weight)).astype(np.int64), mass.weight))
        else:
            weight = exchange.aggregate[MODEL].weigh.weight(Counted(event.num_examples, 0, metrics))
            mass = mass_of(_received(parts, state) + update, weight)
            state = _change(state, brought=weight, num_examples=event.num_examples)
    except StoreError:
        raise
    except EdgewiseError as error:
        return _given_up(parts, state, WorkGivenUp(event.round, event.exchange, error.message))
    state, store = _stored(_change(state, kept=event.kept, metrics=metrics, fault=""), mass)
    return _mixed(parts, state, store)


def _given_up(parts: StepParts, state: PeerState, event: WorkGivenUp) -> PeerResult:
    """It brings nothing to this round and takes part in mixing all the same."""
    return _mixed(parts, _change(state, fault=event.cause), ()) if event.round == state.round else (state, ())


def _mixed(parts: StepParts, state: PeerState, actions: tuple[Action, ...]) -> PeerResult:
    """Begins a round of shares; where all of the neighbours' are there already, the next."""
    task, step = state.task, state.step + 1
    assert task is not None
    rest = mass = _read(parts, state, state.mass, actions)
    newest: dict[ClientId, PeerShare] = {}
    for peer, share in task.peers.items():
        if peer in state.lost:
            continue
        part = mass.part(share)
        rest, data = rest - part, part.to_bytes()
        name = BlobName(digest_of(data), len(data))
        letter = PeerShare(run=task.spec.run, round=RoundNumber(step), sender=task.client, receiver=peer, share=name)
        newest[peer] = letter
        actions += (Store({name.digest: data}), Send(Address("client", peer), letter))
    sent = {**state.sent, **{letter.key: letter for letter in newest.values()}}
    early, lost = dict(state.early), dict(state.lost)
    for neighbour in task.listens_to:
        digest = early.pop(f"{neighbour}/{step}", None)
        try:
            rest = rest + _read(parts, state, digest, ()) if digest else rest
        except FrameRefused as error:
            lost[neighbour] = error.message
    state, store = _stored(
        _change(state, phase=MIXING, step=step, sent=sent, newest=newest, early=early, lost=lost), rest
    )
    return _advanced(parts, state, (*actions, *store, *_timer(state)))


def _advanced(parts: StepParts, state: PeerState, actions: tuple[Action, ...]) -> PeerResult:
    task = state.task
    assert task is not None
    awaited = [n for n in task.listens_to if n not in state.lost and state.step not in state.heard.get(n, ())]
    if state.phase != MIXING or awaited:
        return state, actions
    if state.step % task.mixing:
        return _mixed(parts, state, actions)
    mass = _read(parts, state, state.mass, actions)
    section, data = section_to_blob(MODEL, mass.model(_received(parts, state)))
    actions += (Store({section.blob.digest: data}),)
    if state.round < task.num_rounds:
        state = _change(state, phase=WORKING, round=state.round + 1, model=section)
        return state, (*actions, Work(_order(state), state.kept))
    unconfirmed = sum(_read(parts, state, s.share.digest, actions).weight for s in state.sent.values())
    masses = {"brought": state.brought, "weight": mass.weight / 2**32, "unconfirmed": unconfirmed / 2**32}
    report = GossipReport(
        run=task.spec.run,
        round=RoundNumber(state.step),
        client=task.client,
        value=section.blob,
        num_examples=state.num_examples,
        metrics={**state.metrics, **masses},
        lost={**state.lost, task.client: state.fault} if state.fault else state.lost,
    )
    return _change(state, phase=REPORTING, report=report), (*actions, Send(COORDINATOR_ADDRESS, report))


def _share(parts: StepParts, state: PeerState, event: Received) -> PeerResult:
    letter, task = event.letter, state.task
    assert isinstance(letter, PeerShare)
    sender, number = letter.sender, letter.round
    if number in state.heard.get(sender, ()):
        return state, (Refuse(Refusal.DUPLICATE, f"the share of {sender} for round {number} counts already."),)
    if task is not None and (sender not in task.listens_to or letter.run != task.spec.run):
        return state, (Refuse(Refusal.NOT_ASKED, f"{task.client} does not listen to {sender} in run {letter.run}."),)
    if number < 1 or (task is not None and number > task.num_rounds * task.mixing):
        return state, (Refuse(Refusal.WRONG_ROUND, f"run {letter.run} has no round of shares {number}."),)
    heard = {**state.heard, sender: (*state.heard.get(sender, ()), int(number))}
    lost = {neighbour: cause for neighbour, cause in state.lost.items() if neighbour != sender}
    if number > state.step:
        early = {**state.early, f"{sender}/{number}": letter.share.digest}
        return _change(state, heard=heard, lost=lost, early=early), (Accept(),)
    try:
        mass = _read(parts, state, state.mass, ()) + _read(parts, state, letter.share.digest, ())
    except StoreError:
        raise
    except EdgewiseError as error:  # nobody waits for a sender of nonsense
        gone = _change(state, lost={**state.lost, sender: error.message})
        return _advanced(parts, gone, (Refuse(Refusal.INVALID, error.message),))
    state, store = _stored(_change(state, heard=heard, lost=lost), mass)
    return _advanced(parts, state, (Accept(), *store))


def _delivered(parts: StepParts, state: PeerState, event: Delivered) -> PeerResult:
    if state.report is not None and event.key == state.report.key:
        return _change(state, is_heard=True), ()
    share = state.sent.get(event.key)
    if share is None:
        return state, ()
    state = _change(state, sent={key: s for key, s in state.sent.items() if key != event.key})
    if event.accepted or state.phase not in (WORKING, MIXING):
        return state, ()
    mass = _read(parts, state, state.mass, ()) + _read(parts, state, share.share.digest, ())
    return _stored(state, mass)


def _timed_out(parts: StepParts, state: PeerState, event: TimerFired) -> PeerResult:
    task = state.task
    assert task is not None
    if event.name != f"shares/{state.step}":
        return state, ()
    cause = f"no share of round {state.step} within {task.round_deadline_s:g} s, and no answer"
    silent = [n for n in task.listens_to if n not in state.lost and state.step not in state.heard.get(n, ())]
    # Who took our share may only be waiting itself: it is asked again, and given up if it does not even answer.
    asked = {n: state.newest[n] for n in silent if n in state.newest and state.newest[n].key not in state.sent}
    lost = {**dict.fromkeys((n for n in silent if n not in asked), cause), **state.lost}
    sent = {**state.sent, **{share.key: share for share in asked.values()}}
    again = tuple(Send(Address("client", n), share) for n, share in asked.items())
    return _advanced(parts, _change(state, lost=lost, sent=sent), (*again, *_timer(state)))


def _ended(parts: StepParts, state: PeerState, event: Event) -> PeerResult:
    taken = (Accept(),) if isinstance(event, Received) else ()
    return PeerState(phase=OVER, kept=state.kept, heard=state.heard), (*taken, EndRun())


def _too_late(parts: StepParts, state: PeerState, event: Received) -> PeerResult:
    """A share after the report goes back to its sender, unless it counted before and only its answer was lost."""
    letter = event.letter
    assert isinstance(letter, PeerShare)
    counted = letter.round in state.heard.get(letter.sender, ())
    reason = Refusal.DUPLICATE if counted else Refusal.LATE
    return state, (Refuse(reason, f"{letter.receiver} has reported already."),)


_LATE = refused(Refusal.LATE, "the run has ended on this client.")

TABLE = Table((IDLE, WORKING, MIXING, REPORTING, OVER), {
    GossipTask:     (_tasked,  _tasked_again, _tasked_again, _tasked_again, _LATE),
    PeerShare:      (_share,   _share,        _share,        _too_late,     _too_late),
    RunEnded:       (_ended,   _ended,        _ended,        _ended,        accepted),
    WorkDone:       (ignored,  _done,         ignored,       ignored,       ignored),
    WorkGivenUp:    (ignored,  _given_up,     ignored,       ignored,       ignored),
    Delivered:      (ignored,  _delivered,    _delivered,    _delivered,    ignored),
    TimerFired:     (ignored,  ignored,       _timed_out,    ignored,       ignored),
    RunCancelled:   (_ended,   _ended,        _ended,        _ended,        ignored),
    ClientLost:     (ignored,  ignored,       ignored,       ignored,       ignored),
    ClientReturned: (ignored,  ignored,       ignored,       ignored,       ignored),
    EdgeLost:       (ignored,  ignored,       ignored,       ignored,       ignored),
    EdgeReturned:   (ignored,  ignored,       ignored,       ignored,       ignored),
})  # fmt: skip
"""A neighbour that is gone is known by its silence; work that was replaced may still end."""

# It begins with its task: none of its states is idle.
PEER_ROLE = Role(make_step, resume, wants, is_over, needs, PeerState, reports=reports, phases=TABLE.phases[1:])
