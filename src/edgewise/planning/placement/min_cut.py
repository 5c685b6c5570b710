"""The exact solver: K tiers, any DAG, early exits and round trips as one minimum cut.

For every group v and boundary b there is a node (v, b), on the source side iff ℓ(v) ≤ b. The chain
S → (v, K−2) → … → (v, 0) → T is cut at the arc that stands for v's tier. Tensors, and boundaries themselves, are
charged once through auxiliary nodes. Sums over exits work because max{ρ} over readers is a sum over ρ's steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from math import inf, isinf

from edgewise.planning.placement.problem import Problem, Solution, cost_of

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
    import igraph

    boundaries, groups = range(problem.num_tiers - 1), range(problem.num_groups)
    arcs = [*_tiers(problem), *_precedence(problem)]
    number = _node(problem, problem.num_groups, 0)
    for start, price, readers, b in _charges(problem):
        for rise, beyond in _steps(problem, readers):
            arcs.append((start, number, price if isinf(price) else price * rise))
            arcs.extend((number, _node(problem, u, b), inf) for u in beyond)
            number += 1
    if boundaries:
        arcs.append((number, _SINK, problem.local_s))
        arcs.extend((_node(problem, v, 0), number, inf) for v in groups)
    forbidden = 2.0 * sum(capacity for _, _, capacity in arcs if not isinf(capacity)) + 1.0
    network = igraph.Graph(number + 1, [(a, b) for a, b, _ in arcs], directed=True)
    cut = network.mincut(_SOURCE, _SINK, capacity=[forbidden if isinf(c) else c for _, _, c in arcs])
    inside = set(cut.partition[0])
    tiers = tuple(sum(_node(problem, v, b) not in inside for b in boundaries) for v in groups)
    cost = cost_of(problem, tiers)
    return Solution(() if isinf(cost) else tiers, cost)


def _node(problem: Problem, group: int, boundary: int) -> int:
    return 2 + group * (problem.num_tiers - 1) + boundary


def _tiers(problem: Problem) -> Iterator[Arc]:
    pins = dict(problem.pinned)
    for v, seconds in enumerate(problem.seconds):
        nodes = [_node(problem, v, b) for b in range(problem.num_tiers - 1)]
        for tier, (inner, outer) in enumerate(pairwise([_SINK, *nodes, _SOURCE])):
            allowed = pins.get(v, tier) == tier and not isinf(seconds[tier])
            yield outer, inner, problem.reach[v] * seconds[tier] if allowed else inf
        yield from ((inner, outer, inf) for inner, outer in pairwise(nodes))


def _precedence(problem: Problem) -> Iterator[Arc]:
    pairs = {(f.producer, u) for f in problem.flows for u in f.consumers if f.producer >= 0}
    for u, v in sorted(pairs | set(problem.order)):
        yield from ((_node(problem, v, b), _node(problem, u, b), inf) for b in range(problem.num_tiers - 1))


def _charges(problem: Problem) -> Iterator[tuple[int, float, tuple[int, ...], int]]:
    """(start, price, readers, boundary): price · max{ρ of readers beyond} is due if start is within the boundary."""
    for b, fixed in enumerate(problem.fixed_s):
        yield _SOURCE, fixed, tuple(range(problem.num_groups)), b
        for flow in problem.flows:
            start = _SOURCE if flow.producer < 0 else _node(problem, flow.producer, b)
            yield start, flow.crossing_s[b], flow.consumers, b


def _steps(problem: Problem, readers: tuple[int, ...]) -> Iterator[tuple[float, list[int]]]:
    below = 0.0
    for level in sorted({problem.reach[u] for u in readers}):
        yield level - below, [u for u in readers if problem.reach[u] >= level]
        below = level
