"""The one thread of a node that computes: shared fairly by its tenants, earliest deadline first, bounded.

A job shorter than the way to the thread and back runs where it is asked, if the thread is idle; never two at once. ONNX
Runtime releases the interpreter lock, so the event loop stays free. Work whose deadline has passed before it began is
dropped and says so; a full queue refuses at once, and so does one in which a job, or one that waits already, would be
late by what those in front of it are expected to take. `completed` is what tells a stuck worker from a busy one.

Of the tenants with work (the models of a node) the one goes next whose seconds so far, divided by its share, are the
fewest; a tenant that was idle begins where the others are. So each gets its share while it has work, whatever others
ask for, and what it does not use is the others'.

Reference:
    Demers, Keshav & Shenker, "Analysis and Simulation of a Fair Queueing Algorithm", SIGCOMM 1989.
    Differs: a job's seconds are charged when it is done, for they are not known before.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Any, NamedTuple, TypeVar

from edgewise.core.errors import Busy, DeadlineExceeded
from edgewise.core.process import give_memory_back

R = TypeVar("R")
BRIEF_S = 0.001
"""Waking a thread and being woken by it costs up to half as much; shorter work is not worth it."""
_MOST_DRAG = 4.0
_MEMORY = 16
Settle = Callable[[Any, BaseException | None], None]
"""Takes (result, error) of a job."""


class _Job(NamedTuple):
    """Ordered by deadline, then as they came."""

    deadline_s: float
    order: int
    call: Callable[[], None]
    cost_s: float


@dataclass(slots=True)
class _Tenant:
    """Whose jobs wait: a heap by deadline, and the seconds used so far over the share."""

    share: float = 1.0
    used_s: float = 0.0
    waiting_s: float = 0.0
    jobs: list[_Job] = field(default_factory=list)


class Worker:
    """Runs jobs one after the other in its own thread.

    Attributes:
        max_waiting: Jobs that may wait, of each tenant its share; one more is refused with `Busy`.
        completed: Jobs finished or dropped since the start; answered without asking the thread.
        refused: Jobs refused because the queue was full.
        expired: Jobs dropped because their deadline had passed.

    A `niceness` above 0 lets other threads of the machine go first, where threads have one (Linux), and is for jobs so
    long that memory is given back after each.
    """

    def __init__(
        self,
        name: str = "compute",
        *,
        max_waiting: int = 64,
        clock: Callable[[], float] = time.perf_counter,
        niceness: int = 0,
    ) -> None:
        self.max_waiting, self._clock, self._niceness = max_waiting, clock, niceness
        self._at_hand: tuple[float, float] | None = None
        self._drag = 1.0
        self.completed = 0
        self.refused = 0
        self.expired = 0
        self._tenants: dict[str, _Tenant] = {}
        self._num_waiting = 0
        self._now_s = 0.0
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
        return self._num_waiting

    @property
    def is_idle(self) -> bool:
        """Whether nothing is computed and nothing waits."""
        return not self._num_waiting and not self._computing.locked()

    def set_shares(self, shares: Mapping[str, float]) -> None:
        """Sets whose jobs are told apart; the weights need not sum to anything.

        Args:
            shares: Weight by tenant, > 0; one that is not named has 1.
        """
        with self._lock:
            for name in [n for n, tenant in self._tenants.items() if n not in shares and not tenant.jobs]:
                del self._tenants[name]
            for name, share in shares.items():
                self._tenants.setdefault(name, _Tenant()).share = share

    def late_by_s(self, cost_s: float, deadline_s: float, tenant: str = "") -> float:
        """How much too late something would be done if it were queued now: a job, or one that waits already.

        Args:
            cost_s: Seconds that the new job is expected to take.
            deadline_s: `time.monotonic` by which it must be done.
            tenant: Whose share is used.

        Returns:
            Seconds, the worst of them; 0 or less where all are in time.
        """
        with self._lock:
            return self._late_by_s(cost_s, deadline_s, tenant)

    def _late_by_s(self, cost_s: float, deadline_s: float, tenant: str) -> float:
        now_s, mine = time.monotonic(), self._tenants.get(tenant)
        begun = self._at_hand
        done_s = now_s + (0.0 if begun is None else max(0.0, begun[0] + begun[1] - now_s))
        share = 1.0 if mine is None else mine.share
        others = [(t.waiting_s, t.share / share) for t in self._tenants.values() if t is not mine and t.jobs]
        late_s, own_s, is_new = -inf, 0.0, True
        jobs = [] if mine is None else [(job.deadline_s, job.cost_s) for job in mine.jobs]
        for due_s, seconds in sorted([*jobs, (deadline_s, cost_s)]):
            own_s += self._drag * seconds
            if is_new and due_s == deadline_s and seconds == cost_s:
                is_new = False
            elif is_new or due_s == inf:  # what goes first is not made later
                continue
            meanwhile_s = sum([min(self._drag * waiting_s, own_s * ratio) for waiting_s, ratio in others])
            late_s = max(late_s, done_s + own_s + meanwhile_s - due_s)
        return late_s

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
        tenant: str = "",
        cost_s: float = 0.0,
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
            tenant: Whose share is used.
            cost_s: Seconds it is expected to take, for those behind it.

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

        mine = self._tenants.get(tenant) or self._tenants.setdefault(tenant, _Tenant())
        if is_brief and not self._num_waiting and self._computing.acquire(blocking=False):
            try:
                self._charge(mine, call)
            finally:
                self._computing.release()
            return
        with self._lock:
            mine = self._tenants.setdefault(tenant, mine)  # another thread may have taken it away meanwhile
            limit = self._limit(mine)
            if len(mine.jobs) >= limit:
                self.refused += 1
                raise Busy(
                    f"{len(mine.jobs)} jobs wait for this node's worker, the limit is {limit}; this one is "
                    "dropped. Send less, or plan with more nodes."
                )
            if self._is_closed:
                raise Busy("this node's worker is closed. Start the server again.")
            if not mine.jobs:
                mine.used_s = max(mine.used_s, self._now_s)
            heapq.heappush(mine.jobs, _Job(deadline_s, next(self._order), call, cost_s))
            mine.waiting_s += cost_s
            self._num_waiting += 1
        self._tokens.put(None)

    def _limit(self, tenant: _Tenant) -> int:
        whole = sum(other.share for other in self._tenants.values())
        return min(self.max_waiting, max(1, int(self.max_waiting * tenant.share / whole)))

    def _charge(self, tenant: _Tenant, call: Callable[[], None]) -> None:
        started = self._clock()
        call()
        tenant.used_s += (self._clock() - started) / tenant.share
        self.completed += 1

    def close(self) -> None:
        """Stops after the job at hand; waiting jobs fail with `Busy`."""
        with self._lock:
            self._is_closed = True
            dropped = [job for tenant in self._tenants.values() for job in tenant.jobs]
            self._tenants, self._num_waiting = {}, 0
        self._tokens.put(None)
        for job in sorted(dropped, key=lambda job: job[:2]):
            job.call()
        self._thread.join(timeout=5.0)

    def _loop(self) -> None:
        if self._niceness and hasattr(os, "setpriority") and sys.platform == "linux":
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), self._niceness)
        while True:
            self._tokens.get()
            with self._lock:
                if self._is_closed:
                    return
                tenant = min((t for t in self._tenants.values() if t.jobs), key=lambda t: t.used_s)
                self._now_s = tenant.used_s
                job = heapq.heappop(tenant.jobs)
                tenant.waiting_s = tenant.waiting_s - job.cost_s if tenant.jobs else 0.0
                self._num_waiting -= 1
                begun_s, cost_s, is_next = time.monotonic(), job.cost_s, self._num_waiting > 0
                self._at_hand = (begun_s, cost_s)
            with self._computing:
                self._charge(tenant, job.call)
            if is_next and cost_s > BRIEF_S:  # with the way to the next one, on a machine that does other things too
                took = (time.monotonic() - begun_s) / cost_s
                self._drag = max(1.0, self._drag + (min(took, _MOST_DRAG) - self._drag) / _MEMORY)
            del job  # with what it was given, before the next one is waited for
            self._at_hand = None
            if self._niceness:
                give_memory_back()


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
