"""`Profile`: what a graph costs on one node, measured before. `LinkState`: what a link costs."""

from __future__ import annotations

import msgspec

from edgewise.core.ids import Digest, NodeId, Tier


class Fingerprint(msgspec.Struct, frozen=True):
    """What a profile was measured under; a plan is refused from a profile that no longer matches.

    Attributes:
        graph: Digest of the ONNX bytes.
        runtime: e.g. "onnxruntime 1.32.0 CPUExecutionProvider".
        threads: Intra-op threads.
        machine: Processor name and architecture.
        dilation: Factor by which this node stretches inference compute.
        cadence_s: Gap between runs while measuring; small graphs run slower after idling.
    """

    graph: Digest
    runtime: str
    threads: int
    machine: str
    dilation: float
    cadence_s: float


class GroupCost(msgspec.Struct, frozen=True):
    """Cost of one fusion group on this node, dilation included.

    Attributes:
        group: Name of the fusion group in the condensed graph.
        seconds: Median.
        p95_seconds: 95th percentile.
    """

    group: str
    seconds: float
    p95_seconds: float


class SegmentCost(msgspec.Struct, frozen=True):
    """A measured run of consecutive groups: what really counts, for it includes fusion across groups.

    Attributes:
        first: Index of the first group in topological order.
        last: Index of the last group, inclusive.
        seconds: Median, dilation included.
        p95_seconds: 95th percentile.
        mad_seconds: Median absolute deviation.
        num_runs: Runs behind the numbers.
    """

    first: int
    last: int
    seconds: float
    p95_seconds: float
    mad_seconds: float
    num_runs: int


class Profile(msgspec.Struct, frozen=True):
    """Costs of one graph on one node.

    Attributes:
        node: Who measured.
        tier: Where it stands.
        fingerprint: Under what.
        groups: Cost per fusion group; with `call_s` they sum to the whole.
        segments: Measured segments at candidate cuts; used where present instead of sums.
        codecs: Seconds per byte of encode + decode by codec spec text.
        overhead_s: Fixed cost of one stage call on this node (queueing, copying, dispatch).
        active_power_w: Modelled power while computing.
        memory_bytes: Peak memory of the whole graph's session, measured.
        overhead_p95_s: 95th percentile of that fixed cost; 0 where only its median is known.
        call_s: What a run of a session takes beside its groups, dilation included; in every measured segment, once.
    """

    node: NodeId
    tier: Tier
    fingerprint: Fingerprint
    groups: tuple[GroupCost, ...]
    segments: tuple[SegmentCost, ...] = ()
    codecs: dict[str, float] = {}
    overhead_s: float = 0.0
    active_power_w: float = 0.0
    memory_bytes: int = 0
    call_s: float = 0.0
    overhead_p95_s: float = 0.0


class LinkState(msgspec.Struct, frozen=True):
    """What is known of the link between two adjacent tiers.

    Attributes:
        bytes_per_s: Bandwidth, from real transfers or a probe.
        rtt_s: Round trip of an empty frame.
        frame_overhead_bytes: Bytes of a stage request on the wire beside its tensors: the frame's, the transport's, TLS'.
        joules_per_byte: Modelled radio energy at the inner end.
        rtt_p95_s: 95th percentile of the round trips; 0 where only their median is known.
        source: `measured`, `probed` or `declared`.
        answer_overhead_bytes: As `frame_overhead_bytes`, of the answer.
    """

    bytes_per_s: float
    rtt_s: float
    frame_overhead_bytes: int = 320
    joules_per_byte: float = 0.0
    source: str = "declared"
    rtt_p95_s: float = 0.0
    answer_overhead_bytes: int = 300
