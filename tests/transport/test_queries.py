"""Queries leave through lanes or threads of their own and end exactly once; a fake session stands for Zenoh."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest
import zenoh

from edgewise.core.errors import EdgewiseError, TransportError, Unreachable
from edgewise.core.ids import Generation, NodeId
from edgewise.ledger.entry import Purpose
from edgewise.transport.zenoh.lanes import MAX_QUEUED_BYTES, Sender
from edgewise.transport.zenoh.queries import Queries, Query
from edgewise.transport.zenoh.session_config import ZenohSettings

TIMEOUT_S = 20.0


def reply_of(data: bytes) -> Any:
    return SimpleNamespace(ok=SimpleNamespace(payload=data), err=None)


class Session:
    """Answers every `get` as given; keeps who called it and how."""

    def __init__(self, *answers: bytes | Exception | None) -> None:
        self.answers = list(answers)
        self.threads: list[threading.Thread] = []
        self.options: list[dict[str, Any]] = []

    def get(self, key: str, handler: Any, **options: Any) -> Any:
        self.threads.append(threading.current_thread())
        self.options.append(options)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        replies: queue.SimpleQueue[Any] = queue.SimpleQueue()
        if isinstance(handler, zenoh.handlers.Callback):
            if answer is not None:
                handler(reply_of(answer))
            handler.drop()
            return None
        replies.put(answer)
        return SimpleNamespace(recv=lambda: _received(replies))


def _received(replies: queue.SimpleQueue[Any]) -> Any:
    if (answer := replies.get(timeout=TIMEOUT_S)) is None:
        raise zenoh.ZError("disconnected")
    return reply_of(answer)


class Asked:
    """One session's queries and what they reported."""

    def __init__(self, session: Session, mode: str) -> None:
        settings = ZenohSettings(node=NodeId("n"), generation=Generation(1), mode=mode)  # type: ignore[arg-type]
        self.session = session
        self.sender = Sender("n")
        self.queries = Queries(session, settings, self.sender, lambda error: TransportError(f"mapped {error}"))
        self.replies: list[bytes] = []
        self.ends: list[EdgewiseError | None] = []
        self.reported = asyncio.Event()

    def ask(self, purpose: Purpose, *, one: bool = True, data: bytes = b"q") -> Query:
        def on_reply(reply: bytes) -> None:
            self.replies.append(reply)
            self.reported.set()

        def on_end(error: EdgewiseError | None) -> None:
            self.ends.append(error)
            self.reported.set()

        self.reported.clear()
        return self.queries.ask("key", data, purpose, 1.0, on_reply=on_reply, on_end=on_end, one=one)


def play(scene: Callable[[Asked], Awaitable[None]], *answers: bytes | Exception | None, mode: str = "client") -> Asked:
    async def run() -> Asked:
        asked = Asked(Session(*answers), mode)
        try:
            await asyncio.wait_for(scene(asked), TIMEOUT_S)
        finally:
            asked.queries.close(Unreachable("closed."))
            asked.sender.close()
        return asked

    return asyncio.run(run())


async def reported(asked: Asked) -> None:
    await asked.reported.wait()
    await asyncio.sleep(0)


@pytest.mark.parametrize("purpose", list(Purpose))
def test_a_reply_is_reported_on_the_event_loop(purpose: Purpose) -> None:
    async def scene(asked: Asked) -> None:
        query = asked.ask(purpose)
        assert asked.replies == []
        await reported(asked)
        assert asked.replies == [b"a"]
        query.drop()

    assert play(scene, b"a").session.threads[0] is not threading.main_thread()


@pytest.mark.parametrize("purpose", [Purpose.CONTROL, Purpose.SERVING])
def test_no_reply_ends_the_query_without_an_error(purpose: Purpose) -> None:
    async def scene(asked: Asked) -> None:
        query = asked.ask(purpose)
        await reported(asked)
        assert (asked.replies, asked.ends) == ([], [None])
        query.drop()

    play(scene, None)


@pytest.mark.parametrize("purpose", [Purpose.TRAINING, Purpose.SERVING])
def test_what_sending_raises_is_mapped_and_reported(purpose: Purpose) -> None:
    async def scene(asked: Asked) -> None:
        query = asked.ask(purpose)
        await reported(asked)
        assert [str(error) for error in asked.ends] == ["mapped boom"]
        query.drop()

    play(scene, zenoh.ZError("boom"))


def test_a_query_to_all_asks_all_and_ends_after_their_replies() -> None:
    async def scene(asked: Asked) -> None:
        query = asked.ask(Purpose.CONTROL, one=False)
        while not asked.ends:
            await reported(asked)
            asked.reported.clear()
        assert (asked.replies, asked.ends) == ([b"a"], [None])
        assert asked.session.options[0]["target"] == zenoh.QueryTarget.ALL
        query.drop()

    play(scene, b"a")


def test_a_dropped_query_reports_nothing_and_is_cancelled() -> None:
    async def scene(asked: Asked) -> None:
        query = asked.ask(Purpose.TRAINING)
        query.drop()
        query.drop()
        query.replied(b"late")
        query.end(Unreachable("late."))
        assert (asked.replies, asked.ends) == ([], [])
        assert query.cancellation.is_cancelled

    play(scene, b"a")


def test_closing_ends_open_queries_and_refuses_new_ones() -> None:
    async def scene(asked: Asked) -> None:
        go = threading.Event()
        asked.sender.submit(Purpose.TRAINING, "key", SimpleNamespace(send=go.wait, failed=print, size_bytes=0))  # type: ignore[arg-type]
        asked.ask(Purpose.TRAINING)
        gone = Unreachable("the transport is closed.")
        asked.queries.close(gone)
        assert asked.ends == [gone]
        with pytest.raises(Unreachable, match="the transport is closed"):
            asked.ask(Purpose.SERVING)
        go.set()

    play(scene, b"a")


def test_a_full_lane_refuses_the_query_and_forgets_it() -> None:
    async def scene(asked: Asked) -> None:
        go = threading.Event()
        job = SimpleNamespace(send=go.wait, failed=print, size_bytes=MAX_QUEUED_BYTES)
        asked.sender.submit(Purpose.BULK, "key", job)  # type: ignore[arg-type]
        with pytest.raises(Unreachable, match="bytes of bulk towards 'key' wait"):
            asked.ask(Purpose.BULK)
        go.set()
        asked.queries.close(Unreachable("closed."))
        assert asked.ends == []

    play(scene)


@pytest.mark.parametrize(("mode", "on_the_loop"), [("client", True), ("router", False)])
def test_a_clients_next_serving_query_after_an_answer_leaves_from_the_event_loop(mode: str, on_the_loop: bool) -> None:
    async def scene(asked: Asked) -> None:
        for _ in range(2):
            query = asked.ask(Purpose.SERVING)
            await reported(asked)
            query.drop()

    first, second = play(scene, b"a", b"b", mode=mode).session.threads
    assert first is not threading.main_thread()
    assert (second is threading.main_thread()) is on_the_loop


def test_a_large_serving_query_leaves_from_a_thread_for_it_may_block() -> None:
    async def scene(asked: Asked) -> None:
        for data in (b"q", b"q" * 2**20):
            query = asked.ask(Purpose.SERVING, data=data)
            await reported(asked)
            query.drop()

    assert play(scene, b"a", b"b").session.threads[1] is not threading.main_thread()
