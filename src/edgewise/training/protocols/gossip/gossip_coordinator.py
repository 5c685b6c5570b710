"""Where gossip begins and ends: a task to each client, nothing in between, a report from each.

The run's model is the mean of the models that clients came to, which are the same up to what mixing leaves. Mass that went
with a lost client is said.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgewise.core.errors import EdgewiseError, StoreError
from edgewise.core.ids import ClientId, RoundNumber
from edgewise.core.seeds import Seeds
from edgewise.training.algorithm import MODEL, ClientRecord, Counted, FederatedAlgorithm
from edgewise.training.protocols import collection as c
from edgewise.training.protocols import ending, opening
from edgewise.training.protocols import run_state as r
from edgewise.training.protocols.folding import (
    blob,
    mean_metrics,
    section_from_blob,
    section_to_blob,
    vector_from_bytes,
)
from edgewise.training.protocols.gossip.mass import metropolis, rings
from edgewise.training.protocols.letters import Address, AnyLetter, GossipReport, GossipTask, RunEnded
from edgewise.training.protocols.messages import (
    Accept,
    Action,
    AnnounceRound,
    Answer,
    ClientLost,
    ClientReturned,
    Delivered,
    EdgeLost,
    EdgeReturned,
    EndRun,
    Event,
    LetterInvalid,
    OutcomeKind,
    Received,
    Refusal,
    RoundSummary,
    RunCancelled,
    RunStarted,
    Send,
    Store,
    TimerFired,
)
from edgewise.training.protocols.part_calls import ended_by_parts
from edgewise.training.protocols.protocol import COORDINATOR, Blobs, Role, Step
from edgewise.training.protocols.run_state import Phase, Result, RunState
from edgewise.training.protocols.step_parts import StepParts
from edgewise.training.protocols.transitions import Table, dispatch, ignored, refused


@dataclass(frozen=True, slots=True, kw_only=True)
class _GossipParts(StepParts):
    num_rings: int
    mixing: int


def coordinator_role(num_rings: int, mixing: int) -> Role:
    """The coordinator's role with the numbers of its protocol."""

    def make_step(algorithm: FederatedAlgorithm, blobs: Blobs) -> Step:
        parts = _GossipParts(algorithm, blobs, num_rings=num_rings, mixing=mixing)

        def step(state: RunState | None, event: Event) -> Result:
            if state is not None:
                return dispatch(TABLE, COORDINATOR, parts, state.phase, state, event)
            if not isinstance(event, RunStarted):
                raise StoreError(f"the log begins with {type(event).__name__}, a run begins with RunStarted.")
            state, actions = opening.started(algorithm, blobs, event)
            return (state, actions) if state.phase is Phase.ENDED else _begun(parts, state, actions)

        def ended(state: RunState | None, event: Event, fault: str) -> Result:
            actions: tuple[Action, ...] = ()
            if state is None:
                assert isinstance(event, RunStarted)
                state, actions = opening.started(algorithm, blobs, event)
            state, end = ending.failed(state, fault)
            return state, (*actions, *end, *ending.endings(state))

        return ended_by_parts(step, ended)

    def resume(state: RunState) -> tuple[Action, ...]:
        if state.outcome is not None:
            return (EndRun(state.outcome), *ending.endings(state))
        return _tasks(num_rings, mixing, state, state.collection.outstanding) or (r.waiting(state),)

    ignores_yes = frozenset((GossipTask, RunEnded))
    return Role(make_step, resume, wants, is_over, r.needs, RunState, ignores_yes, phases=TABLE.phases)


def wants(state: RunState, to: Address, letter: AnyLetter) -> bool:
    """Whether a letter still needs to be delivered: a task while its report is awaited, an ending always."""
    if isinstance(letter, GossipTask):
        return state.phase is Phase.OPEN and letter.client in state.collection.outstanding
    return isinstance(letter, RunEnded)


def is_over(state: RunState) -> bool:
    """Whether the run has ended."""
    return state.phase is Phase.ENDED


