"""Hands bytes to Zenoh on threads, so that a full queue blocks one lane and never the event loop.

Lanes keep the order of their jobs; each of the `QueryThreads` carries one query from sending to reply, in no order.
"""

from __future__ import annotations

import logging
import queue
import threading
import zlib
from collections.abc import Callable
from dataclasses import dataclass

from edgewise.core.errors import Unreachable
from edgewise.ledger.entry import Purpose

_log = logging.getLogger(__name__)
LANES = 4
MAX_QUEUED_BYTES = 256 * 2**20
IDLE_S = 5.0
"""A thread that no query needs for so long ends: a link that stood still had called for many."""


@dataclass(frozen=True, slots=True)
class Job:
    """Describes one hand-over to Zenoh.

    Attributes:
        send: Hands the bytes over; may block.
        failed: Called on the lane's thread with the exception of `send`.
        size_bytes: Bytes it holds while queued.
    """

    send: Callable[[], object]
    failed: Callable[[Exception], object]
    size_bytes: int


class _Lane:
    def __init__(self, name: str, lock: threading.Lock) -> None:
        self.jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self.queued_bytes = 0
        self.lock = lock
        self.thread = threading.Thread(target=self._run, name=name, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        while (job := self.jobs.get()) is not None:
            try:
                job.send()
            except Exception as error:  # boundary of the thread: the job's owner gets the error
                job.failed(error)
            with self.lock:
                self.queued_bytes -= job.size_bytes


class Sender:
    """Sends jobs through lanes by purpose and destination; a lane keeps its order. Thread-safe."""

    def __init__(self, node: str) -> None:
        self._node = node
        self._lanes: dict[tuple[Purpose, int], _Lane] = {}
        self._closed = False
        self._lock = threading.Lock()

    def submit(self, purpose: Purpose, destination: str, job: Job) -> None:
        """Queues a hand-over.

        Args:
            purpose: Jobs of different purposes never wait for each other.
            destination: Jobs to one destination keep their order.
            job: What to do.

        Raises:
            Unreachable: If the transport is closed, or the lane is full because its link does not move.
        """
        index = self._index(destination)
        with self._lock:
            if self._closed:
                raise Unreachable(f"the transport of {self._node!r} is closed. Open a new one.")
            lane = self._lanes.get((purpose, index))
            if lane is None:
                lane = self._lanes[purpose, index] = _Lane(f"send-{self._node}-{purpose}-{index}", self._lock)
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
        """Ends every lane after its queued jobs; idempotent."""
        with self._lock:
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


class QueryThreads:
    """Runs each call on a thread of its own; starts more while all are busy, ends those that are idle. Thread-safe.

    A pool of the standard library costs several times as much per call, on the way of every request.
    """

    def __init__(self, node: str, most: int) -> None:
        self._node = node
        self._most = most
        self._calls: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._num_open = 0
        self._lock = threading.Lock()

    def submit(self, call: Callable[[], object]) -> None:
        """Runs a call on a free thread; it waits for one while `most` are busy.

        Args:
            call: May block; what it raises is logged.
        """
        with self._lock:
            self._num_open += 1
            if len(self._threads) < min(self._num_open, self._most):
                name = f"query-{self._node}-{len(self._threads)}"
                self._threads.append(threading.Thread(target=self._run, name=name, daemon=True))
                self._threads[-1].start()
        self._calls.put(call)

    def close(self) -> None:
        """Ends each thread after the call it carries."""
        with self._lock:
            num_threads = len(self._threads)
        for _ in range(num_threads):
            self._calls.put(None)

    def _run(self) -> None:
        while (call := self._next()) is not None:
            try:
                call()
            except Exception:  # boundary of the thread: other calls follow
                _log.exception("a query of %s failed", self._node)
            with self._lock:
                self._num_open -= 1

    def _next(self) -> Callable[[], object] | None:
        """The next call; None where this thread is to end: there are enough others for the calls that are open."""
        while True:
            try:
                return self._calls.get(timeout=IDLE_S)
            except queue.Empty:
                with self._lock:
                    if self._num_open < len(self._threads) - 1:
                        self._threads.remove(threading.current_thread())
                        return None
