"""Transfers large values by digest: the holder announces them, each receiver pulls the chunks.

    digest = blobs.put(data)                                    # the holder; send digest and size in any frame
    await serve_blobs(transport, keys.service(me, "blob"), blobs)

    await fetch_blob(transport, keys.service(holder, "blob"), digest, size_bytes, mine)     # the receiver
    mine.read(digest)

A slow or stopped receiver only slows itself: nothing is sent that was not asked for. What arrived stays on disk,
so a fetch that was interrupted goes on where it was, also from another holder. A node passes on what it is still fetching
itself: over two links a model takes as long as over the slower one, not as both. How much is asked for ahead
is in `window.py`; no rate is configured.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import msgspec
import numpy as np

from edgewise.core.backoff import Backoff
from edgewise.core.errors import DeadlineExceeded, FrameRefused, InputError, StoreError, StoreUnavailable, Unreachable
from edgewise.core.ids import Digest
from edgewise.ledger.entry import Purpose
from edgewise.transport.bulk.blobs import FolderBlobs
from edgewise.transport.bulk.window import MAX_CHUNK_BYTES, Arrival, Window, arrived, lost, next_chunk
from edgewise.transport.frame import CHUNK_REQUEST, Frame, make_frame
from edgewise.transport.transport import Registration, Transport

log = logging.getLogger("edgewise.transport")
Progress = Callable[[int, int], object]
"""Takes (bytes here, bytes in all)."""
Allow = Callable[[Frame, Digest], Awaitable[None]]
"""Takes (query, digest); raises where whoever signed the query may not have that blob."""

_STALL_S = 30.0
"""A chunk without an answer for so long means that its holder does not move, though its link does."""
_GRACE_S = 6.0
"""How long a lost way may take to come back: three transport leases."""
_RETRY = Backoff(0.05, factor=1.0)
"""Constant: how long to go on is bounded by the time since the last chunk, not by a count."""


class ChunkRequest(msgspec.Struct, frozen=True, array_like=True):
    """Asks for `size_bytes` of a blob from `offset` on."""

    digest: Digest
    offset: int
    size_bytes: int


async def serve_blobs(
    transport: Transport, key: str, blobs: FolderBlobs, *, allow: Allow | None = None
) -> Registration:
    """Serves chunk queries for every blob of a store, also for one still being fetched.

    Args:
        transport: The holder's.
        key: Its `blob` service.
        blobs: What it holds.
        allow: Asked before anything is given; None gives every blob to whoever reaches this service.

    Returns:
        The registration; close it to stop serving.
    """

    async def give(query: Frame) -> Frame:
        wanted = query.read(ChunkRequest)
        if not (0 < wanted.size_bytes <= MAX_CHUNK_BYTES) or wanted.offset < 0:
            raise InputError(
                f"a chunk has 1 to {MAX_CHUNK_BYTES:,} bytes from offset 0 on; asked were {wanted.size_bytes:,} "
                f"from {wanted.offset:,}."
            )
        if allow is not None:
            await allow(query, wanted.digest)
        data = await blobs.read_coming(wanted.digest, wanted.offset, wanted.size_bytes)
        return make_frame("chunk", tensors={"": np.frombuffer(data, np.uint8)}, purpose=Purpose.BULK)

    return await transport.serve(key, give)


async def fetch_blob(
    transport: Transport,
    key: str,
    digest: Digest,
    size_bytes: int,
    blobs: FolderBlobs,
    *,
    run: str = "",
    progress: Progress | None = None,
) -> None:
    """Fetches a blob into a store; returns at once if it is stored already.

    Args:
        transport: The receiver's.
        key: The `blob` service of a holder.
        digest: Which blob.
        size_bytes: Its announced size.
        blobs: Where it goes; half of it may be there already.
        run: What it belongs to, for the ledger.
        progress: Called after every chunk.

    Raises:
        Unreachable: If the holder is gone, or does not move.
        RemoteError: If the holder does not have it.
        StoreError: If what came has another digest.
    """
    async with blobs.transfers.one(digest):
        is_resumed = blobs.partial_size(digest) > 0
        while not blobs.claim(digest):
            await _Fetch(transport, key, digest, size_bytes, blobs, run, progress).run()
            is_resumed = await _finished(blobs, digest, is_resumed=is_resumed)


async def fetch_unsized(transport: Transport, key: str, digest: Digest, blobs: FolderBlobs) -> None:
    """Fetches a blob whose size nobody knows, chunk after chunk until one is short; returns at once if it is stored.

    Args:
        transport: The receiver's.
        key: The `blob` service of a node that may hold it.
        digest: Which blob.
        blobs: Where it goes.

    Raises:
        Unreachable, DeadlineExceeded: If that node does not answer.
        RemoteError: If it does not have it.
        StoreError: If what came has another digest.
    """
    async with blobs.transfers.one(digest):
        is_resumed = blobs.partial_size(digest) > 0
        while not blobs.has(digest):
            offset = blobs.partial_size(digest)
            request = ChunkRequest(digest, offset, MAX_CHUNK_BYTES)
            query = make_frame("chunk_request", request, purpose=Purpose.BULK)
            data = (await transport.query(key, query, timeout_s=_STALL_S)).array("").tobytes()
            if data:
                await asyncio.to_thread(blobs.write_at, digest, offset, data)
            if len(data) < MAX_CHUNK_BYTES:
                is_resumed = await _finished(blobs, digest, is_resumed=is_resumed)


async def _finished(blobs: FolderBlobs, digest: Digest, *, is_resumed: bool) -> bool:
    """Has a blob verified and stored; False also where it has to come anew.

    What was here of it before may be torn by a loss of power: that says nothing of whoever gave the rest.
    """
    try:
        await asyncio.to_thread(blobs.finish, digest)
    except StoreUnavailable:
        raise
    except StoreError as error:
        if not is_resumed:
            raise
        log.info("what was here of a blob was damaged, all of it is fetched anew: %s", error)
    return False


@dataclass(frozen=True, slots=True)
class _Chunk:
    offset: int
    size_bytes: int


class _Fetch:
    """Fetches one blob: `_ask` sends chunk queries, `_take` stores their answers, the window bounds what is in flight."""

    def __init__(
        self,
        transport: Transport,
        key: str,
        digest: Digest,
        size_bytes: int,
        blobs: FolderBlobs,
        run: str,
        progress: Progress | None,
    ) -> None:
        self._transport, self._key, self._run = transport, key, run
        self._digest, self._size_bytes, self._blobs = digest, size_bytes, blobs
        self._progress = progress
        self._window = Window()
        self._written = min(blobs.partial_size(digest), size_bytes)
        self._next_offset = self._written
        self._again: list[_Chunk] = []
        self._asked: dict[asyncio.Task[tuple[float, bytes]], _Chunk] = {}
        self._asked_bytes = 0
        self._early: dict[int, bytes] = {}
        self._moved_at = asyncio.get_running_loop().time()

    async def run(self) -> None:
        try:
            while self._written < self._size_bytes:
                self._ask_on()
                done, _ = await asyncio.wait(self._asked, return_when=asyncio.FIRST_COMPLETED)
                failure: Exception | None = None
                for task in done:
                    failure = self._take(task) or failure
                if failure is not None:
                    await self._wait_for_way(failure)
        finally:
            for task in self._asked:
                task.cancel()
            await asyncio.gather(*self._asked, return_exceptions=True)

    def _ask_on(self) -> None:
        while chunk := self._choose():
            task = asyncio.get_running_loop().create_task(self._ask(chunk))
            self._asked[task] = chunk
            self._asked_bytes += chunk.size_bytes

    def _choose(self) -> _Chunk | None:
        size = next_chunk(self._window, self._asked_bytes, asyncio.get_running_loop().time())
        if size == 0:
            return None
        if self._again:
            return self._again.pop(0)
        size = min(size, self._size_bytes - self._next_offset)
        if size <= 0:
            return None
        chunk = _Chunk(self._next_offset, size)
        self._next_offset += size
        return chunk

    async def _ask(self, chunk: _Chunk) -> tuple[float, bytes]:
        asked_s = asyncio.get_running_loop().time()
        request = ChunkRequest(self._digest, chunk.offset, chunk.size_bytes)
        query = make_frame(CHUNK_REQUEST, request, purpose=Purpose.BULK, run=self._run)
        reply = await self._transport.query(self._key, query, timeout_s=_STALL_S)
        return asked_s, reply.array("").tobytes()

    def _take(self, task: asyncio.Task[tuple[float, bytes]]) -> Exception | None:
        """Writes the chunk of a finished query, or queues it again and returns the failure."""
        chunk = self._asked.pop(task)
        self._asked_bytes -= chunk.size_bytes
        failure = task.exception()
        if failure is not None:
            if not isinstance(failure, (Unreachable, DeadlineExceeded)):
                raise failure
            self._again.append(chunk)
            return failure
        asked_s, data = task.result()
        if len(data) != chunk.size_bytes:
            raise FrameRefused(
                f"chunk at {chunk.offset:,} of blob {self._digest[:12]} has {len(data):,} bytes instead of "
                f"{chunk.size_bytes:,}: the announced size {self._size_bytes:,} is wrong. Ask the holder again."
            )
        self._moved_at = asyncio.get_running_loop().time()
        self._window = arrived(self._window, Arrival(len(data), asked_s, self._moved_at))
        self._early[chunk.offset] = data
        self._write_on()
        return None

    def _write_on(self) -> None:
        while (data := self._early.pop(self._written, None)) is not None:
            self._blobs.write_at(self._digest, self._written, data)
            self._written += len(data)
        self._blobs.transfers.has_moved(self._digest)
        if self._progress is not None:
            self._progress(self._written, self._size_bytes)

    async def _wait_for_way(self, failure: Exception) -> None:
        """Waits before retrying a lost connection; raises if nothing has arrived for too long."""
        still_s = asyncio.get_running_loop().time() - self._moved_at
        if still_s > (_GRACE_S if isinstance(failure, Unreachable) else 2 * _STALL_S - 1.0):
            raise Unreachable(
                f"blob {self._digest[:12]} stands at {self._written:,} of {self._size_bytes:,} bytes: nobody serves "
                f"{self._key!r} since {still_s:.0f} s. Fetch it from another holder; it goes on where it was.",
                digest=self._digest,
            ) from failure
        self._window = lost(self._window)
        await asyncio.sleep(_RETRY.delay_s(0))
