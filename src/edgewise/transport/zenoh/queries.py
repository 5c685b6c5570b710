"""Sends queries over Zenoh, waits for their replies and reports them on the event loop.

A training or control query leaves through its lane of `lanes.py`. A serving query gets a thread of a pool
(`QueryThreads`) that sends it and waits for its reply, because sending may block. Where a client's previous query was
answered, its queue is empty: then the event loop sends the query itself, which saves a change of threads.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import zenoh

from edgewise.core.errors import EdgewiseError, Unreachable
from edgewise.ledger.entry import Purpose
from edgewise.transport.zenoh.lanes import Job, QueryThreads, Sender
from edgewise.transport.zenoh.session_config import BATCH_BYTES, PRIORITIES, QUEUE_BATCHES, ZenohSettings

_MOST_QUERY_THREADS = 128
"""Serving queries that may be open at once; more wait for a thread. Twice what a device's HTTP endpoint admits."""
_FEW_REPLIES = 4
_ALWAYS_FITS_BYTES = BATCH_BYTES * QUEUE_BATCHES["interactive_high"] // 2
PRIORITY = {purpose: getattr(zenoh.Priority, name) for purpose, name in PRIORITIES.items()}
EXPRESS = frozenset((Purpose.SERVING, Purpose.CONTROL))


def _nobody(_: object) -> None:
    """Stands for who asked, once the query is dropped."""


class Query:
    """Tracks an open query on the event loop.

    Args:
        on_reply: Called with the bytes of each reply.
        on_end: Called once no more replies can come; with the error where it could not be sent.
        one: Whether its first reply is all that is wanted.
        forget: Called with the query once it is dropped.
    """

    __slots__ = ("_forget", "cancellation", "is_answered", "is_dropped", "on_end", "on_reply", "one")

    def __init__(
        self,
        on_reply: Callable[[bytes], object],
        on_end: Callable[[EdgewiseError | None], object],
        one: bool,
        forget: Callable[[Query], object],
    ) -> None:
        self.on_reply, self.on_end, self.one, self._forget = on_reply, on_end, one, forget
        self.cancellation = zenoh.CancellationToken()
        self.is_answered = False
        self.is_dropped = False

    def replied(self, data: bytes) -> None:
        """Reports a reply."""
        if not self.is_dropped:
            self.is_answered = True
            self.on_reply(data)

    def end(self, error: EdgewiseError | None = None) -> None:
        """Reports that no more replies can come: all servers answered or are lost, or sending failed."""
        if not self.is_dropped:
            self.on_end(error)

    def drop(self) -> None:
        """Cancels the query; idempotent."""
        if self.is_dropped:
            return
        self.is_dropped = True
        self.on_reply = self.on_end = _nobody  # who asked holds this query: no circle, or large answers outlive it
        self._forget(self)
        if not (self.one and self.is_answered):  # once answered, Zenoh forgets it by itself
            self.cancellation.cancel()  # type: ignore[no-untyped-call]


class Queries:
    """Holds the open queries of one session; used on its event loop.

    Args:
        session: The Zenoh session.
        settings: Its settings.
        sender: Its lanes.
        mapped: Converts an error of Zenoh.
    """

    def __init__(
        self, session: Any, settings: ZenohSettings, sender: Sender, mapped: Callable[[Exception], EdgewiseError]
    ) -> None:
        self._session, self._sender, self._mapped = session, sender, mapped
        self._threads = QueryThreads(settings.node, _MOST_QUERY_THREADS)
        self._loop = asyncio.get_running_loop()
        self._open: set[Query] = set()
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
        on_reply: Callable[[bytes], object],
        on_end: Callable[[EdgewiseError | None], object],
        one: bool,
    ) -> Query:
        """Sends a query; its end is reported on the event loop, after this method has returned.

        Args:
            key: Where to.
            data: The sealed frame.
            purpose: Its priority.
            timeout_s: How long replies are waited for.
            on_reply: As `Query`.
            on_end: As `Query`; with `one`, only if there was no reply.
            one: As `Query`.

        Returns:
            The query; drop it when done.

        Raises:
            Unreachable: If the session is closed, or its lane is full.
        """
        if self._closed is not None:
            raise self._closed
        is_serving = one and purpose is Purpose.SERVING
        query = Query(on_reply, on_end, one, self._forget_serving if is_serving else self._open.discard)
        self._open.add(query)

        def get(handler: Any) -> Any:
            return self._session.get(
                key,
                handler,
                payload=data,
                target=zenoh.QueryTarget.BEST_MATCHING if one else zenoh.QueryTarget.ALL,
                consolidation=zenoh.ConsolidationMode.NONE,
                timeout=timeout_s + 1.0,
                congestion_control=zenoh.CongestionControl.BLOCK,
                priority=PRIORITY[purpose],
                express=purpose in EXPRESS,
                cancellation_token=query.cancellation,
            )

        if is_serving:
            self._serve(query, get, len(data))
            return query

        def send() -> None:
            if not query.is_dropped:
                get(indirect(self._reply_to(query), lambda: self._hand_over(query.end)))

        def failed(error: Exception) -> None:
            self._hand_over(query.end, self._mapped(error))

        try:
            self._sender.submit(purpose, key, Job(send, failed, len(data)))
        except Unreachable:
            query.drop()
            raise
        return query

    def close(self, error: EdgewiseError) -> None:
        """Ends every open query.

        Args:
            error: Reported to every open query, and raised to later callers.
        """
        self._closed = error
        for query in list(self._open):
            query.end(error)
            query.drop()
        self._threads.close()

    def _serve(self, query: Query, get: Callable[[Any], Any], size_bytes: int) -> None:
        is_free = self._has_own_link and self._flows and self._num_serving == 0 and size_bytes <= _ALWAYS_FITS_BYTES
        self._num_serving += 1
        self._flows = False
        replies: Any = None
        if is_free:
            try:
                replies = get(zenoh.handlers.FifoChannel(_FEW_REPLIES))
            except zenoh.ZError as error:
                self._loop.call_soon(query.end, self._mapped(error))
                return

        def wait() -> None:
            nonlocal replies
            try:
                if replies is None and not query.is_dropped:
                    replies = get(zenoh.handlers.FifoChannel(_FEW_REPLIES))
            except Exception as error:  # boundary of the thread: the caller gets the error
                self._hand_over(query.end, self._mapped(error))
                return
            reply = None
            with contextlib.suppress(zenoh.ZError):  # no reply: every server is lost, or the query was dropped
                reply = None if replies is None else replies.recv()
            if reply is None:
                self._hand_over(query.end)
            else:
                self._reply_to(query)(reply)

        self._threads.submit(wait)

    def _forget_serving(self, query: Query) -> None:
        self._open.discard(query)
        self._num_serving -= 1
        self._flows = query.is_answered

    def _reply_to(self, query: Query) -> Callable[[Any], None]:
        def on_reply(reply: Any) -> None:
            result = reply.ok if reply.ok is not None else reply.err
            self._hand_over(query.replied, bytes(result.payload))

        return on_reply

    def _hand_over(self, call: Callable[..., object], *args: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(call, *args)


def indirect(callback: Callable[[Any], None], drop: Callable[[], None] | None = None) -> Any:
    """Wraps a callback for Zenoh so that it runs on a thread of its own, not on the network's."""
    return zenoh.handlers.Callback(callback, drop, indirect=True)
