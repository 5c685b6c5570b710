"""The one end of a run: why it comes, what everybody is sent then, and what comes later."""

from __future__ import annotations

from edgewise.core.ids import ClientId
from edgewise.training.algorithm import FederatedAlgorithm
from edgewise.training.protocols import collection as c
from edgewise.training.protocols.letters import Address, RunEnded, UpdateReport
from edgewise.training.protocols.messages import Action, AnnounceWaiting, EndRun, Outcome, OutcomeKind, Refusal, Send
from edgewise.training.protocols.part_calls import CURE
from edgewise.training.protocols.run_state import Phase, Result, RunState, change, waiting, with_collection


def chose_too_few(algorithm: FederatedAlgorithm, state: RunState, num: int) -> Result:
    """The end of a run whose selection can never reach the quorum."""
    sentence = f"{algorithm.select.spec} chose {num} clients, the quorum is {state.config.quorum}"
    return ended(state, OutcomeKind.FAILED, sentence, "Choose more clients or lower the quorum.")


def too_few(state: RunState, last: AnnounceWaiting | None = None) -> Result:
    """The end of a run whose round did not find its quorum by the deadline; `last` is what it waited for."""
    cure = "Bring clients back, raise round_deadline_s or lower the quorum, then start again from the last model."
    return ended(state, OutcomeKind.TOO_FEW_CLIENTS, (last or waiting(state)).sentence, cure)


def cannot_close(state: RunState, needed: int, cohort: tuple[ClientId, ...] = ()) -> bool:
    """Whether so many updates can never come: some clients are in quarantine, others have failed too often.

    Args:
        state: Not ended.
        needed: Updates that a round needs.
        cohort: Who may send them; everybody if empty.

    Returns:
        True if even everybody's return would not do.
    """
    collection = state.collection
    pool, answers = cohort or tuple(collection.members), collection.answers
    return sum([client in answers or not c.exclusion(collection, client) for client in pool]) < needed


def without_hope(state: RunState, needed: int) -> Result:
    """The end of a run whose round can never have the updates that it needs."""
    collection = state.collection
    out = {client: cause for client in collection.members if (cause := c.exclusion(collection, client))}
    left = len(collection.members) - len(out)
    sentence = (
        f"round {collection.round} needs {needed} updates and can never have them; {left} of {len(collection.members)} "
        f"clients are left, out are: {c.named(out)}"
    )
    cure = "Mend what they sent or why they failed, or ask for fewer updates a round, then start again from the last model."
    return ended(state, OutcomeKind.TOO_FEW_CLIENTS, sentence, cure)


def failed(state: RunState, fault: str) -> Result:
    """The end of a run of which a part failed."""
    return ended(state, OutcomeKind.FAILED, f"round {state.collection.round}: {fault.rstrip('.')}", CURE)


def cancelled(state: RunState, cause: str) -> Result:
    """The end of a run that somebody stopped."""
    sentence = f"run {state.config.run} was cancelled in round {state.collection.round}: {cause}"
    return ended(state, OutcomeKind.CANCELLED, sentence, "Start it again from its last model.")


def ended(state: RunState, kind: OutcomeKind, sentence: str, cure: str) -> Result:
    """The one terminal state of a run.

    Args:
        state: Before.
        kind: How it ends.
        sentence: Why, without the full stop.
        cure: What to do about it.

    Returns:
        The state, and `EndRun`; letters that say so are the protocol's.
    """
    outcome = Outcome(kind, f"{sentence}.", cure, state.model, len(state.rounds))
    return change(state, phase=Phase.ENDED, outcome=outcome), (EndRun(outcome),)


def endings(state: RunState) -> tuple[Action, ...]:
    """Letters of the end to every client that was asked, with the last of its rounds that counted."""
    run = state.config.run
    return tuple(
        Send(Address("client", client), RunEnded(run=run, counted=record.counted))
        for client, record in state.records.items()
    )


def endings_for(state: RunState, client: ClientId) -> tuple[Action, ...]:
    """Letters of the end to a client that comes back after it."""
    return tuple(a for a in endings(state) if isinstance(a, Send) and a.to.name == client)


def after_end(state: RunState, letter: UpdateReport) -> Result:
    """An update that comes after the end: a yes where it counted before."""
    record, answer = state.records.get(letter.client), state.collection.answers.get(letter.client)
    rounds = {record.counted if record else None, state.collection.round - answer.staleness if answer else None}
    counted = letter.round in rounds and letter.run == state.config.run
    reason = Refusal.DUPLICATE if counted else Refusal.LATE
    collection, actions = c.refuse(state.collection, reason, f"run {state.config.run} has ended.")
    return with_collection(state, collection), actions
