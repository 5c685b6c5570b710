"""What every server-led protocol does with a run as a whole: its state, closing exchanges and rounds, ending with one cause."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Any

import msgspec

from edgewise.codecs.bundle import Bundle
from edgewise.core.errors import InputError, PartFailed
from edgewise.core.ids import ClientId, Digest, RoundNumber
from edgewise.core.seeds import Seeds
from edgewise.training.algorithm import MODEL, Candidate, ClientRecord, FederatedAlgorithm
from edgewise.training.protocols import collection as c
from edgewise.training.protocols.folding import (
    blob,
    section_from_blob,
    section_to_blob,
    vector_from_bytes,
)
from edgewise.training.protocols.letters import Address, BlobName, RunEnded, SectionBlob, WorkOrder
from edgewise.training.protocols.messages import (
    Action,
    AnnounceWaiting,
    EndRun,
    Member,
    Outcome,
    OutcomeKind,
    RoundSummary,
    RunConfig,
    RunStarted,
    Send,
    SetTimer,
    Store,
)
from edgewise.training.protocols.part_calls import CURE, asked
from edgewise.training.protocols.protocol import Blobs, RunView

Sections = dict[str, SectionBlob]


class Phase(StrEnum):
    """Where a run stands."""

    WAITING = "waiting"
    OPEN = "open"
    ENDED = "ended"


class RunState(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a run is; serialisable, and equal after a replay of the same events.

    Attributes:
        config: The run.
        phase: `waiting` for a quorum of clients, `open` exchange, or `ended`.
        collection: The members and the current exchange.
        deadline_s: Seconds of one exchange: those of the round in equal parts.
        sections: The server's state, each section as a blob; `model` is the current model.
        records: What is known of each client that was ever asked.
        sent: What goes down to all in the open exchange.
        own: What goes down to one client alone in the open exchange.
        dropouts: Cause by client that was lost in a former exchange of this round.
        rounds: What the closed rounds were.
        outcome: How the run ended.
    """

    config: RunConfig
    phase: Phase
    collection: c.Collection
    sections: Sections
    deadline_s: float | None = None
    records: dict[ClientId, ClientRecord] = {}
    sent: tuple[SectionBlob, ...] = ()
    own: dict[ClientId, tuple[SectionBlob, ...]] = {}
    dropouts: dict[ClientId, str] = {}
    rounds: tuple[RoundSummary, ...] = ()
    outcome: Outcome | None = None

    @property
    def model(self) -> Digest:
        """The current model."""
        return self.sections[MODEL].blob.digest


Result = tuple[RunState, tuple[Action, ...]]


def change(state: RunState, **fields: Any) -> RunState:
    """The same with some fields replaced."""
    return msgspec.structs.replace(state, **fields)


def with_collection(state: RunState, collection: c.Collection, phase: Phase | None = None) -> RunState:
    """The same with another collection, and another phase where one is given."""
    if collection is state.collection and phase in (None, state.phase):
        return state
    return change(state, collection=collection, phase=phase or state.phase)


def started(algorithm: FederatedAlgorithm, blobs: Blobs, event: RunStarted) -> Result:
    """The state before the first round; ended at once where the config cannot work.

    Args:
        algorithm: The parts.
        blobs: Holds the initial model.
        event: The start.

    Returns:
        The state, and what to store.
    """
    config = event.config
    members = {client: _member(event, client) for client in config.clients}
    model = vector_from_bytes(blob(blobs, config.initial_model), config.num_entries)
    sections, data = {MODEL: SectionBlob(MODEL, BlobName(config.initial_model, model.nbytes))}, {}
    fault = ""
    for exchange in algorithm.exchanges:
        try:
            with asked(f"{exchange.server.spec} begins"):
                made = {n: section_to_blob(n, a) for n, a in exchange.server.init(model).items() if n not in sections}
        except PartFailed as error:
            fault = error.message
            break
        for name, (section, content) in made.items():
            sections[name], data[name] = section, content
    state = RunState(
        config=config,
        phase=Phase.WAITING,
        collection=c.Collection(members, RoundNumber(1)),
        sections=sections,
        deadline_s=None if config.round_deadline_s is None else config.round_deadline_s / len(algorithm.exchanges),
    )
    actions: tuple[Action, ...] = (Store({sections[n].blob.digest: d for n, d in data.items()}),) if data else ()
    if fault:
        state, ending = failed(state, fault)
        return state, actions + ending
    if 1 <= config.quorum <= len(config.clients) and config.num_rounds >= 1:
        return state, actions
    sentence = (
        f"run {config.run} asks for {config.num_rounds} rounds with a quorum of {config.quorum} "
        f"among {len(config.clients)} clients"
    )
    cure = "Set num_rounds to at least 1 and quorum to 1 … number of clients."
    state, ending = ended(state, OutcomeKind.FAILED, sentence, cure)
    return state, actions + ending


