"""An answer or an error of a handler crosses the wire as a frame and is the caller's answer or `RemoteError`."""

from __future__ import annotations

import asyncio
import logging

import numpy as np
import pytest

from edgewise.core.errors import Busy, EdgewiseError, InputError, PolicyViolation, RemoteError
from edgewise.core.ids import Generation, NodeId
from edgewise.core.provenance import RAW, Origins, traced
from edgewise.ledger.entry import FrameCounter, Purpose
from edgewise.transport.frame import Frame, make_frame
from edgewise.transport.guard import FrameGuard
from edgewise.transport.remote import (
    ERROR_KIND,
    ErrorMessage,
    answer,
    as_answer,
    checked_reply,
    error_frame,
    failure_frame,
    seal_reply,
)

QUERY = make_frame("ask", purpose=Purpose.TRAINING, run="run-1", sender=NodeId("device-1"))


def answered(error: Exception | None = None, **fields: str) -> Frame:
    async def handler(query: Frame) -> Frame:
        if error is not None:
            raise error
        return make_frame("answer", **fields)

    return asyncio.run(answer(handler, QUERY))


def guard(allow: object = None) -> FrameGuard:
    name = NodeId("edge-1")
    return FrameGuard(node=name, generation=Generation(1), counter=FrameCounter(name), allow=allow)  # type: ignore[arg-type]


def test_an_answer_has_purpose_and_run_of_its_query() -> None:
    assert (answered().kind, answered().purpose, answered().run) == ("answer", Purpose.TRAINING, "run-1")
    assert answered(run="run-2").run == "run-2"
    assert as_answer(make_frame("answer"), QUERY).purpose is Purpose.TRAINING


def test_an_error_of_a_handler_is_raised_at_the_caller() -> None:
    reply = answered(Busy("the queue is full.", limit=3))
    assert (reply.kind, reply.purpose, reply.run) == (ERROR_KIND, Purpose.TRAINING, "run-1")
    with pytest.raises(RemoteError, match=r"'' refused: the queue is full\.") as caught:
        checked_reply(reply)
    assert caught.value.fields == {"limit": 3, "remote_code": Busy.code, "node_id": ""}


def test_a_programming_error_is_logged_and_reported_as_internal(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR), pytest.raises(RemoteError, match="KeyError: 'x'") as caught:
        checked_reply(answered(KeyError("x")))
    assert caught.value.fields["remote_code"] == "internal"
    assert "handler of 'ask' from 'device-1' failed" in caplog.text
    assert failure_frame(KeyError("x"), QUERY).kind == ERROR_KIND


def test_a_reply_that_is_no_error_is_passed_on() -> None:
    reply = make_frame("answer")
    assert checked_reply(reply) is reply


def test_error_frame_keeps_code_message_and_what_can_be_said_of_its_fields() -> None:
    error: EdgewiseError = InputError("no.", stage=3, what={1, 2}, thing=object)
    message = error_frame(error).read(ErrorMessage)
    assert (message.code, message.message, message.fields["stage"]) == ("input", "no.", 3)
    assert "object" in message.fields["thing"]


def test_a_reply_is_sealed_as_it_is() -> None:
    data, is_error = seal_reply(guard(), make_frame("answer"), "key")
    assert (guard().open(data).kind, is_error) == ("answer", False)
    assert seal_reply(guard(), error_frame(InputError("no.")), "key")[1] is True


def test_a_reply_that_the_policy_refuses_is_answered_by_the_refusal() -> None:
    def allow(origins: Origins, key: str) -> None:
        raise PolicyViolation(f"{sorted(origins)} may not go to {key!r}.")

    reply = make_frame("answer", tensors={"x": traced(np.zeros(2), RAW)}, purpose=Purpose.SERVING, run="r")
    data, is_error = seal_reply(guard(allow), reply, "key")
    refusal = guard().open(data)
    assert (is_error, refusal.kind, refusal.purpose, refusal.run) == (True, ERROR_KIND, Purpose.SERVING, "r")
    assert refusal.read(ErrorMessage).code == PolicyViolation.code
