"""An HTTP port of a node: listens, takes connections to a bound, closes in time. Routes are `open_inference.py`'s.

Connections are uvicorn's, bounded (`connection.py`); the server around them is ours, for uvicorn's own takes any number
and lets a TLS handshake last a minute.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import uvicorn
from litestar.types import ASGIApp
from uvicorn.server import ServerState

from edgewise.core.errors import ConfigError
from edgewise.ledger.metric import Metric, metric
from edgewise.service.connection import Awaited, BoundedConnection, HttpLimits
from edgewise.service.http_errors import error_body

log = logging.getLogger(__name__)

_LAST_REQUESTS_S = 0.5
_NO_DESCRIPTOR_S = 0.2
_BACKLOG = 256
_IDLE_FOR_S = 1.0
_READING_S = 0.2
_MOST_TURNED_AWAY = 64


class HttpServer:
    """A running port.

    Attributes:
        host: Address it listens on.
        port: The real port.
        state: Connections and requests at hand.
        num_refused: Connections refused because too many were open.
        num_displaced: Idle connections closed because another needed the place.
    """

    def __init__(
        self,
        app: ASGIApp,
        listener: socket.socket,
        host: str,
        tls: ssl.SSLContext | None,
        limits: HttpLimits,
        on_close: Callable[[], None],
    ) -> None:
        self.host, self.port = host, int(listener.getsockname()[1])
        self.state = ServerState()
        self.num_refused = self.num_displaced = 0
        self._config = uvicorn.Config(
            app,
            lifespan="off",
            log_config=None,
            log_level="error",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            date_header=False,
            ws="none",
            timeout_keep_alive=int(limits.idle_s),
        )
        self._config.load()
        self._listener, self._tls, self._limits, self._on_close = listener, tls, limits, on_close
        self._turned_away: deque[socket.socket] = deque()
        self._opening: set[asyncio.Task[None]] = set()
        self._accepting = asyncio.create_task(self._accept(), name="http-accept")

    @property
    def url(self) -> str:
        """Base of every route."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http{'' if self._tls is None else 's'}://{host}:{self.port}"

    @property
    def num_open(self) -> int:
        """Connections, those whose TLS is not up yet among them."""
        return len(self.state.connections) + len(self._opening)

    def metrics(self) -> list[Metric]:
        """What `/metrics` says of the port."""
        ends: dict[Any, float] = {(("end", "refused"),): self.num_refused, (("end", "displaced"),): self.num_displaced}
        return [
            metric("http_connections", "gauge", "Open connections of this port.", {(): self.num_open}),
            metric("http_connections_total", "counter", "Connections that had to go, by how.", ends),
        ]

    async def close(self) -> None:
        """Stops listening; requests at hand get half a second."""
        for task in (self._accepting, *self._opening):
            task.cancel()
        await asyncio.gather(self._accepting, *self._opening, return_exceptions=True)
        self._listener.close()
        for connection in list(self.state.connections):
            connection.shutdown()
        if tasks := set(self.state.tasks):
            _, late = await asyncio.wait(tasks, timeout=_LAST_REQUESTS_S)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        for connection in list(self.state.connections):
            connection.transport.abort()
        for accepted in self._turned_away:
            accepted.close()
        self._on_close()

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                accepted, _ = await loop.sock_accept(self._listener)
            except OSError as error:
                log.warning("a connection could not be taken: %s", error.strerror or error)
                await asyncio.sleep(_NO_DESCRIPTOR_S)
                continue
            if self.num_open >= self._limits.max_connections and not self._make_room():
                self.num_refused += 1
                self._turn_away(accepted)
                continue
            task = asyncio.create_task(self._connect(accepted))
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)

    async def _connect(self, accepted: socket.socket) -> None:
        made = BoundedConnection(self._config, self.state, self._limits)
        within_s = None if self._tls is None else self._limits.head_s
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: made, accepted, ssl=self._tls, ssl_handshake_timeout=within_s
            )
        except OSError as error:  # a handshake that failed or was late
            log.debug("a client did not come through TLS: %s", error)
            accepted.close()

    def _make_room(self) -> bool:
        """Closes the connection that has waited longest for its client; one that came just now may have its request at hand."""
        until_s = asyncio.get_running_loop().time() - _IDLE_FOR_S
        ours = (c for c in self.state.connections if isinstance(c, BoundedConnection))
        waiting = [c for c in ours if c.phase in (Awaited.IDLE, Awaited.HEAD) and c.since_s < until_s]
        if not waiting:
            return False
        oldest = min(waiting, key=lambda connection: connection.since_s)
        self.state.connections.discard(oldest)
        self.num_displaced += 1
        oldest.transport.abort()
        return True

    def _turn_away(self, accepted: socket.socket) -> None:
        body = error_body(f"{self._limits.max_connections} connections are at work here. Try again in a second.")
        head = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\nconnection: close\r\n"
        head += b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
        with contextlib.suppress(OSError):
            if self._tls is None:
                accepted.send(head + body)
                accepted.shutdown(socket.SHUT_WR)
        # Closed at once, with its request unread, the client would be told of a reset instead.
        self._turned_away.append(accepted)
        if len(self._turned_away) > _MOST_TURNED_AWAY:
            self._turned_away.popleft().close()
        asyncio.get_running_loop().call_later(_READING_S, accepted.close)


def open_port(
    app: ASGIApp,
    host: str,
    port: int,
    *,
    tls: ssl.SSLContext | None = None,
    limits: HttpLimits | None = None,
    on_close: Callable[[], None] = lambda: None,
) -> HttpServer:
    """Serves an application on the running event loop.

    Args:
        app: Its routes.
        host: Address to listen on.
        port: Port; 0 takes a free one.
        tls: Certificate and key; None for plain HTTP.
        limits: What clients may take.
        on_close: Called once it is closed.

    Returns:
        The port, listening.

    Raises:
        ConfigError: If the port is in use or the address is not this machine's.
    """
    return HttpServer(app, _listen(host, port), host, tls, limits or HttpLimits(), on_close)


def tls_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """What a port shows its clients.

    Args:
        certificate: PEM.
        key: PEM, without a passphrase.

    Raises:
        ConfigError: If they cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(certificate, key, password=lambda: "")
    except OSError as error:  # what ssl says of a file's content is one, too
        raise ConfigError(
            f"TLS cannot be served with the certificate {str(certificate)!r} and the key {str(key)!r}: "
            f"{error.strerror or error}. Give two PEM files that belong together, the key without a passphrase."
        ) from error
    return context


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Without IPPROTO_TCP here, asyncio leaves Nagle's algorithm on for every accepted connection: 44 ms a request.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        listener.bind((host, port))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"cannot listen on {host}:{port}: {error.strerror or error}. Choose another port, or 0 for a free one."
        ) from error
    listener.setblocking(False)
    return listener
