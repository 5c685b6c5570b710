"""Synchronous rounds as a pure function: `step(state, event) -> (state, actions)`.

    RunStarted ─▶ open a round ─▶ updates, losses, returns ─▶ close ─▶ … ─▶ EndRun
                     ▲   (cohort answered, or the deadline with a quorum)  │
                     └──────────────────────────────────────────────────────┘

A driver appends each event to its log, steps, then acts; `StoreModel` must be carried out before the next event.
After a crash `replay` folds the log to the same state and `resume` says what is outstanding. The model does not depend
on the order in which updates arrive. `driver.py` is the smallest driver.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, MutableMapping
from enum import StrEnum
from typing import Any

import msgspec

from edgewise.core.errors import InputError, StoreError
from edgewise.core.ids import Digest, RoundNumber, digest_of
from edgewise.core.seeds import Seeds
from edgewise.training.aggregate.fixed_point import check_update, check_weight
from edgewise.training.algorithm import FederatedAlgorithm
from edgewise.training.protocols import gathering as g
from edgewise.training.protocols.folding import (
    Blobs,
    blob,
    decode_update,
    mean_metrics,
    next_model,
    server_state_to_bytes,
    vector_from_bytes,
)
from edgewise.training.protocols.messages import (
    AcceptUpdate,
    Action,
    AnnounceRound,
    AnnounceWaiting,
    ClientFailed,
    ClientLost,
    ClientReturned,
    EndRun,
    Event,
    Member,
    Outcome,
    OutcomeKind,
    Quarantine,
    Refusal,
    RefuseUpdate,
    RequestUpdate,
    RoundSummary,
    RoundTimedOut,
    RunCancelled,
    RunConfig,
    RunStarted,
    SetRoundDeadline,
    StoreModel,
    UpdateInvalid,
    UpdateReceived,
)


class Phase(StrEnum):
    """Where a run stands."""

    WAITING = "waiting"
    OPEN = "open"
    ENDED = "ended"


class RunState(msgspec.Struct, frozen=True):
    """Everything a run is; serialisable, and equal after a replay of the same events.

    Attributes:
        config: The run.
        phase: `waiting` for a quorum of clients, `open` round, or `ended`.
        gathering: The members and the current round.
        model: Digest of the current model.
        server: Digest of the server's state.
        rounds: What the closed rounds were.
        outcome: How the run ended.
    """

    config: RunConfig
    phase: Phase
    gathering: g.Gathering
    model: Digest
    server: Digest
    rounds: tuple[RoundSummary, ...] = ()
    outcome: Outcome | None = None


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
            return _started(algorithm, blobs, event) if state is None else (state, ())
        if state is None:
            raise StoreError(f"the log begins with {type(event).__name__}, a run begins with RunStarted.")
        if state.phase is Phase.ENDED:
            return _after_end(state, event)
        match event:
            case UpdateReceived():
                return _update(algorithm, blobs, state, event)
            case UpdateInvalid(round=number, client=client, reason=reason):
                return _invalid(algorithm, blobs, state, number, client, reason)
            case ClientFailed(round=number, client=client, cause=cause):
                if event.run != state.config.run or number != state.gathering.round:
                    return state, ()
                return _settle(algorithm, blobs, _with(state, g.dropped(state.gathering, client, cause)), ())
            case ClientLost(client=client, cause=cause):
                return _settle(algorithm, blobs, _with(state, g.lost(state.gathering, client, cause)), ())
            case ClientReturned():
                return _returned(algorithm, blobs, state, event)
            case RoundTimedOut():
                return _timed_out(algorithm, blobs, state, event)
            case RunCancelled(cause=cause):
                sentence = f"run {state.config.run} was cancelled in round {state.gathering.round}: {cause}"
                return _end(state, OutcomeKind.CANCELLED, sentence, "Start it again from its last model.")
            case _:
                return state, ()

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
    round_number, deadline = state.gathering.round, state.config.round_deadline_s
    actions: tuple[Action, ...] = (SetRoundDeadline(state.config.run, round_number, deadline),)
    if state.phase is Phase.WAITING:
        return (*actions, _waiting(state))
    if state.gathering.outstanding:
        actions += (RequestUpdate(state.config.run, round_number, state.gathering.outstanding, state.model),)
    return actions


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


def _with(state: RunState, gathering: g.Gathering, **fields: Any) -> RunState:
    return msgspec.structs.replace(state, gathering=gathering, **fields)


def _started(algorithm: FederatedAlgorithm, blobs: Blobs, event: RunStarted) -> Result:
    config = event.config
    absent = Member(absence="not seen yet")
    members = {c: Member(event.present[c]) if c in event.present else absent for c in config.clients}
    model = vector_from_bytes(blob(blobs, config.initial_model), config.num_entries)
    server_data = server_state_to_bytes(algorithm.server.init(model))
    server = digest_of(server_data)
    state = RunState(config, Phase.WAITING, g.Gathering(members), config.initial_model, server)
    store = StoreModel(config.run, RoundNumber(0), config.initial_model, b"", server, server_data)
    if not 1 <= config.quorum <= len(config.clients) or config.num_rounds < 1:
        sentence = (
            f"run {config.run} asks for {config.num_rounds} rounds with a quorum of {config.quorum} "
            f"among {len(config.clients)} clients"
        )
        state, actions = _end(state, OutcomeKind.FAILED, sentence, "Set num_rounds >= 1 and quorum 1 to clients.")
        return state, (store, *actions)
    state, actions = _open(algorithm, state, RoundNumber(1))
    return state, (store, *actions)


def _open(algorithm: FederatedAlgorithm, state: RunState, number: RoundNumber) -> Result:
    config, candidates = state.config, state.gathering.candidates
    deadline = SetRoundDeadline(config.run, number, config.round_deadline_s)
    if len(candidates) < config.quorum:
        state = _with(state, g.opened(state.gathering, number, ()), phase=Phase.WAITING)
        return state, (deadline, _waiting(state))
    return _ask(algorithm, state, number, (deadline,))


def _ask(algorithm: FederatedAlgorithm, state: RunState, number: RoundNumber, before: tuple[Action, ...]) -> Result:
    config, candidates = state.config, state.gathering.candidates
    rng = Seeds(config.seed).at("round", number, "select").rng()
    cohort = algorithm.select.choose(candidates, number, rng)
    if len(cohort) < config.quorum:
        sentence = f"{algorithm.select.spec} chose {len(cohort)} of {len(candidates)} clients, the quorum is"
        return _end(
            state, OutcomeKind.FAILED, f"{sentence} {config.quorum}", "Choose more clients or lower the quorum."
        )
    state = _with(state, g.opened(state.gathering, number, cohort), phase=Phase.OPEN)
    return state, (*before, RequestUpdate(config.run, number, cohort, state.model))


def _waiting(state: RunState) -> AnnounceWaiting:
    gathering, config = state.gathering, state.config
    absent = {c: m.quarantine or m.absence for c, m in gathering.members.items() if not m.can_work}
    causes = {**absent, **gathering.missing}
    have = len(gathering.answers) if state.phase is Phase.OPEN else len(gathering.candidates)
    what = "updates" if state.phase is Phase.OPEN else "clients"
    sentence = f"round {gathering.round} has {have} {what}, the quorum is {config.quorum}; missing: {g.named(causes)}"
    return AnnounceWaiting(config.run, gathering.round, sentence)


def _update(algorithm: FederatedAlgorithm, blobs: Blobs, state: RunState, event: UpdateReceived) -> Result:
    if event.run != state.config.run:
        text = f"run {event.run} is not this run, {state.config.run}."
        return _refuse(state, event, Refusal.WRONG_RUN, text)
    refusal = g.refusal_of(state.gathering, event)
    if refusal is not None and refusal[0] is Refusal.NO_EXAMPLES:
        state, actions = _refuse(state, event, *refusal)
        return _settle(algorithm, blobs, _with(state, g.dropped(state.gathering, event.client, refusal[1])), actions)
    if refusal is not None:
        return _refuse(state, event, *refusal)

    def check() -> None:
        check_weight(event.weight)
        data = blob(blobs, event.payload)
        check_update(decode_update(algorithm.uplink, data, state.config.num_entries), state.config.num_entries)

    fault = g.fault_of(check)
    if fault:
        return _invalid(algorithm, blobs, state, event.round, event.client, fault)
    accept = AcceptUpdate(event.run, event.round, event.client)
    return _settle(algorithm, blobs, _with(state, g.accepted(state.gathering, event)), (accept,))


def _refuse(state: RunState, event: UpdateReceived, reason: Refusal, text: str) -> Result:
    refused = g.counted_refusal(state.gathering, reason)
    return _with(state, refused), (RefuseUpdate(event.run, event.round, event.client, reason, text),)


def _invalid(
    algorithm: FederatedAlgorithm, blobs: Blobs, state: RunState, number: RoundNumber, client: Any, reason: str
) -> Result:
    gathering = g.counted_refusal(state.gathering, Refusal.INVALID)
    actions: tuple[Action, ...] = (RefuseUpdate(state.config.run, number, client, Refusal.INVALID, reason),)
    if client in gathering.members and not gathering.members[client].quarantine:
        gathering = g.quarantined(gathering, client, reason)
        actions += (Quarantine(client, reason),)
    return _settle(algorithm, blobs, _with(state, gathering), actions)


def _returned(algorithm: FederatedAlgorithm, blobs: Blobs, state: RunState, event: ClientReturned) -> Result:
    gathering, ask_again = g.returned(state.gathering, event.client, event.epoch)
    state = _with(state, gathering)
    if state.phase is Phase.WAITING and len(gathering.candidates) >= state.config.quorum:
        return _ask(algorithm, state, gathering.round, ())
    if ask_again:
        return state, (RequestUpdate(state.config.run, gathering.round, (event.client,), state.model),)
    return state, ()


def _timed_out(algorithm: FederatedAlgorithm, blobs: Blobs, state: RunState, event: RoundTimedOut) -> Result:
    gathering = state.gathering
    if event.run != state.config.run or event.round != gathering.round:
        return state, ()
    for client in gathering.outstanding:
        gathering = g.dropped(gathering, client, f"no update within {state.config.round_deadline_s:g} s")
    state = _with(state, gathering)
    if state.phase is Phase.OPEN and len(gathering.answers) >= state.config.quorum:
        return _close(algorithm, blobs, state, ())
    cure = "Bring clients back, raise round_deadline_s or lower the quorum, then start again from the last model."
    return _end(state, OutcomeKind.TOO_FEW_CLIENTS, _waiting(state).sentence, cure)


def _settle(algorithm: FederatedAlgorithm, blobs: Blobs, state: RunState, actions: tuple[Action, ...]) -> Result:
    if state.phase is not Phase.OPEN or state.gathering.outstanding:
        return state, actions
    if len(state.gathering.answers) >= state.config.quorum:
        return _close(algorithm, blobs, state, actions)
    return state, (*actions, _waiting(state))


def _close(algorithm: FederatedAlgorithm, blobs: Blobs, state: RunState, actions: tuple[Action, ...]) -> Result:
    config, gathering = state.config, state.gathering
    total = algorithm.aggregate.init(config.num_entries)
    for answer in gathering.answers.values():
        update = decode_update(algorithm.uplink, blob(blobs, answer.payload), config.num_entries)
        total = algorithm.aggregate.add(total, update, answer.weight)
    answered = {c: gathering.answers[c] for c in gathering.cohort if c in gathering.answers}
    weights = {c: a.weight for c, a in answered.items()}
    metrics = mean_metrics((a.metrics, a.weight) for a in answered.values())
    try:
        store, norm = next_model(algorithm, blobs, config, gathering.round, (state.model, state.server), total)
    except InputError as error:
        cure = "Lower the learning rates of clients and server, then start again from the last model."
        return _end(state, OutcomeKind.FAILED, f"round {gathering.round}: {error.message}", cure)
    summary = RoundSummary(gathering.round, store.model, weights, metrics, gathering.missing, norm)
    fields = {"model": store.model, "server": store.server, "rounds": (*state.rounds, summary)}
    state = msgspec.structs.replace(state, **fields)
    actions = (*actions, store, AnnounceRound(config.run, summary))
    if gathering.round >= config.num_rounds:
        sentence = f"run {config.run} completed {config.num_rounds} rounds"
        state, ending = _end(state, OutcomeKind.COMPLETED, sentence, "")
    else:
        state, ending = _open(algorithm, state, RoundNumber(gathering.round + 1))
    return state, actions + ending


def _end(state: RunState, kind: OutcomeKind, sentence: str, cure: str) -> Result:
    outcome = Outcome(kind, f"{sentence}.", cure, state.model, len(state.rounds))
    state = msgspec.structs.replace(state, phase=Phase.ENDED, outcome=outcome)
    return state, (EndRun(state.config.run, outcome),)


def _after_end(state: RunState, event: Event) -> Result:
    if not isinstance(event, UpdateReceived):
        return state, ()
    answered = event.round == state.gathering.round and event.client in state.gathering.answers
    reason = Refusal.DUPLICATE if answered and event.run == state.config.run else Refusal.LATE
    return _refuse(state, event, reason, f"run {state.config.run} has ended.")
