"""Measures a link with real frames: round trips of small ones, then larger ones until bandwidth shows."""

from __future__ import annotations

import asyncio
import time
from statistics import median

import msgspec
import numpy as np

from edgewise.ledger.entry import Purpose
from edgewise.planning.profile import LinkState
from edgewise.transport.frame import Frame, make_frame
from edgewise.transport.transport import Transport

PROBE = "probe"
"""The service's name; every node that runs stages answers it."""
SMALL_BYTES = 256
ROUND_TRIPS = 21
ENOUGH_S = 0.04
MAX_BYTES = 4 * 2**20
JOULES_PER_BYTE = 1e-7
"""Modelled radio energy at the sender, about 0.8 W at 8 MB/s (Wi-Fi class); a model, not a measurement."""


class Probed(msgspec.Struct, frozen=True):
    """Answers a probe with the number of bytes that arrived."""

    size_bytes: int


async def answer_probe(frame: Frame) -> Frame:
    """Serves `PROBE`."""
    size = sum(t.array.nbytes for t in frame.tensors)
    return make_frame("probed", Probed(size), purpose=frame.purpose)


async def probe_link(transport: Transport, key: str, *, gap_s: float = 0.0, timeout_s: float = 20.0) -> LinkState:
    """Measures round trip and bandwidth towards a node.

    Args:
        transport: The session that leads there.
        key: Its `probe` service.
        gap_s: Idle time before each round trip, as between requests: both ends answer later from a longer sleep.
        timeout_s: Deadline of one probe.

    Returns:
        The link; bandwidth from the difference between a large and a small frame, so the round trip is not in it.

    Raises:
        TransportError: If the node does not answer.
    """
    small = []
    for _ in range(ROUND_TRIPS):
        await asyncio.sleep(gap_s)
        small.append(await probe_once(transport, key, SMALL_BYTES, timeout_s))
    rtt_s = median(small)
    size = 2048
    while True:
        taken = await probe_once(transport, key, size, timeout_s)
        if taken - rtt_s > ENOUGH_S or size >= MAX_BYTES:
            break
        size = min(4 * size, MAX_BYTES)
    again = [taken] + [await probe_once(transport, key, size, timeout_s) for _ in range(2)]
    bytes_per_s = (size - SMALL_BYTES) / max(median(again) - rtt_s, 1e-6)
    rtt_p95_s = float(np.quantile(small, 0.95))
    return LinkState(bytes_per_s, rtt_s, joules_per_byte=JOULES_PER_BYTE, source="probed", rtt_p95_s=rtt_p95_s)


async def probe_once(transport: Transport, key: str, size_bytes: int, timeout_s: float = 20.0) -> float:
    """Returns the seconds one frame of that size takes, including its small answer."""
    # Random bytes: nothing on the way may compress them.
    payload = np.random.default_rng(size_bytes).integers(0, 256, size_bytes, np.uint8)
    frame = make_frame("probe", Probed(size_bytes), {"data": payload}, purpose=Purpose.SERVING)
    start = time.perf_counter()
    await transport.query(key, frame, timeout_s=timeout_s)
    return time.perf_counter() - start