def _begun(parts: _GossipParts, state: RunState, actions: tuple[Action, ...]) -> Result:
    able, config = state.collection.able, state.config
    if len(able) < config.quorum:
        return state, (*actions, r.waiting(state))
    cohort = opening.cohort_of(parts.algorithm, opening.candidates_of(state, able), state.collection.round, config.seed)
    state, store = opening.opened(parts.algorithm, opening.with_stored(parts.blobs, actions), state, 0, cohort)
    return state, (*actions, *store, *_tasks(parts.num_rings, parts.mixing, state, cohort))


def _tasks(num_rings: int, mixing: int, state: RunState, clients: tuple[ClientId, ...]) -> tuple[Action, ...]:
    """The tasks of some clients, the same each time they are sent."""
    config, graph_rng = state.config, Seeds(state.config.seed).at("gossip", "graph").rng()
    weights = metropolis(rings(state.collection.cohort, num_rings, graph_rng))
    return tuple(
        Send(
            Address("client", client),
            GossipTask(
                spec=config.spec,
                client=client,
                sections=state.sent,
                peers=weights[client],
                listens_to=tuple(weights[client]),
                num_rounds=config.num_rounds,
                mixing=mixing,
                round_deadline_s=config.round_deadline_s,
            ),
        )
        for client in clients
    )


def _reported(parts: _GossipParts, state: RunState, event: Received) -> Result:
    letter, collection = event.letter, state.collection
    assert isinstance(letter, GossipReport)
    if letter.run != state.config.run or letter.client not in collection.cohort:
        reason = Refusal.WRONG_RUN if letter.run != state.config.run else Refusal.NOT_ASKED
        collection, actions = c.refuse(collection, reason, f"run {state.config.run} has no task of {letter.client}.")
        return r.with_collection(state, collection), actions
    if letter.client in collection.answers:
        collection, actions = c.refuse(collection, Refusal.DUPLICATE, f"{letter.client} has reported already.")
        return r.with_collection(state, collection), actions
    try:
        value = vector_from_bytes(blob(parts.blobs, letter.value.digest), state.config.num_entries)
        parts.algorithm.exchanges[0].aggregate[MODEL].check(value)
    except StoreError:
        raise
    except EdgewiseError as error:
        collection, actions = c.refuse_invalid(collection, letter.client, error.message)
        return _settled(parts, r.with_collection(state, collection), actions)
    metrics = c.finite(letter.metrics)
    answer = Answer(update=letter.value.digest, num_examples=letter.num_examples, metrics=metrics)
    collection = c.accepted(collection, letter.client, answer, event.generation)
    if letter.client in letter.lost:  # its own work failed
        state = r.change(state, dropouts={**state.dropouts, letter.client: letter.lost[letter.client]})
    return _settled(parts, r.with_collection(state, collection), (Accept(),))


def _settled(parts: _GossipParts, state: RunState, actions: tuple[Action, ...]) -> Result:
    collection, config = state.collection, state.config
    if state.phase is Phase.OPEN and ending.cannot_close(state, config.quorum, collection.cohort):
        state, end = ending.without_hope(state, config.quorum)
        return state, (*actions, *end, *ending.endings(state))
    if state.phase is not Phase.OPEN or not collection.is_settled:
        return state, actions
    if len(collection.answers) < config.quorum:
        return state, (*actions, r.waiting(state))
    answers = {client: collection.answers[client] for client in collection.cohort if client in collection.answers}
    if len(answers.keys() - state.dropouts.keys()) < config.quorum:  # who mixes and has not trained is no help
        return _fruitless(state, actions)
    first = section_from_blob(state.sections[MODEL], blob(parts.blobs, state.model))
    values = [vector_from_bytes(blob(parts.blobs, a.update), config.num_entries) for a in answers.values()]
    model = np.mean([value.astype(np.float64) for value in values], axis=0).astype(np.float32)
    section, data = section_to_blob(MODEL, model)
    summary = RoundSummary(
        round=RoundNumber(config.num_rounds),
        model=section.blob.digest,
        num_examples={client: a.num_examples for client, a in answers.items()},
        metrics=mean_metrics((a.metrics, max(1, a.num_examples)) for a in answers.values()),
        missing={**state.dropouts, **collection.missing},
        update_norm=float(np.linalg.norm(model.astype(np.float64) - first)),
    )
    records = {client: ClientRecord(RoundNumber(config.num_rounds), 1, a.metrics) for client, a in answers.items()}
    state = r.change(
        state, sections={**state.sections, MODEL: section}, rounds=(summary,), records={**state.records, **records}
    )
    sentence = f"run {config.run} completed {config.num_rounds} rounds; {_lost_mass(parts, state)}"
    state, end = ending.ended(state, OutcomeKind.COMPLETED, sentence, "")
    return state, (
        *actions,
        Store({section.blob.digest: data}),
        AnnounceRound(summary),
        *end,
        *ending.endings(state),
    )


