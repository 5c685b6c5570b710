"""Frames over Eclipse Zenoh: plain TCP on loopback, mutual TLS elsewhere.

    settings = ZenohSettings(node_id("edge-1"), epoch, mode="router", listen=("tls/0.0.0.0:0",), tls=files)
    async with await open_zenoh(settings) as transport:
        print(transport.endpoints)          # ports resolved
        await transport.serve(keys.service("edge-1", "info"), handler)

Zenoh calls back on its own threads; everything is handed to the event loop that opened the transport. Its network
threads never run Python (`_heard_by`): one that waited for the interpreter would hold up its link. What leaves goes
through `sender.py`, so a full queue never holds the event loop; a serving question has a thread of a pool to itself,
which hands it over and waits for its reply: no thread is made for it and one hand-over less is on its way.
Configuration: `zenoh_config.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import zenoh

from edgewise.core.errors import DeadlineExceeded, EdgewiseError, FrameRefused, InputError, TransportError, Unreachable
from edgewise.ledger.entry import FrameCounter, Purpose
from edgewise.transport.asked import Asked
from edgewise.transport.diagnose import Finding, diagnose
from edgewise.transport.door import Door
from edgewise.transport.frame import Frame
from edgewise.transport.remote import answer, as_answer, checked_reply, error_frame, failure_frame, seal_reply
from edgewise.transport.sender import Askers, Job, Sender
from edgewise.transport.transport import FrameHandler, Hearer, PresenceHandler, QueryHandler, Registration, Transport
from edgewise.transport.zenoh_config import PRIORITIES, TlsFiles, ZenohSettings, resolved, zenoh_config

__all__ = ["TlsFiles", "ZenohSettings", "ZenohTransport", "open_zenoh"]

_LISTEN_ATTEMPTS = 5
_DIAGNOSE_AFTER_S = 0.7
_PRIORITY = {purpose: getattr(zenoh.Priority, name) for purpose, name in PRIORITIES.items()}
_EXPRESS = frozenset((Purpose.SERVING, Purpose.CONTROL))
_MOST_ASKERS = 128
"""Serving questions that may be open at once; more wait for a thread. Twice what a device's door lets in."""
_FEW_REPLIES = 4


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
        transport = ZenohTransport(fixed, session)
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


async def _diagnosed_later(settings: ZenohSettings) -> list[Finding]:
    """Looks for what is wrong with the parents, once the session has had time to come up."""
    await asyncio.sleep(_DIAGNOSE_AFTER_S)
    return list(await asyncio.gather(*(diagnose(endpoint, settings.tls) for endpoint in settings.connect)))


async def _explained(diagnosis: asyncio.Task[list[Finding]]) -> Unreachable:
    findings = await diagnosis
    return Unreachable(
        "no parent can be reached: " + " ".join(map(str, findings)),
        causes=[finding.cause.value for finding in findings],
    )


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
    words = {"listen": settings.listen, "connect": settings.connect, "node": settings.node, "cause": cause}
    for text, kind, sentence in _ERRORS:
        if text in str(error):
            return kind(sentence.format(**words))
    return TransportError(f"zenoh refused: {cause}.")


@dataclass(eq=False, slots=True)
class _Declared:
    """A Zenoh declaration as a registration; its transport keeps it, for Zenoh drops what Python forgets."""

    entity: Any
    kept_in: set[_Declared]

    async def close(self) -> None:
        if self in self.kept_in:
            self.kept_in.discard(self)
            with contextlib.suppress(zenoh.ZError):
                await asyncio.to_thread(self.entity.undeclare)


