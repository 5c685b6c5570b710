"""Measures a link with real frames: round trips of small ones, then larger ones until bandwidth shows."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from statistics import median
from typing import NamedTuple

import msgspec
import numpy as np

from edgewise.core.ids import NodeId
from edgewise.inference.stage_messages import empty_frame_bytes
from edgewise.ledger.entry import Purpose
from edgewise.planning.profile import LinkState
from edgewise.transport.frame import Frame, encode_frame, make_frame
from edgewise.transport.transport import Transport

PROBE = "probe"
"""The service's name; every node that runs stages answers it."""
SMALL_BYTES = 256
WINDOW = 14
"""Of so many values the largest is as often above their 95th percentile as below it: 0.95^14 is a half."""
WINDOWS = 3
"""Round trips are taken in so many windows of time, so that one bad moment is in one of them."""
TICK_S, LATE_S = 0.005, 0.004
"""While probing, this process looks every tick how late it wakes; a round trip meanwhile is then the machine's."""
ENOUGH_S = 0.04
MAX_BYTES = 4 * 2**20
JOULES_PER_BYTE = 1e-7
"""Modelled radio energy at the sender, about 0.8 W at 8 MB/s (Wi-Fi class); a model, not a measurement."""


class Probed(msgspec.Struct, frozen=True):
    """Answers a probe with the number of bytes that arrived."""

    size_bytes: int


class RoundTrip(NamedTuple):
    """One small frame there and back.

    Attributes:
        seconds: It took.
        first: Index of the tick that was awaited when it began.
        last: And of the one when it ended.
    """

    seconds: float
    first: int
    last: int


def usual_p95(values: Sequence[float]) -> float:
    """The 95th percentile in a usual window of time, whatever happened in a few others.

    Args:
        values: At least one, in the order they were measured.

    Returns:
        The median, over windows of `WINDOW` values, of the largest; of fewer values the largest.
    """
    whole = [values[i : i + WINDOW] for i in range(0, len(values) - WINDOW + 1, WINDOW)]
    return median(max(window) for window in whole or [values])


async def answer_probe(frame: Frame) -> Frame:
    """Serves `PROBE`."""
    size = sum(t.array.nbytes for t in frame.tensors)
    return make_frame("probed", Probed(size), purpose=frame.purpose)


class Crossing(NamedTuple):
    """One frame there and its answer back.

    Attributes:
        seconds: It took.
        wire_bytes: Of both on the wire.
    """

    seconds: float
    wire_bytes: int


async def probe_link(
    transport: Transport,
    key: str,
    *,
    gap_s: float = 0.0,
    timeout_s: float = 20.0,
    names: tuple[NodeId, NodeId] = (NodeId(""), NodeId("")),
) -> LinkState:
    """Measures round trip and bandwidth towards a node.

    Args:
        transport: The session that leads there.
        key: Its `probe` service.
        gap_s: Idle time before each round trip, as between requests: both ends answer later from a longer sleep.
        timeout_s: Deadline of one probe.
        names: Of the node that asks and of the one that answers: frames say them.

    Returns:
        The link; bandwidth from the difference between a large and a small frame, so the round trip is not in it, and
        without the time that its small frame's own bytes took. The 95th percentile is that of a usual window of time,
        without what this machine itself was late.

    Raises:
        TransportError: If the node does not answer.
    """
    small, p95s = list[float](), list[float]()
    async with _lateness() as late_s:
        for _ in range(WINDOWS):
            window = list[RoundTrip]()
            for _ in range(WINDOW):
                await asyncio.sleep(gap_s)
                first = len(late_s)
                empty = await probe_once(transport, key, SMALL_BYTES, timeout_s)
                window.append(RoundTrip(empty.seconds, first, len(late_s)))
            await asyncio.sleep(TICK_S)
            seconds = on_time(window, late_s)
            small += seconds
            p95s.append(max(seconds))
    small_s, size = median(small), 2048
    while True:
        large = await probe_once(transport, key, size, timeout_s)
        if large.seconds - small_s > ENOUGH_S or size >= MAX_BYTES:
            break
        size = min(4 * size, MAX_BYTES)
    again = [large] + [await probe_once(transport, key, size, timeout_s) for _ in range(2)]
    large_s = median(each.seconds for each in again)
    bytes_per_s = (large.wire_bytes - empty.wire_bytes) / max(large_s - small_s, 1e-6)
    own_s = empty.wire_bytes / bytes_per_s
    beside, frames = transport.bytes_beside_frames(key), empty_frame_bytes(*names)
    return LinkState(
        bytes_per_s,
        max(0.0, small_s - own_s),
        frame_overhead_bytes=beside[0] + frames[0],
        joules_per_byte=JOULES_PER_BYTE,
        source="probed",
        rtt_p95_s=max(0.0, median(p95s) - own_s),
        answer_overhead_bytes=beside[1] + frames[1],
    )


@asynccontextmanager
async def _lateness() -> AsyncIterator[list[float]]:
    """Seconds by which the event loop woke late, tick by tick, while the block runs."""
    late_s, loop = list[float](), asyncio.get_running_loop()

    async def tick() -> None:
        while True:
            due_s = loop.time() + TICK_S
            await asyncio.sleep(TICK_S)
            late_s.append(loop.time() - due_s)

    ticking = asyncio.create_task(tick())
    try:
        yield late_s
    finally:
        ticking.cancel()
        await asyncio.wait({ticking})


def on_time(window: Sequence[RoundTrip], late_s: Sequence[float]) -> list[float]:
    """The round trips during which this process woke on time: what is late otherwise is the machine, not the link.

    Args:
        window: Round trips.
        late_s: By which each tick was late.

    Returns:
        Their seconds; those of all, where the late ones are not the fewer: then the machine is always so.
    """
    kept = [each.seconds for each in window if max(late_s[each.first : each.last + 1], default=0.0) <= LATE_S]
    return kept if 2 * len(kept) > len(window) else [each.seconds for each in window]


async def probe_once(transport: Transport, key: str, size_bytes: int, timeout_s: float = 20.0) -> Crossing:
    """Sends one frame with so many bytes of content; what it took includes its small answer."""
    # Random bytes: nothing on the way may compress them.
    payload = np.random.default_rng(size_bytes).integers(0, 256, size_bytes, np.uint8)
    frame = make_frame("probe", Probed(size_bytes), {"data": payload}, purpose=Purpose.SERVING)
    start = time.perf_counter()
    answer = await transport.query(key, frame, timeout_s=timeout_s)
    seconds = time.perf_counter() - start
    small = make_frame("probe", Probed(size_bytes), {"data": payload[:0]}, purpose=Purpose.SERVING)
    frames = len(encode_frame(small)) + size_bytes + len(encode_frame(answer))
    return Crossing(seconds, frames + sum(transport.bytes_beside_frames(key)))
