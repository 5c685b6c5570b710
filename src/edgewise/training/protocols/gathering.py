"""One round's bookkeeping: who was asked, who answered, who is missing, and which updates do not count.

Used by the flat protocol and by an edge of the hierarchical one. Pure values; nothing here reads a clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import Any

import msgspec

from edgewise.core.ids import ClientId, Epoch, RoundNumber
from edgewise.training.protocols.messages import Answer, Member, Refusal, UpdateReceived


class Gathering(msgspec.Struct, frozen=True):
    """A round in progress, or the members between rounds.

    Attributes:
        members: Everyone who may take part, in the order that selection sees.
        round: The current round; 0 before the first.
        cohort: Who was asked.
        answers: Accepted updates.
        missing: Cause by client of the cohort that is not expected to answer.
        refused: Number of refused updates by reason.
    """

    members: dict[ClientId, Member] = {}
    round: RoundNumber = RoundNumber(0)
    cohort: tuple[ClientId, ...] = ()
    answers: dict[ClientId, Answer] = {}
    missing: dict[ClientId, str] = {}
    refused: dict[str, int] = {}

    @property
    def candidates(self) -> tuple[ClientId, ...]:
        """Who could take part now."""
        return tuple(client for client, member in self.members.items() if member.can_work)

    @property
    def outstanding(self) -> tuple[ClientId, ...]:
        """Who was asked and may still answer."""
        return tuple(c for c in self.cohort if c not in self.answers and c not in self.missing)

    @property
    def is_settled(self) -> bool:
        """Nobody is outstanding."""
        # Answers and missing are disjoint parts of the cohort, so counting is enough.
        return len(self.answers) + len(self.missing) >= len(self.cohort)


def change(gathering: Gathering, **fields: Any) -> Gathering:
    """The same with some fields replaced."""
    return msgspec.structs.replace(gathering, **fields)


def with_member(gathering: Gathering, client: ClientId, **fields: Any) -> Gathering:
    """The same with one member changed; it is added if new."""
    member = msgspec.structs.replace(gathering.members.get(client, Member()), **fields)
    return change(gathering, members={**gathering.members, client: member})


def opened(gathering: Gathering, round_number: RoundNumber, cohort: tuple[ClientId, ...]) -> Gathering:
    """A new round for a cohort."""
    return change(gathering, round=round_number, cohort=cohort, answers={}, missing={})


def lost(gathering: Gathering, client: ClientId, cause: str) -> Gathering:
    """A client is gone; if it was asked and has not answered it is a dropout."""
    if client not in gathering.members:
        return gathering
    return dropped(with_member(gathering, client, absence=cause), client, cause)


def dropped(gathering: Gathering, client: ClientId, cause: str) -> Gathering:
    """A client of the cohort is not expected to answer this round any more."""
    if client not in gathering.cohort or client in gathering.answers:
        return gathering
    return change(gathering, missing={**gathering.missing, client: cause})


def returned(gathering: Gathering, client: ClientId, epoch: Epoch) -> tuple[Gathering, bool]:
    """A client is there in an incarnation.

    Args:
        gathering: Before.
        client: Who.
        epoch: Its incarnation.

    Returns:
        After, and whether to ask it again for the current round.
    """
    known = gathering.members.get(client, Member(absence="not seen yet"))
    if epoch < known.epoch:
        return gathering, False
    # Who failed is there all the time: it is asked again as well, or a round that waits for it waits for ever.
    is_new = epoch > known.epoch or bool(known.absence) or client in gathering.missing
    gathering = with_member(gathering, client, epoch=epoch, absence="")
    asked = client in gathering.cohort and client not in gathering.answers
    if not is_new or not asked or known.quarantine:
        return gathering, False
    missing = {c: cause for c, cause in gathering.missing.items() if c != client}
    return change(gathering, missing=missing), True


def refusal_of(gathering: Gathering, event: UpdateReceived) -> tuple[Refusal, str] | None:
    """Why an update does not count, judged by its name alone.

    Args:
        gathering: The round.
        event: The update of the right run.

    Returns:
        Reason and sentence, or None where its content must be looked at.
    """
    member = gathering.members.get(event.client)
    if member is None or (event.client not in gathering.cohort and event.round == gathering.round):
        return Refusal.NOT_ASKED, f"{event.client} is not in the cohort of round {gathering.round}."
    if event.epoch < member.epoch:
        return Refusal.WRONG_EPOCH, (
            f"{event.client} sent this as incarnation {event.epoch}; incarnation {member.epoch} has taken over."
        )
    if member.quarantine:
        return Refusal.QUARANTINED, f"{event.client} is in quarantine: {member.quarantine}"
    if event.round < gathering.round:
        return Refusal.LATE, f"round {event.round} has closed, round {gathering.round} is open."
    if event.round > gathering.round:
        return Refusal.WRONG_ROUND, f"round {event.round} has not begun, round {gathering.round} is open."
    if event.client in gathering.answers:
        return Refusal.DUPLICATE, f"the update of {event.client} for round {event.round} counts already."
    if event.weight == 0:
        return Refusal.NO_EXAMPLES, f"{event.client} has no examples; its update has no weight."
    return None


def counted_refusal(gathering: Gathering, reason: Refusal) -> Gathering:
    """The same with one more refusal of that kind."""
    return change(gathering, refused={**gathering.refused, str(reason): gathering.refused.get(str(reason), 0) + 1})


def accepted(gathering: Gathering, event: UpdateReceived) -> Gathering:
    """The same with the update counted, also of one who was given up.

    It was sent before it arrived, so it tells nothing of where its sender is now: who was lost stays absent until it
    is said to be back.
    """
    # NaN would make equal states unequal.
    metrics = {name: value for name, value in event.metrics.items() if isfinite(value)}
    answers = {**gathering.answers, event.client: Answer(event.payload, event.weight, metrics)}
    if gathering.members[event.client].epoch != event.epoch:
        gathering = with_member(gathering, event.client, epoch=event.epoch)
    if event.client not in gathering.missing:
        return change(gathering, answers=answers)
    missing = {c: cause for c, cause in gathering.missing.items() if c != event.client}
    return change(gathering, answers=answers, missing=missing)


def quarantined(gathering: Gathering, client: ClientId, reason: str) -> Gathering:
    """The same without that client, for the rest of the run."""
    return dropped(with_member(gathering, client, quarantine=reason), client, f"in quarantine: {reason}")


def named(causes: Mapping[ClientId, str]) -> str:
    """Causes as text: `a (lost), b (late) and 3 more`."""
    listed = [f"{client} ({cause})" for client, cause in list(causes.items())[:5]]
    more = f" and {len(causes) - 5} more" if len(causes) > 5 else ""
    return ", ".join(listed) + more if listed else "nobody"
