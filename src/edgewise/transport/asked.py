"""A question to other nodes over Zenoh, from the event loop's side. `zenoh.py` sends it and tells it what comes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import zenoh


class Asked:
    """A question on its way: its replies, and whether more can come.

    Args:
        forget: Called with it once it is dropped.
        one: Whether its first reply is all that is wanted.
    """

    def __init__(self, forget: Callable[[Asked], object], one: bool) -> None:
        self._forget, self._one = forget, one
        loop = asyncio.get_running_loop()
        self.first: asyncio.Future[None] = loop.create_future()
        self.finished: asyncio.Future[None] = loop.create_future()
        self.replies: list[bytes] = []
        self.cancellation = zenoh.CancellationToken()
        self.is_dropped = False

    def replied(self, data: bytes) -> None:
        """Takes a reply."""
        if not self.is_dropped:
            self.replies.append(data)
            if not self.first.done():
                self.first.set_result(None)

    def finish(self) -> None:
        """No more replies can come: all servers answered or are lost."""
        for future in (self.first, self.finished):
            if not future.done():
                future.set_result(None)

    def fail(self, error: Exception) -> None:
        """The question could not be sent."""
        for future in (self.first, self.finished):
            if not future.done():
                future.set_exception(error)
                future.exception()  # seen: only one of the two is awaited

    def expire(self, error: Exception) -> None:
        """No reply came in time; some may still be on their way."""
        if not self.first.done():
            self.first.set_exception(error)

    def drop(self) -> None:
        """Forgets the question, wherever it is."""
        self.is_dropped = True
        self._forget(self)
        if not self.finished.done():
            self.finished.cancel()
            if not (self._one and self.replies):  # once answered, Zenoh forgets it by itself
                self.cancellation.cancel()  # type: ignore[no-untyped-call]
