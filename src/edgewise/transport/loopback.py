"""Connects nodes inside one process, for tests and simulation: frames are encoded and decoded, links are ideal.

fabric = LoopbackFabric()
async with fabric.open("device-1") as device, fabric.open("edge-1") as edge: ...
fabric.cut("edge-1")    # nobody reaches it, its tokens vanish
fabric.heal("edge-1")   # everything it declared is back

What a node does, it does in the context it was opened in. A fabric with a `Carrier` asks that when, whether and how what is
sent arrives.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from edgewise.core.errors import DeadlineExceeded, EdgewiseError, FrameRefused, Unreachable
from edgewise.core.ids import Generation, NodeId
from edgewise.ledger.entry import FrameCounter
from edgewise.transport.frame import Frame
from edgewise.transport.guard import AllowOrigins, FrameGuard, Sign, Tap
from edgewise.transport.keys import matches
from edgewise.transport.remote import answer, error_frame, open_reply, seal_reply
from edgewise.transport.transport import FrameHandler, PresenceHandler, QueryHandler, Registration, Transport


@dataclass(frozen=True, slots=True)
class Parcel:
    """Something on its way from a node to another.

    Attributes:
        what: `query`, `answer`, `publication` or `presence`.
        sender: Who sends it.
        receiver: To whom.
        key: Its key.
        content: The frame's bytes; of `presence`, whether the token is there.
    """

    what: str
    sender: NodeId
    receiver: NodeId
    key: str
    content: Any


class Carrier(Protocol):
    """Carries what nodes of a fabric send each other."""

    def carry(self, parcel: Parcel, arrive: Callable[[Any], None]) -> None:
        """Has a parcel arrive: at once or later, once, never or twice, as it is or changed.

        Args:
            parcel: What is sent.
            arrive: Takes what arrives, on the event loop.
        """
        ...


class IdealCarrier:
    """Everything arrives at once and as it is."""

    def carry(self, parcel: Parcel, arrive: Callable[[Any], None]) -> None:
        """As `Carrier.carry`."""
        arrive(parcel.content)


@dataclass(eq=False, slots=True)
class _LoopbackDeclared:
    """Is a declaration of a node, and its registration."""

    owner: LoopbackTransport
    what: str
    key: str
    handler: Callable[..., object] | None = None

    async def close(self) -> None:
        self.owner.fabric.withdraw(self)


class LoopbackFabric:
    """Holds what loopback nodes share: declarations, open queries, nodes cut off.

    Args:
        link: Carries what they send.
    """

    def __init__(self, link: Carrier | None = None) -> None:
        self._link = link or IdealCarrier()
        self._declared: list[_LoopbackDeclared] = []
        self._cut: set[NodeId] = set()
        self._asked: dict[asyncio.Future[bytes], tuple[NodeId, NodeId]] = {}

    def open(
        self,
        node: NodeId | str,
        generation: int = 1,
        *,
        counter: FrameCounter | None = None,
        sign: Sign | None = None,
        allow: AllowOrigins | None = None,
        tap: Tap | None = None,
    ) -> LoopbackTransport:
        """Opens a node on the fabric.

        Args:
            node: Its name.
            generation: Its incarnation.
            counter: As in `FrameGuard`, like the others.
            sign: Signs control and training frames.
            allow: The data policy.
            tap: Receives the bytes of every outgoing frame.

        Returns:
            Its transport.
        """
        name = NodeId(node)
        return LoopbackTransport(
            self,
            FrameGuard(
                node=name,
                generation=Generation(generation),
                counter=counter or FrameCounter(name),
                sign=sign,
                allow=allow,
                tap=tap,
            ),
        )

    def cut(self, node: NodeId | str) -> None:
        """Cuts a node off; its open queries, sent and received, fail with `Unreachable`."""
        tokens = [d for d in self._declared if d.what == "token" and d.owner.node == node]
        for token in tokens:
            self.report_presence(token, False)
        self._cut.add(NodeId(node))
        for asked, (server, asker) in list(self._asked.items()):
            if node in (server, asker) and server != asker and not asked.done():
                asked.set_exception(_lost(server))

    def heal(self, node: NodeId | str) -> None:
        """Reconnects a node: others see its tokens again, and it theirs."""
        self._cut.discard(NodeId(node))
        for watcher in [d for d in self._declared if d.what == "watch" and d.owner.node == node]:
            for token in self.find(watcher.owner.node, "token", watcher.key):
                self.carry("presence", token.owner, watcher, token.key, True)
        for token in [d for d in self._declared if d.what == "token" and d.owner.node == node]:
            self.report_presence(token, True)

    def declare(self, declared: _LoopbackDeclared) -> _LoopbackDeclared:
        """Adds a declaration."""
        self._declared.append(declared)
        return declared

    def withdraw(self, declared: _LoopbackDeclared) -> None:
        """Withdraws a declaration; idempotent."""
        if declared in self._declared:
            self._declared.remove(declared)
            if declared.what == "token":
                self.report_presence(declared, False)

    def withdraw_all(self, owner: LoopbackTransport) -> None:
        """Withdraws all declarations of a node; queries it was answering fail with `Unreachable`."""
        for declared in [d for d in self._declared if d.owner is owner]:
            self.withdraw(declared)
        for asked, (server, _) in list(self._asked.items()):
            if server == owner.node and not asked.done():
                asked.set_exception(_lost(server))

    def find(self, caller: NodeId, what: str, key: str) -> list[_LoopbackDeclared]:
        """Returns the declarations of one sort that `caller` reaches and whose key matches."""
        return [
            d
            for d in self._declared
            if d.what == what and self.connected(caller, d.owner.node) and (matches(key, d.key) or matches(d.key, key))
        ]

    def connected(self, one: NodeId, other: NodeId) -> bool:
        """Returns whether two nodes can reach each other."""
        return one == other or (one not in self._cut and other not in self._cut)

    def report_presence(self, token: _LoopbackDeclared, is_there: bool) -> None:
        """Reports a liveliness token to every watcher that can reach its node."""
        for watcher in self.find(token.owner.node, "watch", token.key):
            self.carry("presence", token.owner, watcher, token.key, is_there)

    def carry(self, what: str, sender: LoopbackTransport, to: _LoopbackDeclared, key: str, content: Any) -> None:
        """Sends a publication or the sight of a token on its way to a declaration."""
        parcel = Parcel(what, sender.node, to.owner.node, key, content)
        self._link.carry(parcel, partial(to.owner.deliver, to, key))

    def ask(self, caller: LoopbackTransport, server: _LoopbackDeclared, data: bytes) -> asyncio.Future[bytes]:
        """Passes a query to a server and returns a future of its answer's bytes."""
        asked: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._asked[asked] = server.owner.node, caller.node
        asked.add_done_callback(lambda done: self._asked.pop(done, None))
        query = Parcel("query", caller.node, server.owner.node, server.key, data)
        self._link.carry(query, lambda came: server.owner.answer_to(server, came, asked, caller.node))
        return asked

    def answer(self, server: _LoopbackDeclared, asked: asyncio.Future[bytes], caller: NodeId, data: bytes) -> None:
        """Passes an answer to whoever asked, if they are still there and wait for it."""

        def arrive(came: bytes) -> None:
            if not asked.done() and self.connected(server.owner.node, caller):
                asked.set_result(came)

        self._link.carry(Parcel("answer", server.owner.node, caller, server.key, data), arrive)


