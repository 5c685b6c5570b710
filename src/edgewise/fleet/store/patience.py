"""Waits for a store that takes nothing now, and remembers what it said, for people.

A full disk, a locked database: what was to be stored is kept in memory and tried again, each time a little later, until the
store takes it. Whoever looks meanwhile is told the store's own sentence.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable
from typing import TypeVar

from edgewise.core.backoff import Backoff
from edgewise.core.errors import StoreDamaged, StoreError, StoreUnavailable

T = TypeVar("T")
RETRY = Backoff(0.05, most_s=2.0)
"""Waits between attempts at a store."""
NEWS_S = 8.0
"""So long a store's sentence stands after somebody has met it last: several attempts."""
PASSING = (StoreUnavailable, StoreDamaged)
"""What may pass: the store is back, the damaged blob has been fetched again."""


class StoreTroubles:
    """What stores refused lately, by the node that met it.

    Args:
        now: Clock, seconds.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._met: dict[str, tuple[str, float]] = {}

    def met(self, node: str, sentence: str) -> None:
        """Remembers a refusal.

        Args:
            node: Whose store.
            sentence: What it said.
        """
        self._met[node] = (sentence, self._now())

    def of(self, node: str) -> str:
        """What a node's store said lately; "" where nothing is wrong."""
        sentence, when = self._met.get(node, ("", 0.0))
        return sentence if sentence and self._now() - when < NEWS_S else ""

    def over(self, node: str) -> None:
        """A node's store takes things again."""
        self._met.pop(node, None)

    @property
    def sentence(self) -> str:
        """All that is wrong now, for people; "" where nothing is."""
        found = ((node, self.of(node)) for node in sorted(self._met))
        return "; ".join(f"{node} waits: {sentence}" for node, sentence in found if sentence)


def what_waits(error: StoreError) -> str:
    """The store and what it says, without the cure: `the store '/var/lib/…/events.db' is full (…)`."""
    reason = error.fields.get("reason")
    return f"the store {error.fields.get('path')!r} {reason}" if reason else error.message


async def until_taken(store: Callable[[], T], met: Callable[[StoreUnavailable], None]) -> T:
    """Does on a thread what writes to a store, again and again until the store takes it.

    Args:
        store: May be done more than once.
        met: Told of each refusal.

    Returns:
        What it returns.

    Raises:
        StoreError: If it fails for good.
    """
    for attempt in itertools.count():
        try:
            return await asyncio.to_thread(store)
        except StoreUnavailable as error:
            met(error)
        await asyncio.sleep(RETRY.delay_s(attempt))
    raise AssertionError