def _member(event: RunStarted, client: ClientId) -> Member:
    seen = event.present.get(client)
    return c.NOT_SEEN if seen is None else Member(generation=seen.generation, num_examples=seen.num_examples)


def candidates_of(state: RunState, clients: Iterable[ClientId]) -> list[Candidate]:
    """What selection sees of clients."""
    members, records, found = state.collection.members, state.records, []
    for client in clients:
        record = records.get(client)
        found.append(Candidate(client, members[client].num_examples, record if record and record.num_counted else None))
    return found


def cohort_of(
    algorithm: FederatedAlgorithm, candidates: Sequence[Candidate], number: RoundNumber, seed: int
) -> tuple[ClientId, ...]:
    """Who is asked in a round; follows from the seed tree and the candidates alone.

    Args:
        algorithm: Its rule of selection.
        candidates: Who can work, and what is known of them.
        number: The round.
        seed: The job's seed.

    Returns:
        The cohort.
    """
    return chosen(algorithm, candidates, number, Seeds(seed).at("round", number, "select").rng())


def chosen(
    algorithm: FederatedAlgorithm, candidates: Sequence[Candidate], number: RoundNumber, rng: Any
) -> tuple[ClientId, ...]:
    """What a rule of selection chooses, each of the candidates at most once.

    Args:
        algorithm: Its rule of selection.
        candidates: Who can work, and what is known of them.
        number: The round.
        rng: Its place in the seed tree.

    Returns:
        The cohort.

    Raises:
        PartFailed: If the rule raises, or chooses somebody twice or who is no candidate.
    """
    with asked(f"{algorithm.select.spec} chooses in round {number}"):
        found, known = tuple(algorithm.select.choose(candidates, number, rng)), {each.client for each in candidates}
        strangers = [client for client in found if client not in known]
        if strangers or len(set(found)) < len(found):
            raise InputError(
                f"{list(found[:10])} were chosen, who are to be clients of the {len(candidates)} candidates, each at most once."
            )
        return found


def quorum_of(algorithm: FederatedAlgorithm, candidates: Sequence[Candidate], seed: int, asked: int = 0) -> int:
    """The quorum of a run that can be met, settled when it is submitted.

    Args:
        algorithm: Its rule of selection.
        candidates: All clients.
        seed: The job's seed.
        asked: The quorum that was asked for; 0 for the whole cohort.

    Returns:
        Updates a round needs.

    Raises:
        InputError: If selection never chooses so many.
    """
    size = len(cohort_of(algorithm, candidates, RoundNumber(1), seed))
    if asked > size:
        raise InputError(
            f"a quorum of {asked} is asked, {algorithm.select.spec} chooses {size} of {len(candidates)} clients. "
            f"Choose more clients, or lower the quorum to at most {size}."
        )
    return asked or size


def server_bundle(state: RunState, blobs: Blobs) -> Bundle:
    """All sections of the server's state."""
    return {name: section_from_blob(s, blob(blobs, s.blob.digest)) for name, s in state.sections.items()}


def with_stored(blobs: Blobs, actions: Iterable[Action]) -> Blobs:
    """The store as it will be when actions of the same step are carried out."""
    stored = [action.blobs for action in actions if isinstance(action, Store)]
    return ChainMap(*(dict(part) for part in stored), blobs) if stored else blobs  # type: ignore[arg-type]  # only read


def opened(
    algorithm: FederatedAlgorithm, blobs: Blobs, state: RunState, exchange: int, cohort: tuple[ClientId, ...]
) -> Result:
    """Opens an exchange of the current round; what goes down is settled and stored here.

    Args:
        algorithm: The parts.
        blobs: Holds the server's state.
        state: Before.
        exchange: Which.
        cohort: Who is asked.

    Returns:
        The state, and what to store; orders are the protocol's.
    """
    number = state.collection.round
    sent, own, data = sections_down(algorithm, blobs, state, exchange, cohort)
    records = state.records
    if any(client not in records for client in cohort):
        records = {**dict.fromkeys(cohort, ClientRecord()), **records}
    state = change(
        state,
        phase=Phase.OPEN,
        collection=c.opened(state.collection, number, exchange, cohort),
        records=records,
        sent=sent,
        own=own,
    )
    return state, (Store(data),) if data else ()


