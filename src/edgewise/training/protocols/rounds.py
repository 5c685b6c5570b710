"""What every protocol does with a run as a whole: its state, closing a round, ending with one cause."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

import msgspec

from edgewise.core.errors import InputError
from edgewise.core.ids import ClientId, Digest, RoundNumber, digest_of
from edgewise.core.seeds import Seeds
from edgewise.training.algorithm import FederatedAlgorithm
from edgewise.training.algorithm import State as PartState
from edgewise.training.protocols import gathering as g
from edgewise.training.protocols.folding import Blobs, blob, mean_metrics, next_model, server_state_to_bytes
from edgewise.training.protocols.folding import vector_from_bytes as read_vector
from edgewise.training.protocols.messages import (
    Action,
    AnnounceRound,
    AnnounceWaiting,
    EndRun,
    Member,
    Outcome,
    OutcomeKind,
    RoundSummary,
    RunConfig,
    RunStarted,
    StoreModel,
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


def with_gathering(state: RunState, gathering: g.Gathering, phase: Phase | None = None) -> RunState:
    """The same with another gathering, and another phase where one is given."""
    return msgspec.structs.replace(state, gathering=gathering, phase=phase or state.phase)


def started(algorithm: FederatedAlgorithm, blobs: Blobs, event: RunStarted) -> tuple[RunState, tuple[Action, ...]]:
    """The state before the first round; ended at once where the config cannot work.

    Args:
        algorithm: The five parts.
        blobs: Holds the initial model.
        event: The start.

    Returns:
        The state, and what to store.
    """
    config = event.config
    absent = Member(absence="not seen yet")
    members = {c: Member(event.present[c]) if c in event.present else absent for c in config.clients}
    model = read_vector(blob(blobs, config.initial_model), config.num_entries)
    server_data = server_state_to_bytes(algorithm.server.init(model))
    server = digest_of(server_data)
    state = RunState(config, Phase.WAITING, g.Gathering(members, RoundNumber(1)), config.initial_model, server)
    store = StoreModel(config.run, RoundNumber(0), config.initial_model, b"", server, server_data)
    if 1 <= config.quorum <= len(config.clients) and config.num_rounds >= 1:
        return state, (store,)
    sentence = (
        f"run {config.run} asks for {config.num_rounds} rounds with a quorum of {config.quorum} "
        f"among {len(config.clients)} clients"
    )
    cure = "Set num_rounds to at least 1 and quorum to 1 … number of clients."
    state, actions = ended(state, OutcomeKind.FAILED, sentence, cure)
    return state, (store, *actions)


def waiting(state: RunState) -> AnnounceWaiting:
    """Says what a run waits for: who is missing and why."""
    gathering, config = state.gathering, state.config
    absent = {c: m.quarantine or m.absence for c, m in gathering.members.items() if not m.can_work}
    is_open = state.phase is Phase.OPEN
    have = len(gathering.answers) if is_open else len(gathering.candidates)
    sentence = (
        f"round {gathering.round} has {have} {'updates' if is_open else 'clients'}, the quorum is {config.quorum}; "
        f"missing: {g.named({**absent, **gathering.missing})}"
    )
    return AnnounceWaiting(config.run, gathering.round, sentence)


def cohort_of(
    algorithm: FederatedAlgorithm, candidates: Sequence[ClientId], number: RoundNumber, seed: int
) -> tuple[ClientId, ...]:
    """Who is asked in a round; follows from the seed tree alone.

    Args:
        algorithm: Its rule of selection.
        candidates: Who can work.
        number: The round.
        seed: The job's seed.

    Returns:
        The cohort.
    """
    return algorithm.select.choose(candidates, number, Seeds(seed).at("round", number, "select").rng())


def chose_too_few(algorithm: FederatedAlgorithm, state: RunState, num: int) -> tuple[RunState, tuple[Action, ...]]:
    """The end of a run whose selection can never reach the quorum."""
    sentence = f"{algorithm.select.spec} chose {num} clients, the quorum is {state.config.quorum}"
    return ended(state, OutcomeKind.FAILED, sentence, "Choose more clients or lower the quorum.")


def too_few(state: RunState) -> tuple[RunState, tuple[Action, ...]]:
    """The end of a run whose round did not find its quorum by the deadline."""
    cure = "Bring clients back, raise round_deadline_s or lower the quorum, then start again from the last model."
    return ended(state, OutcomeKind.TOO_FEW_CLIENTS, waiting(state).sentence, cure)


def cancelled(state: RunState, cause: str) -> tuple[RunState, tuple[Action, ...]]:
    """The end of a run that somebody stopped."""
    sentence = f"run {state.config.run} was cancelled in round {state.gathering.round}: {cause}"
    return ended(state, OutcomeKind.CANCELLED, sentence, "Start it again from its last model.")


def overdue(state: RunState) -> g.Gathering:
    """The gathering after its deadline: whoever is outstanding is a dropout."""
    gathering, deadline_s = state.gathering, state.config.round_deadline_s
    cause = "no update by the deadline" if deadline_s is None else f"no update within {deadline_s:g} s"
    for client in gathering.outstanding:
        gathering = g.dropped(gathering, client, cause)
    return gathering


def ended(state: RunState, kind: OutcomeKind, sentence: str, cure: str) -> tuple[RunState, tuple[Action, ...]]:
    """The one terminal state of a run.

    Args:
        state: Before.
        kind: How it ends.
        sentence: Why, without the full stop.
        cure: What to do about it.

    Returns:
        The state, and `EndRun`.
    """
    outcome = Outcome(kind, f"{sentence}.", cure, state.model, len(state.rounds))
    state = msgspec.structs.replace(state, phase=Phase.ENDED, outcome=outcome)
    return state, (EndRun(state.config.run, outcome),)


def closed(
    algorithm: FederatedAlgorithm, blobs: Blobs, state: RunState, total: PartState
) -> tuple[RunState, tuple[Action, ...]]:
    """Closes the round with a folded sum; ends the run after its last round, or if the model diverged.

    Args:
        algorithm: The five parts.
        blobs: Holds the model and the server's state.
        state: Its gathering has the answers that were summed.
        total: Their sum.

    Returns:
        The state, and what to store and announce; where the run goes on the next round is to be opened.
    """
    config, gathering = state.config, state.gathering
    try:
        store, norm = next_model(algorithm, blobs, config, gathering.round, (state.model, state.server), total)
    except InputError as error:
        cure = "Lower the learning rates of clients and server, then start again from the last model."
        return ended(state, OutcomeKind.FAILED, f"round {gathering.round}: {error.message.rstrip('.')}", cure)
    answered = {c: gathering.answers[c] for c in gathering.cohort if c in gathering.answers}
    weights = {c: a.weight for c, a in answered.items()}
    metrics = mean_metrics((a.metrics, a.weight) for a in answered.values())
    summary = RoundSummary(gathering.round, store.model, weights, metrics, gathering.missing, norm)
    fields = {"model": store.model, "server": store.server, "rounds": (*state.rounds, summary)}
    state = msgspec.structs.replace(state, **fields)
    actions: tuple[Action, ...] = (store, AnnounceRound(config.run, summary))
    if gathering.round < config.num_rounds:
        return state, actions
    state, ending = ended(state, OutcomeKind.COMPLETED, f"run {config.run} completed {config.num_rounds} rounds", "")
    return state, actions + ending
