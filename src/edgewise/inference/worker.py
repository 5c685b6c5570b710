"""The one thread of a node that computes: earliest deadline first, bounded, with a progress counter.

A job shorter than the way to the thread and back runs where it is asked, if the thread is idle; never two at once. ONNX Runtime releases the interpreter lock, so the event loop stays free. Work whose deadline has passed before it
began is dropped and says so; a full queue refuses at the door. `completed` is what tells a stuck worker from a busy one.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import queue
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from edgewise.core.errors import Busy, DeadlineExceeded

R = TypeVar("R")
BRIEF_S = 0.001
"""Waking a thread and being woken by it costs up to half as much; shorter work is not worth it."""
Settle = Callable[[Any, BaseException | None], None]
"""Takes (result, error) of a job."""


class Worker:
    """Runs jobs one after the other in its own thread.

    Attributes:
        max_waiting: Jobs that may wait; one more is refused with `Busy`.
        completed: Jobs finished or dropped since the start; answered without asking the thread.
        refused: Jobs refused because the queue was full.
        expired: Jobs dropped because their deadline had passed.
    """

    def __init__(self, name: str = "compute", *, max_waiting: int = 64) -> None:
        self.max_waiting = max_waiting
        self.completed = 0
        self.refused = 0
        self.expired = 0
        self._jobs: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._lock = threading.Lock()
        self._computing = threading.Lock()
        # One token per job; a C queue wakes the thread several times faster than a condition does.
        self._tokens: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._is_closed = False
        self._thread = threading.Thread(target=self._loop, name=name, daemon=True)
        self._thread.start()

    @property
    def num_waiting(self) -> int:
        """Jobs not begun yet."""
        return len(self._jobs)

    def run(self, job: Callable[[], R], *, deadline_s: float = float("inf")) -> asyncio.Future[R]:
        """Queues a job; call it on an event loop.

        Args:
            job: Runs in the thread.
            deadline_s: `time.monotonic` by which it must have begun; earlier deadlines run first.

        Returns:
            Its result, on the calling loop. Cancelling it drops the job if it has not begun.

        Raises:
            Busy: If `max_waiting` jobs wait already.
        """
        future: asyncio.Future[R] = asyncio.get_running_loop().create_future()

        def settle(result: Any, error: BaseException | None) -> None:
            if future.done():
                return
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)

        self.submit(job, to_loop(settle), deadline_s=deadline_s, is_dropped=future.cancelled)
        return future

    def submit(
        self,
        job: Callable[[], R],
        settle: Settle,
        *,
        deadline_s: float = float("inf"),
        is_dropped: Callable[[], bool] = lambda: False,
        is_brief: bool = False,
    ) -> None:
        """Queues a job whose end is told by a call; on any thread.

        Args:
            job: As `run`.
            settle: Takes (result, error) on the thread that ran the job; `to_loop` brings them to an event loop. It
                hands over and does not raise.
            deadline_s: As `run`.
            is_dropped: Asked before the job begins; if true, nothing happens at all.
            is_brief: Whether the job takes less than `BRIEF_S`: it runs at once, in the calling thread, if nothing
                else runs or waits.

        Raises:
            Busy: As `run`.
        """

        def call() -> None:
            result, error = None, None
            if is_dropped():
                return
            try:
                if self._is_closed:
                    raise Busy("this node's worker was closed before the job began. Start the server again.")
                if time.monotonic() > deadline_s:
                    self.expired += 1
                    raise DeadlineExceeded("the job's deadline passed while it waited for this node's worker.")
                result = job()
            except BaseException as caught:  # handed to whoever waits, on their loop
                error = caught
            settle(result, error)

        if is_brief and not self._jobs and self._computing.acquire(blocking=False):
            try:
                call()
                self.completed += 1
            finally:
                self._computing.release()
            return
        with self._lock:
            if len(self._jobs) >= self.max_waiting:
                self.refused += 1
                raise Busy(
                    f"{len(self._jobs)} jobs wait for this node's worker, the limit is {self.max_waiting}; this one is "
                    "dropped. Send less, or plan with more nodes."
                )
            if self._is_closed:
                raise Busy("this node's worker is closed. Start the server again.")
            heapq.heappush(self._jobs, (deadline_s, next(self._order), call))
        self._tokens.put(None)

    def close(self) -> None:
        """Stops after the job at hand; waiting jobs fail with `Busy`."""
        with self._lock:
            self._is_closed = True
            dropped, self._jobs = self._jobs, []
        self._tokens.put(None)
        for _, _, call in dropped:
            call()
        self._thread.join(timeout=5.0)

    def _loop(self) -> None:
        while True:
            self._tokens.get()
            with self._lock:
                if self._is_closed:
                    return
                _, _, call = heapq.heappop(self._jobs)
            with self._computing:
                call()
                self.completed += 1


def to_loop(settle: Settle) -> Settle:
    """Brings a job's end to the running event loop; that of a job which ran on its thread, at once.

    Args:
        settle: Takes (result, error) there; not called once the loop is closed.

    Returns:
        What `Worker.submit` takes.
    """
    loop, own_thread = asyncio.get_running_loop(), threading.get_ident()

    def hand_over(result: Any, error: BaseException | None) -> None:
        if threading.get_ident() == own_thread:
            settle(result, error)
        elif not loop.is_closed():
            loop.call_soon_threadsafe(settle, result, error)

    return hand_over
