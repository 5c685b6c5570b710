"""One exchange's bookkeeping: who was asked, who answered, who is missing, and which updates do not count.

Used by a coordinator and by an edge. Pure values; nothing here reads a clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import Any

import msgspec

from edgewise.core.errors import EdgewiseError, StoreError
from edgewise.core.ids import ClientId, Generation, RoundNumber
from edgewise.training.algorithm import Exchange, Kind
from edgewise.training.protocols.folding import Decoder, counted_of
from edgewise.training.protocols.letters import UpdateReport, WorkFailed
from edgewise.training.protocols.messages import Accept, Action, Answer, Member, Quarantine, Refusal, Refuse, SeenClient

MOST_METRIC = 1e100
"""Of a metric's size: what is larger was never measured."""
NOT_SEEN = Member(absence="not seen yet")
MOST_FAILURES = 6
"""How often a client may fail in an exchange until it is asked no more; asked with growing waits, that is half a minute."""


class Collection(msgspec.Struct, frozen=True):
    """An exchange in progress, or the members between rounds.

    Attributes:
        members: Everyone who may take part, in the order that selection sees.
        round, exchange: Which; round 0 before the first.
        cohort: Who was asked.
        answers: Updates that count.
        missing: Cause by client of the cohort that is not expected to answer.
        refused: Number of refused updates by reason.
        failures: How often each client has failed in this exchange; one that is lost has not failed.
    """

    members: dict[ClientId, Member] = {}
    round: RoundNumber = RoundNumber(0)
    exchange: int = 0
    cohort: tuple[ClientId, ...] = ()
    answers: dict[ClientId, Answer] = {}
    missing: dict[ClientId, str] = {}
    refused: dict[str, int] = {}
    failures: dict[ClientId, int] = {}

    @property
    def able(self) -> tuple[ClientId, ...]:
        """Who could take part now."""
        return tuple([client for client, m in self.members.items() if not m.absence and not m.quarantine])

    @property
    def outstanding(self) -> tuple[ClientId, ...]:
        """Who was asked and may still answer."""
        return tuple([c for c in self.cohort if c not in self.answers and c not in self.missing])

    @property
    def is_settled(self) -> bool:
        """Nobody is outstanding."""
        # Answers and missing are disjoint parts of the cohort, so counting is enough.
        return len(self.answers) + len(self.missing) >= len(self.cohort)

    def is_current(self, letter: Any) -> bool:
        """Whether a letter belongs to this exchange."""
        return bool(letter.round == self.round and letter.exchange == self.exchange)


def change(collection: Collection, **fields: Any) -> Collection:
    """The same with some fields replaced."""
    return msgspec.structs.replace(collection, **fields)


def with_member(collection: Collection, client: ClientId, **fields: Any) -> Collection:
    """The same with one member changed; it is added if new."""
    member = msgspec.structs.replace(collection.members.get(client, Member()), **fields)
    return change(collection, members={**collection.members, client: member})


def opened(collection: Collection, number: RoundNumber, exchange: int, cohort: tuple[ClientId, ...]) -> Collection:
    """A new exchange with a cohort."""
    return change(collection, round=number, exchange=exchange, cohort=cohort, answers={}, missing={}, failures={})


def lost(collection: Collection, client: ClientId, cause: str) -> Collection:
    """A client is gone; if it was asked and has not answered it is a dropout."""
    if client not in collection.members:
        return collection
    return dropped(with_member(collection, client, absence=cause), client, cause)


def dropped(collection: Collection, client: ClientId, cause: str) -> Collection:
    """A client of the cohort is not expected to answer any more."""
    if client not in collection.cohort or client in collection.answers:
        return collection
    return change(collection, missing={**collection.missing, client: cause})


def failed(collection: Collection, client: ClientId, cause: str) -> Collection:
    """A client of the cohort is there but has no update to give; it may be asked again, `MOST_FAILURES` times in all."""
    after = dropped(collection, client, cause)
    return after if after is collection or client in collection.missing else failed_again(after, client)


def failed_again(collection: Collection, *clients: ClientId) -> Collection:
    """The same with one more failure of each of these clients."""
    more = {client: collection.failures.get(client, 0) + 1 for client in clients}
    return change(collection, failures={**collection.failures, **more}) if more else collection


def exclusion(collection: Collection, client: ClientId) -> str:
    """Why a client is asked no more in this exchange, whatever happens; "" if it may be."""
    quarantine, times = collection.members[client].quarantine, collection.failures.get(client, 0)
    if quarantine:
        return f"in quarantine: {quarantine}"
    return f"asked {times} times in vain: {collection.missing.get(client, '')}" if times >= MOST_FAILURES else ""


