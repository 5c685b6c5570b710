from __future__ import annotations

import asyncio
import queue
import threading
from typing import Any

import pytest

from edgewise.core.errors import Busy, DeadlineExceeded
from edgewise.inference.worker import Worker, to_loop


async def blocked(worker: Worker) -> tuple[threading.Event, asyncio.Future[bool]]:
    """Occupies the worker until the event is set."""
    begun, release = threading.Event(), threading.Event()

    def job() -> bool:
        begun.set()
        return release.wait(10)

    future = worker.run(job)
    await asyncio.get_running_loop().run_in_executor(None, begun.wait, 10)
    return release, future


def test_the_earliest_deadline_goes_first_and_progress_is_counted() -> None:
    async def run() -> None:
        worker, order = Worker(), list[str]()
        release, first = await blocked(worker)
        now = asyncio.get_running_loop().time()
        jobs = [
            worker.run(lambda n=n: order.append(n), deadline_s=now + s) for n, s in (("b", 60), ("c", 90), ("a", 30))
        ]
        assert worker.completed == 0
        release.set()
        await asyncio.gather(first, *jobs)
        assert order == ["a", "b", "c"]
        worker.close()
        assert worker.completed == 4

    asyncio.run(run())


def test_a_full_queue_says_what_it_drops() -> None:
    async def run() -> None:
        worker = Worker(max_waiting=1)
        release, first = await blocked(worker)
        second = worker.run(lambda: 2)
        with pytest.raises(Busy, match="1 jobs wait for this node's worker, the limit is 1; this one is dropped"):
            worker.run(lambda: 3)
        assert worker.refused == 1
        release.set()
        assert (await first, await second) == (True, 2)
        worker.close()
        with pytest.raises(Busy, match="this node's worker is closed"):
            worker.run(lambda: 4)

    asyncio.run(run())


def test_expired_and_cancelled_jobs_do_not_run() -> None:
    async def run() -> None:
        worker, ran = Worker(), list[int]()
        release, first = await blocked(worker)
        late = worker.run(lambda: ran.append(1), deadline_s=0.0)
        gone = worker.run(lambda: ran.append(2))
        gone.cancel()
        release.set()
        await first
        with pytest.raises(DeadlineExceeded, match="the job's deadline passed while it waited"):
            await late
        assert worker.expired == 1
        worker.close()
        assert ran == []

    asyncio.run(run())


def test_closing_fails_the_jobs_that_wait_and_errors_reach_the_asker() -> None:
    async def run() -> None:
        worker = Worker()

        def broken() -> None:
            raise ValueError("broken")

        with pytest.raises(ValueError, match="broken"):
            await worker.run(broken)
        release, first = await blocked(worker)
        waiting = worker.run(lambda: 1)
        closing = asyncio.get_running_loop().run_in_executor(None, worker.close)
        with pytest.raises(Busy, match="was closed before the job began"):
            await waiting
        release.set()
        await first
        await closing

    asyncio.run(run())


def test_a_brief_job_runs_where_it_is_asked_unless_another_runs() -> None:
    async def run() -> None:
        worker, threads = Worker(), list[int]()

        def job() -> None:
            threads.append(threading.get_ident())

        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        worker.submit(job, lambda result, error: None, is_brief=True)
        release, first = await blocked(worker)
        worker.submit(job, to_loop(lambda result, error: ended.set_result(result)), is_brief=True)
        assert len(threads) == 1  # the second waits for the one that runs
        release.set()
        await asyncio.gather(first, ended)
        assert (threads[0] == threading.get_ident(), threads[1] == threading.get_ident()) == (True, False)
        worker.close()
        assert worker.completed == 3
        with pytest.raises(Busy, match="this node's worker is closed"):
            worker.submit(job, lambda result, error: None)

    asyncio.run(run())


def test_a_job_of_a_tenant_that_is_taken_away_at_that_moment_is_done_and_the_thread_lives_on() -> None:
    worker, done = Worker(), queue.SimpleQueue[str]()
    worker.set_shares({"gone": 1.0})

    class Leaving(dict):  # type: ignore[type-arg]
        """Tenants of which one is taken away by another thread right after it was looked up."""

        def get(self, name: str, default: Any = None) -> Any:
            found = super().get(name, default)
            self.pop("gone", None)
            return found

    worker._tenants = Leaving(worker._tenants)
    for tenant in ("gone", "other"):
        worker.submit(lambda tenant=tenant: tenant, lambda result, error: done.put(result), tenant=tenant)
        assert done.get(timeout=5.0) == tenant
    worker.close()
