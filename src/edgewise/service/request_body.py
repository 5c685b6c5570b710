"""The body of a request: read to a bound, within a budget of all bodies at hand, unpacked, split into JSON and tensors."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from litestar.types import Receive

from edgewise.core.errors import Busy, InputError
from edgewise.service.http_errors import BodyTooLarge
from edgewise.service.tensor_data import Body

LENGTH = b"inference-header-content-length"
INLINE_BYTES = 2**17
"""Up to so many bytes are read where they arrive; more would hold up other requests."""
_FREE_BYTES = 2**16
_PIECE_BYTES = 2**18


@dataclass(slots=True)
class BodyBudget:
    """Bytes of all the bodies that are being read or worked on; small ones are not counted, so they always pass.

    Attributes:
        max_bytes: Their bound.
        used_bytes: What they take now.
        num_refused: Bodies that found no room.
    """

    max_bytes: int
    used_bytes: int = 0
    num_refused: int = 0

    @contextmanager
    def room(self) -> Iterator[BodyRoom]:
        """Holds room for one request until it is answered."""
        held = BodyRoom(self)
        try:
            yield held
        finally:
            self.used_bytes -= held.used_bytes


@dataclass(slots=True)
class BodyRoom:
    """What one request takes of the budget."""

    budget: BodyBudget
    used_bytes: int = 0

    def take(self, num_bytes: int) -> None:
        """Makes it so many bytes in all.

        Args:
            num_bytes: Of the body so far.

        Raises:
            Busy: If the others leave no room for that.
        """
        wanted = max(0, num_bytes - _FREE_BYTES)
        more = max(0, wanted - self.used_bytes)
        if self.budget.used_bytes + more > self.budget.max_bytes:
            self.budget.num_refused += 1
            raise Busy(
                f"large requests of {self.budget.used_bytes:,} bytes are at hand, the bound is {self.budget.max_bytes:,}; "
                "this one is dropped. Try again soon, or send less at once.",
                retry_after_s=1.0,
            )
        self.used_bytes += more
        self.budget.used_bytes += more


class GatheredBody:
    """A body as its pieces come, in memory that is taken once: a large one that grew would be moved while nobody is answered.

    Attributes:
        size: Bytes so far.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes, self.size = max_bytes, 0
        self._plain = memoryview(b"")
        self._small = bytearray()

    def add(self, piece: bytes) -> None:
        """Takes more.

        Args:
            piece: What follows; in all at most `max_bytes`.
        """
        begun, self.size = self.size, self.size + len(piece)
        if self.size <= INLINE_BYTES:
            self._small += piece
            return
        if begun <= INLINE_BYTES:  # memory that is not written to costs nothing
            self._plain = np.empty(self._max_bytes, np.uint8).data
            self._plain[:begun] = self._small
        self._plain[begun : self.size] = piece

    @property
    def whole(self) -> bytearray | memoryview:
        """All of it."""
        return self._small if self.size <= INLINE_BYTES else self._plain[: self.size]


async def read_body(receive: Receive, headers: Mapping[bytes, bytes], max_bytes: int, room: BodyRoom) -> Body:
    """All of a request's body.

    Args:
        receive: From the server.
        headers: Say how long it is to be, so that one beyond the bound is not read at all.
        max_bytes: Its bound.
        room: What it may take.

    Returns:
        The bytes, as they were sent.

    Raises:
        BodyTooLarge: If there are more.
        Busy: As `BodyRoom.take`.
        InputError: If the client leaves before the end.
    """
    told = headers.get(b"content-length", b"")
    length = int(told) if told.isdigit() else max_bytes
    body = GatheredBody(length)
    while length <= max_bytes:
        message = await receive()
        if message["type"] != "http.request":
            raise InputError("the client closed the connection before its request was complete.")
        piece = message.get("body", b"")
        if body.size + len(piece) > length:
            break
        room.take(body.size + len(piece))
        body.add(piece)
        if not message.get("more_body", False):
            return body.whole
    raise BodyTooLarge(f"the request body has more than {min(length, max_bytes):,} bytes. Send less at once.")


def header_length(headers: Mapping[bytes, bytes]) -> int | None:
    """Length of the JSON in front of binary tensors; None if all is JSON."""
    text = headers.get(LENGTH)
    if text is None:
        return None
    if not text.isdigit() or len(text) > 18:
        raise InputError(f"Inference-Header-Content-Length is {text[:40].decode('latin-1')!r}, it must be a number.")
    return int(text)


class Unpacking:
    """Undoes what the client compressed, a piece at a time.

    Attributes:
        plain: What is unpacked so far.
        is_done: Whether that is all.
    """

    def __init__(self, body: Body, encoding: str, max_bytes: int) -> None:
        if encoding not in ("gzip", "deflate"):
            raise InputError(f"content-encoding {encoding[:40]!r} is not offered. Send gzip, deflate or plain bytes.")
        self._reader = zlib.decompressobj(zlib.MAX_WBITS | 32)
        self._packed, self._num_read = memoryview(body), 0
        self._encoding, self._max_bytes = encoding, max_bytes
        self.plain, self.is_done = GatheredBody(max_bytes), False

    def go_on(self, num_bytes: int) -> None:
        """Unpacks more; the interpreter's lock is free meanwhile.

        Args:
            num_bytes: At most so many.

        Raises:
            BodyTooLarge: If it unpacks to more than the bound.
            InputError: If it is not what its header says.
        """
        # What the reader gives back of its input it copies: the whole body each time, if that was given.
        given = self._reader.unconsumed_tail or self._packed[self._num_read : self._num_read + _PIECE_BYTES]
        if not self._reader.unconsumed_tail:
            self._num_read += len(given)
        try:
            piece = self._reader.decompress(given, num_bytes)
        except zlib.error as error:
            raise InputError(f"the body is not {self._encoding}: {error}.") from error
        if self.plain.size + len(piece) > self._max_bytes:
            raise BodyTooLarge(f"the request body unpacks to more than {self._max_bytes:,} bytes. Send less at once.")
        self.plain.add(piece)
        self.is_done = self._reader.eof
        if not (self.is_done or given or piece):
            raise InputError(f"the body is not {self._encoding}: it ends too early.")

    def finish(self) -> None:
        """Unpacks the rest.

        Raises:
            BodyTooLarge: As `go_on`.
            InputError: As `go_on`.
        """
        while not self.is_done:
            self.go_on(2**20)
