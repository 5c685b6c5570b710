"""Why an identity is refused: stable reasons, and the errors that carry them."""

from __future__ import annotations

import datetime as dt
from enum import StrEnum

from edgewise.core.errors import IdentityRefused

MOST_AHEAD_S = 30 * 24 * 3600.0
"""A generation is the time of a start. So far a clock may be ahead of ours; what is beyond is made up, and whoever was heard with
it could never start again with the right time."""


class Reason(StrEnum):
    """Names why an identity was refused; stable codes for callers."""

    MISSING = "missing_certificate"
    UNREADABLE = "unreadable_certificate"
    WRONG_AUTHORITY = "wrong_authority"
    WRONG_FLEET = "wrong_fleet"
    WRONG_PURPOSE = "wrong_purpose"
    WRONG_NAME = "wrong_name"
    WRONG_TIER = "wrong_tier"
    NOT_YET_VALID = "not_yet_valid"
    EXPIRED = "expired"
    REVOKED = "revoked"
    UNSIGNED = "unsigned"
    FORGED = "forged"
    STALE_GENERATION = "stale_generation"
    FUTURE_GENERATION = "future_generation"
    REPLAYED = "replayed"
    TOO_LATE = "too_late"


def refusal(reason: Reason, message: str, **fields: int) -> IdentityRefused:
    """The error of a reason.

    Args:
        reason: Why.
        message: The sentence, with the cure.
        **fields: What else a caller may read.
    """
    return IdentityRefused(message, reason=reason.value, **fields)


def future_refusal(sender: str, generation: int, now: dt.datetime) -> IdentityRefused | None:
    """The refusal of an incarnation that would begin far in the future; None if it does not.

    Args:
        sender: Whose.
        generation: Its start, in ns.
        now: Our clock.
    """
    ahead_s = generation / 1e9 - now.timestamp()
    if ahead_s <= MOST_AHEAD_S:
        return None
    return refusal(
        Reason.FUTURE_GENERATION,
        f"{sender!r} says that it was started {ahead_s / 86400:,.0f} days from now (generation {generation}). "
        "Set its clock, remove the file 'generation' of its state folder, and start it again.",
    )
