"""Watches the TCP connections under a session's links, through the process's own descriptors: Zenoh gives no access to them.

A lost link must end by its connection. Where Zenoh 1.10 ends it by its own lease while a frame waits for room in its queue, the
thread that empties all queues waits for that frame, and the frame for that thread: no link of the process moves until the wait
is over. And where several frames waited, Zenoh may drop the link's successor from its books and leave the connection open: the
other end takes it for this node and refuses every new one. docs/decisions/0016-a-blocked-link-is-closed.md tells how it was found.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import socket
import stat
import struct
import termios
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import zenoh

from edgewise.transport.zenoh.session_config import WATCHES_SOCKETS, ZenohSettings, split_endpoint

log = logging.getLogger(__name__)
Ends = tuple[tuple[str, int], tuple[str, int]]
"""Address and port of a connection's near end, and of its far end."""
_LOOKS_PER_LEASE = 4
_MOST_EVENTS = 4096
_DESCRIPTORS = "/proc/self/fd"
_LAST_DATA_RECEIVED = struct.Struct("@52xI")
"""Milliseconds, in Linux' `struct tcp_info`."""
_UNREAD = struct.Struct("@i")


@dataclass(slots=True)
class _WatchedSocket:
    """Remembers a link's connection: its descriptor, and since when Zenoh has listed no link for it."""

    descriptor: int
    unlisted_since: float | None = None


class LinkSockets:
    """Ends the connections of one session that are silent, or outlive their link.

    Args:
        session: The Zenoh session.
        settings: Its settings: `lease_s` bounds both.
    """

    def __init__(self, session: Any, settings: ZenohSettings) -> None:
        self._info, self._settings = session.info, settings
        self._connections: dict[Ends, _WatchedSocket] = {}
        self._events = self._info.declare_link_events_listener(zenoh.handlers.RingChannel(_MOST_EVENTS), history=True)

    async def watch(self) -> None:
        """Looks after them until it is cancelled, where the system lets it."""
        while WATCHES_SOCKETS:
            with contextlib.suppress(zenoh.ZError):  # the session is being closed
                await asyncio.to_thread(self.look)
            await asyncio.sleep(self._settings.lease_s / _LOOKS_PER_LEASE)

    def look(self) -> None:
        """Finds the connections of new links, and ends those that are to end."""
        self._find(set(self._new()))
        linked, now = {_ends_of(link) for link in self._info.links()}, time.monotonic()
        for ends, connection in list(self._connections.items()):
            connection.unlisted_since = None if ends in linked else connection.unlisted_since or now
            with contextlib.suppress(OSError), _opened(connection.descriptor) as (found, ours):
                if found == ends:
                    if reason := self._reason(ours, now - (connection.unlisted_since or now)):
                        log.info("%s ends its connection to %s:%s: %s", self._settings.node, *ends[1], reason)
                        ours.shutdown(socket.SHUT_RDWR)
                        del self._connections[ends]
                    continue
            del self._connections[ends]  # closed

    def end_to(self, nodes: Collection[str], reason: str) -> int:
        """Ends the connections to some nodes, so that Zenoh opens them, and declares everything over them, anew.

        Args:
            nodes: Their Zenoh ids.
            reason: Why, for the log.

        Returns:
            How many were ended; 0 where the system does not let it.
        """
        self._find(set(self._new()))
        num = 0
        for link in self._info.links():
            ends = _ends_of(link)
            known = self._connections.get(ends) if str(link.zid) in nodes else None
            with contextlib.suppress(OSError):
                if known is not None:
                    with _opened(known.descriptor) as (found, ours):
                        if found == ends:
                            log.info("%s ends its connection to %s:%s: %s", self._settings.node, *ends[1], reason)
                            ours.shutdown(socket.SHUT_RDWR)
                            num += 1
        return num

    def _reason(self, connection: socket.socket, unlisted_s: float) -> str:
        lease_s = self._settings.lease_s
        if unlisted_s > lease_s:
            return "its link is lost."
        silent_s = _silent_s(connection)
        return f"nothing came over it for {silent_s:.1f} s." if silent_s > lease_s else ""

    def _find(self, new: set[Ends]) -> None:
        if not new:
            return
        for name in os.listdir(_DESCRIPTORS):
            with contextlib.suppress(OSError):  # gone meanwhile, or not connected
                if stat.S_ISSOCK(os.stat(int(name)).st_mode):
                    with _opened(int(name)) as (ends, _):
                        if ends is not None and ends in new:
                            self._connections[ends] = _WatchedSocket(int(name))

    def _new(self) -> Iterator[Ends]:
        while (event := self._events.try_recv()) is not None:
            if event.kind == zenoh.SampleKind.PUT:
                yield _ends_of(event.link)


def _ends_of(link: Any) -> Ends:
    (_, near, near_port), (_, far, far_port) = split_endpoint(link.src), split_endpoint(link.dst)
    return (_host(near), near_port), (_host(far), far_port)


def _host(address: str) -> str:
    return address.partition("%")[0]  # the interface of a link-local address is written in several ways


@contextlib.contextmanager
def _opened(descriptor: int) -> Iterator[tuple[Ends | None, socket.socket]]:
    """A copy of a descriptor's socket, so that it stays the same one meanwhile, and its ends; None if it is no internet socket."""
    with socket.socket(fileno=os.dup(descriptor)) as connection:
        if connection.family not in (socket.AF_INET, socket.AF_INET6):
            yield None, connection
        else:
            near, far = connection.getsockname(), connection.getpeername()
            yield ((_host(near[0]), near[1]), (_host(far[0]), far[1])), connection


def _silent_s(connection: socket.socket) -> float:
    """For how long nothing has come; 0 while there is something that was not read."""
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _LAST_DATA_RECEIVED.size)
    (unread,) = _UNREAD.unpack(fcntl.ioctl(connection, termios.FIONREAD, bytes(_UNREAD.size)))
    return 0.0 if unread else float(_LAST_DATA_RECEIVED.unpack(info)[0] / 1000)
