"""An event loop whose time is virtual and whose order of callbacks is drawn from a seed, lane by lane.

A *lane* stands for what runs in order: the event loop of one process, or one of its threads. Within a lane callbacks keep
their order, as asyncio promises; which lane goes on next is drawn. A lane can be frozen and be killed at any callback, and
what runs in threads runs inline, as a callback of a lane of its own. Nothing here knows Edgewise.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import heapq
import random
import warnings
import weakref
from asyncio import base_events
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

_STEP_S = 1e-6
"""Virtual time that a callback takes: two things never happen at quite the same time."""


class StandsStill(Exception):
    """Nothing is ready and no timer is set, but somebody waits."""


class Died(BaseException):
    """Unwinds what runs in a lane that is killed in the middle of a callback."""


@dataclass(eq=False)
class Lane:
    """What runs in order.

    Attributes:
        name: For traces.
        process: The lane of the process that a thread belongs to; itself for a process.
        ready: Callbacks, oldest first.
        is_dead: Whether it was killed; what is ready is never called.
        frozen: How many hold it; it goes on where it was when nobody does.
        lost: Tasks that died with it, kept so that nobody unwinds them.
    """

    name: str
    process: Lane = field(default=None)  # type: ignore[assignment]
    ready: deque[Any] = field(default_factory=deque)
    is_dead: bool = False
    frozen: int = 0

    def __post_init__(self) -> None:
        if self.process is None:
            self.process = self

    @property
    def runs(self) -> bool:
        """Whether it may go on."""
        return not self.process.is_dead and not self.process.frozen


NOBODY = Lane("harness")
LANE: contextvars.ContextVar[Lane] = contextvars.ContextVar("lane", default=NOBODY)
"""In whose lane the code at hand runs."""


def lane_of(context: contextvars.Context) -> Lane:
    """The lane of a context."""
    return context.get(LANE, NOBODY) or NOBODY


class _Ready:
    """The loop's ready queue: takes from a drawn lane the oldest callback."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._lanes: list[Lane] = []
        self.burst = 0.5

    def append(self, handle: asyncio.Handle) -> None:
        lane = lane_of(handle._context)  # type: ignore[attr-defined]
        if lane.process.is_dead:
            return
        if not lane.ready:
            self._lanes.append(lane)
        lane.ready.append(handle)

    def __len__(self) -> int:
        return sum(1 for lane in self._lanes if lane.runs)

    def popleft(self) -> asyncio.Handle:
        running = [lane for lane in self._lanes if lane.runs]
        lane = running[0] if len(running) == 1 else running[int(self._rng.random() * len(running))]
        handle: asyncio.Handle = lane.ready.popleft()
        if not lane.ready:
            self._lanes.remove(lane)
        return handle

    def forget(self, process: Lane) -> None:
        for lane in [lane for lane in self._lanes if lane.process is process]:
            lane.ready.clear()
            self._lanes.remove(lane)

    def clear(self) -> None:
        for lane in self._lanes:
            lane.ready.clear()
        self._lanes.clear()


