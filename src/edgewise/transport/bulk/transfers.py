"""Which blobs of a node are on their way to it: each is fetched once, and whoever reads along is woken as it moves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from edgewise.core.ids import Digest


@dataclass(slots=True)
class _Transfer:
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    num_here: int = 0


class Transfers:
    """Transfers of one node; of those that have ended nothing is remembered."""

    def __init__(self) -> None:
        self._under_way: dict[Digest, _Transfer] = {}
        self._moved: dict[Digest, asyncio.Event] = {}

    def __contains__(self, digest: object) -> bool:
        """Whether a blob is being fetched; any thread."""
        return digest in self._under_way

    @asynccontextmanager
    async def one(self, digest: Digest) -> AsyncIterator[None]:
        """Has a blob be fetched once: whoever else would fetch it waits until the block ends.

        Args:
            digest: Which.
        """
        transfer = self._under_way.setdefault(digest, _Transfer())
        transfer.num_here += 1
        try:
            async with transfer.lock:
                yield
        finally:
            transfer.num_here -= 1
            if not transfer.num_here:
                del self._under_way[digest]
            self.has_moved(digest)  # who reads along sees that it is whole, or broke off

    def has_moved(self, digest: Digest) -> None:
        """Wakes the readers of a blob, on their event loop."""
        if digest in self._moved:
            self._moved.pop(digest).set()

    async def moves(self, digest: Digest) -> None:
        """Returns when more of a blob is here, or its transfer has ended."""
        await self._moved.setdefault(digest, asyncio.Event()).wait()
