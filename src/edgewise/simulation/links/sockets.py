"""Configures the sockets of an emulated link, so that loopback behaves as a network. `link.py` uses it."""

from __future__ import annotations

import contextlib
import socket
import struct

from edgewise.simulation.links.shape import PACKET_BYTES

_SOCKET_BUFFER_BYTES = 16 * 1024
_TCP_INFO_RECEIVED = 128
"""Offset of `tcpi_bytes_received` in Linux's struct tcp_info."""
_RESET = struct.pack("ii", 1, 0)


def receive_as_a_network_does(end: socket.socket) -> None:
    """Bounds the receive buffer and segment size of a socket, before it listens or connects.

    Loopback's segments have 64 KiB, or half the window where that is less. A sender whose next segment is a little
    larger than what is left of the window waits for the persist timer: 0.2 s, then twice as long, and so on,
    until the link counts as lost.
    """
    end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SOCKET_BUFFER_BYTES)
    with contextlib.suppress(OSError):  # not every system lets it be chosen
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, PACKET_BYTES)


def kernel_received(end: socket.socket) -> int:
    """Returns the bytes the kernel counts as received on a connection; 0 where unsupported."""
    if not hasattr(socket, "TCP_INFO"):
        return 0
    info = end.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_RECEIVED + 8)
    return int.from_bytes(info[_TCP_INFO_RECEIVED:], "little") if len(info) == _TCP_INFO_RECEIVED + 8 else 0


def close_by_reset(end: socket.socket) -> None:
    """Closes a socket so that the other side sees a reset."""
    with contextlib.suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    end.close()
