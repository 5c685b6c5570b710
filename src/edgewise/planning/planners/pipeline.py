"""A chain over several edges: device, (edge, 0), (edge, 1), …, each with a run of the graph's groups."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations, pairwise

from edgewise.core.ids import Tier
from edgewise.models.graph.graph import Graph
from edgewise.planning.costs.cost import KEEPS_THE_INPUT, CostTable, default_energy
from edgewise.planning.plan import ENTRY, EXIT, INPUT, Gate, Handover, Path, Plan, Prediction, Site, Stage
from edgewise.planning.planner import Evidence, Planner, Sites
from edgewise.planning.policy import Policy


def pipeline(codec: str = "none", max_tensors: int = 4) -> Planner:
    """Plans over all edges that there are, in the order of their ordinals.

    For a graph that one edge cannot hold, or more requests per second than one edge answers.

    Args:
        codec: Spec text of the codec of every hand-over.
        max_tensors: Tensors that may be handed over at once.

    Returns:
        The planner: it yields the plan with the shortest latency, then the one whose slowest part is the fastest.

    Reference:
        Hu et al., "PipeEdge: Pipeline Parallelism for Large-Scale Model Inference on Heterogeneous Edge Devices", DSD 2022.
        Differs: all cuts are tried instead of dynamic programming, in this order of the sites.
    """

    def plans(graph: Graph, sites: Sites, policy: Policy, evidence: Evidence) -> Iterator[Plan]:
        route = [ENTRY, *sorted(site for site in sites.profiles if site.tier is Tier.EDGE)]
        allowed = all(site.tier in policy.allowed_tiers for site in route[1:])
        if len(route) < 3 or not allowed or any(way not in sites.links for way in pairwise(route)):
            return
        every = graph.condensed.cuts(max_tensors)
        cuts = [cut for cut in every if _may_leave(graph, policy, codec, _crossing(graph, cut.position))]
        if ENTRY not in sites.profiles or Tier.DEVICE not in policy.allowed_tiers:
            chosen = [(0, *rest) for rest in combinations([c.position for c in cuts if c.position], len(route) - 2)]
            chosen = chosen if any(cut.position == 0 for cut in cuts) else []
        else:
            chosen = list(combinations([cut.position for cut in cuts], len(route) - 1))
        laid = [_Laid(graph, sites, evidence, codec, route, (*at, len(graph.condensed.groups))) for at in chosen]
        yield from {
            plan.name: plan for key in (_Laid.latency_s, _Laid.period_s) if laid for plan in [min(laid, key=key).plan()]
        }.values()

    return plans


def _crossing(graph: Graph, end: int) -> tuple[str, ...]:
    """What is handed over behind the first `end` groups: what later ones read, and what is answered already."""
    made = graph.condensed.producer
    answered = [tensor.name for tensor in graph.outputs]
    return tuple(dict.fromkeys([*graph.condensed.live(end), *(n for n in answered if made[n] < end)]))


def _may_leave(graph: Graph, policy: Policy, codec: str, tensors: Sequence[str]) -> bool:
    raw = graph.condensed.raw_tensors.intersection(tensors)
    furthest = policy.raw_may_reach if raw else policy.features_may_reach
    return furthest.rank >= Tier.EDGE.rank and (not raw or codec in KEEPS_THE_INPUT)


class _Laid:
    """A graph laid over a route: groups from `ends[n − 1]` to `ends[n]` run at the n-th site."""

    def __init__(
        self, graph: Graph, sites: Sites, evidence: Evidence, codec: str, route: Sequence[Site], ends: Sequence[int]
    ) -> None:
        self.graph, self.sites, self.evidence, self.codec = graph, sites, evidence, codec
        self.route, self.ends = route, ends
        self.crossing = [_crossing(graph, end) for end in ends[:-1]]
        self.table = CostTable(graph, {}, (), evidence.sizes)
        self.steps = list(self._steps())

    def _steps(self) -> Iterator[tuple[str, float]]:
        for place, (site, (first, last)) in enumerate(zip(self.route, pairwise((0, *self.ends)), strict=True)):
            profile = self.sites.profiles.get(site)
            if profile is not None and (last > first or place == 0):
                seconds = {group.group: group.seconds for group in profile.groups}
                names = [group.name for group in self.graph.condensed.groups[first:last]]
                compute = profile.call_s + sum(seconds[name] for name in names) if names else 0.0
                yield f"{site} compute", compute + profile.overhead_s
            if place + 1 < len(self.route):
                link, way = self.sites.links[site, self.route[place + 1]], f"{site}→{self.route[place + 1]}"
                sent = self.bytes_at(place) + self.named_bytes_at(place) + link.frame_overhead_bytes
                yield f"{way} transfer", sent / link.bytes_per_s
                yield f"{way} round trip", link.rtt_s
        answered = self.table.answered_bytes(tensor.name for tensor in self.graph.outputs)
        for source, target in reversed(list(pairwise(self.route))):
            link = self.sites.links[source, target]
            yield f"{target}→{source} answer", (answered + link.answer_overhead_bytes) / link.bytes_per_s

    def bytes_at(self, place: int) -> int:
        return sum(self.table.coded_bytes(self.codec, name) for name in self.crossing[place])

    def named_bytes_at(self, place: int) -> int:
        return sum(self.table.header_bytes(self.codec, name) for name in self.crossing[place])

    def latency_s(self) -> float:
        return sum(seconds for _, seconds in self.steps)

    def period_s(self) -> float:
        return max(seconds for name, seconds in self.steps if not name.endswith("round trip"))

    def plan(self) -> Plan:
        condensed, graph = self.graph.condensed, self.graph
        end, stages, handovers = graph.exits[-1], list[Stage](), list[Handover]()
        answered = (*(t.name for t in graph.outputs if t.name != end), end)
        for place, (site, (first, last)) in enumerate(zip(self.route, pairwise((0, *self.ends)), strict=True)):
            names = [group.name for group in condensed.groups[first:last]]
            if names:
                wanted = self.crossing[place] if place < len(self.crossing) else answered
                made = {output for group in condensed.groups[first:last] for output in group.outputs}
                outputs = tuple(name for name in wanted if name in made)
                stages.append(Stage(str(site), graph.digest, condensed.boundary(names)[0], outputs, site))
            if place < len(self.crossing):
                source, raw = str(site) if names else INPUT, condensed.raw_tensors.intersection(self.crossing[place])
                handovers.append(
                    Handover(
                        source,
                        str(self.route[place + 1]),
                        self.crossing[place],
                        self.codec,
                        payload_bytes=self.bytes_at(place),
                        carries_raw=bool(raw),
                    )
                )
        rows = {(row.exit_index, row.codec): row for row in self.evidence.exits if not row.before and not row.threshold}
        codec = "none" if self.codec in KEEPS_THE_INPUT else self.codec
        known = rows.get((len(graph.exits) - 1, codec))
        link, device = self.sites.links[self.route[0], self.route[1]], self.sites.profiles.get(ENTRY)
        sent, latency_s = float(self.bytes_at(0) + self.named_bytes_at(0) + link.frame_overhead_bytes), self.latency_s()
        energy = default_energy({} if device is None else {Tier.DEVICE: device}, (link,))
        busy_s = self.steps[0][1] - device.overhead_s if device is not None and self.ends[0] else 0.0
        path = Path(len(graph.exits) - 1, 1.0, latency_s, latency_s, tuple(self.steps))
        predicted = Prediction(
            latency_mean_s=latency_s,
            latency_p50_s=latency_s,
            latency_p95_s=latency_s,
            accuracy=float("nan") if known is None else known.accuracy_all,
            device_energy_j=energy.active_power_w * busy_s + energy.joules_per_byte * sent,
            egress_bytes=sent,
            wan_bytes=0.0,
            paths=(path,),
        )
        name = f"pipeline {'|'.join(str(stage.site) for stage in stages)} at {', '.join(map(str, self.ends[:-1]))}"
        gate = Gate(EXIT, str(self.route[-1]), 0.0, 1.0, 1.0, answered, len(graph.exits) - 1)
        return Plan(name, graph.digest, tuple(stages), tuple(handovers), (gate,), predicted=predicted)