def work_failed(collection: Collection, letter: WorkFailed) -> tuple[Collection, tuple[Action, ...]]:
    """A client of the cohort cannot do its work; who diverged is as one whose update is not finite, out for the whole run."""
    client = letter.client
    if not letter.has_diverged or client not in collection.cohort or client in collection.answers:
        return failed(collection, client, letter.cause), (Accept(),)
    return quarantined(collection, client, letter.cause), (Accept(), Quarantine(client, letter.cause))


def returned(collection: Collection, client: ClientId, seen: SeenClient) -> tuple[Collection, bool]:
    """A client is there in an incarnation.

    Args:
        collection: Before.
        client: Who.
        seen: Its incarnation and what it holds.

    Returns:
        After, and whether to ask it again.
    """
    known = collection.members.get(client, NOT_SEEN)
    if seen.generation < known.generation:
        return collection, False
    # Who failed is there all the time: it is asked again as well, or a round that waits for it waits for ever.
    is_new = seen.generation > known.generation or bool(known.absence) or client in collection.missing
    num_examples = seen.num_examples or known.num_examples
    if seen.generation > known.generation and client in collection.failures:  # started again, perhaps mended
        collection = change(collection, failures={c: n for c, n in collection.failures.items() if c != client})
    collection = with_member(collection, client, generation=seen.generation, absence="", num_examples=num_examples)
    asked = client in collection.cohort and client not in collection.answers
    if not is_new or not asked or exclusion(collection, client):
        return collection, False
    missing = {c: cause for c, cause in collection.missing.items() if c != client}
    return change(collection, missing=missing), True


def overdue(collection: Collection, cause: str) -> Collection:
    """The same after its deadline: whoever is outstanding is a dropout."""
    return change(collection, missing={**collection.missing, **dict.fromkeys(collection.outstanding, cause)})


def quarantined(collection: Collection, client: ClientId, reason: str) -> Collection:
    """The same without that client, for the rest of the run."""
    return dropped(with_member(collection, client, quarantine=reason), client, f"in quarantine: {reason}")


def refusal_of(collection: Collection, letter: UpdateReport, generation: Generation) -> tuple[Refusal, str] | None:
    """Why an update does not count, judged by its names alone.

    Args:
        collection: The exchange.
        letter: An update of the right run.
        generation: Incarnation of its sender when it was sent.

    Returns:
        Reason and sentence, or None where its content must be looked at.
    """
    client, member = letter.client, collection.members.get(letter.client)
    if member is None or (client not in collection.cohort and collection.is_current(letter)):
        return Refusal.NOT_ASKED, f"{client} is not in the cohort of {_place(collection)}."
    refusal = sender_refusal(member, letter, generation)
    if refusal is not None:
        return refusal
    asked, current = (letter.round, letter.exchange), (collection.round, collection.exchange)
    if asked < current:
        return Refusal.LATE, f"{_place(letter)} has closed, {_place(collection)} is open."
    if asked > current:
        return Refusal.WRONG_ROUND, f"{_place(letter)} has not begun, {_place(collection)} is open."
    if client in collection.answers:
        return Refusal.DUPLICATE, f"the update of {client} for {_place(letter)} counts already."
    return count_refusal(letter)


def sender_refusal(member: Member, letter: UpdateReport, generation: Generation) -> tuple[Refusal, str] | None:
    """Why nothing counts that this incarnation of a client sends, or None."""
    client = letter.client
    if generation < member.generation:
        return (
            Refusal.WRONG_GENERATION,
            f"{client} sent this as incarnation {generation}; incarnation {member.generation} took over.",
        )
    return (Refusal.QUARANTINED, f"{client} is in quarantine: {member.quarantine}") if member.quarantine else None


def count_refusal(letter: UpdateReport) -> tuple[Refusal, str] | None:
    """Why an update without examples does not count, or None."""
    if letter.num_examples:
        return None
    return Refusal.NO_EXAMPLES, f"{letter.client} has no examples; its update has no weight."


