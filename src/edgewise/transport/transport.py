"""Defines the transport contract: queries, publications and liveliness tokens over frames.

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
"""Answers one query. An EdgewiseError it raises reaches the caller as RemoteError with code and message."""
Reply = Callable[[Frame], None]
"""Sends the answer to one query; called once, from any thread."""
SyncHandler = Callable[[Frame, Reply], None]
"""Handles one query on the thread that received it: checks it, passes the work to its own thread and returns at once.
An exception it raises becomes the error answer."""
OnAnswer = Callable[[Frame | None, EdgewiseError | None], None]
"""Called on the event loop with (answer, error) of one query; one of the two is None."""
FrameHandler = Callable[[str, Frame], None]
"""Takes (key, frame) of a publication."""
PresenceHandler = Callable[[str, bool], None]
"""Takes (token key, True when it appeared / False when it is gone)."""


class Registration(Protocol):
    """Is a declaration on a transport, until closed."""

    async def close(self) -> None:
        """Withdraws the declaration."""
        ...


class Transport(ABC):
    """Connects one node to the others. Open with `async with`."""

    @abstractmethod
    async def query(self, key: str, frame: Frame, *, timeout_s: float) -> Frame:
        """Sends a query to the node that serves `key` and returns its answer.

        Queries of one purpose arrive in the order they were sent, except serving queries, which may overtake.

        Args:
            key: A service key.
            frame: The query; its purpose decides its priority, answers inherit it.
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

    def ask(self, key: str, frame: Frame, on_answer: OnAnswer, *, timeout_s: float) -> Callable[[], None]:
        """Sends a query and reports its answer to a callback instead of a coroutine; used on every request's path.

        Args:
            key: As `query`.
            frame: As `query`.
            on_answer: Called once with (answer, error), after this method has returned.
            timeout_s: As `query`.

        Returns:
            A function that cancels the query at any time; `on_answer` is not called afterwards.

        Raises:
            EdgewiseError: What could be known at once of what `query` raises.
        """

        async def asked() -> None:
            try:
                answer = await self.query(key, frame, timeout_s=timeout_s)
            except EdgewiseError as error:
                on_answer(None, error)
            else:
                on_answer(answer, None)

        task = asyncio.get_running_loop().create_task(asked())

        def cancel() -> None:
            task.cancel()

        return cancel

    def bytes_beside_frames(self, key: str) -> tuple[int, int]:
        """Bytes that a query and its answer take on the wire beside their frames, for whoever predicts a slow link.

        Args:
            key: Where the query goes.

        Returns:
            Of the query, of the answer; none where frames do not cross a wire.
        """
        return 0, 0

    @abstractmethod
    async def query_all(self, key: str, frame: Frame, *, timeout_s: float) -> list[Frame]:
        """Queries every node that serves a matching key; leaves out refusals and failures."""

    @abstractmethod
    async def serve(self, key: str, handler: QueryHandler) -> Registration:
        """Answers queries on `key` until closed."""

    async def serve_sync(self, key: str, handler: SyncHandler) -> Registration:
        """Answers queries on `key` from a thread; neither query nor answer passes through the event loop."""
        return await self.serve(key, on_the_loop(handler))

    @abstractmethod
    async def publish(self, key: str, frame: Frame) -> None:
        """Publishes a small frame to all subscribers; a slow subscriber delays nobody."""

    @abstractmethod
    async def subscribe(self, key: str, handler: FrameHandler) -> Registration:
        """Receives publications whose key matches the expression."""

    @abstractmethod
    async def declare_presence(self, key: str) -> Registration:
        """Declares a liveliness token at `key`, held until closed or until this process ends."""

    @abstractmethod
    async def watch_presence(self, key: str, handler: PresenceHandler) -> Registration:
        """Reports matching liveliness tokens: the existing ones, then each change."""

    @abstractmethod
    async def close(self) -> None:
        """Closes the transport and withdraws its declarations; idempotent."""

    async def __aenter__(self) -> Transport:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def on_the_loop(sync_handler: SyncHandler) -> QueryHandler:
    """Adapts a `SyncHandler` to a `QueryHandler` that runs on the event loop.

    Args:
        sync_handler: As for `Transport.serve_sync`.

    Returns:
        A handler as for `Transport.serve`.
    """

    async def handler(query: Frame) -> Frame:
        loop = asyncio.get_running_loop()
        answered: asyncio.Future[Frame] = loop.create_future()

        def take(answer: Frame) -> None:
            if not answered.done():
                answered.set_result(answer)

        def reply(answer: Frame) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(take, answer)

        sync_handler(query, reply)
        return await answered

    return handler