def _fruitless(state: RunState, actions: tuple[Action, ...]) -> Result:
    """The end of a run in which the work of too many failed, though they took part in mixing."""
    quorum, num = state.config.quorum, len(state.collection.answers.keys() - state.dropouts.keys())
    sentence = (
        f"run {state.config.run} needs {quorum} clients whose work succeeds, {num} reported so; the work of these failed: "
        f"{c.named(dict(sorted(state.dropouts.items())))}"
    )
    cure = "Mend why it failed, or lower the quorum, then start again."
    state, end = ending.ended(state, OutcomeKind.TOO_FEW_CLIENTS, sentence, cure)
    return state, (*actions, *end, *ending.endings(state))


def _lost_mass(parts: _GossipParts, state: RunState) -> str:
    collection, weigh = state.collection, parts.algorithm.exchanges[0].aggregate[MODEL].weigh
    failed = f"; the last work of these failed: {c.named(state.dropouts)}" if state.dropouts else ""
    if not collection.missing:
        return f"all the mass is there{failed}"
    metrics = [answer.metrics for answer in collection.answers.values()]
    held = {client: collection.members[client].num_examples for client in collection.missing}
    brought = sum(m.get("brought", 0.0) for m in metrics) + sum(weigh.weight(Counted(n)) for n in held.values())
    left = sum(m.get("weight", 0.0) for m in metrics)
    return f"lost with {c.named(collection.missing)}: {1 - left / brought if brought else 0.0:.1%} of the mass{failed}"


def _lost(parts: _GossipParts, state: RunState, event: ClientLost) -> Result:
    return _settled(parts, r.with_collection(state, c.lost(state.collection, event.client, event.cause)), ())


def _returned(parts: _GossipParts, state: RunState, event: ClientReturned) -> Result:
    collection, ask_again = c.returned(state.collection, event.client, event.seen)
    state = r.with_collection(state, collection)
    if state.phase is Phase.WAITING:
        return _begun(parts, state, ()) if len(collection.able) >= state.config.quorum else (state, ())
    return state, _tasks(parts.num_rings, parts.mixing, state, (event.client,)) if ask_again else ()


def _delivered(parts: _GossipParts, state: RunState, event: Delivered) -> Result:
    if event.accepted or event.key != f"gossip/{event.to.name}":
        return state, ()
    state = r.with_collection(state, c.failed(state.collection, ClientId(event.to.name), event.reason))
    if state.phase is Phase.OPEN and not state.collection.is_settled:  # its neighbours wait for it: it is asked again
        return state, (r.waiting(state),)
    return _settled(parts, state, ())


def _cancelled(parts: _GossipParts, state: RunState, event: RunCancelled) -> Result:
    if event.run != state.config.run:
        return state, ()
    state, actions = ending.cancelled(state, event.cause)
    return state, actions + ending.endings(state)


def _end_again(parts: _GossipParts, state: RunState, event: ClientReturned) -> Result:
    return state, ending.endings_for(state, event.client)


_LATE = refused(Refusal.LATE, "the run has ended.")

TABLE = Table(("waiting", "open", "ended"), {
    GossipReport:    (_reported,     _reported,     _LATE),
    LetterInvalid:   (ignored,       ignored,       _LATE),
    Delivered:       (ignored,       _delivered,    ignored),
    ClientLost:      (_lost,         _lost,         ignored),
    ClientReturned:  (_returned,     _returned,     _end_again),
    EdgeLost:        (ignored,       ignored,       ignored),
    EdgeReturned:    (ignored,       ignored,       ignored),
    TimerFired:      (ignored,       ignored,       ignored),
    RunCancelled:    (_cancelled,    _cancelled,    ignored),
    RunStarted:      (ignored,       ignored,       ignored),
})  # fmt: skip
"""Deadlines are the clients'; edges are no business of this protocol; a run starts once."""
