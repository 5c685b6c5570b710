"""A connection of an HTTP port: what a client may take of time and memory, and answers in one packet.

A head has `head_s` to come, a body `grace_s` and a second more per `bytes_per_s`, an answer that is not read likewise.
Whoever is slower is told 408, or cut off where an answer is under way. Between two requests a connection may idle; the
server (`http_server.py`) takes the one that has idled longest away when it needs the place.
"""

from __future__ import annotations

import asyncio
import enum
from dataclasses import dataclass
from math import inf
from typing import Any

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from edgewise.service.http_errors import error_body

_DRAINING_S = 5.0


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """What clients of an HTTP port may take.

    Attributes:
        max_connections: Open ones; when all are at work, one more is refused with 503.
        head_s: For a request's head, and for a TLS handshake.
        max_head_bytes: Of a head.
        grace_s: For a body, or for reading an answer, beside its rate.
        bytes_per_s: The least rate of both.
        idle_s: Between two requests.
        max_body_bytes: Of one body, also unpacked.
        bodies_bytes: Of all bodies at hand.
    """

    max_connections: int = 512
    head_s: float = 10.0
    max_head_bytes: int = 2**16
    grace_s: float = 20.0
    bytes_per_s: float = 2.0**14
    idle_s: float = 75.0
    max_body_bytes: int = 64 * 2**20
    bodies_bytes: int = 160 * 2**20


class Awaited(enum.Enum):
    """What is waited for on a connection."""

    IDLE = "idle"
    HEAD = "head"
    BODY = "body"
    DRAIN = "drain"
    ANSWER = "answer"


class BoundedConnection(HttpToolsProtocol):
    """uvicorn's, bounded.

    Attributes:
        phase: What is waited for.
        since_s: Since when, on the loop's clock.
    """

    def __init__(self, config: Config, state: ServerState, limits: HttpLimits) -> None:
        super().__init__(config, state, {}, asyncio.get_running_loop())
        self._limits = limits
        self.phase, self.since_s = Awaited.HEAD, self.loop.time()
        self._num_bytes = 0
        self._unread: tuple[float, int] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(_Whole(transport))
        self._enter(Awaited.HEAD)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._unset_keepalive_if_required()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.phase is Awaited.IDLE:
            self._enter(Awaited.HEAD)
        super().data_received(data)
        if self.phase is Awaited.HEAD:
            self._num_bytes += len(data)
            if self._num_bytes > self._limits.max_head_bytes:
                self._refuse(431, f"the request's head has more than {self._limits.max_head_bytes:,} bytes. Send less.")

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        self._enter(Awaited.BODY)

    def on_body(self, body: bytes) -> None:
        self._num_bytes += len(body)
        if self.phase is Awaited.DRAIN and self._num_bytes > 2 * self._limits.max_body_bytes:
            self.transport.abort()
            return
        super().on_body(body)

    def on_message_complete(self) -> None:
        self.cycle.scope["state"]["arrived_s"] = self.loop.time()
        super().on_message_complete()
        self._enter(Awaited.IDLE if self.phase is Awaited.DRAIN else Awaited.ANSWER)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.phase is Awaited.BODY:  # answered before all of it was there
            self._enter(Awaited.DRAIN)
        elif self.phase is Awaited.ANSWER and not self.pipeline:
            self._enter(Awaited.IDLE)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = (self.loop.time(), self.transport.get_write_buffer_size())
        self._arm(self.loop.time() + self._limits.grace_s)

    def resume_writing(self) -> None:
        self._unread = None
        super().resume_writing()

    def timeout_keep_alive_handler(self) -> None:
        if self.transport.get_write_buffer_size():  # a close would wait for a client that does not read
            self.transport.abort()
        super().timeout_keep_alive_handler()

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, "this is no HTTP/1.1 request. Send one, and TLS only where the port speaks https.")

    def _enter(self, phase: Awaited) -> None:
        self.phase, self.since_s, self._num_bytes = phase, self.loop.time(), 0
        if self._timer is None:
            self._arm(self._due_s())

    def _due_s(self) -> float:
        match self.phase:
            case Awaited.HEAD:
                return self.since_s + self._limits.head_s
            case Awaited.BODY:
                return self.since_s + self._limits.grace_s + self._num_bytes / self._limits.bytes_per_s
            case Awaited.DRAIN:
                return self.since_s + _DRAINING_S
        return inf

    def _arm(self, due_s: float) -> None:
        if due_s < inf and (self._timer is None or due_s < self._timer.when()):
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self.loop.call_at(due_s, self._look)

    def _look(self) -> None:
        self._timer, now_s, due_s = None, self.loop.time(), self._due_s()
        if self._unread is not None:
            began_s, size = self._unread
            left = self.transport.get_write_buffer_size()
            if left > size - self._limits.bytes_per_s * (now_s - began_s - self._limits.grace_s / 2):
                self.transport.abort()
                return
            self._arm(now_s + self._limits.grace_s)
        if due_s > now_s:
            self._arm(due_s)
        elif self.flow.read_paused and self.phase is Awaited.BODY:  # it is we who do not read
            self._enter(Awaited.BODY)
        elif self.phase is Awaited.DRAIN or (self.cycle is not None and self.cycle.response_started):
            self.transport.abort()
        elif self.phase is Awaited.HEAD and not self._num_bytes:  # nobody has asked anything
            self.transport.close()
        else:
            what = "head" if self.phase is Awaited.HEAD else "body"
            waited_s = now_s - self.since_s
            self._refuse(408, f"the request's {what} was not here within {waited_s:.0f} s. Send it at once, or less.")

    def _refuse(self, status: int, sentence: str) -> None:
        if self.transport.is_closing():
            return
        if self.cycle is not None and not self.cycle.response_complete:  # whoever works on it is not to answer any more
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        body = error_body(sentence)
        head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(body)
        self.transport.write(STATUS_LINE[status] + head)
        self.transport.write(body)
        self.transport.close()


class _Whole(asyncio.Transport):
    """A connection on which the head of an answer waits for its body: one packet, and its reader is woken once."""

    def __init__(self, below: asyncio.Transport) -> None:
        super().__init__()
        self._below, self._held = below, b""
        self._loop = asyncio.get_running_loop()
        for name in (
            "get_extra_info",
            "is_closing",
            "pause_reading",
            "resume_reading",
            "set_protocol",
            "get_write_buffer_size",
            "abort",
        ):
            setattr(self, name, getattr(below, name))

    def write(self, data: Any) -> None:
        if not self._held and data[-4:] == b"\r\n\r\n":
            self._held = data
            self._loop.call_soon(self._flush)  # no body follows at once
            return
        held, self._held = self._held, b""
        self._below.writelines((held, data) if held else (data,))

    def close(self) -> None:
        self._flush()
        self._below.close()

    def _flush(self) -> None:
        if self._held:
            self.write(b"")