class ZenohTransport(Transport):
    """One node's Zenoh session. Made by `open_zenoh`."""

    def __init__(self, settings: ZenohSettings, session: Any) -> None:
        self.settings = settings
        self.endpoints = settings.listen
        self.counter = settings.counter or FrameCounter(settings.node)
        self.door = Door(settings.node, settings.epoch, self.counter, settings.sign, settings.allow, settings.tap)
        self._session = session
        self._loop = asyncio.get_running_loop()
        self._sender = Sender(settings.node)
        self._askers = Askers(settings.node, _MOST_ASKERS)
        self._tasks: set[asyncio.Task[None]] = set()
        self._asked: set[Asked] = set()
        self._declared: set[_Declared] = set()
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
        asked = self._ask(key, frame, timeout_s, one=True)
        late = DeadlineExceeded(f"no answer on {key!r} within {timeout_s:.3g} s.", key=key)
        timer = self._loop.call_later(timeout_s, asked.expire, late)
        try:
            await asked.first
        finally:
            timer.cancel()
            asked.drop()
        if not asked.replies:
            raise Unreachable(
                f"nobody answers on {key!r}: no node serves it, or it was lost. Check that the node is up.", key=key
            )
        return checked_reply(self.door.open(asked.replies[0]))

    async def query_all(self, key: str, frame: Frame, *, timeout_s: float) -> list[Frame]:
        asked = self._ask(key, frame, timeout_s, one=False)
        try:
            async with asyncio.timeout(timeout_s):
                await asked.finished
        except TimeoutError:
            pass
        finally:
            asked.drop()
        answers = []
        for reply in asked.replies:
            with contextlib.suppress(EdgewiseError):
                answers.append(checked_reply(self.door.open(reply)))
        return answers

    async def serve(self, key: str, handler: QueryHandler) -> Registration:
        def arrived(query: Any) -> None:
            self._hand_over(self._start_answer, handler, query)

        return await self._declare(lambda: self._session.declare_queryable(key, _heard_by(arrived), complete=True))

    async def hear(self, key: str, hearer: Hearer) -> Registration:
        def arrived(query: Any) -> None:
            question = Frame("")
            try:
                question = self.door.open(_payload(query))
                asked = question
                hearer(question, lambda reply: self._reply(query, as_answer(reply, asked), asked.sender))
            except Exception as error:  # the hearing thread's own boundary: the asker is told
                self._reply(query, as_answer(failure_frame(error, question), question), question.sender)

        return await self._declare(lambda: self._session.declare_queryable(key, _heard_by(arrived), complete=True))

    async def publish(self, key: str, frame: Frame) -> None:
        data = self.door.seal(frame, key)

        def put() -> None:
            self._session.put(
                key, data, congestion_control=zenoh.CongestionControl.DROP,
                priority=_PRIORITY[frame.purpose], express=frame.purpose is Purpose.SERVING,
            )  # fmt: skip

        self._sender.submit(frame.purpose, key, Job(put, lambda error: None, len(data)))

    async def subscribe(self, key: str, handler: FrameHandler) -> Registration:
        def heard(key: str, data: bytes) -> None:
            with contextlib.suppress(FrameRefused):  # counted by the door
                handler(key, self.door.open(data))

        def arrived(sample: Any) -> None:
            self._hand_over(heard, str(sample.key_expr), bytes(sample.payload))

        return await self._declare(lambda: self._session.declare_subscriber(key, arrived))

    async def declare_presence(self, key: str) -> Registration:
        return await self._declare(lambda: self._session.liveliness().declare_token(key))

    async def watch_presence(self, key: str, handler: PresenceHandler) -> Registration:
        def changed(sample: Any) -> None:
            self._hand_over(handler, str(sample.key_expr), sample.kind == zenoh.SampleKind.PUT)

        return await self._declare(lambda: self._session.liveliness().declare_subscriber(key, changed, history=True))

    async def routers(self) -> list[str]:
        """Zenoh ids of the routers this session is linked to, as `zenoh_id` makes them."""
        return [str(zid) for zid in await asyncio.to_thread(self._session.info.routers_zid)]

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
        for asked in list(self._asked):
            asked.fail(self._closed())
            asked.drop()
        self._askers.close()

    def _close_session(self) -> None:
        self._sender.join(0.5)
        with contextlib.suppress(zenoh.ZError):
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
        """Runs a call on the event loop, from one of Zenoh's threads."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is there to hear it
            self._loop.call_soon_threadsafe(call, *args)

    def _ask(self, key: str, frame: Frame, timeout_s: float, *, one: bool) -> Asked:
        """Sends a question; with `one`, its first reply is all that is told."""
        data = self.door.seal(frame, key)
        asked = Asked(self._asked.discard, one)
        heard = False

        def on_reply(reply: Any) -> None:
            nonlocal heard
            heard = True
            result = reply.ok if reply.ok is not None else reply.err
            self._hand_over(asked.replied, bytes(result.payload))

        def on_end() -> None:
            if not (one and heard):
                self._hand_over(asked.finish)

        def get(heard_by: Any) -> Any:
            return self._session.get(
                key, heard_by, payload=data,
                target=zenoh.QueryTarget.BEST_MATCHING if one else zenoh.QueryTarget.ALL,
                consolidation=zenoh.ConsolidationMode.NONE, timeout=timeout_s + 1.0,
                congestion_control=zenoh.CongestionControl.BLOCK, priority=_PRIORITY[frame.purpose],
                express=frame.purpose in _EXPRESS, cancellation_token=asked.cancellation,
            )  # fmt: skip

        def failed(error: Exception) -> None:
            self._hand_over(asked.fail, _mapped(error, self.settings))

        def send() -> None:
            if not asked.is_dropped:
                get(_heard_by(on_reply, on_end))

        def send_and_wait() -> None:
            try:
                replies = None if asked.is_dropped else get(zenoh.handlers.FifoChannel(_FEW_REPLIES))
            except Exception as error:  # the thread's own boundary: the asker is told
                failed(error)
                return
            with contextlib.suppress(zenoh.ZError):  # no reply: every server is lost, or the question was dropped
                if replies is not None:
                    on_reply(replies.recv())
            on_end()

        if not self._is_open:
            raise self._closed()
        self._asked.add(asked)
        if one and frame.purpose is Purpose.SERVING:
            self._askers.submit(send_and_wait)
            return asked
        try:
            self._sender.submit(frame.purpose, key, Job(send, failed, len(data)))
        except Unreachable:
            asked.drop()
            raise
        return asked

    def _closed(self) -> Unreachable:
        return Unreachable(f"the transport of {self.settings.node!r} is closed. Open a new one.")

    def _start_answer(self, handler: QueryHandler, query: Any) -> None:
        task = self._loop.create_task(self._answer(handler, query))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, handler: QueryHandler, query: Any) -> None:
        asker = ""
        try:
            question = self.door.open(_payload(query))
            asker, reply = question.sender, await answer(handler, question)
        except FrameRefused as error:
            reply = error_frame(error)
        self._reply(query, reply, asker)

    def _reply(self, query: Any, reply: Frame, asker: str) -> None:
        """Seals an answer and has it sent; on any thread."""
        key, purpose = str(query.key_expr), reply.purpose
        data, is_error = seal_reply(self.door, reply, key)

        def send() -> None:
            with query:
                if is_error:
                    query.reply_err(data)
                else:
                    query.reply(key, data, express=purpose in _EXPRESS)

        with contextlib.suppress(Unreachable):  # closed, or its link does not move: the asker's deadline tells it
            self._sender.submit(purpose, asker, Job(send, lambda error: None, len(data)))


def _payload(query: Any) -> bytes:
    return b"" if query.payload is None else bytes(query.payload)


def _heard_by(callback: Callable[[Any], None], drop: Callable[[], None] | None = None) -> Any:
    """A callback that a thread of its own runs, not the network's; it must only hand over."""
    return zenoh.handlers.Callback(callback, drop, indirect=True)
