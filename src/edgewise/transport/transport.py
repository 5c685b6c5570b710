"""The contract of everything that moves frames: loopback, shaped loopback, zenoh (plain, TLS, through a shaped link).

Keys are made by `keys.py`; `*` stands for one chunk of a key. Handlers run on the event loop that opened the transport.
The smallest complete implementation is `loopback.py`.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import Protocol

from edgewise.core.errors import EdgewiseError
from edgewise.transport.frame import Frame

QueryHandler = Callable[[Frame], Awaitable[Frame]]
"""Answers one query. An EdgewiseError it raises reaches the asker as RemoteError with code and message."""
Reply = Callable[[Frame], None]
"""Sends the answer to one question; called once, on any thread."""
Hearer = Callable[[Frame, Reply], None]
"""Takes one question where it is heard, perhaps on a thread of the transport: it checks, hands the work to its own
thread and returns at once. What it raises is the answer."""
Told = Callable[[Frame | None, EdgewiseError | None], None]
"""Takes (answer, error) of one question, on the event loop."""
FrameHandler = Callable[[str, Frame], None]
"""Takes (key, frame) of a publication."""
PresenceHandler = Callable[[str, bool], None]
"""Takes (token key, True when it appeared / False when it is gone)."""


class Registration(Protocol):
    """Something declared on a transport."""

    async def close(self) -> None:
        """Takes the declaration back."""
        ...


class Transport(ABC):
    """One node's way to the others. Open with `async with`."""

    @abstractmethod
    async def query(self, key: str, frame: Frame, *, timeout_s: float) -> Frame:
        """Asks the one node that serves `key`.

        Questions of one purpose arrive in the order they were asked, but those of serving, which may overtake.

        Args:
            key: A service key.
            frame: The question; its purpose decides its priority, answers inherit it.
            timeout_s: Deadline of the work, at most; never infinite.

        Returns:
            The answer.

        Raises:
            Unreachable: If nobody serves the key, or the server is lost before it answered.
            DeadlineExceeded: If no answer came by then.
            RemoteError: If the handler raised.
            FrameRefused: If the answer is not a frame.
            PolicyViolation: If the frame carries data that may not take this link.
        """

    def ask(self, key: str, frame: Frame, told: Told, *, timeout_s: float) -> Callable[[], None]:
        """As `query`, with a call at its end: nothing is made that would be awaited. On every request's path.

        Args:
            key: As `query`.
            frame: As `query`.
            told: Takes (answer, error), once, after this has returned.
            timeout_s: As `query`.

        Returns:
            Takes the question back, any time; `told` is not called after that.

        Raises:
            EdgewiseError: What could be known at once of what `query` raises.
        """

        async def asked() -> None:
            try:
                answer = await self.query(key, frame, timeout_s=timeout_s)
            except EdgewiseError as error:
                told(None, error)
            else:
                told(answer, None)

        task = asyncio.get_running_loop().create_task(asked())

        def take_back() -> None:
            task.cancel()

        return take_back

    @abstractmethod
    async def query_all(self, key: str, frame: Frame, *, timeout_s: float) -> list[Frame]:
        """Asks every node that serves a key matching the expression; refusals and failures are left out."""

    @abstractmethod
    async def serve(self, key: str, handler: QueryHandler) -> Registration:
        """Answers queries on `key` until closed."""

    async def hear(self, key: str, hearer: Hearer) -> Registration:
        """As `serve`, for work that has a thread of its own: neither question nor answer waits for the event loop."""
        return await self.serve(key, on_the_loop(hearer))

    @abstractmethod
    async def publish(self, key: str, frame: Frame) -> None:
        """Tells whoever listens; small frames only, nothing waits for a slow listener."""

    @abstractmethod
    async def subscribe(self, key: str, handler: FrameHandler) -> Registration:
        """Hears publications whose key matches the expression."""

    @abstractmethod
    async def declare_presence(self, key: str) -> Registration:
        """Holds a liveliness token at `key` until closed or until this process is gone."""

    @abstractmethod
    async def watch_presence(self, key: str, handler: PresenceHandler) -> Registration:
        """Reports tokens matching the expression: those there already, then each change."""

    @abstractmethod
    async def close(self) -> None:
        """Takes everything back; idempotent."""

    async def __aenter__(self) -> Transport:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def on_the_loop(hearer: Hearer) -> QueryHandler:
    """Makes a handler of a hearer: it is called on the event loop, its answer comes back there.

    Args:
        hearer: As for `Transport.hear`.

    Returns:
        A handler as for `Transport.serve`.
    """

    async def handler(question: Frame) -> Frame:
        loop = asyncio.get_running_loop()
        answered: asyncio.Future[Frame] = loop.create_future()

        def take(answer: Frame) -> None:
            if not answered.done():
                answered.set_result(answer)

        def reply(answer: Frame) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(take, answer)

        hearer(question, reply)
        return await answered

    return handler
