"""Moves frames over Eclipse Zenoh: plain TCP on loopback, mutual TLS elsewhere.

    settings = ZenohSettings(
        node=node_id("edge-1"), generation=generation, mode="router", listen=("tls/0.0.0.0:0",), tls=files
    )
    async with await open_zenoh(settings) as transport:
        print(transport.endpoints)          # ports resolved
        await transport.serve(keys.service("edge-1", "info"), handler)

Zenoh calls back on its own threads; everything is passed to the event loop that opened the transport. Its network
threads never run Python (`indirect`): one that waited for the interpreter would hold up its link. Frames are sent
through `lanes.py`, so a full queue never blocks the event loop; queries through `queries.py`; `link_sockets.py` ends
lost links. Configuration: `session_config.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import zenoh

from edgewise.core.errors import DeadlineExceeded, EdgewiseError, FrameRefused, InputError, TransportError, Unreachable
from edgewise.ledger.entry import FrameCounter, Purpose
from edgewise.transport.frame import Frame
from edgewise.transport.guard import FrameGuard
from edgewise.transport.remote import answer, as_answer, error_frame, failure_frame, open_reply, seal_reply
from edgewise.transport.transport import (
    FrameHandler,
    OnAnswer,
    PresenceHandler,
    QueryHandler,
    Registration,
    SyncHandler,
    Transport,
)
from edgewise.transport.zenoh.diagnose import Cause, EndpointFinding, diagnose
from edgewise.transport.zenoh.lanes import Job, Sender
from edgewise.transport.zenoh.link_sockets import LinkSockets
from edgewise.transport.zenoh.queries import EXPRESS, PRIORITY, Queries, indirect
from edgewise.transport.zenoh.session_config import TlsFiles, ZenohSettings, resolved, zenoh_config
from edgewise.transport.zenoh.watched_session import WatchedSession

__all__ = ["TlsFiles", "ZenohSettings", "ZenohTransport", "open_zenoh"]

_LISTEN_ATTEMPTS = 5
_QUERY_BYTES, _ANSWER_BYTES = 23, 36
"""What Zenoh writes around a frame, some bytes more or less by its counters, beside the key: all of it stands in a
client's query and in every answer."""
_TLS_RECORD_BYTES = 22
_DIAGNOSE_AFTER_S = 0.7


async def open_zenoh(settings: ZenohSettings) -> ZenohTransport:
    """Opens a session and, if parents are given, waits until one of them answers.

    Args:
        settings: How this node joins.

    Returns:
        The transport; `endpoints` are where it listens.

    Raises:
        Unreachable: If no parent answers within `connect_timeout_s`; says why (`diagnose.py`).
        InputError: If an endpoint or TLS file cannot be used, or a port is taken.
        SecurityError: If it would listen beyond loopback without TLS.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + settings.connect_timeout_s
    diagnosis = loop.create_task(_diagnosed_later(settings))
    try:
        for attempt in range(_LISTEN_ATTEMPTS):
            fixed = resolved(settings)
            try:
                session = await asyncio.to_thread(_open_session, fixed)
                break
            except zenoh.ZError as error:
                is_race = fixed.listen != settings.listen and "in use" in str(error)
                if is_race and attempt + 1 < _LISTEN_ATTEMPTS:
                    continue
                mapped = _mapped(error, settings)
                raise await _explained(diagnosis) if isinstance(mapped, Unreachable) else mapped from error
        transport = ZenohTransport(fixed, WatchedSession(session, fixed.panicked))
        if settings.mode == "router" and settings.connect and settings.must_connect:
            try:
                await asyncio.wait_for(transport.linked_up(), max(0.1, deadline - loop.time()))
            except TimeoutError as error:
                # Closing waits for Zenoh's present attempt to connect; the cause need not wait for it.
                threading.Thread(target=session.close, daemon=True).start()
                raise await _explained(diagnosis) from error
        return transport
    finally:
        diagnosis.cancel()


async def _diagnosed_later(settings: ZenohSettings) -> list[EndpointFinding]:
    """Diagnoses the parents' endpoints, once the session has had time to come up."""
    await asyncio.sleep(_DIAGNOSE_AFTER_S)
    return list(await asyncio.gather(*(diagnose(endpoint, settings.tls) for endpoint in settings.connect)))


