"""Delivers messages reliably: retries while the connection or the other node is lost, stops at a refusal."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from edgewise.core.backoff import Backoff
from edgewise.core.errors import (
    Busy,
    DeadlineExceeded,
    EdgewiseError,
    IdentityRefused,
    RemoteError,
    StoreDamaged,
    StoreUnavailable,
    TransportError,
    Unreachable,
)
from edgewise.fleet.node.blob_grants import NOT_NAMED
from edgewise.security.refusal import Reason

log = logging.getLogger("edgewise.fleet")
T = TypeVar("T")

RETRY = Backoff(0.05, most_s=2.0)
"""Waits between attempts."""
_DOUBTS = frozenset(
    (Reason.FORGED, Reason.EXPIRED, Reason.NOT_YET_VALID, Reason.MISSING, Reason.REPLAYED, Reason.TOO_LATE)
)
_PASSING = frozenset(
    kind.code for kind in (TransportError, Unreachable, DeadlineExceeded, Busy, StoreUnavailable, StoreDamaged)
)


class Waits:
    """Waits between attempts, each longer than the one before, up to a bound."""

    def __init__(self) -> None:
        self._attempt = 0

    async def wait(self, poke: asyncio.Event | None = None) -> None:
        """Waits for the next attempt.

        Args:
            poke: Set to try again at once; the waits then begin anew.
        """
        seconds = RETRY.delay_s(self._attempt)
        self._attempt += 1
        if poke is None:
            await asyncio.sleep(seconds)
            return
        poke.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await poke.wait()
                self._attempt = 0


def is_passing(error: EdgewiseError) -> bool:
    """Returns whether a retry may succeed.

    Args:
        error: What `Node.ask` raised.

    Returns:
        True where a way was lost or the network's library failed, here or between the other node and a third, where a frame was
        damaged on its way, where a store takes nothing now, here or there, where the other node's was damaged, which it mends,
        where an answer was forged, where a blob was asked of a node that has not named it yet, and where the other node does not
        believe now who this one is: its clock is wrong, a certificate is to be renewed, that very frame had come before. False
        where it refused.
    """
    if error.fields.get("is_damaged") or error.fields.get("reason") in _DOUBTS:
        return True
    if isinstance(error, RemoteError):
        return error.fields.get("remote_code") in _PASSING or error.fields.get("reason") == NOT_NAMED
    if type(error) is TransportError:  # the network's own: it says nothing of the other node
        return True
    return isinstance(error, Unreachable | DeadlineExceeded | Busy | IdentityRefused | StoreUnavailable)


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
    waits = Waits()
    while wanted():
        try:
            return await ask()
        except EdgewiseError as error:
            if not is_passing(error):
                raise
            log.info("%s waits: %s", what, error)
        await waits.wait(poke)
    return None
