"""The twelve KPIs: sums by hand, nothing counted twice, nothing invented."""

from __future__ import annotations

import numpy as np
import pytest

from edgewise.core.ids import NodeId, Tier
from edgewise.ledger.entry import Direction, LedgerEntry, Purpose
from edgewise.ledger.kpis import (
    LatencyMs,
    LinkBytes,
    bytes_by_purpose,
    inference_kpis,
    latency_ms,
    link_bytes,
    training_kpis,
)

DEVICE, EDGE, CLOUD = NodeId("device-1"), NodeId("edge-1"), NodeId("cloud")
TIERS = {DEVICE: Tier.DEVICE, EDGE: Tier.EDGE, CLOUD: Tier.CLOUD}
SENT, RECEIVED = Direction.SENT, Direction.RECEIVED
TRAINING, BULK, SERVING, CONTROL = Purpose.TRAINING, Purpose.BULK, Purpose.SERVING, Purpose.CONTROL


def entry(
    node: NodeId, purpose: Purpose, way: Direction, size: int, num: int = 1, raw: bool = False, run: str = "r1"
) -> LedgerEntry:
    return LedgerEntry(
        node=node,
        kind="x",
        purpose=purpose,
        direction=way,
        run=run,
        num_frames=num,
        size_bytes=size,
        data_classes=("raw",) if raw else (),
    )


# one update up (device -> edge -> cloud, 100 then 40), one model down (cloud -> edge -> device, 300 each), each counted at both ends
ROUND = (
    entry(DEVICE, TRAINING, SENT, 100),
    entry(EDGE, TRAINING, RECEIVED, 100),
    entry(EDGE, TRAINING, SENT, 40),
    entry(CLOUD, TRAINING, RECEIVED, 40),
    entry(CLOUD, BULK, SENT, 300),
    entry(EDGE, BULK, RECEIVED, 300),
    entry(EDGE, BULK, SENT, 300),
    entry(DEVICE, BULK, RECEIVED, 300),
)
SERVED = (
    entry(DEVICE, SERVING, SENT, 800, 4),
    entry(DEVICE, SERVING, RECEIVED, 200, 4),
    entry(EDGE, SERVING, RECEIVED, 800, 4),
)


def test_every_link_is_counted_once() -> None:
    assert link_bytes(ROUND, TIERS) == LinkBytes(
        uplink_bytes=100, downlink_bytes=300, wan_up_bytes=40, wan_down_bytes=300
    )
    assert link_bytes(ROUND, TIERS).wan_bytes == 340
    assert link_bytes(ROUND, TIERS).device_bytes == 400


def test_purposes_and_runs_are_kept_apart() -> None:
    other = entry(DEVICE, TRAINING, SENT, 7, run="r2")
    assert link_bytes((*ROUND, *SERVED, other), TIERS, purposes=(TRAINING,), run="r1").uplink_bytes == 100
    assert list(bytes_by_purpose((*ROUND, *SERVED), TIERS)) == [SERVING, TRAINING, BULK]
    assert bytes_by_purpose(SERVED, TIERS)[SERVING].uplink_bytes == 800


def test_nodes_nobody_knows_are_left_out() -> None:
    assert link_bytes([entry(NodeId("stranger"), TRAINING, SENT, 5)], TIERS) == LinkBytes()


def test_training_kpis_join_the_run_and_the_ledger() -> None:
    kpis = training_kpis((*ROUND, *SERVED), TIERS, loss=0.2, accuracy=0.95, rounds=3, seconds=4.0, energy_j=9.0)
    assert (kpis.uplink_bytes, kpis.downlink_bytes, kpis.wan_bytes) == (100, 300, 340)
    assert (kpis.raw_bytes_off_device, kpis.energy_source, kpis.loss) == (0, "modelled", 0.2)


def test_raw_bytes_are_seen_in_training_and_control_frames_alike() -> None:
    leaks = (entry(DEVICE, CONTROL, SENT, 64, raw=True), entry(DEVICE, TRAINING, SENT, 32, raw=True))
    assert training_kpis((*ROUND, *leaks), TIERS).raw_bytes_off_device == 96


def test_inference_kpis_are_per_request() -> None:
    kpis = inference_kpis(
        (*SERVED, entry(DEVICE, SERVING, SENT, 64, 1, raw=True)),
        TIERS,
        latencies_s=np.full(8, 0.02),
        right=[True, True, True, False],
        peak_memory_bytes={DEVICE: 50, CLOUD: 900},
        energy_j=4.0,
    )
    assert kpis.bytes_per_request == (800 + 200 + 64) / 8
    assert (kpis.raw_inputs_off_device_fraction, kpis.accuracy) == (1 / 8, 0.75)
    assert (kpis.peak_memory_bytes, kpis.energy_j_per_request) == (50, 0.5)


def test_without_requests_every_number_is_unknown() -> None:
    kpis = inference_kpis((), TIERS, latencies_s=[], right=[])
    assert kpis.latency_ms == LatencyMs(None, None, None)
    assert {kpis.accuracy, kpis.bytes_per_request, kpis.raw_inputs_off_device_fraction, kpis.peak_memory_bytes} == {
        None
    }


def test_quantiles_are_in_milliseconds() -> None:
    found = latency_ms(np.arange(101) / 1000)  # 0…100 ms, evenly
    assert (found.p50, found.p95, found.p99) == pytest.approx((50.0, 95.0, 99.0))