def sections_down(
    algorithm: FederatedAlgorithm, blobs: Blobs, state: RunState, exchange: int, cohort: tuple[ClientId, ...]
) -> tuple[tuple[SectionBlob, ...], dict[ClientId, tuple[SectionBlob, ...]], dict[Digest, bytes]]:
    """What goes down in an exchange: to all, to single clients, and what must be stored for it."""
    part, data = algorithm.exchanges[exchange], dict[Digest, bytes]()
    place = exchange_seeds(state, exchange)

    def coded(name: str, array: Any) -> SectionBlob:
        section, content = section_to_blob(name, array, part.downlink, place)
        data[section.blob.digest] = content
        return section

    def of_state(name: str) -> SectionBlob:
        stored = state.sections.get(name)
        if stored is None:
            raise InputError(f"it sends a section {name!r}, its state has {sorted(state.sections)}.")
        return (
            coded(name, section_from_blob(stored, blob(blobs, stored.blob.digest))) if name in part.downlink else stored
        )

    with asked(f"what {part.server.spec} sends in round {state.collection.round}"):
        sent, own = tuple(of_state(name) for name in part.server.sends), {}
        if part.server.letters is not None:
            bundle = server_bundle(state, blobs)
            for client in cohort:
                letter = part.server.letters(bundle, client, state.records.get(client))
                if letter:
                    own[client] = tuple(coded(name, array) for name, array in letter.items())
    return sent, own, data


def begun_anew(algorithm: FederatedAlgorithm, blobs: Blobs, state: RunState, client: ClientId) -> Result:
    """A client that lost what it kept becomes one that never counted.

    Args:
        algorithm: The parts.
        blobs: Holds the server's state.
        state: With an open exchange that has asked it.
        client: Who.

    Returns:
        The state, and what to store; its `own` differs where there is another letter for the client now.
    """
    state = change(state, records={**state.records, client: ClientRecord()})
    _, own, data = sections_down(algorithm, blobs, state, state.collection.exchange, (client,))
    return change(state, own={**state.own, **own}), (Store(data),) if data else ()


def exchange_seeds(state: RunState, exchange: int) -> Seeds:
    """The seed tree's place of an exchange."""
    place = Seeds(state.config.seed).at("round", state.collection.round)
    return place.at("exchange", exchange) if exchange else place


def sections_for(
    sent: tuple[SectionBlob, ...], own: Mapping[ClientId, tuple[SectionBlob, ...]], client: ClientId
) -> tuple[SectionBlob, ...]:
    """What a client gets: its own letter before what all get."""
    mine = own.get(client)
    if not mine:
        return sent
    names = {section.name for section in mine}
    return (*(section for section in sent if section.name not in names), *mine)


def orders(state: RunState, clients: Iterable[ClientId]) -> tuple[Action, ...]:
    """Orders of the open exchange, the same each time they are sent."""
    collection, spec, none = state.collection, state.config.spec, ClientRecord()
    return tuple(
        Send(
            Address("client", client),
            WorkOrder(
                spec=spec,
                round=collection.round,
                client=client,
                sections=sections_for(state.sent, state.own, client),
                exchange=collection.exchange,
                counted=state.records.get(client, none).counted,
            ),
        )
        for client in clients
    )


def timer_name(state: RunState) -> str:
    """The timer of the open exchange."""
    return f"round/{state.collection.round}/{state.collection.exchange}"


def set_timer(state: RunState) -> tuple[Action, ...]:
    """Sets the timer of the open exchange; nothing where a round has no deadline."""
    return () if state.deadline_s is None else (SetTimer(timer_name(state), state.deadline_s),)


