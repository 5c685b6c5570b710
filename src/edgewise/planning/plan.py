"""`Plan`: which part of which model runs where, with what it is predicted to cost. Small, serialisable."""

from __future__ import annotations

import msgspec

from edgewise.core.ids import TIERS, Digest, Epoch, Tier, digest_of


class Segment(msgspec.Struct, frozen=True):
    """A piece of the graph between cuts, run on one tier.

    Attributes:
        tier: Who runs it.
        groups: Names of its fusion groups, in topological order; () for a tier that only relays.
        inputs: Tensor names it needs.
        outputs: Tensor names it must produce: cut tensors and exit logits.
    """

    tier: Tier
    groups: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class Cut(msgspec.Struct, frozen=True):
    """Tensors crossing from one tier to the next that runs something.

    Attributes:
        source: Inner tier.
        target: Outer tier.
        tensors: Names that cross, each once.
        codec: Spec text of the codec, `none` for raw float32.
        payload_bytes: Predicted encoded size per request.
        carries_raw: Whether the model's input itself crosses.
    """

    source: Tier
    target: Tier
    tensors: tuple[str, ...]
    codec: str
    payload_bytes: int
    carries_raw: bool = False


class Exit(msgspec.Struct, frozen=True):
    """Where a request may leave.

    Attributes:
        index: Which exit of the model; the last is its end.
        tensor: Name of the logits.
        tier: Who decides.
        threshold: Top-1 softmax needed to leave; 0 at the end.
        reach_fraction: Predicted share of requests that get this far (ρ).
        exit_fraction: Predicted share of all requests that leave here.
    """

    index: int
    tensor: str
    tier: Tier
    threshold: float
    reach_fraction: float
    exit_fraction: float


class Path(msgspec.Struct, frozen=True):
    """Predicted latency of the requests that leave at one exit.

    Attributes:
        exit_index: Which exit.
        fraction: Share of requests.
        p50_s: Median latency.
        p95_s: 95th percentile.
        waterfall: Seconds by stage in order, e.g. (("device compute", 0.004), ("device→edge", 0.012), …).
    """

    exit_index: int
    fraction: float
    p50_s: float
    p95_s: float
    waterfall: tuple[tuple[str, float], ...] = ()


class Prediction(msgspec.Struct, frozen=True):
    """What a plan is predicted to cost per request."""

    latency_mean_s: float
    latency_p50_s: float
    latency_p95_s: float
    accuracy: float
    device_energy_j: float
    egress_bytes: float
    wan_bytes: float
    paths: tuple[Path, ...] = ()


class Plan(msgspec.Struct, frozen=True):
    """A decision. Levels are read off it, not put in.

    Attributes:
        name: Short text a person recognises, e.g. `split device|edge int8 exit 0.80`.
        graph: Digest of the ONNX bytes it cuts.
        segments: From the device outward.
        cuts: Between consecutive segments.
        exits: In order of the model.
        variant: `float32`, or `int8` for the quantised graph.
        predicted: Costs.
        valid_bytes_per_s: Range of the first boundary's bandwidth in which it stays the best.
        training_domain: Domain of the model it serves.
        profiles: Digests of the profiles it was made from.
    """

    name: str
    graph: Digest
    segments: tuple[Segment, ...]
    cuts: tuple[Cut, ...] = ()
    exits: tuple[Exit, ...] = ()
    variant: str = "float32"
    predicted: Prediction = Prediction(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    valid_bytes_per_s: tuple[float, float] = (0.0, float("inf"))
    training_domain: str = "hierarchical"
    profiles: tuple[Digest, ...] = ()

    @property
    def tiers(self) -> tuple[Tier, ...]:
        """Tiers that run something, from the device outward."""
        running = {s.tier for s in self.segments if s.groups}
        return tuple(t for t in TIERS if t in running)

    @property
    def collaborates(self) -> bool:
        """Whether more than one node computes."""
        return len(self.tiers) > 1

    @property
    def digest(self) -> Digest:
        """Names the plan."""
        return digest_of(msgspec.msgpack.encode(self))


class ActivePlan(msgspec.Struct, frozen=True):
    """A plan in force: requests finish on the epoch they began with."""

    epoch: Epoch
    plan: Plan
    version: int
