"""Handlers that answer from a thread, and queries that report to a callback, as the base class of transports adapts them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable

import pytest

from edgewise.core.errors import Busy, EdgewiseError, RemoteError, Unreachable
from edgewise.transport.frame import Frame, make_frame
from edgewise.transport.loopback import LoopbackFabric
from edgewise.transport.transport import Reply, Transport, on_the_loop

KEY = "ew/f/node/hub/stage"
Ends = list[tuple[Frame | None, EdgewiseError | None]]


def play(scene: Callable[[Transport, Transport], Awaitable[None]]) -> None:
    async def run() -> None:
        fabric = LoopbackFabric()
        async with fabric.open("hub") as hub, fabric.open("leaf") as leaf:
            await asyncio.wait_for(scene(hub, leaf), 30.0)

    asyncio.run(run())


def test_a_reply_from_a_thread_is_the_answer() -> None:
    async def scene(hub: Transport, leaf: Transport) -> None:
        def handler(query: Frame, reply: Reply) -> None:
            threading.Thread(target=reply, args=(make_frame("done", run=query.kind),)).start()

        await hub.serve_sync(KEY, handler)
        answer = await leaf.query(KEY, make_frame("ask"), timeout_s=20.0)
        assert (answer.kind, answer.run) == ("done", "ask")

    play(scene)


def test_what_the_handler_raises_is_the_error() -> None:
    async def scene(hub: Transport, leaf: Transport) -> None:
        def handler(query: Frame, reply: Reply) -> None:
            raise Busy("full.")

        await hub.serve_sync(KEY, handler)
        with pytest.raises(RemoteError, match="full"):
            await leaf.query(KEY, make_frame("ask"), timeout_s=20.0)

    play(scene)


def test_only_the_first_reply_counts() -> None:
    def handler(query: Frame, reply: Reply) -> None:
        reply(make_frame("first"))
        reply(make_frame("second"))

    assert asyncio.run(on_the_loop(handler)(make_frame("ask"))).kind == "first"  # type: ignore[arg-type]


def test_a_reply_after_the_loop_is_closed_is_dropped() -> None:
    late: list[Reply] = []

    async def scene() -> None:
        handling = asyncio.ensure_future(on_the_loop(lambda query, reply: late.append(reply))(make_frame("ask")))
        await asyncio.sleep(0)
        handling.cancel()

    asyncio.run(scene())
    late[0](make_frame("late"))


def test_a_callback_gets_the_answer_or_the_error_after_ask_has_returned() -> None:
    async def scene(hub: Transport, leaf: Transport) -> None:
        ends: Ends = []
        ended = asyncio.Event()

        def on_answer(answer: Frame | None, error: EdgewiseError | None) -> None:
            ends.append((answer, error))
            ended.set()

        leaf.ask(KEY, make_frame("ask"), on_answer, timeout_s=20.0)
        assert ends == []
        await ended.wait()
        ((answer, error),) = ends
        assert answer is None
        assert isinstance(error, Unreachable)

    play(scene)


def test_a_cancelled_query_reports_nothing() -> None:
    async def scene(hub: Transport, leaf: Transport) -> None:
        ends: Ends = []
        await hub.serve_sync(KEY, lambda query, reply: reply(make_frame("done")))
        cancel = leaf.ask(KEY, make_frame("ask"), lambda *end: ends.append(end), timeout_s=20.0)
        cancel()
        await leaf.query(KEY, make_frame("ask"), timeout_s=20.0)  # as long as the other would have taken
        assert ends == []

    play(scene)
