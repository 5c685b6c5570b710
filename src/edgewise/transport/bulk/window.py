"""Computes how many bytes a receiver requests ahead, and in what chunks, from measured round trips.

The receiver learns the rate of its link (the most it was delivered in one round trip, lately) and the round trip
of an empty link (the least it saw, refreshed by a tiny chunk now and then). It asks for what the link holds
in a round trip plus a chunk, so that the queue it builds delays an inference by no more.

Reference:
    Shalunov et al., "Low Extra Delay Background Transport (LEDBAT)", RFC 6817, 2012: a small fixed queueing delay.
    Cardwell et al., "BBR: Congestion-Based Congestion Control", ACM Queue 14(5), 2016: rate and round-trip filters.
    Differs: driven by the receiver, per chunk instead of per packet; no pacing and no gain cycle, since asking
    for more than the link holds already shows a higher rate where there is one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

MIN_CHUNK_BYTES = 12 * 1024
MAX_CHUNK_BYTES = 2**20
PROBE_BYTES = 1024
_CHUNK_S = 0.003
_SLACK = 0.25
"""Share of a chunk that must be missing before one more is asked for: a very slow link has one on its way."""
_PROBE_EVERY_S = 5.0
_PROBES = 3
_SLOT_S = 0.05
_SLOT_ROUND_TRIPS = 4
_RATE_WINDOW_S = 0.5
_GROWTH = 1.25
_FLAT_ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Arrival:
    """Describes one chunk that arrived.

    Attributes:
        size_bytes: Its bytes.
        asked_s: When it was asked for.
        arrived_s: When it was here.
    """

    size_bytes: int
    asked_s: float
    arrived_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Holds the receiver's estimate of its link.

    Attributes:
        rates: Greatest delivered bytes per second of this and the last period, each averaged over a slot.
        round_trips_s: Least round trip of this and the last period.
        rate_until_s: End of this period of `rates`.
        probe_at_s: When the empty round trip is to be measured again.
        num_probes: Probes of this measurement that have come.
        slot_start_s: Start of the slot whose bytes are being counted.
        slot_bytes: Bytes of the slot.
        is_starting: Doubles what it asks for while that brings more.
        flat_rounds: Round trips without growth, while starting.
        best_rate: Rate at the last growth, while starting.
    """

    rates: tuple[float, float] = (0.0, 0.0)
    round_trips_s: tuple[float, float] = (float("inf"), float("inf"))
    rate_until_s: float = 0.0
    probe_at_s: float = 0.0
    num_probes: int = 0
    slot_start_s: float = 0.0
    slot_bytes: int = 0
    is_starting: bool = True
    flat_rounds: int = 0
    best_rate: float = 0.0

    @property
    def bytes_per_s(self) -> float:
        """Returns the estimated rate of the link."""
        return max(self.rates)

    @property
    def round_trip_s(self) -> float:
        """Returns the estimated round trip of the idle link."""
        return min(self.round_trips_s)

    @property
    def chunk_bytes(self) -> int:
        """Returns the size of a chunk: about three milliseconds of the link."""
        return max(MIN_CHUNK_BYTES, min(MAX_CHUNK_BYTES, int(self.bytes_per_s * _CHUNK_S) // 1024 * 1024))

    @property
    def limit_bytes(self) -> int:
        """Returns how many bytes should be in flight: the bandwidth-delay product and one chunk."""
        if self.bytes_per_s == 0.0:
            return MIN_CHUNK_BYTES
        holds = self.bytes_per_s * self.round_trip_s
        if self.is_starting:
            return int(max(2 * holds, 2 * self.chunk_bytes))
        return int(holds + self.chunk_bytes)

    def wants_probe(self, now: float) -> bool:
        """Returns whether to drain the link and measure its round trip with a tiny chunk."""
        return now >= self.probe_at_s


def next_chunk(window: Window, asked_bytes: int, now: float) -> int:
    """Returns the size of the next chunk to request, 0 for none.

    Args:
        window: What is known.
        asked_bytes: Asked for and not yet here.
        now: Seconds.

    Returns:
        Bytes to ask for; 0 to wait for an arrival.
    """
    if window.wants_probe(now):
        return PROBE_BYTES if asked_bytes == 0 else 0
    if asked_bytes == 0 or asked_bytes + _SLACK * window.chunk_bytes < window.limit_bytes:
        return window.chunk_bytes
    return 0


def arrived(window: Window, arrival: Arrival) -> Window:
    """Updates the estimate from a chunk.

    Args:
        window: Before.
        arrival: What came.

    Returns:
        The window after it.
    """
    now, took_s = arrival.arrived_s, max(1e-6, arrival.arrived_s - arrival.asked_s)
    if arrival.size_bytes <= PROBE_BYTES:
        return _learn_probe(window, now, took_s)
    current, previous = window.round_trips_s
    window = replace(
        window, round_trips_s=(min(current, took_s), previous), slot_bytes=window.slot_bytes + arrival.size_bytes
    )
    elapsed_s = now - window.slot_start_s
    slot_s = window.round_trip_s if window.is_starting else max(_SLOT_S, _SLOT_ROUND_TRIPS * window.round_trip_s)
    if elapsed_s < slot_s:
        return window
    return _learn_rate(replace(window, slot_start_s=now, slot_bytes=0), now, window.slot_bytes / elapsed_s)


def lost(window: Window) -> Window:
    """Resets the estimate after a lost connection; the next path may differ."""
    return Window(probe_at_s=window.probe_at_s)


def _learn_probe(window: Window, now: float, took_s: float) -> Window:
    """Returns the smallest round trip of several tiny chunks, because a busy machine may delay one."""
    current, previous = window.round_trips_s
    trips = (min(took_s, current), previous) if window.num_probes else (took_s, current)
    num = window.num_probes + 1
    if num < _PROBES:
        return replace(window, round_trips_s=trips, num_probes=num)
    return replace(
        window, round_trips_s=trips, num_probes=0, probe_at_s=now + _PROBE_EVERY_S, slot_start_s=now, slot_bytes=0
    )


def _learn_rate(window: Window, now: float, rate: float) -> Window:
    current, previous = window.rates
    until = window.rate_until_s
    if now >= until:
        current, previous = 0.0, current
        until = now + max(_RATE_WINDOW_S, 2 * _SLOT_ROUND_TRIPS * window.round_trip_s)
    window = replace(window, rates=(max(current, rate), previous), rate_until_s=until)
    if not window.is_starting:
        return window
    grew = window.bytes_per_s >= _GROWTH * window.best_rate
    flat = 0 if grew else window.flat_rounds + 1
    return replace(
        window,
        flat_rounds=flat,
        is_starting=flat < _FLAT_ROUNDS,
        best_rate=window.bytes_per_s if grew else window.best_rate,
    )
