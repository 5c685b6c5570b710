"""What is handed to Zenoh waits in a lane of its own purpose, in order, and off the caller's thread."""

from __future__ import annotations

import threading
import time

import pytest

from edgewise.core.errors import Unreachable
from edgewise.ledger.entry import Purpose
from edgewise.transport.zenoh import lanes
from edgewise.transport.zenoh.lanes import MAX_QUEUED_BYTES, Job, QueryThreads, Sender

DEADLINE_S = 5.0


def job(send, size_bytes: int = 100, failed=lambda error: None) -> Job:
    return Job(send, failed, size_bytes)


def test_a_blocked_job_holds_neither_the_caller_nor_another_purpose() -> None:
    sender, go, done, order = Sender("n"), threading.Event(), threading.Event(), []
    sender.submit(Purpose.BULK, "a", job(lambda: go.wait(DEADLINE_S)))
    sender.submit(Purpose.SERVING, "a", job(lambda: order.append(threading.current_thread())))
    sender.submit(Purpose.SERVING, "a", job(done.set))
    assert done.wait(DEADLINE_S)
    assert order[0] is not threading.current_thread()
    go.set()
    sender.close()


def test_jobs_of_one_lane_keep_their_order() -> None:
    sender, done, order = Sender("n"), threading.Event(), []
    for number in range(20):
        sender.submit(Purpose.SERVING, "a", job(lambda number=number: order.append(number)))
    sender.submit(Purpose.SERVING, "a", job(done.set))
    assert done.wait(DEADLINE_S)
    assert order == list(range(20))
    sender.close()


def test_what_sending_raises_is_given_to_the_owner() -> None:
    sender, done, failures = Sender("n"), threading.Event(), []
    sender.submit(Purpose.SERVING, "a", job(lambda: 1 / 0, failed=lambda error: (failures.append(error), done.set())))
    assert done.wait(DEADLINE_S)
    assert isinstance(failures[0], ZeroDivisionError)
    sender.close()


def test_a_closed_sender_refuses() -> None:
    sender = Sender("n")
    sender.close()
    with pytest.raises(Unreachable, match="the transport of 'n' is closed"):
        sender.submit(Purpose.SERVING, "a", job(lambda: None))


def test_a_query_thread_that_waits_holds_up_nobody_until_all_wait() -> None:
    threads, release, begun, third = QueryThreads("n", 2), threading.Event(), threading.Barrier(3), threading.Event()

    def waiting() -> None:
        begun.wait(DEADLINE_S)
        release.wait(DEADLINE_S)

    threads.submit(waiting)
    threads.submit(waiting)
    begun.wait(DEADLINE_S)  # both are carried at once, each by a thread
    threads.submit(third.set)
    assert not third.is_set()
    release.set()
    assert third.wait(DEADLINE_S)
    threads.close()


def test_a_query_thread_whose_call_breaks_carries_the_next_one(caplog: pytest.LogCaptureFixture) -> None:
    threads, done = QueryThreads("n", 1), threading.Event()
    threads.submit(lambda: 1 / 0)
    threads.submit(done.set)
    assert done.wait(DEADLINE_S)
    assert "a query of n failed" in caplog.text
    threads.close()


def test_lane_that_does_not_move_is_refused_instead_of_filled() -> None:
    sender = Sender("n")
    stuck = threading.Event()
    failures: list[Exception] = []
    sender.submit(Purpose.BULK, "x", Job(stuck.wait, failures.append, MAX_QUEUED_BYTES))
    with pytest.raises(Unreachable, match=r"bytes of bulk towards 'x' wait for a link"):
        sender.submit(Purpose.BULK, "x", Job(stuck.wait, failures.append, 1))
    stuck.set()
    sender.close()
    sender.join(5.0)
    with pytest.raises(Unreachable, match="is closed"):
        sender.submit(Purpose.BULK, "x", Job(stuck.wait, failures.append, 1))
    assert failures == []


def test_threads_that_a_standing_link_called_for_end_when_it_moves_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "IDLE_S", 0.05)
    threads, release, all_wait = QueryThreads("n", 8), threading.Event(), threading.Barrier(9)

    def waiting() -> None:
        all_wait.wait(DEADLINE_S)
        release.wait(DEADLINE_S)

    for _ in range(8):
        threads.submit(waiting)
    all_wait.wait(DEADLINE_S)
    former = list(threads._threads)
    assert len(former) == 8
    release.set()
    end = time.monotonic() + DEADLINE_S
    while len(threads._threads) > 1 and time.monotonic() < end:
        time.sleep(0.01)
    assert len(threads._threads) == 1
    done = threading.Event()
    threads.submit(done.set)
    assert done.wait(DEADLINE_S)
    threads.close()
