"""The state of a run that servers of every protocol share: what it is, what it waits for, how everybody sees it.

How a run starts and an exchange opens is in `opening.py`, how they close in `closing.py`, the one end of a run in `ending.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Any

import msgspec

from edgewise.core.ids import ClientId, Digest
from edgewise.core.seeds import Seeds
from edgewise.training.algorithm import MODEL, ClientRecord
from edgewise.training.protocols import collection as c
from edgewise.training.protocols.letters import Address, SectionBlob, WorkOrder
from edgewise.training.protocols.messages import (
    Action,
    AnnounceWaiting,
    Outcome,
    RoundSummary,
    RunConfig,
    Send,
    SetTimer,
)
from edgewise.training.protocols.protocol import RunView

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


def waiting(state: RunState, unable: Mapping[ClientId, str] | None = None) -> AnnounceWaiting:
    """Says what a run waits for: who is missing and why.

    Args:
        state: Of the run.
        unable: Cause by client that is there and cannot take part all the same.

    Returns:
        The sentence.
    """
    collection, config = state.collection, state.config
    absent = {client: m.quarantine or m.absence for client, m in collection.members.items() if not m.can_work}
    absent |= unable or {}
    is_open = state.phase is Phase.OPEN
    have = len(collection.answers) if is_open else len(collection.members) - len(absent)
    sentence = (
        f"round {collection.round} has {have} {'updates' if is_open else 'clients'}, the quorum is {config.quorum}; "
        f"missing: {c.named({**absent, **state.dropouts, **collection.missing})}"
    )
    return AnnounceWaiting(collection.round, sentence)


def overdue(state: RunState) -> RunState:
    """The state after its deadline: whoever is outstanding is a dropout."""
    seconds = state.deadline_s
    cause = "no update by the deadline" if seconds is None else f"no update within {seconds:g} s"
    return with_collection(state, c.overdue(state.collection, cause))


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
        sections=state.sections,
        records=state.records,
    )


def needs(state: RunState) -> list[Digest]:
    """Blobs that this run will still read or send."""
    if state.phase is Phase.ENDED:
        return [state.config.initial_model, *(section.blob.digest for section in state.sections.values())]
    own = [section for sections in state.own.values() for section in sections]
    named = [section.blob.digest for section in (*state.sections.values(), *state.sent, *own)]
    # The initial model is what a replay of the log begins with.
    return [state.config.initial_model, *named, *(a.update for a in state.collection.answers.values() if a.update)]
