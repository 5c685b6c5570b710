"""A connection of the HTTP endpoint: uvicorn writes an answer's head and its body one after the other."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


class _Whole(asyncio.Transport):
    """A connection on which the head of an answer waits for its body: one packet, and its reader is woken once."""

    def __init__(self, below: asyncio.Transport) -> None:
        super().__init__()
        self._below, self._held = below, b""
        self._loop = asyncio.get_running_loop()
        for name in ("get_extra_info", "is_closing", "pause_reading", "resume_reading", "set_protocol"):
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


class OnePacketProtocol(HttpToolsProtocol):
    """uvicorn's, on such a connection."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(_Whole(transport))