class VirtualLoop(base_events.BaseEventLoop):
    """The loop.

    Args:
        rng: Draws the order of lanes and how long threads take.

    Attributes:
        slow_threads_s: How long the threads of some processes take at most, by name.
    """

    def __init__(self, rng: random.Random) -> None:
        super().__init__()
        self._rng = rng
        self._now = 0.0
        self._ready = _Ready(rng)
        self._queues: dict[tuple[Lane, Any], deque[Callable[[], None]]] = {}
        self._clock_resolution = 1e-9
        self.num_steps = 0
        self.slow_threads_s: dict[str, float] = {}
        self.on_step: Callable[[Lane], None] | None = None
        self.failures: list[str] = []
        self._made: list[asyncio.Task[Any]] = []
        self._lane_of: weakref.WeakKeyDictionary[Any, Lane] = weakref.WeakKeyDictionary()
        self.set_exception_handler(self._note_failure)
        self.set_task_factory(self._make_task)  # type: ignore[arg-type]

    def time(self) -> float:
        return self._now

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:  # type: ignore[override]
        """Runs a function inline, later: in a lane of its own, or one after the other for an executor that was given."""
        process = LANE.get().process
        future: asyncio.Future[Any] = self.create_future()
        lane = Lane(f"{process.name}/thread", process)
        context = contextvars.copy_context()
        context.run(LANE.set, lane)
        back = contextvars.copy_context()

        def work() -> None:
            try:
                result, error = func(*args), None
            except Exception as raised:
                result, error = None, raised
            finally:
                if executor is not None and not process.is_dead:
                    self._next_of(process, executor)
            self.call_later(self._seconds(process), tell, result, error, context=back)

        def tell(result: Any, error: Exception | None) -> None:
            if future.done():
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(result)

        def begin() -> None:
            self.call_later(self._seconds(process), work, context=context)

        if executor is None:
            begin()
        else:
            queue = self._queues.setdefault((process, id(executor)), deque())
            queue.append(begin)
            if len(queue) == 1:
                begin()
        return future

    def _next_of(self, process: Lane, executor: Any) -> None:
        queue = self._queues[process, id(executor)]
        queue.popleft()
        if queue:
            queue[0]()

    def _seconds(self, process: Lane) -> float:
        """How long a thread takes to begin, or to be heard: mostly nothing, at times long enough to be overtaken."""
        draw, slow_s = self._rng.random(), self.slow_threads_s.get(process.name)
        if slow_s is not None:
            return slow_s * draw
        return 0.0 if draw < 0.5 else 0.02 * draw * draw

    def kill(self, process: Lane) -> None:
        """Ends a process as SIGKILL does: none of its callbacks runs any more, nothing is unwound."""
        process.is_dead = True
        self._ready.forget(process)

    def tasks_of(self, process: Lane) -> list[asyncio.Task[Any]]:
        """Its tasks that are not done, by name."""
        found = [t for t in asyncio.all_tasks(self) if self._lane_of[t].process is process]
        return sorted(found, key=lambda task: task.get_name())

    def _make_task(
        self, _: Any, work: Coroutine[Any, Any, Any], context: contextvars.Context | None = None
    ) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.Task(work, loop=self, context=context)
        self._lane_of[task] = LANE.get() if context is None else lane_of(context)
        self._made.append(task)
        return task

    def _run_once(self) -> None:
        """One callback, or the jump to the next timer; replaces the base class's turn of several callbacks."""
        scheduled, ready = self._scheduled, self._ready  # type: ignore[attr-defined]
        while scheduled and scheduled[0]._cancelled:
            heapq.heappop(scheduled)._scheduled = False
        if not len(ready):
            while scheduled:
                handle = heapq.heappop(scheduled)
                handle._scheduled = False
                if handle._cancelled or lane_of(handle._context).process.is_dead:
                    continue
                self._now = max(self._now, handle._when)
                ready.append(handle)
                if len(ready):
                    break
            else:
                if not self._stopping:  # type: ignore[attr-defined]
                    raise StandsStill(f"nothing is left to do and these wait: {self._waiting()}")
                return
        while scheduled and scheduled[0]._when <= self._now:
            handle = heapq.heappop(scheduled)
            handle._scheduled = False
            if not handle._cancelled:
                ready.append(handle)
        if not len(ready):
            return
        handle = ready.popleft()
        if handle._cancelled:
            return
        self._now += _STEP_S
        self.num_steps += 1
        if self.on_step is not None:
            lane = lane_of(handle._context)  # type: ignore[attr-defined]
            self.on_step(lane)
            if lane.process.is_dead:
                return
        handle._run()

    def discard(self) -> None:
        """Drops all that still waits, without running any of it."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # what would be begun while others are unwound never is
            for task in self._made:
                task._log_destroy_pending = False  # type: ignore[attr-defined]
                if not task.done():
                    with contextlib.suppress(BaseException):
                        task.get_coro().close()
        # What awaits while it is unwound goes on waiting; it is let go of with the loop.
        self._made.clear()
        self._ready.clear()
        self._scheduled.clear()  # type: ignore[attr-defined]
        self.close()

    def _waiting(self) -> str:
        left = [task for task in self._made if not task.done() and not self._lane_of[task].process.is_dead]
        return ", ".join(f"{self._lane_of[task].name}: {task.get_name()}" for task in left[:8]) or "nobody"

    def _note_failure(self, _: Any, context: dict[str, Any]) -> None:
        if isinstance(context.get("exception"), Died):
            return
        self.failures.append(f"{context.get('message', '')}: {context.get('exception', '')!r}")

    def _process_events(self, event_list: Any) -> None:
        pass

    def _write_to_self(self) -> None:
        pass