def validate_update(
    exchange: Exchange,
    decoder: Decoder,
    collection: Collection,
    letter: UpdateReport,
    generation: Generation,
    num_entries: int,
) -> tuple[Collection, tuple[Action, ...]]:
    """Counts an update, or says why not.

    Args:
        exchange: Says what an update is.
        decoder: Reads it.
        collection: The exchange so far.
        letter: An update of the right run.
        generation: Incarnation of its sender when it was sent.
        num_entries: d.

    Returns:
        The collection and the answer to the sender. A sender of nonsense goes into quarantine; one without examples
        is a dropout; anything else that does not count changes only its counter.
    """
    refusal = refusal_of(collection, letter, generation)
    if refusal is not None:
        collection, actions = refuse(collection, *refusal)
        if refusal[0] is Refusal.NO_EXAMPLES:
            collection = failed(collection, letter.client, refusal[1])
        return collection, actions
    answer = answer_of(letter)
    fault = fault_of(exchange, decoder, answer, num_entries)
    if fault:
        return refuse_invalid(collection, letter.client, fault)
    return accepted(collection, letter.client, answer, generation), (Accept(),)


def answer_of(letter: UpdateReport, staleness: int = 0) -> Answer:
    """What a report says of its update."""
    return Answer(
        update=letter.update.digest,
        num_examples=letter.num_examples,
        metrics=finite(letter.metrics),
        staleness=staleness,
    )


def fault_of(exchange: Exchange, decoder: Decoder, answer: Answer, num_entries: int) -> str:
    """What is wrong with an update's content.

    Args:
        exchange: Says what an update is.
        decoder: Reads it.
        answer: Names it.
        num_entries: d.

    Returns:
        A sentence; "" if it can be folded.
    """
    try:
        if answer.num_examples < 0:
            return f"{answer.num_examples} is not a number of examples; 0 or more is needed."
        bundle = decoder.read(exchange, answer.update, num_entries)
        counted = counted_of(answer)
        for section, aggregator in exchange.aggregate.items():
            weight = aggregator.weigh.weight(counted)
            if not (isfinite(weight) and weight >= 0):
                return f"{aggregator.weigh.spec} gives {section!r} the weight {weight}; a finite one of at least 0 is needed."
            if aggregator.kind is not Kind.COLLECT:
                aggregator.units((weight,))
            aggregator.check(bundle[section].reshape(-1))
        decoder.keep(answer.update, bundle, num_entries)
    except StoreError:
        raise
    except EdgewiseError as error:
        return error.message
    except Exception as error:  # a part that cannot judge this update; the run goes on without its sender
        return f"it cannot be judged: {type(error).__name__}: {error}"
    return ""


def finite(metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics that are numbers: NaN would make equal states unequal, and of huge ones there is no mean."""
    return {name: value for name, value in metrics.items() if abs(value) <= MOST_METRIC}


def accepted(collection: Collection, client: ClientId, answer: Answer, generation: Generation) -> Collection:
    """The same with the update counted, also of one who was given up.

    It was sent before it arrived, so it tells nothing of where its sender is now: who was lost stays absent until it
    returns.
    """
    member = collection.members[client]
    if member.generation != generation or member.num_examples != answer.num_examples:
        collection = with_member(collection, client, generation=generation, num_examples=answer.num_examples)
    answers = {**collection.answers, client: answer}
    if client not in collection.missing:
        return change(collection, answers=answers)
    missing = {c: cause for c, cause in collection.missing.items() if c != client}
    return change(collection, answers=answers, missing=missing)


def refuse(collection: Collection, reason: Refusal, text: str) -> tuple[Collection, tuple[Action, ...]]:
    """Counts a refusal and tells the sender."""
    refused = {**collection.refused, str(reason): collection.refused.get(str(reason), 0) + 1}
    return change(collection, refused=refused), (Refuse(reason, text),)


def refuse_invalid(collection: Collection, client: ClientId, reason: str) -> tuple[Collection, tuple[Action, ...]]:
    """Puts the sender of nonsense into quarantine, and tells it."""
    collection, actions = refuse(collection, Refusal.INVALID, reason)
    if client in collection.members and not collection.members[client].quarantine:
        collection = quarantined(collection, client, reason)
        actions += (Quarantine(client, reason),)
    return collection, actions


def named(causes: Mapping[ClientId, str]) -> str:
    """Causes as text: `a (lost), b (late) and 3 more`."""
    listed = [f"{client} ({cause})" for client, cause in list(causes.items())[:5]]
    more = f" and {len(causes) - 5} more" if len(causes) > 5 else ""
    return ", ".join(listed) + more if listed else "nobody"


def _place(of: Any) -> str:
    return f"round {of.round}, exchange {of.exchange}" if of.exchange else f"round {of.round}"