def waiting(state: RunState, able: int | None = None) -> AnnounceWaiting:
    """Says what a run waits for: who is missing and why."""
    collection, config = state.collection, state.config
    absent = {client: m.quarantine or m.absence for client, m in collection.members.items() if not m.can_work}
    is_open = state.phase is Phase.OPEN
    have = len(collection.answers) if is_open else len(collection.able) if able is None else able
    sentence = (
        f"round {collection.round} has {have} {'updates' if is_open else 'clients'}, the quorum is {config.quorum}; "
        f"missing: {c.named({**absent, **state.dropouts, **collection.missing})}"
    )
    return AnnounceWaiting(collection.round, sentence)


def chose_too_few(algorithm: FederatedAlgorithm, state: RunState, num: int) -> Result:
    """The end of a run whose selection can never reach the quorum."""
    sentence = f"{algorithm.select.spec} chose {num} clients, the quorum is {state.config.quorum}"
    return ended(state, OutcomeKind.FAILED, sentence, "Choose more clients or lower the quorum.")


def too_few(state: RunState) -> Result:
    """The end of a run whose round did not find its quorum by the deadline."""
    cure = "Bring clients back, raise round_deadline_s or lower the quorum, then start again from the last model."
    return ended(state, OutcomeKind.TOO_FEW_CLIENTS, waiting(state).sentence, cure)


def cannot_close(state: RunState, needed: int, cohort: tuple[ClientId, ...] = ()) -> bool:
    """Whether so many updates can never come: quarantine lasts as long as the run.

    Args:
        state: Not ended.
        needed: Updates that a round needs.
        cohort: Who may send them; everybody if empty.

    Returns:
        True if even everybody's return would not do.
    """
    collection = state.collection
    pool, answers, members = cohort or tuple(collection.members), collection.answers, collection.members
    return sum([client in answers or not members[client].quarantine for client in pool]) < needed


def without_hope(state: RunState, needed: int) -> Result:
    """The end of a run whose round can never have the updates that it needs."""
    collection = state.collection
    out = {client: f"in quarantine: {m.quarantine}" for client, m in collection.members.items() if m.quarantine}
    left = len(collection.members) - len(out)
    sentence = (
        f"round {collection.round} needs {needed} updates and can never have them; {left} of {len(collection.members)} "
        f"clients are left, out are: {c.named(out)}"
    )
    cure = "Mend what they sent, or ask for fewer updates a round, then start again from the last model."
    return ended(state, OutcomeKind.TOO_FEW_CLIENTS, sentence, cure)


def failed(state: RunState, fault: str) -> Result:
    """The end of a run of which a part failed."""
    return ended(state, OutcomeKind.FAILED, f"round {state.collection.round}: {fault.rstrip('.')}", CURE)


def cancelled(state: RunState, cause: str) -> Result:
    """The end of a run that somebody stopped."""
    sentence = f"run {state.config.run} was cancelled in round {state.collection.round}: {cause}"
    return ended(state, OutcomeKind.CANCELLED, sentence, "Start it again from its last model.")


def overdue(state: RunState) -> RunState:
    """The state after its deadline: whoever is outstanding is a dropout."""
    seconds = state.deadline_s
    cause = "no update by the deadline" if seconds is None else f"no update within {seconds:g} s"
    return with_collection(state, c.overdue(state.collection, cause))


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
    """Tells every client that was asked that the run is over, and which of its rounds counted."""
    run = state.config.run
    return tuple(
        Send(Address("client", client), RunEnded(run=run, counted=record.counted))
        for client, record in state.records.items()
    )


def told_again(state: RunState, client: ClientId) -> tuple[Action, ...]:
    """Tells a client that comes back after the end of it."""
    return tuple(a for a in endings(state) if isinstance(a, Send) and a.to.name == client)


def view(state: RunState) -> RunView:
    """The run as everybody sees it."""
    collection = state.collection
    return RunView(
        round=collection.round,
        model=state.model,
        rounds=state.rounds,
        outcome=state.outcome,
        outstanding=collection.outstanding if state.phase is Phase.OPEN else (),
        members=collection.members,
        missing={**state.dropouts, **collection.missing},
    )


def needs(state: RunState) -> list[Digest]:
    """Blobs that this run will still read or send."""
    if state.phase is Phase.ENDED:
        return [state.config.initial_model, *(section.blob.digest for section in state.sections.values())]
    own = [section for sections in state.own.values() for section in sections]
    named = [section.blob.digest for section in (*state.sections.values(), *state.sent, *own)]
    # The initial model is what a replay of the log begins with.
    return [state.config.initial_model, *named, *(a.update for a in state.collection.answers.values() if a.update)]
