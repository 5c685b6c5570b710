"""Closing an exchange and a round: the folds of updates become the server's next sections and a summary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import overload

from edgewise.core.errors import InputError
from edgewise.core.ids import ClientId, RoundNumber
from edgewise.training.algorithm import ClientRecord, Closed, Counted, FederatedAlgorithm
from edgewise.training.algorithm import State as PartState
from edgewise.training.protocols import collection as c
from edgewise.training.protocols.ending import ended
from edgewise.training.protocols.folding import fold, mean_metrics, section_to_blob, step_server
from edgewise.training.protocols.messages import (
    Action,
    AnnounceRound,
    Member,
    OutcomeKind,
    RoundSummary,
    SetTimer,
    Store,
)
from edgewise.training.protocols.opening import server_bundle
from edgewise.training.protocols.part_calls import asked
from edgewise.training.protocols.protocol import Blobs
from edgewise.training.protocols.run_state import Result, RunState, change, exchange_seeds, timer_name
from edgewise.training.protocols.step_parts import StepParts


def folded(parts: StepParts, state: RunState) -> Result:
    """Folds the answers of the open exchange and closes it.

    Args:
        parts: Of the step.
        state: With an open exchange.

    Returns:
        As `closed`.

    Raises:
        PartFailed: If an aggregator or the server's rule raises.
    """
    collection = state.collection
    with asked(f"the updates of round {collection.round} are folded"):
        exchange, answers = parts.algorithm.exchanges[collection.exchange], collection.answers.values()
        sums = fold(exchange, parts.decoder, answers, state.config.num_entries)
    return closed(parts, state, sums)


def closed(parts: StepParts, state: RunState, sums: Mapping[str, PartState]) -> Result:
    """Closes the open exchange with its folds: the server steps. After the last exchange the round closes.

    Args:
        parts: Of the step; its store holds the server's state and the updates.
        state: Its collection has the answers that were folded.
        sums: Their folds, by section.

    Returns:
        The state, and what to store and announce; the exchange's timer is taken back. Unless it has ended, the next
        exchange is to be opened: `collection.exchange` is it, with the next round where it is 0.

    Raises:
        PartFailed: If the server's rule raises.
    """
    name, has_timer = timer_name(state), state.deadline_s is not None
    state, actions = _stepped(parts.algorithm, parts.blobs, state, sums)
    return state, (*actions, SetTimer(name, None)) if has_timer else actions


def _stepped(algorithm: FederatedAlgorithm, blobs: Blobs, state: RunState, sums: Mapping[str, PartState]) -> Result:
    config, collection = state.config, state.collection
    exchange = algorithm.exchanges[collection.exchange]
    answers = [collection.answers[client] for client in collection.cohort if client in collection.answers]
    closing = closing_of(state, collection.round, collection.exchange, len(answers))
    with asked(f"{exchange.server.spec} steps"):
        bundle = server_bundle(state, blobs)
        try:
            stepped = step_server(exchange, blobs, bundle, sums, answers, closing, config.spec.buffers)
        except InputError as error:
            cure = "Lower the learning rates of clients and server, then start again from the last model."
            return ended(state, OutcomeKind.FAILED, f"round {collection.round}: {error.message.rstrip('.')}", cure)
        stored = {name: section_to_blob(name, array) for name, array in stepped.changed.items()}
    state = change(state, sections={**state.sections, **{name: section for name, (section, _) in stored.items()}})
    actions: tuple[Action, ...] = (Store({section.blob.digest: data for section, data in stored.values()}),)
    dropouts = {**state.dropouts, **collection.missing}
    if collection.exchange + 1 < len(algorithm.exchanges):
        cohort = tuple(client for client in collection.cohort if client in collection.answers)
        following = c.opened(collection, collection.round, collection.exchange + 1, cohort)
        return change(state, collection=following, dropouts=dropouts), actions
    state, announced = _round_closed(state, dropouts, stepped.update_norm)
    return state, actions + announced


class Population(Sequence[Counted]):
    """What would decide the weight of each client of a run; made up only where a part asks."""

    def __init__(self, members: Mapping[ClientId, Member]) -> None:
        self._members = tuple(members.values())

    def __len__(self) -> int:
        return len(self._members)

    @overload
    def __getitem__(self, index: int) -> Counted: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Counted]: ...

    def __getitem__(self, index: int | slice) -> Counted | Sequence[Counted]:
        if isinstance(index, slice):
            return [Counted(member.num_examples) for member in self._members[index]]
        return Counted(self._members[index].num_examples)


def closing_of(state: RunState, number: RoundNumber, exchange: int, num_counted: int) -> Closed:
    """What a server's rule may know of the exchange that closes."""
    members = state.collection.members
    place = exchange_seeds(state, exchange).at("server")
    return Closed(number, num_counted, len(members), place.lazy_rng(), Population(members))


def _round_closed(state: RunState, dropouts: dict[ClientId, str], norm: float) -> Result:
    config, collection = state.config, state.collection
    answered = {client: collection.answers[client] for client in collection.cohort if client in collection.answers}
    summary = RoundSummary(
        round=collection.round,
        model=state.model,
        num_examples={client: a.num_examples for client, a in answered.items()},
        metrics=mean_metrics((a.metrics, a.num_examples) for a in answered.values()),
        missing=dropouts,
        update_norm=norm,
        staleness=sum(a.staleness for a in answered.values()) / max(1, len(answered)),
    )
    records = dict(state.records)
    for client, answer in answered.items():
        former = records.get(client, ClientRecord())
        ordered = RoundNumber(collection.round - answer.staleness)  # the round its order named
        records[client] = ClientRecord(ordered, former.num_counted + 1, answer.metrics)
    state = change(state, rounds=(*state.rounds, summary), records=records, dropouts={})
    actions: tuple[Action, ...] = (AnnounceRound(summary),)
    if collection.round < config.num_rounds:
        following = c.opened(collection, RoundNumber(collection.round + 1), 0, ())
        return change(state, collection=following, sent=(), own={}), actions
    sentence = f"run {config.run} completed {config.num_rounds} rounds"
    state, ending = ended(state, OutcomeKind.COMPLETED, sentence, "")
    return state, actions + ending
