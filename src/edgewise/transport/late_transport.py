"""Stands for a session that cannot be opened yet, and passes everything to it once it is.

    late = LateTransport("device-1", "tls/10.0.0.2:7447", opening)     # opening: opens it, however often that takes
    await late.opened.wait()

Until then whatever is asked of it is `Unreachable` with the cause, at once, so that callers do what they do when a link is lost.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from edgewise.core.errors import Unreachable
from edgewise.transport.frame import Frame
from edgewise.transport.transport import (
    FrameHandler,
    OnAnswer,
    PresenceHandler,
    QueryHandler,
    Registration,
    SyncHandler,
    Transport,
)


class LateTransport(Transport):
    """Is a transport that may open later.

    Attributes:
        endpoint: Where it leads.
        inner: The open session; None before.
        opened: Set once it is open.
        tried: Set once the first attempt has ended, well or not.
        cause: Why it is not open.
    """

    def __init__(self, node: str, endpoint: str, opening: Callable[[LateTransport], Awaitable[Transport]]) -> None:
        """Begins to open the session.

        Args:
            node: Whose, for messages.
            endpoint: Where it leads.
            opening: Opens it; called once, tells `failed` of each attempt.
        """
        self.endpoint = endpoint
        self.inner: Transport | None = None
        self.opened, self.tried = asyncio.Event(), asyncio.Event()
        self.cause = "it was not tried yet."
        self._node = node
        self._opening = asyncio.get_running_loop().create_task(self._open(opening), name=f"open {endpoint}")

    def failed(self, cause: str) -> None:
        """Notes an attempt that failed.

        Args:
            cause: A sentence.
        """
        self.cause = cause
        self.tried.set()

    async def _open(self, opening: Callable[[LateTransport], Awaitable[Transport]]) -> None:
        try:
            self.inner = await opening(self)
            self.opened.set()
        finally:
            self.tried.set()

    def _now(self) -> Transport:
        if self.inner is None:
            raise Unreachable(
                f"{self._node!r} has no link to {self.endpoint} yet: {self.cause}", endpoint=self.endpoint
            )
        return self.inner

    async def query(self, key: str, frame: Frame, *, timeout_s: float) -> Frame:
        return await self._now().query(key, frame, timeout_s=timeout_s)

    def ask(self, key: str, frame: Frame, on_answer: OnAnswer, *, timeout_s: float) -> Callable[[], None]:
        return self._now().ask(key, frame, on_answer, timeout_s=timeout_s)

    def bytes_beside_frames(self, key: str) -> tuple[int, int]:
        return (0, 0) if self.inner is None else self.inner.bytes_beside_frames(key)

    async def query_all(self, key: str, frame: Frame, *, timeout_s: float) -> list[Frame]:
        return await self._now().query_all(key, frame, timeout_s=timeout_s)

    async def serve(self, key: str, handler: QueryHandler) -> Registration:
        return await self._now().serve(key, handler)

    async def serve_sync(self, key: str, handler: SyncHandler) -> Registration:
        return await self._now().serve_sync(key, handler)

    async def publish(self, key: str, frame: Frame) -> None:
        await self._now().publish(key, frame)

    async def subscribe(self, key: str, handler: FrameHandler) -> Registration:
        return await self._now().subscribe(key, handler)

    async def declare_presence(self, key: str) -> Registration:
        return await self._now().declare_presence(key)

    async def watch_presence(self, key: str, handler: PresenceHandler) -> Registration:
        return await self._now().watch_presence(key, handler)

    async def close(self) -> None:
        self._opening.cancel()
        await asyncio.wait({self._opening})
        if self.inner is not None:
            await self.inner.close()
