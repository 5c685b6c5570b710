"""The contract of a protocol: one value with a step for each role. No driver knows a protocol's name.

    driver: event ─▶ log ─▶ role.step(state, event) ─▶ state, actions ─▶ carried out: Send · Store · SetTimer · Work · Announce… · EndRun

A role's state is a frozen msgspec struct, the fold of its node's log of that run; after a crash `replay` folds the log
again and `resume` says what is outstanding. A coordinator's role begins with `RunStarted`, an edge's and a client's with
the first letter of a run they receive. The virtual driver is `simulation/virtual_run.py`, the live one `fleet/training/`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, MutableMapping
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

import msgspec

from edgewise.core.errors import MisfitError
from edgewise.core.ids import ClientId, Digest, RoundNumber
from edgewise.core.spec import Spec
from edgewise.training.algorithm import ClientRecord, FederatedAlgorithm, Kind
from edgewise.training.protocols.letters import Address, AnyLetter, SectionBlob
from edgewise.training.protocols.messages import Action, Event, Member, Outcome, RoundSummary, Store

State = Any
Blobs = Mapping[Digest, bytes]
"""Bytes (or a buffer of them) by their digest; a name always gives the same bytes, so reading is a pure function."""
Step = Callable[[State | None, Event], tuple[State, tuple[Action, ...]]]
COORDINATOR, EDGE, CLIENT = "coordinator", "edge", "client"


class RunView(msgspec.Struct, frozen=True, kw_only=True):
    """How a run stands, for people and for whoever drives it; the same for every protocol.

    Attributes:
        round: The current round.
        model: Digest of the current model.
        rounds: What the closed rounds were.
        outcome: How it ended; None before.
        outstanding: Clients whose work is awaited now.
        members: What is known of each client.
        edges: What is known of each edge, by name.
        missing: Cause by client of the current round's cohort that is not expected to answer.
        sections: What the server keeps, each section as a blob, the model among them.
        records: What it knows of each client that was ever asked.
    """

    round: RoundNumber
    model: Digest
    rounds: tuple[RoundSummary, ...] = ()
    outcome: Outcome | None = None
    outstanding: tuple[ClientId, ...] = ()
    members: dict[ClientId, Member] = {}
    edges: dict[str, Member] = {}
    missing: dict[ClientId, str] = {}
    sections: dict[str, SectionBlob] = {}
    records: dict[ClientId, ClientRecord] = {}


@dataclass(frozen=True, slots=True)
class Role:
    """One side of a protocol.

    Attributes:
        make_step: (algorithm, blobs) -> step; the state before the first event is None.
        resume: state -> what is outstanding after a replay; carrying it out twice is harmless.
        wants: (state, to, letter) -> whether a letter still needs to be delivered.
        is_over: state -> whether this node has nothing more to do with the run.
        ignores_yes: Letters of its own whose acceptance changes nothing for it: a driver need not report `Delivered` then.
        needs_log: event -> whether its log must begin with it at the latest: what happened before, its server asks for
            again after a crash, for little. None logs every event from the first on, as all others do from there on.
        after: What a client kept in a former run -> the state in which it begins one that goes on with it.
        without_order: State -> what is left of it where blobs of the order at hand are gone, as after a loss of power; its
            server asks again.
        state: Type of its state, a msgspec struct; with it a driver replaces old events by a snapshot and drops blobs that
            the state names no more. None keeps every event.
        reports: State -> letters to its server whose blobs it still has; also over a restart the server may have them again.
        phases: What its states can be in, for whoever tries each: columns of its table; none where it has no table.
        phase: State -> which of them it is in.
    """

    make_step: Callable[[FederatedAlgorithm, Blobs], Step]
    resume: Callable[[State], tuple[Action, ...]]
    wants: Callable[[State, Address, AnyLetter], bool]
    is_over: Callable[[State], bool]
    needs: Callable[[State], Iterable[Digest]]
    state: Any = None
    ignores_yes: frozenset[type] = frozenset()
    needs_log: Callable[[Event], bool] | None = None
    after: Callable[[Digest], State] | None = None
    without_order: Callable[[State], State] | None = None
    reports: Callable[[State], Iterable[AnyLetter]] = lambda _: ()
    phases: tuple[str, ...] = ()
    phase: Callable[[State], str] = attrgetter("phase")


@dataclass(frozen=True, slots=True)
class Protocol:
    """When the parts of an algorithm are called, and by whom.

    Attributes:
        spec: Name and parameters that build it.
        roles: By `coordinator`, `edge`, `client`; only those that exist.
        view: The coordinator's state as everybody sees it.
        folds_in_parts: Updates are folded before they reach the coordinator, so an aggregator must be a sum.
        carries: Why an algorithm does not fit, beside what `check_carries` refuses; "" if it does.
    """

    spec: Spec
    roles: Mapping[str, Role]
    view: Callable[[State], RunView]
    folds_in_parts: bool = False
    carries: Callable[[FederatedAlgorithm], str] = field(default=lambda algorithm: "")


def replay(step: Step, events: Iterable[Event], store: MutableMapping[Digest, bytes]) -> State | None:
    """Folds a log to the state it leads to.

    Args:
        step: From `Role.make_step`, reading `store`.
        events: The log, in order.
        store: Where blobs are; what was not stored before the crash is stored now.

    Returns:
        The state; None for an empty log.
    """
    state: State | None = None
    for event in events:
        state, actions = step(state, event)
        for action in actions:
            if isinstance(action, Store):
                store.update(action.blobs)
    return state


def check_carries(protocol: Protocol, algorithm: FederatedAlgorithm) -> None:
    """Refuses an algorithm that a protocol cannot carry, when they are joined.

    Args:
        protocol: When parts are called.
        algorithm: The parts.

    Raises:
        MisfitError: With the reason and what to take instead.
    """
    for exchange in algorithm.exchanges:
        for section, aggregator in exchange.aggregate.items():
            if protocol.folds_in_parts and aggregator.kind is not Kind.SUM:
                raise MisfitError(
                    f"{aggregator.spec} must see every update of {section!r}, under {protocol.spec} edges fold them first. "
                    "Use the protocol synchronous, or an aggregator that is a sum, e.g. weighted_mean()."
                )
    if reason := protocol.carries(algorithm):
        raise MisfitError(f"{protocol.spec} does not carry {algorithm.spec}: {reason}")