class LoopbackTransport(Transport):
    """Is the transport of one node of a `LoopbackFabric`."""

    def __init__(self, fabric: LoopbackFabric, guard: FrameGuard) -> None:
        self.fabric = fabric
        self.guard = guard
        self.node = guard.node
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_open = True
        self._context = contextvars.copy_context()

    async def query(self, key: str, frame: Frame, *, timeout_s: float) -> Frame:
        servers = self.fabric.find(self.node, "serve", key)
        if not servers:
            raise Unreachable(f"nobody serves {key!r}. Check that the node is up and its name is right.", key=key)
        data = self._sealed(frame, key)
        try:
            async with asyncio.timeout(timeout_s):
                reply = await self.fabric.ask(self, servers[0], data)
        except TimeoutError as error:
            raise DeadlineExceeded(f"no answer on {key!r} within {timeout_s:.3g} s.", key=key) from error
        return open_reply(self.guard, reply)

    async def query_all(self, key: str, frame: Frame, *, timeout_s: float) -> list[Frame]:
        servers = self.fabric.find(self.node, "serve", key)
        data = self._sealed(frame, key) if servers else b""
        asked = [self.fabric.ask(self, server, data) for server in servers]
        if asked:
            await asyncio.wait(asked, timeout=timeout_s)
        answers = []
        for future in asked:
            if not future.done():
                future.cancel()
            elif future.exception() is None:
                try:
                    answers.append(open_reply(self.guard, future.result()))
                except EdgewiseError:
                    continue
        return answers

    async def serve(self, key: str, handler: QueryHandler) -> Registration:
        return self.fabric.declare(_LoopbackDeclared(self, "serve", key, handler))

    async def publish(self, key: str, frame: Frame) -> None:
        data = self._sealed(frame, key)
        for listener in self.fabric.find(self.node, "listen", key):
            self.fabric.carry("publication", self, listener, key, data)

    async def subscribe(self, key: str, handler: FrameHandler) -> Registration:
        return self.fabric.declare(_LoopbackDeclared(self, "listen", key, handler))

    async def declare_presence(self, key: str) -> Registration:
        token = self.fabric.declare(_LoopbackDeclared(self, "token", key))
        self.fabric.report_presence(token, True)
        return token

    async def watch_presence(self, key: str, handler: PresenceHandler) -> Registration:
        watcher = self.fabric.declare(_LoopbackDeclared(self, "watch", key, handler))
        for token in self.fabric.find(self.node, "token", key):
            self.fabric.carry("presence", token.owner, watcher, token.key, True)
        return watcher

    def _sealed(self, frame: Frame, key: str) -> bytes:
        if not self._is_open:
            raise Unreachable(f"the transport of {self.node!r} is closed. Open a new one.")
        return self.guard.seal(frame, key)

    async def close(self) -> None:
        self._is_open = False
        self.fabric.withdraw_all(self)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def deliver(self, declared: _LoopbackDeclared, key: str, content: bytes | bool) -> None:
        """Schedules a handler on the event loop."""
        asyncio.get_running_loop().call_soon(self._call, declared, key, content, context=self._context)

    def _call(self, declared: _LoopbackDeclared, key: str, content: bytes | bool) -> None:
        assert declared.handler is not None
        with contextlib.suppress(FrameRefused):  # counted by the guard
            declared.handler(key, self.guard.open(content) if isinstance(content, bytes) else content)

    def answer_to(self, server: _LoopbackDeclared, data: bytes, asked: asyncio.Future[bytes], caller: NodeId) -> None:
        """Answers a query in a task of this node."""
        if not self._is_open:  # it was closed while this was under way
            return
        work = self._answer(server, data, asked, caller)
        task = asyncio.get_running_loop().create_task(work, context=self._context)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(
        self, server: _LoopbackDeclared, data: bytes, asked: asyncio.Future[bytes], caller: NodeId
    ) -> None:
        assert server.handler is not None
        try:
            query = self.guard.open(data)
            reply = await answer(server.handler, query)  # type: ignore[arg-type]
        except FrameRefused as error:
            reply = error_frame(error)
        sealed, _ = seal_reply(self.guard, reply, server.key)
        self.fabric.answer(server, asked, caller, sealed)


def _lost(server: NodeId) -> Unreachable:
    return Unreachable(f"{server!r} was lost before it answered.", node_id=server)
