"""A graph with exits, synthetic profiles and evidence: costs that can be followed by hand."""

from __future__ import annotations

from functools import cache

from edgewise.core.ids import NodeId, Tier
from edgewise.models.graph.graph import Graph
from edgewise.models.version import ExitEvidence
from edgewise.planning.profile import Fingerprint, GroupCost, LinkState, Profile, SegmentCost
from tests.models.toys import digits_cnn

FAST = LinkState(2.5e6, 0.005, 400, 1e-7)
WAN = LinkState(6.25e6, 0.020, 400)
SLOW = LinkState(8e3, 0.005, 400, 1e-7)


@cache
def graph() -> Graph:
    return Graph.load(digits_cnn())


def profile(
    tier: Tier, slowdown: float, *, of: Graph | None = None, segments: tuple[SegmentCost, ...] = (), call_s: float = 0.0
) -> Profile:
    """Every group costs 1 ms · slowdown · its share of the FLOPs, its p95 twice that."""
    of = of or graph()
    total = sum(g.flops for g in of.condensed.groups)
    costs = tuple(
        GroupCost(g.name, 1e-3 * slowdown * g.flops / total, 2e-3 * slowdown * g.flops / total)
        for g in of.condensed.groups
    )
    mark = Fingerprint(of.digest, "test", 1, "test", slowdown, 0.0)
    return Profile(NodeId(f"{tier}-1"), tier, mark, costs, segments, {"int8": 1e-9}, 0.001, 2.0, call_s=call_s)


def profiles(device: float = 30.0, edge: float = 2.0, cloud: float = 1.0) -> dict[Tier, Profile]:
    return {
        Tier.DEVICE: profile(Tier.DEVICE, device),
        Tier.EDGE: profile(Tier.EDGE, edge),
        Tier.CLOUD: profile(Tier.CLOUD, cloud),
    }


def evidence(end: float = 0.97) -> tuple[ExitEvidence, ...]:
    """Exit 0 answers 60 % at threshold 0.9, as well as the end does; int8 costs half a point."""
    rows = []
    for codec, loss in (("none", 0.0), ("int8", 0.005)):
        rows += [
            ExitEvidence(0, codec, 0.98, 0.90, 0.6, 0.9, 400),
            ExitEvidence(0, codec, 0.90 - loss, 0.90 - loss, 1.0, 0.0, 400),
            ExitEvidence(2, codec, end - loss, end - loss, 1.0, 0.0, 400),
            ExitEvidence(2, codec, 0.955 - loss, end - loss, 0.4, 0.0, 400, ((0, 0.9),)),
        ]
    return tuple(rows)
