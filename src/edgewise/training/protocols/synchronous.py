"""Synchronous rounds as a pure function: `step(state, event) -> (state, actions)`.

    RunStarted ─▶ open a round ─▶ updates, losses, returns ─▶ close ─▶ … ─▶ EndRun
                     ▲   (cohort answered, or the deadline with a quorum)  │
                     └──────────────────────────────────────────────────────┘

A driver appends each event to its log, steps, then acts; `StoreModel` must be carried out before the next event.
After a crash `replay` folds the log to the same state and `resume` says what is outstanding. The model does not depend
on the order in which updates arrive. `driver.py` is the smallest driver, `hierarchical.py` the form with edges.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, MutableMapping

from edgewise.core.errors import StoreError
from edgewise.core.ids import Digest, RoundNumber
from edgewise.training.algorithm import FederatedAlgorithm
from edgewise.training.protocols import gathering as g
from edgewise.training.protocols.admission import admit, refuse, refuse_invalid
from edgewise.training.protocols.folding import Blobs, fold
from edgewise.training.protocols.messages import (
    Action,
    ClientFailed,
    ClientLost,
    ClientReturned,
    EndRun,
    Event,
    Refusal,
    RequestUpdate,
    RoundTimedOut,
    RunCancelled,
    RunStarted,
    SetRoundDeadline,
    StoreModel,
    UpdateInvalid,
    UpdateReceived,
)
from edgewise.training.protocols.rounds import (
    Phase,
    RunState,
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

Result = tuple[RunState, tuple[Action, ...]]
Step = Callable[[RunState | None, Event], Result]


def make_step(algorithm: FederatedAlgorithm, blobs: Blobs) -> Step:
    """Binds the protocol to its algorithm and its store.

    Args:
        algorithm: Built from the words in the run's config.
        blobs: Read by digest only.

    Returns:
        `step(state, event) -> (state, actions)`; the state before `RunStarted` is None.
    """

    def step(state: RunState | None, event: Event) -> Result:
        if isinstance(event, RunStarted):
            return _start(algorithm, blobs, event) if state is None else (state, ())
        if state is None:
            raise StoreError(f"the log begins with {type(event).__name__}, a run begins with RunStarted.")
        if state.phase is Phase.ENDED:
            return _after_end(state, event)
        if isinstance(event, RunCancelled):
            return cancelled(state, event.cause)
        if isinstance(event, RoundTimedOut):
            return _timed_out(algorithm, blobs, state, event)
        if isinstance(event, ClientReturned):
            return _returned(algorithm, state, event)
        gathering, actions = _gathered(algorithm, blobs, state, event)
        return _settled(algorithm, blobs, with_gathering(state, gathering), actions)

    return step


def resume(state: RunState) -> tuple[Action, ...]:
    """What is outstanding after a replay; carrying it out twice is harmless.

    Args:
        state: As replayed.

    Returns:
        The actions.
    """
    if state.outcome is not None:
        return (EndRun(state.config.run, state.outcome),)
    gathering, run = state.gathering, state.config.run
    deadline = SetRoundDeadline(run, gathering.round, state.config.round_deadline_s)
    if state.phase is Phase.WAITING or not gathering.outstanding:
        return (deadline, waiting(state))
    return (deadline, RequestUpdate(run, gathering.round, gathering.outstanding, state.model))


def replay(step: Step, events: Iterable[Event], store: MutableMapping[Digest, bytes]) -> RunState | None:
    """Folds a log to the state it leads to.

    Args:
        step: From `make_step`, reading `store`.
        events: The log, in order.
        store: Where blobs are; models that were not stored before the crash are stored now.

    Returns:
        The state; None for an empty log.
    """
    state: RunState | None = None
    for event in events:
        state, actions = step(state, event)
        for action in actions:
            if isinstance(action, StoreModel):
                store.update(action.blobs)
    return state


def _start(algorithm: FederatedAlgorithm, blobs: Blobs, event: RunStarted) -> Result:
    state, actions = started(algorithm, blobs, event)
    return (state, actions) if state.phase is Phase.ENDED else _open(algorithm, state, actions)


def _open(algorithm: FederatedAlgorithm, state: RunState, actions: tuple[Action, ...]) -> Result:
    config, number = state.config, state.gathering.round
    actions += (SetRoundDeadline(config.run, number, config.round_deadline_s),)
    if len(state.gathering.candidates) >= config.quorum:
        return _ask(algorithm, state, actions)
    state = with_gathering(state, g.opened(state.gathering, number, ()), Phase.WAITING)
    return state, (*actions, waiting(state))


def _ask(algorithm: FederatedAlgorithm, state: RunState, actions: tuple[Action, ...]) -> Result:
    config, candidates, number = state.config, state.gathering.candidates, state.gathering.round
    cohort = cohort_of(algorithm, candidates, number, config.seed)
    if len(cohort) < config.quorum:
        state, ending = chose_too_few(algorithm, state, len(cohort))
        return state, actions + ending
    state = with_gathering(state, g.opened(state.gathering, number, cohort), Phase.OPEN)
    return state, (*actions, RequestUpdate(config.run, number, cohort, state.model))


def _gathered(
    algorithm: FederatedAlgorithm, blobs: Blobs, state: RunState, event: Event
) -> tuple[g.Gathering, tuple[Action, ...]]:
    gathering, run = state.gathering, state.config.run
    match event:
        case UpdateReceived() if event.run != run:
            return refuse(gathering, event, Refusal.WRONG_RUN, f"run {event.run} is not this run, {run}.")
        case UpdateReceived():
            return admit(algorithm, blobs, gathering, event, state.config.num_entries)
        case UpdateInvalid(run=event_run, round=number, client=client, reason=reason) if event_run == run:
            return refuse_invalid(gathering, run, number, client, reason)
        case ClientFailed(run=event_run, round=number, client=client, cause=cause):
            is_now = event_run == run and number == gathering.round
            return (g.dropped(gathering, client, cause) if is_now else gathering), ()
        case ClientLost(client=client, cause=cause):
            return g.lost(gathering, client, cause), ()
        case _:
            return gathering, ()


def _returned(algorithm: FederatedAlgorithm, state: RunState, event: ClientReturned) -> Result:
    gathering, ask_again = g.returned(state.gathering, event.client, event.epoch)
    state = with_gathering(state, gathering)
    if state.phase is Phase.WAITING and len(gathering.candidates) >= state.config.quorum:
        return _ask(algorithm, state, ())
    if ask_again:
        return state, (RequestUpdate(state.config.run, gathering.round, (event.client,), state.model),)
    return state, ()


def _timed_out(algorithm: FederatedAlgorithm, blobs: Blobs, state: RunState, event: RoundTimedOut) -> Result:
    if event.run != state.config.run or event.round != state.gathering.round:
        return state, ()
    state = with_gathering(state, overdue(state))
    if state.phase is Phase.OPEN and len(state.gathering.answers) >= state.config.quorum:
        return _close(algorithm, blobs, state, ())
    return too_few(state)


def _settled(algorithm: FederatedAlgorithm, blobs: Blobs, state: RunState, actions: tuple[Action, ...]) -> Result:
    if state.phase is not Phase.OPEN or not state.gathering.is_settled:
        return state, actions
    if len(state.gathering.answers) >= state.config.quorum:
        return _close(algorithm, blobs, state, actions)
    return state, (*actions, waiting(state))


def _close(algorithm: FederatedAlgorithm, blobs: Blobs, state: RunState, actions: tuple[Action, ...]) -> Result:
    total = fold(algorithm, blobs, state.gathering.answers.values(), state.config.num_entries)
    state, closing = closed(algorithm, blobs, state, total)
    if state.phase is Phase.ENDED:
        return state, actions + closing
    gathering = g.opened(state.gathering, RoundNumber(state.gathering.round + 1), ())
    return _open(algorithm, with_gathering(state, gathering), actions + closing)


def _after_end(state: RunState, event: Event) -> Result:
    if not isinstance(event, UpdateReceived):
        return state, ()
    answered = event.round == state.gathering.round and event.client in state.gathering.answers
    reason = Refusal.DUPLICATE if answered and event.run == state.config.run else Refusal.LATE
    gathering, actions = refuse(state.gathering, event, reason, f"run {state.config.run} has ended.")
    return with_gathering(state, gathering), actions
