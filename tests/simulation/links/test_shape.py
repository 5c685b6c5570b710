from __future__ import annotations

import random

import pytest

from edgewise.core.errors import InputError
from edgewise.simulation.links.shape import PACKET_BYTES, Course, Shape, split_address


def test_back_to_back_pieces_leave_at_the_rate_and_arrive_after_the_delay() -> None:
    course = Course(Shape(bytes_per_s=1e6, delay_s=0.01), random.Random(0))
    arrivals = [course.admit(1000, now=0.0) for _ in range(5)]
    assert arrivals == pytest.approx([0.011, 0.012, 0.013, 0.014, 0.015])


def test_late_caller_does_not_change_the_rate() -> None:
    course = Course(Shape(bytes_per_s=1e6), random.Random(0))
    course.admit(10_000, now=0.0)  # the link is busy until 0.010
    assert course.admit(1000, now=0.0095) == pytest.approx(0.011)


def test_queue_is_bounded_by_100_ms_and_at_least_16_kib() -> None:
    assert Shape(bytes_per_s=2.5e6).bound_bytes == 250_000
    assert Shape(bytes_per_s=8e3).bound_bytes == 16 * 1024
    assert Shape(bytes_per_s=8e3, queue_bytes=5).bound_bytes == 5


def test_room_returns_as_the_link_drains() -> None:
    course = Course(Shape(bytes_per_s=1000.0, queue_bytes=1000), random.Random(0))
    course.admit(1000, now=0.0)
    assert course.room_bytes(0.0) == 0
    assert course.room_at(500) == pytest.approx(0.5)
    assert course.room_bytes(0.5) == 500


def test_jitter_keeps_the_order() -> None:
    course = Course(Shape(bytes_per_s=1e9, jitter_s=0.05), random.Random(1))
    arrivals = [course.admit(100, now=i * 0.001) for i in range(200)]
    assert arrivals == sorted(arrivals)
    assert max(a - i * 0.001 for i, a in enumerate(arrivals)) <= 0.0501


def test_lost_packet_costs_a_round_trip_and_its_second_journey() -> None:
    course = Course(Shape(bytes_per_s=1e6, delay_s=0.1, loss_fraction=1.0), random.Random(0))
    assert course.admit(PACKET_BYTES, now=0.0) == pytest.approx(0.1 + 0.2 + PACKET_BYTES / 1e6)
    assert course.free_at == pytest.approx(2 * PACKET_BYTES / 1e6)


def test_share_of_lost_packets_is_the_one_asked_for() -> None:
    course = Course(Shape(delay_s=1.0, loss_fraction=0.1), random.Random(3))
    lost = 0
    for i in range(5000):
        now = 10.0 * i  # far apart: no piece waits for another
        lost += course.admit(PACKET_BYTES, now) - now > 1.5
    assert lost / 5000 == pytest.approx(0.1, abs=0.013)  # three standard deviations


@pytest.mark.parametrize("text", ["nothing", ":80", "host:", "host:99999", "host:x"])
def test_address_must_be_host_and_port(text: str) -> None:
    with pytest.raises(InputError, match=r"is not an address\. Write it like"):
        split_address(text)
