"""Which connections are ended: of silent links, and those that outlive their link; no other."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import zenoh

from edgewise.core.ids import Generation, NodeId
from edgewise.transport.zenoh.link_sockets import LinkSockets
from edgewise.transport.zenoh.session_config import WATCHES_SOCKETS, ZenohSettings

pytestmark = pytest.mark.skipif(not WATCHES_SOCKETS, reason="only Linux tells what a connection last received")
SETTINGS = ZenohSettings(node=NodeId("device-1"), generation=Generation(1), lease_s=0.1)


class Info:
    """Stands for a session's `info`: one link over a real connection."""

    def __init__(self, near: socket.socket) -> None:
        (host, port), (far_host, far_port) = near.getsockname(), near.getpeername()
        self.link = SimpleNamespace(src=f"tcp/{host}:{port}", dst=f"tcp/{far_host}:{far_port}", zid="ab")
        self.listed = [self.link]
        self._events = [SimpleNamespace(kind=zenoh.SampleKind.PUT, link=self.link)]

    def links(self) -> list[Any]:
        return self.listed

    def declare_link_events_listener(self, handler: object, *, history: bool) -> Info:
        return self

    def try_recv(self) -> Any:
        return self._events.pop() if self._events else None


@pytest.fixture
def pair() -> Any:
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = socket.create_connection(server.getsockname())
        far, _ = server.accept()
        far.setblocking(False)
        with near, far:
            yield near, far


def ended(far: socket.socket, sockets: LinkSockets, feed: Callable[[], object], looks: int) -> bool:
    """Whether the far end hears of an end within some looks, a third of a lease between them."""
    for _ in range(looks):
        feed()
        sockets.look()
        try:
            if far.recv(1) == b"":
                return True
        except BlockingIOError:
            time.sleep(SETTINGS.lease_s / 3)
    return False


def test_a_silent_connection_is_ended_though_its_link_is_listed(pair: Any) -> None:
    near, far = pair
    assert ended(far, LinkSockets(SimpleNamespace(info=Info(near)), SETTINGS), lambda: None, looks=1000)


def test_a_connection_that_outlives_its_link_is_ended_though_it_speaks(pair: Any) -> None:
    near, far = pair
    info = Info(near)
    sockets = LinkSockets(SimpleNamespace(info=info), SETTINGS)
    sockets.look()
    info.listed = []
    assert ended(far, sockets, lambda: (far.send(b"x"), near.recv(100)), looks=1000)


def test_a_connection_whose_data_wait_to_be_read_is_not_silent(pair: Any) -> None:
    near, far = pair
    far.send(b"x")
    assert not ended(far, LinkSockets(SimpleNamespace(info=Info(near)), SETTINGS), lambda: None, looks=12)


def test_connections_to_a_node_are_ended_when_that_is_asked_for(pair: Any) -> None:
    near, far = pair
    sockets = LinkSockets(SimpleNamespace(info=Info(near)), SETTINGS)
    assert sockets.end_to({"cd"}, "another is meant.") == 0
    with pytest.raises(BlockingIOError):
        far.recv(1)
    assert sockets.end_to({"ab"}, "nobody is seen behind it.") == 1
    far.settimeout(10.0)
    assert far.recv(1) == b""
