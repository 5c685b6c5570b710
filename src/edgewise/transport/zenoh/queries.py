"""Questions over Zenoh: how they leave, who waits for their replies, what is told to whoever asked.

A question of training or control leaves through its lane of `sender.py`. A serving question has a thread of a pool to
itself, which waits for its reply: no thread is made for it. That thread hands it over too, for that may block; from a
client whose last one was answered, so that its queue is empty, the event loop does so itself, and a thread less is on
its way.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import zenoh

from edgewise.core.errors import EdgewiseError, Unreachable
from edgewise.ledger.entry import Purpose
from edgewise.transport.zenoh.lanes import Askers, Job, Sender
from edgewise.transport.zenoh.session_config import BATCH_BYTES, PRIORITIES, QUEUE_BATCHES, ZenohSettings

_MOST_ASKERS = 128
"""Serving questions that may be open at once; more wait for a thread. Twice what a device's door lets in."""
_FEW_REPLIES = 4
_ALWAYS_FITS_BYTES = BATCH_BYTES * QUEUE_BATCHES["interactive_high"] // 2
PRIORITY = {purpose: getattr(zenoh.Priority, name) for purpose, name in PRIORITIES.items()}
EXPRESS = frozenset((Purpose.SERVING, Purpose.CONTROL))


class Question:
    """A question on its way, from the event loop's side.

    Args:
        heard: Takes the bytes of a reply.
        ended: Told that no more replies can come, or why it could not be sent.
        one: Whether its first reply is all that is wanted.
        forget: Called with it once it is dropped.
    """

    __slots__ = ("_forget", "cancellation", "ended", "heard", "is_answered", "is_dropped", "one")

    def __init__(
        self,
        heard: Callable[[bytes], object],
        ended: Callable[[EdgewiseError | None], object],
        one: bool,
        forget: Callable[[Question], object],
    ) -> None:
        self.heard, self.ended, self.one, self._forget = heard, ended, one, forget
        self.cancellation = zenoh.CancellationToken()
        self.is_answered = False
        self.is_dropped = False

    def replied(self, data: bytes) -> None:
        """Takes a reply."""
        if not self.is_dropped:
            self.is_answered = True
            self.heard(data)

    def end(self, error: EdgewiseError | None = None) -> None:
        """No more replies can come: all servers answered or are lost, or it could not be sent."""
        if not self.is_dropped:
            self.ended(error)

    def drop(self) -> None:
        """Forgets the question, wherever it is; idempotent."""
        if self.is_dropped:
            return
        self.is_dropped = True
        self._forget(self)
        if not (self.one and self.is_answered):  # once answered, Zenoh forgets it by itself
            self.cancellation.cancel()  # type: ignore[no-untyped-call]


class Questions:
    """Those of one session; used on its event loop.

    Args:
        session: The Zenoh session.
        settings: Its settings.
        sender: Its lanes.
        mapped: Makes an error of ours of one of Zenoh's.
    """

    def __init__(
        self, session: Any, settings: ZenohSettings, sender: Sender, mapped: Callable[[Exception], EdgewiseError]
    ) -> None:
        self._session, self._sender, self._mapped = session, sender, mapped
        self._askers = Askers(settings.node, _MOST_ASKERS)
        self._loop = asyncio.get_running_loop()
        self._open: set[Question] = set()
        self._has_own_link = settings.mode == "client"
        self._num_serving = 0
        self._flows = False
        self._closed: EdgewiseError | None = None

    def ask(
        self,
        key: str,
        data: bytes,
        purpose: Purpose,
        timeout_s: float,
        *,
        heard: Callable[[bytes], object],
        ended: Callable[[EdgewiseError | None], object],
        one: bool,
    ) -> Question:
        """Sends a question; its end is told on the event loop, after this returned.

        Args:
            key: Where to.
            data: The sealed frame.
            purpose: Its priority.
            timeout_s: How long replies are waited for.
            heard: As `Question`.
            ended: As `Question`; with `one`, only if there was no reply.
            one: As `Question`.

        Returns:
            The question; drop it when done.

        Raises:
            Unreachable: If the session is closed, or its lane is full.
        """
        if self._closed is not None:
            raise self._closed
        is_serving = one and purpose is Purpose.SERVING
        question = Question(heard, ended, one, self._forget_serving if is_serving else self._open.discard)
        self._open.add(question)

        def get(handler: Any) -> Any:
            return self._session.get(
                key, handler, payload=data,
                target=zenoh.QueryTarget.BEST_MATCHING if one else zenoh.QueryTarget.ALL,
                consolidation=zenoh.ConsolidationMode.NONE, timeout=timeout_s + 1.0,
                congestion_control=zenoh.CongestionControl.BLOCK, priority=PRIORITY[purpose],
                express=purpose in EXPRESS, cancellation_token=question.cancellation,
            )  # fmt: skip

        if is_serving:
            self._serve(question, get, len(data))
            return question

        def send() -> None:
            if not question.is_dropped:
                get(indirect(self._reply_to(question), lambda: self._hand_over(question.end)))

        def failed(error: Exception) -> None:
            self._hand_over(question.end, self._mapped(error))

        try:
            self._sender.submit(purpose, key, Job(send, failed, len(data)))
        except Unreachable:
            question.drop()
            raise
        return question

    def close(self, error: EdgewiseError) -> None:
        """Ends every open question.

        Args:
            error: What whoever asked, or asks from now on, is told.
        """
        self._closed = error
        for question in list(self._open):
            question.end(error)
            question.drop()
        self._askers.close()

    def _serve(self, question: Question, get: Callable[[Any], Any], size_bytes: int) -> None:
        is_free = self._has_own_link and self._flows and self._num_serving == 0 and size_bytes <= _ALWAYS_FITS_BYTES
        self._num_serving += 1
        self._flows = False
        replies: Any = None
        if is_free:
            try:
                replies = get(zenoh.handlers.FifoChannel(_FEW_REPLIES))
            except zenoh.ZError as error:
                self._loop.call_soon(question.end, self._mapped(error))
                return

        def wait() -> None:
            nonlocal replies
            try:
                if replies is None and not question.is_dropped:
                    replies = get(zenoh.handlers.FifoChannel(_FEW_REPLIES))
            except Exception as error:  # the thread's own boundary: the asker is told
                self._hand_over(question.end, self._mapped(error))
                return
            reply = None
            with contextlib.suppress(zenoh.ZError):  # no reply: every server is lost, or the question was dropped
                reply = None if replies is None else replies.recv()
            if reply is None:
                self._hand_over(question.end)
            else:
                self._reply_to(question)(reply)

        self._askers.submit(wait)

    def _forget_serving(self, question: Question) -> None:
        self._open.discard(question)
        self._num_serving -= 1
        self._flows = question.is_answered

    def _reply_to(self, question: Question) -> Callable[[Any], None]:
        def on_reply(reply: Any) -> None:
            result = reply.ok if reply.ok is not None else reply.err
            self._hand_over(question.replied, bytes(result.payload))

        return on_reply

    def _hand_over(self, call: Callable[..., object], *args: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is there to hear it
            self._loop.call_soon_threadsafe(call, *args)


def indirect(callback: Callable[[Any], None], drop: Callable[[], None] | None = None) -> Any:
    """A callback that a thread of its own runs, not the network's; it must only hand over."""
    return zenoh.handlers.Callback(callback, drop, indirect=True)
