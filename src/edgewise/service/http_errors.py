"""What an error is over HTTP: its status, the protocol's error object, and when to come back."""

from __future__ import annotations

from math import ceil

import msgspec

from edgewise.core.errors import EdgewiseError, InputError
from edgewise.inference.request_admission import RequestTooLarge

_LONGEST = 1000
Headers = list[tuple[bytes, bytes]]


class UnknownModel(InputError):
    """A model, or a version of it, that is not served here."""

    code = "input.model"


class WrongMethod(InputError):
    """A route called with another method than it takes."""

    code = "input.method"


class BodyTooLarge(InputError):
    """A request beyond a bound: of its body, its values, or what computing it takes."""

    code = "input.size"


_STATUS = (
    (UnknownModel, 404),
    (WrongMethod, 405),
    (BodyTooLarge, 413),
    (RequestTooLarge, 413),
    (InputError, 400),
)


def status_of(error: EdgewiseError) -> int:
    """The status of an answer: 4xx where the client is to change something, 503 where it is to come back.

    Args:
        error: Why there is no other answer; its field `status` wins.
    """
    given = error.fields.get("status")
    return given if isinstance(given, int) else next((s for kind, s in _STATUS if isinstance(error, kind)), 503)


def error_headers(error: EdgewiseError) -> Headers:
    """`Retry-After` in whole seconds, at least one, where an error says `retry_after_s`.

    Args:
        error: Any.
    """
    after_s = error.fields.get("retry_after_s")
    return [] if after_s is None else [(b"retry-after", str(max(1, ceil(after_s))).encode())]


def error_body(message: str) -> bytes:
    """The protocol's error object.

    Args:
        message: The sentence; what a client sent may stand in it, so it is cut.
    """
    cut = message if len(message) <= _LONGEST else f"{message[:_LONGEST]}…"
    return msgspec.json.encode({"error": cut})
