"""Synchronous rounds: a coordinator asks a cohort, folds what comes, steps, and asks the next.

    RunStarted ─▶ open an exchange ─▶ updates, losses, returns ─▶ close ─▶ … ─▶ EndRun
                     ▲     (cohort answered, or the deadline with a quorum)  │
                     └───────────────────────────────────────────────────────┘

The model does not depend on the order in which updates arrive. The device's side is `client.py`, the form with edges
`hierarchical/`.
"""

from __future__ import annotations

from typing import Any

from edgewise.core.errors import StoreError
from edgewise.core.ids import ClientId
from edgewise.core.spec import Spec
from edgewise.training.algorithm import FederatedAlgorithm
from edgewise.training.protocols import collection as c
from edgewise.training.protocols.client_role import CLIENT_ROLE
from edgewise.training.protocols.closing import folded
from edgewise.training.protocols.ending import (
    after_end,
    cancelled,
    cannot_close,
    chose_too_few,
    endings,
    endings_for,
    failed,
    too_few,
    without_hope,
)
from edgewise.training.protocols.letters import Address, AnyLetter, RunEnded, UpdateReport, WorkFailed, WorkOrder
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
    Received,
    Refusal,
    Refuse,
    RunCancelled,
    RunStarted,
    TimerFired,
)
from edgewise.training.protocols.opening import begun_anew, candidates_of, cohort_of, opened, started, with_stored
from edgewise.training.protocols.part_calls import ended_by_parts
from edgewise.training.protocols.protocol import CLIENT, COORDINATOR, Blobs, Protocol, Role, Step
from edgewise.training.protocols.run_state import (
    Phase,
    Result,
    RunState,
    change,
    needs,
    orders,
    overdue,
    set_timer,
    timer_name,
    view,
    waiting,
    with_collection,
)
from edgewise.training.protocols.step_parts import StepParts
from edgewise.training.protocols.transitions import Table, accepted, dispatch, ignored, refused


def synchronous() -> Protocol:
    """Rounds in lockstep, devices straight to the coordinator.

    Returns:
        The protocol.

    Reference:
        McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017.
    """
    ignores_yes = frozenset((WorkOrder, RunEnded))
    coordinator = Role(make_step, resume, wants, is_over, needs, RunState, ignores_yes, phases=TABLE.phases)
    return Protocol(Spec("synchronous"), {COORDINATOR: coordinator, CLIENT: CLIENT_ROLE}, view)


def make_step(algorithm: FederatedAlgorithm, blobs: Blobs) -> Step:
    """Binds the coordinator to its algorithm and its store.

    Args:
        algorithm: Built from the spec in the run's config.
        blobs: Read by digest only.

    Returns:
        `step(state, event) -> (state, actions)`; the state before `RunStarted` is None.
    """
    parts = StepParts(algorithm, blobs)

    def step(state: RunState | None, event: Event) -> Result:
        if state is None:
            if not isinstance(event, RunStarted):
                raise StoreError(f"the log begins with {type(event).__name__}, a run begins with RunStarted.")
            state, actions = started(algorithm, blobs, event)
            return (state, actions) if state.phase is Phase.ENDED else _open_round(parts, state, actions)
        return dispatch(TABLE, COORDINATOR, parts, state.phase, state, event)

    def ended(state: RunState | None, event: Event, fault: str) -> Result:
        if state is not None:
            return _with_endings(failed(state, fault))
        assert isinstance(event, RunStarted)
        state, actions = started(algorithm, blobs, event)
        return _with_endings(failed(state, fault), actions)

    return ended_by_parts(step, ended)


def resume(state: RunState) -> tuple[Action, ...]:
    """What is outstanding after a replay; carrying it out twice is harmless.

    Args:
        state: As replayed.

    Returns:
        The actions.
    """
    if state.outcome is not None:
        return (EndRun(state.outcome), *endings(state))
    timer = set_timer(state)
    if state.phase is Phase.WAITING or not state.collection.outstanding:
        return (*timer, waiting(state))
    return (*timer, *orders(state, state.collection.outstanding))


def wants(state: RunState, to: Address, letter: AnyLetter) -> bool:
    """Whether a letter still needs to be delivered: an order while its update is awaited, an ending always."""
    if isinstance(letter, WorkOrder):
        collection = state.collection
        is_open = state.phase is Phase.OPEN and collection.is_current(letter)
        return is_open and letter.client not in collection.answers and letter.client not in collection.missing
    return isinstance(letter, RunEnded)


def is_over(state: RunState) -> bool:
    """Whether the run has ended."""
    return state.phase is Phase.ENDED


def _open_round(parts: StepParts, state: RunState, actions: tuple[Action, ...]) -> Result:
    actions += set_timer(state)
    if len(state.collection.able) >= state.config.quorum:
        return _ask(parts, state, actions)
    state = change(state, phase=Phase.WAITING)
    if cannot_close(state, state.config.quorum):
        return _with_endings(without_hope(state, state.config.quorum), actions)
    return state, (*actions, waiting(state))


def _ask(parts: StepParts, state: RunState, actions: tuple[Action, ...]) -> Result:
    candidates = candidates_of(state, state.collection.able)
    cohort = cohort_of(parts.algorithm, candidates, state.collection.round, state.config.seed)
    if len(cohort) < state.config.quorum:
        return _with_endings(chose_too_few(parts.algorithm, state, len(cohort)), actions)
    return _open_exchange(parts, state, 0, cohort, actions)


