"""Measuring a link with frames: round trip and bandwidth apart, on a clock that the link itself moves."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edgewise.core.errors import Unreachable
from edgewise.core.ids import NodeId
from edgewise.fleet.node import probe
from edgewise.fleet.node.probe import (
    LATE_S,
    MAX_BYTES,
    PROBE,
    WINDOW,
    Probed,
    RoundTrip,
    answer_probe,
    on_time,
    probe_link,
    probe_once,
    usual_p95,
)
from edgewise.ledger.entry import FrameCounter, Purpose
from edgewise.transport.frame import Frame, encode_frame
from edgewise.transport.keys import Keys
from edgewise.transport.loopback import LoopbackFabric


class Link:
    """A link of a rate and a round trip; sending moves the clock."""

    def __init__(self, bytes_per_s: float, rtt_s: float, jitter: tuple[float, ...] = (1.0,)) -> None:
        self.bytes_per_s, self.rtt_s, self.jitter = bytes_per_s, rtt_s, jitter
        self.now_s = 0.0
        self.sizes: list[int] = []

    async def query(self, key: str, frame: Frame, *, timeout_s: float) -> Frame:
        size = sum(tensor.array.nbytes for tensor in frame.tensors)
        factor = self.jitter[len(self.sizes) % len(self.jitter)]
        self.sizes.append(size)
        answer = await answer_probe(frame)
        wire = len(encode_frame(frame)) + len(encode_frame(answer)) + sum(self.bytes_beside_frames(key))
        self.now_s += factor * self.rtt_s + wire / self.bytes_per_s
        return answer

    def bytes_beside_frames(self, key: str) -> tuple[int, int]:
        return 70, 90


def measured(link: Link, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(probe, "time", SimpleNamespace(perf_counter=lambda: link.now_s))
    monkeypatch.setattr(probe, "LATE_S", 60.0)  # the link's clock counts here, not this machine's
    transport: Any = link
    return asyncio.run(probe_link(transport, "key"))


@pytest.mark.parametrize("bytes_per_s", [8e3, 1e6, 2.5e7])
@pytest.mark.parametrize("rtt_s", [0.001, 0.05])
def test_round_trip_and_bandwidth_are_told_apart(
    bytes_per_s: float, rtt_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a small frame's own bytes take is no round trip: over a slow link it would count in every rate to come."""
    found = measured(Link(bytes_per_s, rtt_s), monkeypatch)
    assert found.rtt_s == pytest.approx(rtt_s, rel=0.01, abs=4 / bytes_per_s)
    assert found.bytes_per_s == pytest.approx(bytes_per_s, rel=0.01)
    assert found.source == "probed"


def test_a_slow_answer_among_the_small_ones_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    link = Link(1e6, 0.01, jitter=(1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 30.0))
    assert measured(link, monkeypatch).rtt_s == pytest.approx(0.01, rel=0.01)


def test_late_answers_of_one_bad_moment_are_no_jitter_of_the_link(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three late probes of a busy moment were the 95th percentile, and so every request's: 114 ms predicted, 45 came."""
    moment = (*[1.0] * (WINDOW - 3), 9.0, 9.0, 9.0)
    link = Link(1e6, 0.01, jitter=(*moment, *[1.0, 1.2] * 100))
    assert measured(link, monkeypatch).rtt_p95_s == pytest.approx(0.012, rel=0.01)
    always = Link(1e6, 0.01, jitter=(1.0, 1.0, 3.0))
    assert measured(always, monkeypatch).rtt_p95_s == pytest.approx(0.03, rel=0.01)


def test_the_usual_95th_percentile_is_neither_that_of_a_bad_moment_nor_too_low() -> None:
    draws = np.random.default_rng(0).lognormal(0.0, 1.0, (400, 8 * WINDOW))
    found = np.asarray([usual_p95(row.tolist()) for row in draws])
    true = np.exp(1.645)
    assert np.mean(found > true) == pytest.approx(0.5, abs=0.08)  # three deviations of 400 coins
    draws[:, : 2 * WINDOW] *= 20.0
    assert np.median([usual_p95(row.tolist()) for row in draws]) < 1.5 * true
    assert usual_p95([3.0, 1.0]) == 3.0


def test_round_trips_while_this_process_woke_late_are_the_machines_not_the_links() -> None:
    late_s = [0.0, 0.05, 0.001, 0.0]
    window = [RoundTrip(0.02, 0, 0), RoundTrip(0.09, 0, 1), RoundTrip(0.021, 2, 2), RoundTrip(0.04, 3, 4)]
    assert on_time(window, late_s) == [0.02, 0.021, 0.04]
    assert on_time(window, [0.05, 0.05, 0.05, 0.05]) == [0.02, 0.09, 0.021, 0.04]  # always so: what a request meets

    async def stall() -> list[float]:
        async with probe._lateness() as ticks:
            await asyncio.sleep(0.02)
            time.sleep(0.2)  # noqa: ASYNC251 -- as if the host had taken this process away
            await asyncio.sleep(0.02)
        return ticks

    assert max(asyncio.run(stall())) > LATE_S


def test_frames_grow_until_they_take_long_enough_and_no_further(monkeypatch: pytest.MonkeyPatch) -> None:
    slow, fast = Link(8e3, 0.01), Link(1e12, 0.01)
    measured(slow, monkeypatch)
    assert max(slow.sizes) == 2048
    measured(fast, monkeypatch)
    assert max(fast.sizes) == MAX_BYTES


def test_a_probe_crosses_a_transport_and_its_bytes_are_counted_where_they_arrive() -> None:
    async def run() -> None:
        keys, fabric = Keys("test"), LoopbackFabric()
        served: list[Frame] = []

        async def serve(frame: Frame) -> Frame:
            served.append(await answer_probe(frame))
            return served[-1]

        counter = FrameCounter(NodeId("device-1"))
        device, edge = fabric.open("device-1", counter=counter), fabric.open("edge-1")
        await edge.serve(keys.service("edge-1", PROBE), serve)  # type: ignore[arg-type]
        crossed = await probe_once(device, keys.service("edge-1", PROBE), 512)  # type: ignore[arg-type]
        assert crossed.seconds > 0.0
        counted = sum(entry.size_bytes for entry in counter.entries())
        # A sender's name and incarnation are stamped on the query later.
        assert crossed.wire_bytes == pytest.approx(counted, abs=40)
        assert served[0].read(Probed) == Probed(512)
        assert served[0].purpose is Purpose.SERVING
        fabric.cut("edge-1")
        with pytest.raises(Unreachable):
            await probe_once(device, keys.service("edge-1", PROBE), 512)  # type: ignore[arg-type]

    asyncio.run(run())


def test_nothing_on_the_way_can_shrink_a_probe() -> None:
    import zlib

    class Caught(Link):
        async def query(self, key: str, frame: Frame, *, timeout_s: float) -> Frame:
            data = frame.tensors[0].array.tobytes()
            assert len(zlib.compress(data)) > 0.99 * len(data)
            return await super().query(key, frame, timeout_s=timeout_s)

    transport: Any = Caught(1e6, 0.01)
    asyncio.run(probe_once(transport, "key", 4096))
