"""How a handler's answer or error crosses the wire. The asker sees the error as `RemoteError` with its code."""

from __future__ import annotations

import logging
from typing import Any

import msgspec
from msgspec.structs import replace

from edgewise.core.errors import EdgewiseError, RemoteError
from edgewise.transport.frame import Frame, make_frame
from edgewise.transport.guard import FrameGuard
from edgewise.transport.transport import QueryHandler

ERROR_KIND = "error"
_log = logging.getLogger(__name__)


class ErrorMessage(msgspec.Struct, frozen=True):
    """An EdgewiseError on its way back.

    Attributes:
        code: Its stable code.
        message: Its text.
        fields: Its fields, as far as msgpack can say them.
    """

    code: str
    message: str
    fields: dict[str, Any] = {}


async def answer(handler: QueryHandler, question: Frame) -> Frame:
    """Runs a handler; whatever it raises becomes an error frame.

    Args:
        handler: Of the service.
        question: What was asked.

    Returns:
        The answer or an `error` frame, with the purpose and run of the question.
    """
    try:
        reply = await handler(question)
    except Exception as error:
        reply = failure_frame(error, question)
    return as_answer(reply, question)


def as_answer(reply: Frame, question: Frame) -> Frame:
    """A reply with the purpose and run of its question."""
    return replace(reply, purpose=question.purpose, run=reply.run or question.run)


def failure_frame(error: BaseException, question: Frame) -> Frame:
    """Whatever a handler raised as a frame of kind `error`; a bug of ours is logged and told as `internal`."""
    if isinstance(error, EdgewiseError):
        return error_frame(error)
    _log.error("handler of %r from %r failed", question.kind, question.sender, exc_info=error)
    return make_frame(ERROR_KIND, ErrorMessage("internal", f"{type(error).__name__}: {error}"))


def error_frame(error: EdgewiseError) -> Frame:
    """Writes an error as a frame of kind `error`."""
    fields = {str(name): _sendable(value) for name, value in error.fields.items()}
    return make_frame(ERROR_KIND, ErrorMessage(error.code, error.message, fields))


def checked_reply(reply: Frame) -> Frame:
    """The reply itself, if it is not an error.

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
    raise RemoteError(f"{reply.sender!r} refused: {error.message}", **fields)


def seal_reply(door: FrameGuard, reply: Frame, key: str) -> tuple[bytes, bool]:
    """Seals an answer; one that may not leave is answered by its refusal instead.

    Args:
        door: Of the answering node.
        reply: Answer or error.
        key: The service's key.

    Returns:
        The bytes, and whether they are an error.
    """
    try:
        return door.seal(reply, key), reply.kind == ERROR_KIND
    except EdgewiseError as error:
        refusal = replace(error_frame(error), purpose=reply.purpose, run=reply.run)
        return door.seal(refusal, key), True


def _sendable(value: Any) -> Any:
    try:
        return msgspec.to_builtins(value, enc_hook=repr)
    except (TypeError, ValueError):
        return repr(value)
