"""Computes the twelve KPIs from ledger entries, observations and resources.

Bytes are counted at the end where they are unambiguous: the device-edge links at the devices, the WAN at the cloud.
A number nobody measured is None; the report says why.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import msgspec
import numpy as np

from edgewise.core.ids import NodeId, Tier
from edgewise.core.provenance import RAW
from edgewise.ledger.entry import Direction, LedgerEntry, Purpose

LEARNING = (Purpose.TRAINING, Purpose.BULK)
"""Purposes whose bytes a training run costs: updates and sums, and the models that are fetched."""


class TrainingKpis(msgspec.Struct, frozen=True, kw_only=True):
    """Holds six KPIs of a training run.

    Attributes:
        loss: Of the last round.
        accuracy: Of the trained model, on examples no client trained on.
        rounds: Rounds run.
        seconds: From the first order to the last sum.
        uplink_bytes: Sent by devices.
        downlink_bytes: Received by devices.
        wan_bytes: Both ways between edges and cloud.
        energy_j: Of all nodes.
        energy_source: `measured` or `modelled`.
        raw_bytes_off_device: Bytes of frames that carried raw examples off a device.
    """

    loss: float | None = None
    accuracy: float | None = None
    rounds: int | None = None
    seconds: float | None = None
    uplink_bytes: int | None = None
    downlink_bytes: int | None = None
    wan_bytes: int | None = None
    energy_j: float | None = None
    energy_source: str = "modelled"
    raw_bytes_off_device: int | None = None


class LatencyMs(msgspec.Struct, frozen=True):
    """Holds quantiles of the end-to-end latency, from the scheduled arrival."""

    p50: float | None = None
    p95: float | None = None
    p99: float | None = None


class InferenceKpis(msgspec.Struct, frozen=True, kw_only=True):
    """Holds six KPIs of serving.

    Attributes:
        latency_ms: Quantiles.
        accuracy: Share answered rightly.
        energy_j_per_request: Of all nodes.
        energy_source: `measured` or `modelled`.
        bytes_per_request: Serving bytes on the device's link, both ways.
        raw_inputs_off_device_fraction: Share of requests whose raw input left the device.
        peak_memory_bytes: The largest peak of a serving device.
    """

    latency_ms: LatencyMs = LatencyMs()
    accuracy: float | None = None
    energy_j_per_request: float | None = None
    energy_source: str = "modelled"
    bytes_per_request: float | None = None
    raw_inputs_off_device_fraction: float | None = None
    peak_memory_bytes: int | None = None


class Kpis(msgspec.Struct, frozen=True):
    """Holds all twelve KPIs."""

    training: TrainingKpis = TrainingKpis()
    inference: InferenceKpis = InferenceKpis()


class LinkBytes(msgspec.Struct, frozen=True, kw_only=True):
    """Holds the bytes that crossed the links of a fleet.

    Attributes:
        uplink_bytes: Devices sent.
        downlink_bytes: Devices received.
        wan_up_bytes: The cloud received.
        wan_down_bytes: The cloud sent.
        raw_bytes: Devices sent in frames that carried raw data.
        raw_frames: How many such frames.
    """

    uplink_bytes: int = 0
    downlink_bytes: int = 0
    wan_up_bytes: int = 0
    wan_down_bytes: int = 0
    raw_bytes: int = 0
    raw_frames: int = 0

    @property
    def wan_bytes(self) -> int:
        """Returns the bytes both ways between edges and cloud."""
        return self.wan_up_bytes + self.wan_down_bytes

    @property
    def device_bytes(self) -> int:
        """Returns the bytes both ways on the devices' links."""
        return self.uplink_bytes + self.downlink_bytes


def link_bytes(
    entries: Iterable[LedgerEntry],
    tiers: Mapping[NodeId, Tier],
    *,
    purposes: Collection[Purpose] = tuple(Purpose),
    run: str | None = None,
) -> LinkBytes:
    """Sums ledger entries by link.

    Args:
        entries: Of all nodes, each counted at its own node.
        tiers: Where each node stands; entries of nodes not in it are left out.
        purposes: Which purposes count.
        run: Only this run's entries; None for all.

    Returns:
        The bytes.
    """
    sums = dict.fromkeys(LinkBytes.__struct_fields__, 0)
    sides = {
        (Tier.DEVICE, Direction.SENT): "uplink_bytes",
        (Tier.DEVICE, Direction.RECEIVED): "downlink_bytes",
        (Tier.CLOUD, Direction.RECEIVED): "wan_up_bytes",
        (Tier.CLOUD, Direction.SENT): "wan_down_bytes",
    }
    for entry in entries:
        if entry.purpose not in purposes or (run is not None and entry.run != run):
            continue
        tier = tiers.get(entry.node)
        side = sides.get((tier, entry.direction)) if tier is not None else None
        if side is not None:
            sums[side] += entry.size_bytes
        if side == "uplink_bytes" and RAW in entry.data_classes:
            sums["raw_bytes"] += entry.size_bytes
            sums["raw_frames"] += entry.num_frames
    return LinkBytes(**sums)


