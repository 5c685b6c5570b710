"""The exact planner: K tiers, any DAG, early exits and round trips as one minimum cut.

For every group v and boundary b there is a node (v, b), on the source side iff ℓ(v) ≤ b. The chain
S → (v, K−2) → … → (v, 0) → T is cut at the arc that stands for v's tier. Tensors, and boundaries themselves, are
charged once through auxiliary nodes. Sums over exits work because max{ρ} over readers is a sum over ρ's steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from math import isinf

from edgewise.planning.problem import Problem, Solution, cost_of

Arc = tuple[int, int, float]
_SOURCE, _SINK = 0, 1


def min_cut(problem: Problem) -> Solution:
    """Returns the cheapest assignment by one maximum flow.

    Args:
        problem: Any problem; costs must be ≥ 0.

    Returns:
        The best assignment, exactly.

    Reference:
        Hu et al., "Dynamic Adaptive DNN Surgery for Inference Acceleration on the Edge", INFOCOM 2019.
        Differs: K tiers, early exits, round trips per boundary, reverse arcs (without them a consumer may be
        placed before its producer for free), forbidden crossings.
    """
    if problem.num_tiers == 1 or problem.num_groups == 0:
        tiers = (0,) * problem.num_groups
        return _checked(problem, tiers)
    import igraph

    arcs = _Arcs(problem)
    finite = sum(c for _, _, c in arcs.all if not isinf(c))
    forbidden = 2.0 * finite + 1.0
    graph = igraph.Graph(arcs.num_nodes, [(a, b) for a, b, _ in arcs.all], directed=True)
    flow = graph.mincut(_SOURCE, _SINK, capacity=[forbidden if isinf(c) else c for _, _, c in arcs.all])
    source_side = set(flow.partition[0])
    tiers = tuple(
        sum(arcs.node(v, b) not in source_side for b in range(problem.num_tiers - 1)) for v in range(problem.num_groups)
    )
    return _checked(problem, tiers)


def _checked(problem: Problem, tiers: tuple[int, ...]) -> Solution:
    cost = cost_of(problem, tiers)
    return Solution((), cost) if isinf(cost) else Solution(tiers, cost)


class _Arcs:
    """The network's arcs; auxiliary nodes are numbered behind the groups' nodes."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.boundaries = range(problem.num_tiers - 1)
        self.num_nodes = 2 + problem.num_groups * len(self.boundaries)
        self.all: list[Arc] = [*self._groups(), *self._precedence()]
        for flow in problem.flows:
            for b in self.boundaries:
                start = _SOURCE if flow.producer < 0 else self.node(flow.producer, b)
                self._charge(start, flow.crossing_s[b], flow.consumers, b)
        for b in self.boundaries:
            self._charge(_SOURCE, problem.fixed_s[b], tuple(range(problem.num_groups)), b)
        self._charge_local()

    def node(self, group: int, boundary: int) -> int:
        return 2 + group * len(self.boundaries) + boundary

    def _groups(self) -> Iterator[Arc]:
        last = len(self.boundaries) - 1
        pins = dict(self.problem.pinned)
        for v, seconds in enumerate(self.problem.seconds):
            chain = [_SINK, *(self.node(v, b) for b in self.boundaries), _SOURCE]
            for tier, (inner, outer) in enumerate(pairwise(chain)):
                allowed = pins.get(v, tier) == tier and not isinf(seconds[tier])
                yield outer, inner, self.problem.reach[v] * seconds[tier] if allowed else float("inf")
            yield from ((self.node(v, b), self.node(v, b + 1), float("inf")) for b in range(last))

    def _precedence(self) -> Iterator[Arc]:
        pairs = {(f.producer, u) for f in self.problem.flows for u in f.consumers if f.producer >= 0}
        for u, v in pairs | set(self.problem.order):
            yield from ((self.node(v, b), self.node(u, b), float("inf")) for b in self.boundaries)

    def _charge(self, start: int, price: float, readers: tuple[int, ...], boundary: int) -> None:
        """Charges price · max{ρ of the readers beyond}: one auxiliary node per step of ρ."""
        reach = self.problem.reach
        below = 0.0
        for level in sorted({reach[u] for u in readers}):
            capacity = price if isinf(price) else price * (level - below)
            if capacity > 0:
                self.all.append((start, self.num_nodes, capacity))
                beyond = (u for u in readers if reach[u] >= level)
                self.all.extend((self.num_nodes, self.node(u, boundary), float("inf")) for u in beyond)
                self.num_nodes += 1
            below = level

    def _charge_local(self) -> None:
        self.all.append((self.num_nodes, _SINK, self.problem.local_s))
        groups = range(self.problem.num_groups)
        self.all.extend((self.node(v, 0), self.num_nodes, float("inf")) for v in groups)
        self.num_nodes += 1
