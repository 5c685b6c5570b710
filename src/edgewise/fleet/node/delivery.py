"""Delivers messages reliably: retries while the connection or the other node is lost, stops at a refusal."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from edgewise.core.backoff import Backoff
from edgewise.core.errors import Busy, DeadlineExceeded, EdgewiseError, IdentityRefused, RemoteError, Unreachable
from edgewise.core.ids import NodeId
from edgewise.fleet.messages.message import Ack, Message
from edgewise.fleet.node.node import Arrays, Node
from edgewise.ledger.entry import Purpose

log = logging.getLogger("edgewise.fleet")
T = TypeVar("T")

RETRY = Backoff(0.05, most_s=2.0)
"""Waits between attempts."""
_PASSING = frozenset(kind.code for kind in (Unreachable, DeadlineExceeded, Busy))


def is_passing(error: EdgewiseError) -> bool:
    """Returns whether a retry may succeed.

    Args:
        error: What `Node.ask` raised.

    Returns:
        True where a way was lost, here or between the other node and a third, and where an answer was forged;
        False where the other node refused.
    """
    if isinstance(error, RemoteError):
        return error.fields.get("remote_code") in _PASSING
    return isinstance(error, Unreachable | DeadlineExceeded | Busy | IdentityRefused)


async def deliver(
    ask: Callable[[], Awaitable[T]],
    *,
    what: str,
    wanted: Callable[[], bool] = lambda: True,
    poke: asyncio.Event | None = None,
) -> T | None:
    """Retries a query until it is answered.

    Args:
        ask: One attempt.
        what: For the log.
        wanted: Whether it is still wanted, looked at before each attempt.
        poke: Set to try again at once.

    Returns:
        The answer; None where it is wanted no more.

    Raises:
        EdgewiseError: If the other side refused.
    """
    attempt = 0
    while wanted():
        try:
            return await ask()
        except EdgewiseError as error:
            if not is_passing(error):
                raise
            log.info("%s waits: %s", what, error)
        await _wait(RETRY.delay_s(attempt), poke)
        attempt += 1
    return None


async def give_order(
    node: Node,
    to: NodeId,
    order: Message,
    tensors: Arrays = (),
    *,
    run: str,
    wanted: Callable[[], bool],
    timeout_s: float = 10.0,
) -> str:
    """Delivers a training order.

    Args:
        node: Who orders.
        to: Whom.
        order: What.
        tensors: What travels beside it.
        run: Its run.
        wanted: Whether it still is.
        timeout_s: Longest the taking of the order may last.

    Returns:
        Why it was refused; "" if it was taken, or is wanted no more.
    """

    async def ask() -> Ack:
        return await node.ask(
            to, "control", order, Ack, tensors, purpose=Purpose.TRAINING, run=run, timeout_s=timeout_s
        )

    try:
        ack = await deliver(ask, what=f"the order for {to}", wanted=wanted)
    except EdgewiseError as error:
        log.warning("%s refuses an order of %s: %s", to, run, error)
        return error.message
    return "" if ack is None or ack.accepted else ack.reason


async def _wait(seconds: float, poke: asyncio.Event | None) -> None:
    if poke is None:
        await asyncio.sleep(seconds)
        return
    poke.clear()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await poke.wait()