async def _explained(diagnosis: asyncio.Task[list[EndpointFinding]]) -> Unreachable:
    findings = [_no_session(found) if found.cause is Cause.REACHABLE else found for found in await diagnosis]
    return Unreachable(
        "no parent can be reached: " + " ".join(map(str, findings)),
        causes=[finding.cause.value for finding in findings],
    )


def _no_session(found: EndpointFinding) -> EndpointFinding:
    cure = "Check that it is a node of Edgewise, and that its machine keeps up."
    return replace(found, sentence=f"{found.sentence.rstrip('.')} and opens no session.", cure=cure)


def _open_session(settings: ZenohSettings) -> Any:
    config = zenoh.Config()
    for path, value in zenoh_config(settings).items():
        config.insert_json5(path, json.dumps(value))
    return zenoh.open(config)


_ERRORS: tuple[tuple[str, type[EdgewiseError], str], ...] = (
    ("in use", InputError, "the port of {listen} is in use. Choose another, or port 0 for a free one."),
    ("listener", InputError, "cannot listen on {listen}: {cause}. Check address and TLS files."),
    ("Unable to connect", Unreachable, "none of {connect} answers. Check address, port and certificates."),
    ("closed", Unreachable, "the session of {node!r} is closed."),
    ("key expression", InputError, "{cause}"),
)
"""The one table of Zenoh's errors: a part of its text, ours, and our sentence. Anything else is TransportError."""


def _mapped(error: Exception, settings: ZenohSettings) -> EdgewiseError:
    cause = str(error).split(" at /")[0].rstrip(". ")
    listen, connect = ", ".join(settings.listen), ", ".join(settings.connect)
    values = {"listen": listen, "connect": connect, "node": settings.node, "cause": cause}
    for text, kind, sentence in _ERRORS:
        if text in str(error):
            return kind(sentence.format(**values))
    return TransportError(f"zenoh refused: {cause}.")


@dataclass(eq=False, slots=True)
class _Declared:
    """Wraps a Zenoh declaration as a registration; the transport keeps it, because Zenoh undeclares what Python collects."""

    entity: Any
    kept_in: set[_Declared]

    async def close(self) -> None:
        if self in self.kept_in:
            self.kept_in.discard(self)
            with contextlib.suppress(zenoh.ZError):
                await asyncio.to_thread(self.entity.undeclare)


