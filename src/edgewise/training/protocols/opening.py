"""How a run starts and how an exchange opens: who is asked, and what goes down to them."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterable, Sequence
from typing import Any

from edgewise.codecs.bundle import Bundle
from edgewise.core.errors import InputError, PartFailed
from edgewise.core.ids import ClientId, Digest, RoundNumber
from edgewise.core.seeds import Seeds
from edgewise.training.algorithm import MODEL, Candidate, ClientRecord, FederatedAlgorithm
from edgewise.training.protocols import collection as c
from edgewise.training.protocols.ending import ended, failed
from edgewise.training.protocols.folding import (
    blob,
    section_from_blob,
    section_to_blob,
    vector_from_bytes,
)
from edgewise.training.protocols.letters import BlobName, SectionBlob
from edgewise.training.protocols.messages import Action, Member, OutcomeKind, RunStarted, Store
from edgewise.training.protocols.part_calls import asked
from edgewise.training.protocols.protocol import Blobs
from edgewise.training.protocols.run_state import Phase, Result, RunState, change, exchange_seeds


def started(algorithm: FederatedAlgorithm, blobs: Blobs, event: RunStarted) -> Result:
    """The state before the first round, or before the next of a former run; ended at once where the config cannot work.

    Args:
        algorithm: The parts.
        blobs: Holds the initial model.
        event: The start.

    Returns:
        The state, and what to store.
    """
    config = event.config
    members, former = {client: _member(event, client) for client in config.clients}, config.former
    model = vector_from_bytes(blob(blobs, config.initial_model), config.num_entries)
    sections, data = {MODEL: SectionBlob(MODEL, BlobName(config.initial_model, model.nbytes))}, {}
    if former is not None:
        sections |= former.sections
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
        collection=c.Collection(members, RoundNumber(1 if former is None else former.rounds[-1].round + 1)),
        sections=sections,
        records={} if former is None else former.records,
        rounds=() if former is None else former.rounds,
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
    members = state.collection.members
    counted = {client: record for client, record in state.records.items() if record.num_counted}
    return [Candidate(client, members[client].num_examples, counted.get(client)) for client in clients]


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


def server_bundle(state: RunState, blobs: Blobs) -> Bundle:
    """All sections of the server's state."""
    return {name: section_from_blob(s, blob(blobs, s.blob.digest)) for name, s in state.sections.items()}


def with_stored(blobs: Blobs, actions: Iterable[Action]) -> Blobs:
    """The store as it will be when actions of the same step are carried out."""
    stored = [action.blobs for action in actions if isinstance(action, Store)]
    return ChainMap(*(dict(part) for part in stored), blobs) if stored else blobs  # type: ignore[arg-type]  # only read