def _open_exchange(
    parts: StepParts, state: RunState, exchange: int, cohort: tuple[Any, ...], actions: tuple[Action, ...]
) -> Result:
    blobs = with_stored(parts.blobs, actions)
    state, store = opened(parts.algorithm, blobs, state, exchange, cohort)
    return state, (*actions, *store, *orders(state, cohort))


def _with_endings(result: Result, before: tuple[Action, ...] = ()) -> Result:
    """A result with letters of the end to the clients where the run has ended."""
    state, actions = result
    actions = before + actions
    return (state, actions + endings(state)) if state.phase is Phase.ENDED else (state, actions)


def _update(parts: StepParts, state: RunState, event: Received) -> Result:
    letter = event.letter
    assert isinstance(letter, UpdateReport)
    if letter.run != state.config.run:
        text = f"run {letter.run} is not this run, {state.config.run}."
        collection, actions = c.refuse(state.collection, Refusal.WRONG_RUN, text)
    else:
        exchange = parts.algorithm.exchanges[state.collection.exchange]
        collection, actions = c.validate_update(
            exchange, parts.decoder, state.collection, letter, event.generation, state.config.num_entries
        )
    has_counted = letter.client in collection.answers  # then there is no less hope than before
    return _settled(parts, with_collection(state, collection), actions, may_be_hopeless=not has_counted)


def _failed(parts: StepParts, state: RunState, event: Received) -> Result:
    letter = event.letter
    assert isinstance(letter, WorkFailed)
    if letter.run != state.config.run or not state.collection.is_current(letter):
        return state, (Accept(),)
    client, collection = letter.client, state.collection
    if letter.has_lost and client in collection.cohort and client not in collection.answers:
        anew, store = begun_anew(parts.algorithm, parts.blobs, state, client)
        if anew.own != state.own:  # there is another letter for it, it is asked again at once
            missing = {other: cause for other, cause in collection.missing.items() if other != client}
            anew = with_collection(anew, c.change(collection, missing=missing))
            return anew, (Accept(), *store, *orders(anew, (client,)))
        state = anew
    collection, actions = c.work_failed(collection, letter)
    return _settled(parts, with_collection(state, collection), actions)


def _invalid(parts: StepParts, state: RunState, event: LetterInvalid) -> Result:
    if event.run != state.config.run:
        return state, (Refuse(Refusal.WRONG_RUN, f"run {event.run} is not this run, {state.config.run}."),)
    collection, actions = c.refuse_invalid(state.collection, event.client, event.reason)
    return _settled(parts, with_collection(state, collection), actions)


def _delivered(parts: StepParts, state: RunState, event: Delivered) -> Result:
    """An order that its client refuses for good is that client's dropout."""
    collection, client = state.collection, event.to.name
    if event.accepted or event.key != f"work/{client}/{collection.round}/{collection.exchange}":
        return state, ()
    return _settled(parts, with_collection(state, c.failed(collection, ClientId(client), event.reason)), ())


def _lost(parts: StepParts, state: RunState, event: ClientLost) -> Result:
    return _settled(parts, with_collection(state, c.lost(state.collection, event.client, event.cause)), ())


def _returned(parts: StepParts, state: RunState, event: ClientReturned) -> Result:
    collection, ask_again = c.returned(state.collection, event.client, event.seen)
    state = with_collection(state, collection)
    if state.phase is Phase.WAITING and len(collection.able) >= state.config.quorum:
        return _ask(parts, state, ())
    return (state, orders(state, (event.client,))) if ask_again else (state, ())


def _timed_out(parts: StepParts, state: RunState, event: TimerFired) -> Result:
    if event.name != timer_name(state):
        return state, ()
    state = overdue(state)
    if state.phase is Phase.OPEN and len(state.collection.answers) >= state.config.quorum:
        return _close(parts, state, ())
    return _with_endings(too_few(state))


def _cancelled(parts: StepParts, state: RunState, event: RunCancelled) -> Result:
    return _with_endings(cancelled(state, event.cause)) if event.run == state.config.run else (state, ())


def _settled(parts: StepParts, state: RunState, actions: tuple[Action, ...], *, may_be_hopeless: bool = True) -> Result:
    if (
        may_be_hopeless
        and state.phase is not Phase.ENDED
        and cannot_close(state, state.config.quorum, state.collection.cohort)
    ):
        return _with_endings(without_hope(state, state.config.quorum), actions)
    if state.phase is not Phase.OPEN or not state.collection.is_settled:
        return state, actions
    if len(state.collection.answers) >= state.config.quorum:
        return _close(parts, state, actions)
    return state, (*actions, waiting(state))


def _close(parts: StepParts, state: RunState, actions: tuple[Action, ...]) -> Result:
    state, closing = folded(parts, state)
    actions += closing
    if state.phase is Phase.ENDED:
        return _with_endings((state, actions))
    if state.collection.exchange:
        actions += set_timer(state)
        return _open_exchange(parts, state, state.collection.exchange, state.collection.cohort, actions)
    return _open_round(parts, state, actions)


def _after_end(parts: StepParts, state: RunState, event: Received) -> Result:
    assert isinstance(event.letter, UpdateReport)
    return after_end(state, event.letter)


def _end_again(parts: StepParts, state: RunState, event: ClientReturned) -> Result:
    return state, endings_for(state, event.client)


TABLE = Table(("waiting", "open", "ended"), {
    #                             waiting                open                   ended
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
