"""What may be handed to Zenoh in the calling thread, and what waits in a lane."""

from __future__ import annotations

import threading

import pytest

from edgewise.core.errors import Unreachable
from edgewise.ledger.entry import Purpose
from edgewise.transport.sender import SMALL_BYTES, Job, Sender, Unanswered

DEADLINE_S = 5.0


def job(send, size_bytes: int = 100, failed=lambda error: None) -> Job:
    return Job(send, failed, size_bytes)


def test_small_frame_of_an_idle_lane_is_sent_by_the_caller() -> None:
    sender, threads = Sender("n"), []
    assert sender.send_now(Purpose.SERVING, "a", job(lambda: threads.append(threading.current_thread())))
    assert threads == [threading.current_thread()]
    sender.close()


def test_frame_does_not_overtake_what_waits_in_its_lane() -> None:
    sender, go, order = Sender("n"), threading.Event(), []
    done = threading.Event()
    sender.submit(Purpose.SERVING, "a", job(lambda: (go.wait(DEADLINE_S), order.append(1))))
    assert not sender.send_now(Purpose.SERVING, "a", job(lambda: order.append(2)))
    sender.submit(Purpose.SERVING, "a", job(lambda: (order.append(2), done.set())))
    go.set()
    assert done.wait(DEADLINE_S)
    assert order == [1, 2]
    sender.close()


def test_large_frame_and_closed_sender_do_not_send_now() -> None:
    sender = Sender("n")
    assert not sender.send_now(Purpose.SERVING, "a", job(lambda: None, SMALL_BYTES + 1))
    sender.close()
    assert not sender.send_now(Purpose.SERVING, "a", job(lambda: None))
    with pytest.raises(Unreachable, match="the transport of 'n' is closed"):
        sender.submit(Purpose.SERVING, "a", job(lambda: None))


def test_what_sending_raises_is_told_to_the_owner() -> None:
    sender, told = Sender("n"), []
    assert sender.send_now(Purpose.SERVING, "a", job(lambda: 1 / 0, failed=told.append))
    assert isinstance(told[0], ZeroDivisionError)
    sender.close()


def test_answer_proves_all_questions_before_it_to_that_key() -> None:
    unanswered = Unanswered(lambda: 0.0)
    assert unanswered.is_empty()
    first, second, other = unanswered.asked("a"), unanswered.asked("a"), unanswered.asked("b")
    unanswered.answered("a", second)
    assert not unanswered.is_empty()
    unanswered.answered("b", other)
    assert unanswered.is_empty()
    unanswered.answered("a", first)
    assert unanswered.is_empty()


def test_question_that_was_given_up_counts_until_a_dead_link_would_be_closed() -> None:
    now = 0.0
    unanswered = Unanswered(lambda: now)
    unanswered.asked("a")
    now = 9.9
    assert not unanswered.is_empty()
    now = 10.1
    assert unanswered.is_empty()
