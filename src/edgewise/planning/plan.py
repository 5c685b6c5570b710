"""`Plan`: which part of which model runs where, with what it is predicted to cost. Small, serialisable.

    request ─▶ filter? ─▶ stage at (device, 0) ─ exit? ─ hand-over ─▶ stage at (edge, 0) ─ hand-over ─▶ stage at (edge, 1) ─▶ end

A plan is stages at sites, joined by hand-overs, opened by gates. A gate is a place where a request may end: a filter
in front of every stage, an exit inside the model, and the model's end, which is a gate that lets everybody leave.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import msgspec

from edgewise.core.ids import Digest, Revision, Tier, digest_of
from edgewise.models.version import FEDERATED

INPUT = "input"
"""Stands for the request itself where a stage's name stands: the source of a hand-over, the place of a gate."""
EXIT = "exit"
"""Name of the gate rule that ends a request at a classifier; see `inference/gates/exit.py`."""
FILTERED = -1
"""In the place of an exit's index: a gate in front of every stage answered."""

FLOAT32 = "float32"
"""Variant of a plan that serves the model itself."""


class Site(msgspec.Struct, frozen=True, order=True):
    """A place that a node takes: a tier, and which of several there.

    Attributes:
        tier: Device, edge or cloud.
        ordinal: 0 for the first; a pipeline of two edges has (edge, 0) and (edge, 1).
    """

    tier: Tier
    ordinal: int = 0

    def __str__(self) -> str:
        return f"{self.tier}:{self.ordinal}" if self.ordinal else str(self.tier)


ENTRY = Site(Tier.DEVICE)
"""Where requests arrive."""


class Stage(msgspec.Struct, frozen=True):
    """A piece of a graph, run at one site in one call.

    Attributes:
        name: Unique in its plan.
        graph: Digest of the ONNX bytes it is a piece of.
        inputs: Tensors it needs.
        outputs: Tensors it must produce: what is handed over, and what gates look at.
        site: Who runs it.
        tile: Rows of its input that it computes, as (first, last); None for all.
        keeps: Pairs (input, output) of its state: what it makes under the second name it is given under the first at
            the stream's next request. State never leaves the site.
    """

    name: str
    graph: Digest
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    site: Site
    tile: tuple[int, int] | None = None
    keeps: tuple[tuple[str, str], ...] = ()


class Handover(msgspec.Struct, frozen=True):
    """Tensors going from one stage to another.

    Attributes:
        source: Name of the stage, or `INPUT` for what the request brought.
        target: Name of the stage that reads them.
        tensors: Names that travel, each once; also those that a later stage reads.
        codec: Spec text of the codec, `none` for raw float32.
        combine: With others of the same target: `all` are needed, `any_k` of them, or they are pieces to `concat`.
        k: How many `any_k` needs.
        payload_bytes: Predicted encoded size per request.
        carries_raw: Whether data of the request itself travels.
    """

    source: str
    target: str
    tensors: tuple[str, ...]
    codec: str
    combine: str = "all"
    k: int = 0
    payload_bytes: int = 0
    carries_raw: bool = False


class Gate(msgspec.Struct, frozen=True):
    """Where a request may end.

    Attributes:
        spec: Rule that decides, as text: `exit`, `frame_difference(every=30)`; see `inference/gates`.
        at: Stage behind which it stands; `INPUT` for in front of all.
        threshold: The rule's; 0 at the model's end, which lets everybody leave.
        reach_fraction: Predicted share of requests that get this far (ρ).
        end_fraction: Predicted share of all requests that end here.
        tensors: What it looks at; of an exit, what the answer is too.
        index: Which exit of the model; `FILTERED` for a gate that is none.
    """

    spec: str
    at: str
    threshold: float
    reach_fraction: float = 1.0
    end_fraction: float = 0.0
    tensors: tuple[str, ...] = ()
    index: int = FILTERED


class Path(msgspec.Struct, frozen=True):
    """Predicted latency of the requests that end at one gate.

    Attributes:
        exit_index: Which exit; `FILTERED` for a filter.
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


class Plan(msgspec.Struct, frozen=True, dict=True):
    """A decision. Levels are read off it, not put in.

    Attributes:
        name: Short text a person recognises, e.g. `split device|edge int8 exit 0.80`.
        graph: Digest of the ONNX bytes it cuts.
        stages: In the order in which a request meets them.
        handovers: In the same order.
        gates: In the same order; the last is the model's end.
        variant: What its graph is of the model: `float32` itself, `int8`, `narrow`, …
        predicted: Costs.
        valid_bytes_per_s: Range of the first boundary's bandwidth in which it stays the best.
        training_domain: Domain of the model it serves.
        profiles: Digests of the profiles it was made from.
    """

    name: str
    graph: Digest
    stages: tuple[Stage, ...]
    handovers: tuple[Handover, ...] = ()
    gates: tuple[Gate, ...] = ()
    variant: str = "float32"
    predicted: Prediction = Prediction(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    valid_bytes_per_s: tuple[float, float] = (0.0, float("inf"))
    training_domain: str = FEDERATED
    profiles: tuple[Digest, ...] = ()

    @property
    def sites(self) -> tuple[Site, ...]:
        """Sites that run something, in the order of the stages."""
        return tuple(dict.fromkeys(stage.site for stage in self.stages))

    @property
    def tiers(self) -> tuple[Tier, ...]:
        """Tiers that run something, from the device outward."""
        return tuple(sorted({stage.site.tier for stage in self.stages}, key=lambda tier: tier.rank))

    @property
    def collaborates(self) -> bool:
        """Whether more than one node computes."""
        return len(self.sites) > 1

    @cached_property
    def exits(self) -> tuple[Gate, ...]:
        """Gates that are exits of the model, in its order; the last is its end."""
        return tuple(gate for gate in self.gates if gate.index != FILTERED)

    @property
    def filters(self) -> tuple[Gate, ...]:
        """Gates in front of every stage."""
        return tuple(gate for gate in self.gates if gate.at == INPUT)

    @property
    def state(self) -> tuple[tuple[str, str], ...]:
        """Pairs (input, output) of all state that stages keep."""
        return tuple(pair for stage in self.stages for pair in stage.keeps)

    def site_of(self, name: str) -> Site:
        """Where a stage runs; requests arrive at the device.

        Args:
            name: Of a stage, or `INPUT`.

        Returns:
            Its site.
        """
        return next((stage.site for stage in self.stages if stage.name == name), ENTRY)

    def leaving(self, site: Site) -> Iterator[Handover]:
        """Hand-overs from a site to another one.

        Args:
            site: Where they start.

        Yields:
            Hand-overs, in the plan's order.
        """
        for handover in self.handovers:
            if self.site_of(handover.source) == site != self.site_of(handover.target):
                yield handover

    @property
    def digest(self) -> Digest:
        """Names the plan."""
        return digest_of(msgspec.msgpack.encode(self))


class ActivePlan(msgspec.Struct, frozen=True):
    """A plan in force: requests finish on the revision they began with.

    Attributes:
        revision: Newer is larger.
        plan: The plan.
        version: Of the model.
    """

    revision: Revision
    plan: Plan
    version: int