class ZenohTransport(Transport):
    """Is a transport over one Zenoh session. Made by `open_zenoh`."""

    def __init__(self, settings: ZenohSettings, session: Any) -> None:
        self.settings = settings
        self.endpoints = settings.listen
        self.counter = settings.counter or FrameCounter(settings.node)
        self.guard = FrameGuard(
            node=settings.node,
            generation=settings.generation,
            counter=self.counter,
            sign=settings.sign,
            allow=settings.allow,
            tap=settings.tap,
        )
        self._session = session
        self._loop = asyncio.get_running_loop()
        self._sender = Sender(settings.node)
        self._queries = Queries(session, settings, self._sender, lambda error: _mapped(error, settings))
        self._tasks: set[asyncio.Task[None]] = set()
        self._declared: set[_Declared] = set()
        self._sockets = LinkSockets(session, settings)
        self._tasks.add(self._loop.create_task(self._sockets.watch(), name=f"links of {settings.node}"))
        self._is_open = True

    async def linked_up(self) -> None:
        """Waits until this node is connected to a router."""
        linked = asyncio.Event()

        def changed(event: Any) -> None:
            if event.kind == zenoh.SampleKind.PUT and event.transport.whatami == zenoh.WhatAmI.ROUTER:
                self._hand_over(linked.set)

        watching = await self._declare(
            lambda: self._session.info.declare_transport_events_listener(changed, history=True)
        )
        await linked.wait()
        await watching.close()

    async def query(self, key: str, frame: Frame, *, timeout_s: float) -> Frame:
        answered: asyncio.Future[Frame] = self._loop.create_future()

        def on_answer(answer: Frame | None, error: EdgewiseError | None) -> None:
            if not answered.done() and answer is not None:
                answered.set_result(answer)
            elif not answered.done() and error is not None:
                answered.set_exception(error)

        cancel = self.ask(key, frame, on_answer, timeout_s=timeout_s)
        try:
            return await answered
        finally:
            cancel()

    def ask(self, key: str, frame: Frame, on_answer: OnAnswer, *, timeout_s: float) -> Callable[[], None]:
        def settle(data: bytes | None, error: EdgewiseError | None = None) -> None:
            answer, failure = None, error
            try:
                answer = None if data is None else open_reply(self.guard, data)
            except EdgewiseError as refused:
                failure = refused
            cancel()  # not before: until something has come of the answer, the timer stands
            on_answer(answer, failure)

        def ended(error: EdgewiseError | None) -> None:
            lost = f"nobody answers on {key!r}: no node serves it, or it was lost. Check that the node is up."
            settle(None, error or Unreachable(lost, key=key))

        def expire() -> None:
            settle(None, DeadlineExceeded(f"no answer on {key!r} within {timeout_s:.3g} s.", key=key))

        def cancel() -> None:
            timer.cancel()
            query.drop()

        data = self.guard.seal(frame, key)
        query = self._queries.ask(key, data, frame.purpose, timeout_s, on_reply=settle, on_end=ended, one=True)
        timer = self._loop.call_later(timeout_s, expire)
        return cancel

    def bytes_beside_frames(self, key: str) -> tuple[int, int]:
        record = _TLS_RECORD_BYTES if any(each.startswith("tls/") for each in self.settings.connect) else 0
        named = len(key) + 1 if self.settings.mode == "client" else 0
        return _QUERY_BYTES + named + record, _ANSWER_BYTES + len(key) + record

    async def query_all(self, key: str, frame: Frame, *, timeout_s: float) -> list[Frame]:
        replies: list[bytes] = []
        finished: asyncio.Future[None] = self._loop.create_future()

        def ended(error: EdgewiseError | None) -> None:
            if not finished.done():
                finished.set_result(None) if error is None else finished.set_exception(error)

        data = self.guard.seal(frame, key)
        query = self._queries.ask(key, data, frame.purpose, timeout_s, on_reply=replies.append, on_end=ended, one=False)
        try:
            async with asyncio.timeout(timeout_s):
                await finished
        except TimeoutError:
            pass
        finally:
            query.drop()
        answers = []
        for reply in replies:
            with contextlib.suppress(EdgewiseError):
                answers.append(open_reply(self.guard, reply))
        return answers

    async def serve(self, key: str, handler: QueryHandler) -> Registration:
        def arrived(incoming: Any) -> None:
            self._hand_over(self._start_answer, handler, incoming)

        return await self._declare(lambda: self._session.declare_queryable(key, indirect(arrived), complete=True))

    async def serve_sync(self, key: str, handler: SyncHandler) -> Registration:
        def arrived(incoming: Any) -> None:
            query = Frame(kind="")
            try:
                query = self.guard.open(_payload(incoming))
                asked = query
                handler(query, lambda reply: self._reply(incoming, as_answer(reply, asked), asked.sender))
            except Exception as error:  # boundary of the receiving thread: the caller gets the error
                self._reply(incoming, as_answer(failure_frame(error, query), query), query.sender)

        return await self._declare(lambda: self._session.declare_queryable(key, indirect(arrived), complete=True))

    async def publish(self, key: str, frame: Frame) -> None:
        data = self.guard.seal(frame, key)

        def put() -> None:
            self._session.put(
                key,
                data,
                congestion_control=zenoh.CongestionControl.DROP,
                priority=PRIORITY[frame.purpose],
                express=frame.purpose is Purpose.SERVING,
            )

        self._sender.submit(frame.purpose, key, Job(put, lambda error: None, len(data)))

    async def subscribe(self, key: str, handler: FrameHandler) -> Registration:
        def received(key: str, data: bytes) -> None:
            with contextlib.suppress(FrameRefused):  # counted by the guard
                handler(key, self.guard.open(data))

        def arrived(sample: Any) -> None:
            self._hand_over(received, str(sample.key_expr), bytes(sample.payload))

        return await self._declare(lambda: self._session.declare_subscriber(key, arrived))

    async def declare_presence(self, key: str) -> Registration:
        return await self._declare(lambda: self._session.liveliness().declare_token(key))

    async def watch_presence(self, key: str, handler: PresenceHandler) -> Registration:
        def changed(sample: Any) -> None:
            self._hand_over(handler, str(sample.key_expr), sample.kind == zenoh.SampleKind.PUT)

        return await self._declare(lambda: self._session.liveliness().declare_subscriber(key, changed, history=True))

    async def routers(self) -> list[str]:
        """Returns the Zenoh ids of the routers this session is linked to, as `zenoh_id` makes them."""
        return [str(zid) for zid in await asyncio.to_thread(self._session.info.routers_zid)]

    async def relink(self, reason: str) -> int:
        """Ends the connections to the routers this session is linked to; Zenoh opens them anew.

        Args:
            reason: Why, for the log.

        Returns:
            How many were ended; 0 where the system does not let it.
        """
        with contextlib.suppress(zenoh.ZError):  # the session is being closed
            return await asyncio.to_thread(self._sockets.end_to, await self.routers(), reason)
        return 0

    async def close(self) -> None:
        if not self._is_open:
            return
        self._is_open = False
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._sender.close()
        await asyncio.to_thread(self._close_session)
        self._declared.clear()
        self._queries.close(Unreachable(f"the transport of {self.settings.node!r} is closed. Open a new one."))

    def _close_session(self) -> None:
        self._sender.join(0.5)
        with contextlib.suppress(zenoh.ZError, TransportError):  # one that has panicked is closed by the process's end
            self._session.close()
        self._sender.join(0.5)

    async def _declare(self, make: Callable[[], Any]) -> _Declared:
        try:
            declared = _Declared(await asyncio.to_thread(make), self._declared)
        except zenoh.ZError as error:
            raise _mapped(error, self.settings) from error
        self._declared.add(declared)
        return declared

    def _hand_over(self, call: Callable[..., object], *args: object) -> None:
        """Schedules a call on the event loop, from one of Zenoh's threads."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(call, *args)

    def _start_answer(self, handler: QueryHandler, incoming: Any) -> None:
        task = self._loop.create_task(self._answer(handler, incoming))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, handler: QueryHandler, incoming: Any) -> None:
        caller = ""
        try:
            query = self.guard.open(_payload(incoming))
            caller, reply = query.sender, await answer(handler, query)
        except FrameRefused as error:
            reply = error_frame(error)
        self._reply(incoming, reply, caller)

    def _reply(self, incoming: Any, reply: Frame, caller: str) -> None:
        """Seals an answer and queues it for sending; thread-safe."""
        key, purpose = str(incoming.key_expr), reply.purpose
        data, is_error = seal_reply(self.guard, reply, key)

        def send() -> None:
            with incoming:
                if is_error:
                    incoming.reply_err(data)
                else:
                    incoming.reply(key, data, express=purpose in EXPRESS)

        with contextlib.suppress(Unreachable):  # closed, or its link does not move: the caller's deadline ends it
            self._sender.submit(purpose, caller, Job(send, lambda error: None, len(data)))


def _payload(incoming: Any) -> bytes:
    return b"" if incoming.payload is None else bytes(incoming.payload)
