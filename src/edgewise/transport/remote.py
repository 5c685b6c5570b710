"""Carries a handler's answer or error over the wire; the caller receives an error as `RemoteError` with its code."""

from __future__ import annotations

import logging
from typing import Any

import msgspec
from msgspec.structs import replace

from edgewise.core.errors import EdgewiseError, FrameRefused, RemoteError
from edgewise.transport.frame import Frame, make_frame
from edgewise.transport.guard import FrameGuard
from edgewise.transport.transport import QueryHandler

ERROR_KIND = "error"
_log = logging.getLogger(__name__)


class ErrorMessage(msgspec.Struct, frozen=True):
    """Carries an `EdgewiseError` back to the caller.

    Attributes:
        code: Its stable code.
        message: Its text.
        fields: Its fields, as far as msgpack can encode them.
    """

    code: str
    message: str
    fields: dict[str, Any] = {}


async def answer(handler: QueryHandler, query: Frame) -> Frame:
    """Runs a handler and turns an exception into an error frame.

    Args:
        handler: Of the service.
        query: The query.

    Returns:
        The answer or an `error` frame, with the purpose and run of the query.
    """
    try:
        reply = await handler(query)
    except Exception as error:
        reply = failure_frame(error, query)
    return as_answer(reply, query)


def as_answer(reply: Frame, query: Frame) -> Frame:
    """Returns the reply with the purpose and run of its query."""
    return replace(reply, purpose=query.purpose, run=reply.run or query.run)


def failure_frame(error: BaseException, query: Frame) -> Frame:
    """Encodes an exception as a frame of kind `error`; a programming error is logged and reported as `internal`."""
    if isinstance(error, EdgewiseError):
        return error_frame(error)
    _log.error("handler of %r from %r failed", query.kind, query.sender, exc_info=error)
    return make_frame(ERROR_KIND, ErrorMessage("internal", f"{type(error).__name__}: {error}"))


def error_frame(error: EdgewiseError) -> Frame:
    """Encodes an `EdgewiseError` as a frame of kind `error`."""
    fields = {str(name): _sendable(value) for name, value in error.fields.items()}
    return make_frame(ERROR_KIND, ErrorMessage(error.code, error.message, fields))


def checked_reply(reply: Frame) -> Frame:
    """Returns the reply, or raises the error it carries.

    Args:
        reply: As received.

    Returns:
        The same frame.

    Raises:
        RemoteError: If the handler raised; `fields` has `remote_code`, `node_id` and the error's own.
    """
    if reply.kind != ERROR_KIND:
        return reply
    error = reply.read(ErrorMessage)
    fields = {**error.fields, "remote_code": error.code, "node_id": reply.sender}
    refusal = RemoteError(f"{reply.sender!r} refused: {error.message}", **fields)
    refusal.reply = reply
    raise refusal


def open_reply(guard: FrameGuard, data: bytes) -> Frame:
    """Opens what came as the answer to a question: the one place at which a stranger's bytes become an answer or a refusal.

    Args:
        guard: Of the asking node.
        data: As received.

    Returns:
        The answer.

    Raises:
        FrameRefused: If it is not a frame, whatever is wrong with it.
        RemoteError: As `checked_reply`.
    """
    try:
        return checked_reply(guard.open(data))
    except EdgewiseError:
        raise
    except Exception as error:  # boundary: who asked is told, whatever was crafted
        raise FrameRefused(
            f"an answer of {len(data):,} bytes cannot be read: {type(error).__name__}: {error}."
        ) from error


def seal_reply(guard: FrameGuard, reply: Frame, key: str) -> tuple[bytes, bool]:
    """Seals an answer; where the data policy refuses it, seals the refusal instead.

    Args:
        guard: Of the answering node.
        reply: Answer or error.
        key: The service's key.

    Returns:
        The bytes, and whether they are an error.
    """
    try:
        return guard.seal(reply, key), reply.kind == ERROR_KIND
    except EdgewiseError as error:
        refusal = replace(error_frame(error), purpose=reply.purpose, run=reply.run)
        return guard.seal(refusal, key), True


def _sendable(value: Any) -> Any:
    try:
        return msgspec.to_builtins(value, enc_hook=repr)
    except (TypeError, ValueError):
        return repr(value)
