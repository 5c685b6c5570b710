"""Threads that hand bytes to Zenoh, so that a full queue blocks a lane of one purpose and never the event loop.

A small serving frame whose queue is known to be empty needs no lane, which saves waking a thread: `Unanswered` knows.
"""

from __future__ import annotations

import itertools
import queue
import threading
import zlib
from collections.abc import Callable
from dataclasses import dataclass

from edgewise.core.errors import Unreachable
from edgewise.ledger.entry import Purpose

LANES = 4
SMALL_BYTES = 12 * 1024
"""A frame that surely fits one batch of an empty queue."""
_FORGET_AFTER_S = 10.0
MAX_QUEUED_BYTES = 256 * 2**20


@dataclass(frozen=True, slots=True)
class Job:
    """One hand-over.

    Attributes:
        send: Hands the bytes over; may block.
        failed: Told of what `send` raised, on the lane's thread.
        size_bytes: Bytes it holds while queued.
    """

    send: Callable[[], object]
    failed: Callable[[Exception], object]
    size_bytes: int


class _Lane:
    def __init__(self, name: str) -> None:
        self.jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self.queued_bytes = 0
        self.thread = threading.Thread(target=self._run, name=name, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        while (job := self.jobs.get()) is not None:
            try:
                job.send()
            except Exception as error:  # the thread's own boundary: the job's owner is told
                job.failed(error)
            self.queued_bytes -= job.size_bytes


class Sender:
    """Lanes by purpose and destination; jobs of one lane keep their order."""

    def __init__(self, node: str) -> None:
        self._node = node
        self._lanes: dict[tuple[Purpose, int], _Lane] = {}
        self._closed = False

    def send_now(self, purpose: Purpose, destination: str, job: Job) -> bool:
        """Hands over in the calling thread, if nothing of the same lane waits.

        Args:
            purpose: As `submit`.
            destination: As `submit`.
            job: Small, and its queue empty, so that it cannot block.

        Returns:
            Whether it did; if not, `submit` it.
        """
        lane = self._lanes.get((purpose, self._index(destination)))
        if self._closed or job.size_bytes > SMALL_BYTES or (lane is not None and lane.queued_bytes):
            return False
        try:
            job.send()
        except Exception as error:  # as in a lane: the job's owner is told
            job.failed(error)
        return True

    def submit(self, purpose: Purpose, destination: str, job: Job) -> None:
        """Queues a hand-over; called from one thread.

        Args:
            purpose: Jobs of different purposes never wait for each other.
            destination: Jobs to one destination keep their order.
            job: What to do.

        Raises:
            Unreachable: If the transport is closed, or the lane is full because its link does not move.
        """
        if self._closed:
            raise Unreachable(f"the transport of {self._node!r} is closed. Open a new one.")
        index = self._index(destination)
        lane = self._lanes.get((purpose, index))
        if lane is None:
            lane = self._lanes[purpose, index] = _Lane(f"send-{self._node}-{purpose}-{index}")
        if lane.queued_bytes + job.size_bytes > MAX_QUEUED_BYTES:
            raise Unreachable(
                f"{lane.queued_bytes:,} bytes of {purpose} towards {destination!r} wait for a link that does not "
                "take them. Wait until the link is back, or send less."
            )
        lane.queued_bytes += job.size_bytes
        lane.jobs.put(job)

    @staticmethod
    def _index(destination: str) -> int:
        return zlib.crc32(destination.encode()) % LANES

    def close(self) -> None:
        """Ends the lanes after what they hold; idempotent."""
        self._closed = True
        for lane in self._lanes.values():
            lane.jobs.put(None)

    def join(self, timeout_s: float) -> None:
        """Waits for the lanes to end.

        Args:
            timeout_s: At most, for all of them.
        """
        for lane in self._lanes.values():
            lane.thread.join(timeout_s / max(1, len(self._lanes)))


class Unanswered:
    """Serving questions that may still lie in a queue of this node, or their replies in the answering node's.

    An answer proves that its question, and all before it to the same key, went through: one priority keeps its order.
    A question that was given up proves nothing and counts until a later one is answered, or a link that did not move
    for so long would have been closed.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._numbers = itertools.count(1)
        self._open: dict[str, dict[int, float]] = {}

    def asked(self, key: str) -> int:
        """Remembers a question.

        Args:
            key: Where it goes.

        Returns:
            Its number.
        """
        number = next(self._numbers)
        self._open.setdefault(key, {})[number] = self._now()
        return number

    def answered(self, key: str, number: int) -> None:
        """The question of that number, and all before it to the key, went through."""
        left = {n: at for n, at in self._open.get(key, {}).items() if n > number}
        if left:
            self._open[key] = left
        else:
            self._open.pop(key, None)

    def is_empty(self) -> bool:
        """Whether neither queue holds anything of this node's questions."""
        if self._open:
            since = self._now() - _FORGET_AFTER_S
            kept = {key: {n: at for n, at in asked.items() if at > since} for key, asked in self._open.items()}
            self._open = {key: asked for key, asked in kept.items() if asked}
        return not self._open
