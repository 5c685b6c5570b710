"""Metrics of a node as values, and their text for Prometheus. A metric is made when somebody asks, from what is counted anyway."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import isinf, isnan
from typing import Literal

import msgspec

from edgewise.core.ids import NodeId, Tier
from edgewise.ledger.energy import ENERGY_MODELS, modelled_energy
from edgewise.ledger.entry import Direction, LedgerEntry
from edgewise.ledger.resources import read_resources

CONTENT_TYPE = "text/plain; version=0.0.4"
"""The web framework adds the character set."""
Labels = tuple[tuple[str, str], ...]


class Metric(msgspec.Struct, frozen=True):
    """One family of samples.

    Attributes:
        name: As Prometheus wants it: unit in the name, `_total` behind a counter.
        kind: Of its samples.
        text: What it counts.
        samples: (labels, value); of a summary also under the names `…_count` and `…_sum`, which stand first.
    """

    name: str
    kind: Literal["counter", "gauge", "summary"]
    text: str
    samples: tuple[tuple[str, Labels, float], ...]


def metric(name: str, kind: Literal["counter", "gauge"], text: str, samples: Mapping[Labels, float]) -> Metric:
    """A family with a sample for each set of labels.

    Args:
        name: Without the prefix of all of ours, `edgewise_`.
        kind: Counter or gauge.
        text: What it counts.
        samples: Values by labels.
    """
    full = f"edgewise_{name}"
    return Metric(full, kind, text, tuple((full, labels, float(value)) for labels, value in samples.items()))


def summary(name: str, text: str, samples: Mapping[Labels, tuple[int, float]]) -> Metric:
    """A family of counts and sums, of which a mean over any time can be made.

    Args:
        name: Without the prefix.
        text: What it measures.
        samples: (count, sum) by labels.
    """
    full = f"edgewise_{name}"
    rows = [
        row
        for labels, (num, total) in samples.items()
        for row in ((f"{full}_count", labels, float(num)), (f"{full}_sum", labels, float(total)))
    ]
    return Metric(full, "summary", text, tuple(rows))


def metrics_text(metrics: Iterable[Metric]) -> str:
    """Prometheus's text format.

    Args:
        metrics: Any; families of one name are written as one.

    Returns:
        Lines, the last with its end.
    """
    families: dict[str, list[Metric]] = {}
    for found in metrics:
        families.setdefault(found.name, []).append(found)
    lines = []
    for name, same in families.items():
        lines += [f"# HELP {name} {_escaped(same[0].text)}", f"# TYPE {name} {same[0].kind}"]
        lines += [
            f"{sample}{_written(labels)} {_number(value)}" for one in same for sample, labels, value in one.samples
        ]
    return "".join(f"{line}\n" for line in lines)


def _written(labels: Labels) -> str:
    inner = ",".join(f'{key}="{_escaped(value, is_label=True)}"' for key, value in labels)
    return f"{{{inner}}}" if labels else ""


def _escaped(text: str, *, is_label: bool = False) -> str:
    text = text.replace("\\", r"\\").replace("\n", r"\n")
    return text.replace('"', r"\"") if is_label else text


def _number(value: float) -> str:
    if isnan(value) or isinf(value):
        return "NaN" if isnan(value) else "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if value.is_integer() else repr(value)


def node_metrics(node: NodeId, tier: Tier, entries: Iterable[LedgerEntry], dilation: float = 1.0) -> list[Metric]:
    """What every node counts: frames and bytes by purpose, processor time, memory, modelled energy.

    Args:
        node: The node.
        tier: Where it stands.
        entries: Of its ledger.
        dilation: The factor by which it stretches inference compute.

    Returns:
        Metrics of this process so far.
    """
    frames, sizes = dict[Labels, float](), dict[Labels, float]()
    by_direction = dict.fromkeys(Direction, 0)
    for entry in entries:
        labels = (("purpose", str(entry.purpose)), ("direction", str(entry.direction)))
        frames[labels] = frames.get(labels, 0) + entry.num_frames
        sizes[labels] = sizes.get(labels, 0) + entry.size_bytes
        by_direction[entry.direction] += entry.size_bytes
    used = read_resources(node, tier)
    energy = modelled_energy(
        ENERGY_MODELS[tier],
        cpu_seconds=used.cpu_seconds,
        sent_bytes=by_direction[Direction.SENT],
        received_bytes=by_direction[Direction.RECEIVED],
    )
    joules: dict[Labels, float] = {
        (("source", energy.source), ("part", part)): value
        for part, value in (("compute", energy.compute_j), ("network", energy.network_j))
    }
    about = (("node", node), ("tier", str(tier)))
    return [
        metric("node_info", "gauge", "This node; always 1.", {(*about, ("dilation", f"{dilation:g}")): 1}),
        metric("frames_total", "counter", "Frames to and from other nodes.", frames),
        metric("bytes_total", "counter", "Bytes to and from other nodes, by why they crossed.", sizes),
        metric("energy_joules_total", "counter", "Energy by the ledger's model, idle time left out.", joules),
        metric("cpu_seconds_total", "counter", "Processor time of the process.", {(): used.cpu_seconds}),
        metric("memory_peak_bytes", "gauge", "Largest resident set so far.", {(): used.peak_memory_bytes}),
    ]