def bytes_by_purpose(entries: Iterable[LedgerEntry], tiers: Mapping[NodeId, Tier]) -> dict[Purpose, LinkBytes]:
    """Sums ledger entries by link, for each purpose.

    Args:
        entries: Of all nodes.
        tiers: Where each node stands.

    Returns:
        One `LinkBytes` per purpose that occurs, in priority order.
    """
    kept = tuple(entries)
    occurring = {entry.purpose for entry in kept}
    return {p: link_bytes(kept, tiers, purposes=(p,)) for p in Purpose if p in occurring}


def latency_ms(latencies_s: Any) -> LatencyMs:
    """Computes quantiles of measured latencies.

    Args:
        latencies_s: float[n] seconds.

    Returns:
        Milliseconds; all None for no request. A quantile q needs n ≥ 1 / (1 − q) requests to be more than the maximum;
        with fewer it is the interpolated one.
    """
    values = np.asarray(latencies_s, float)
    if not values.size:
        return LatencyMs()
    p50, p95, p99 = (float(q) for q in 1e3 * np.quantile(values, (0.5, 0.95, 0.99)))
    return LatencyMs(p50, p95, p99)


def training_kpis(
    entries: Iterable[LedgerEntry],
    tiers: Mapping[NodeId, Tier],
    *,
    run: str | None = None,
    loss: float | None = None,
    accuracy: float | None = None,
    rounds: int | None = None,
    seconds: float | None = None,
    energy_j: float | None = None,
    energy_source: str = "modelled",
) -> TrainingKpis:
    """Joins the report of a run with the counts of the ledger.

    Args:
        entries: Of all nodes.
        tiers: Where each node stands.
        run: Only this run's frames; None for all learning frames.
        loss: Of the last round.
        accuracy: Of the trained model.
        rounds: Rounds run.
        seconds: Duration.
        energy_j: Of all nodes.
        energy_source: `measured` or `modelled`.

    Returns:
        The six KPIs.
    """
    kept = tuple(entries)
    moved = link_bytes(kept, tiers, purposes=LEARNING, run=run)
    every = link_bytes(kept, tiers, purposes=(*LEARNING, Purpose.CONTROL), run=run)
    return TrainingKpis(
        loss=loss,
        accuracy=accuracy,
        rounds=rounds,
        seconds=seconds,
        uplink_bytes=moved.uplink_bytes,
        downlink_bytes=moved.downlink_bytes,
        wan_bytes=moved.wan_bytes,
        energy_j=energy_j,
        energy_source=energy_source,
        raw_bytes_off_device=every.raw_bytes,
    )


def inference_kpis(
    entries: Iterable[LedgerEntry],
    tiers: Mapping[NodeId, Tier],
    *,
    latencies_s: Any,
    right: Any,
    peak_memory_bytes: Mapping[NodeId, int] | None = None,
    energy_j: float | None = None,
    energy_source: str = "modelled",
) -> InferenceKpis:
    """Joins measured requests with the counts of the ledger.

    Args:
        entries: Of all nodes, serving frames of exactly these requests.
        tiers: Where each node stands.
        latencies_s: float[n] seconds, from the scheduled arrival.
        right: bool[m], answered rightly, of the labelled requests.
        peak_memory_bytes: Per node.
        energy_j: Of all nodes for all requests.
        energy_source: `measured` or `modelled`.

    Returns:
        The six KPIs.
    """
    moved = link_bytes(entries, tiers, purposes=(Purpose.SERVING,))
    num, answers = len(latencies_s), np.asarray(right, bool)
    devices = [size for node, size in (peak_memory_bytes or {}).items() if tiers.get(node) is Tier.DEVICE]
    return InferenceKpis(
        latency_ms=latency_ms(latencies_s),
        accuracy=float(answers.mean()) if answers.size else None,
        energy_j_per_request=energy_j / num if energy_j is not None and num else None,
        energy_source=energy_source,
        bytes_per_request=moved.device_bytes / num if num else None,
        raw_inputs_off_device_fraction=min(1.0, moved.raw_frames / num) if num else None,
        peak_memory_bytes=max(devices, default=None),
    )
