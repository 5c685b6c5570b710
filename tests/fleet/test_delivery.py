from __future__ import annotations

import asyncio

import pytest

from edgewise.core.backoff import Backoff
from edgewise.core.errors import (
    Busy,
    DeadlineExceeded,
    EdgewiseError,
    FrameRefused,
    IdentityRefused,
    PolicyViolation,
    RemoteError,
    TransportError,
    Unreachable,
)
from edgewise.fleet.messages import Ack
from edgewise.fleet.node import delivery
from edgewise.fleet.node.delivery import deliver, is_passing


def remote(kind: type[EdgewiseError]) -> RemoteError:
    return RemoteError("x", remote_code=kind.code)


@pytest.mark.parametrize(
    "error",
    [
        Unreachable("x"),
        DeadlineExceeded("x"),
        Busy("x"),
        IdentityRefused("forged"),
        TransportError("zenoh refused: x"),
        remote(Unreachable),
        remote(TransportError),
    ],
)
def test_what_a_lost_way_causes_passes(error: EdgewiseError) -> None:
    assert is_passing(error)


@pytest.mark.parametrize(
    "error", [FrameRefused("x"), PolicyViolation("x"), RemoteError("x"), remote(IdentityRefused), remote(FrameRefused)]
)
def test_a_refusal_stays_one(error: EdgewiseError) -> None:
    assert not is_passing(error)


class Server:
    """Fails as it is told, then answers."""

    def __init__(self, *failures: EdgewiseError) -> None:
        self.failures = list(failures)
        self.asked = 0
        self.was_asked = asyncio.Event()

    async def ask(self) -> Ack:
        self.asked += 1
        self.was_asked.set()
        if self.failures:
            raise self.failures.pop(0)
        return Ack(reason="taken")


def test_it_is_asked_until_there_is_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "RETRY", Backoff(0.0))
    server = Server(Unreachable("x"), remote(Unreachable), DeadlineExceeded("x"))
    assert asyncio.run(deliver(server.ask, what="it")) == Ack(reason="taken")
    assert server.asked == 4


def test_a_refusal_is_raised_at_once() -> None:
    server = Server(remote(IdentityRefused), remote(IdentityRefused))
    with pytest.raises(RemoteError):
        asyncio.run(deliver(server.ask, what="it"))
    assert server.asked == 1


def test_what_nobody_wants_any_more_is_not_asked() -> None:
    server = Server()
    assert asyncio.run(deliver(server.ask, what="it", wanted=lambda: False)) is None
    assert server.asked == 0


def test_a_poke_ends_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "RETRY", Backoff(3600.0))

    async def scene() -> Ack | None:
        server, poke = Server(Unreachable("x")), asyncio.Event()
        delivering = asyncio.create_task(deliver(server.ask, what="it", poke=poke))
        await server.was_asked.wait()
        await asyncio.sleep(0)  # it waits now
        poke.set()
        return await asyncio.wait_for(delivering, 5.0)

    assert asyncio.run(scene()) == Ack(reason="taken")
