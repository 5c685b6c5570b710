"""The window against a link in virtual time: a queue before a rate, a round trip, nothing else.

With k chunks of c bytes on a link of rate B and round trip T, k·c / (T + c/B) bytes per second arrive while the link is not
full, and one more chunk is asked for while k · (c/B) / (T + c/B), the share of the link in use, is below 1 - slack: so at
least three quarters of any link are used.
"""

from __future__ import annotations

import heapq

import pytest

from edgewise.transport.bulk.window import MIN_CHUNK_BYTES, Arrival, Window, arrived, lost, next_chunk

USED = 0.75


class Run:
    """Pulls over a virtual link for some seconds; keeps rate and queueing delay of every chunk."""

    def __init__(
        self,
        bytes_per_s: float,
        round_trip_s: float,
        seconds: float,
        *,
        window: Window | None = None,
        start_s: float = 0.0,
    ) -> None:
        self.window = window or Window()
        self.delays: list[tuple[float, float]] = []
        self.delivered = 0
        coming: list[tuple[float, float, int]] = []
        now = free_at = start_s
        asked = 0
        while now < start_s + seconds:
            while size := next_chunk(self.window, asked, now):
                start = max(free_at, now + round_trip_s / 2)
                self.delays.append((now, start - now - round_trip_s / 2))
                free_at = start + size / bytes_per_s
                heapq.heappush(coming, (free_at + round_trip_s / 2, now, size))
                asked += size
            now, asked_s, size = heapq.heappop(coming)
            asked -= size
            self.delivered += size
            self.window = arrived(self.window, Arrival(size, asked_s, now))
        self.share = self.delivered / (now - start_s) / bytes_per_s

    def delay_p95(self, after_s: float) -> float:
        late = sorted(delay for at, delay in self.delays if at >= after_s)
        return late[int(0.95 * len(late))]


@pytest.mark.parametrize(
    ("bytes_per_s", "round_trip_s"), [(2.5e6, 0.010), (6.25e6, 0.040), (125e6, 0.001), (1e6, 0.1), (2.5e6, 0.001)]
)
def test_link_is_used_and_the_queue_stays_small(bytes_per_s: float, round_trip_s: float) -> None:
    run = Run(bytes_per_s, round_trip_s, seconds=6.0)
    assert run.share >= USED
    # At most what is asked for beyond what the link holds: one chunk, and the rounding to whole ones.
    assert run.delay_p95(after_s=2.0) <= 2.5 * run.window.chunk_bytes / bytes_per_s


def test_slow_link_has_one_chunk_on_its_way() -> None:
    run = Run(8_000.0, 0.01, seconds=120.0)
    assert run.window.chunk_bytes == MIN_CHUNK_BYTES
    assert run.delay_p95(after_s=20.0) <= 0.25 * MIN_CHUNK_BYTES / 8_000.0
    assert run.share >= USED


def test_estimates_are_the_links_own() -> None:
    run = Run(2.5e6, 0.010, seconds=6.0)
    assert USED * 2.5e6 <= run.window.bytes_per_s <= 1.05 * 2.5e6
    assert 0.010 <= run.window.round_trip_s <= 0.0115  # a probe of 1 KiB needs 0.4 ms more


def test_link_that_became_slow_is_learned_within_a_few_round_trips() -> None:
    fast = Run(25e6, 0.010, seconds=6.0).window
    slow = Run(250e3, 0.010, seconds=10.0, window=fast, start_s=6.0)
    assert USED * 250e3 <= slow.window.bytes_per_s <= 1.05 * 250e3


def test_link_that_became_fast_is_used() -> None:
    slow = Run(250e3, 0.010, seconds=6.0).window
    assert Run(25e6, 0.010, seconds=10.0, window=slow, start_s=6.0).share >= 0.7


def test_lost_way_starts_with_one_chunk() -> None:
    window = lost(Run(25e6, 0.010, seconds=6.0).window)
    assert window.limit_bytes == MIN_CHUNK_BYTES
    assert window.is_starting
