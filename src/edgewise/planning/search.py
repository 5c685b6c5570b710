"""The outer search: every exit policy, set of tiers, place of the exits and codec; inside each an exact min-cut.

    candidates(table, policy, exits, codecs) -> plans, each optimal for its choice     `plan()` takes the best of them

With the exits' tiers fixed, the share of requests that reaches a tier is known, so the expected cost of a placement
is a sum over groups and crossing tensors, and the inner problem is a minimum cut. Choices whose cheapest thinkable
cost is above the best plan so far are left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations, combinations_with_replacement, pairwise, product
from math import inf, isnan, nan

import msgspec

from edgewise.core.ids import TIERS, Tier
from edgewise.models.version import FEDERATED
from edgewise.planning.costs.cost import KEEPS_THE_INPUT, CostTable
from edgewise.planning.costs.operating_point import ExitPolicy, OperatingPoint
from edgewise.planning.costs.predict import Placement, make_plan
from edgewise.planning.moves.exits import ExitTable
from edgewise.planning.placement import min_cut
from edgewise.planning.placement.problem import Flow, PlacementSolver, Problem, Solution
from edgewise.planning.plan import Plan
from edgewise.planning.policy import Policy


class Prices(msgspec.Struct, frozen=True):
    """What the placement solver minimises: a weighted sum.

    Attributes:
        seconds: Weight of latency.
        joules: Weight of device energy, as seconds per joule.
        sent_bytes: Weight of bytes leaving the device, as seconds per byte.
        p95: Whether compute counts with its 95th percentile.
    """

    seconds: float = 1.0
    joules: float = 0.0
    sent_bytes: float = 0.0
    p95: bool = False


@dataclass(frozen=True)
class Choice:
    """Everything but the placement of the groups.

    Attributes:
        route: Tiers a request visits, the device first.
        exit_tiers: Of each exit in use; the last is the last stop.
        codecs: Of each boundary of the route.
        operating_point: How the model behaves under them.
    """

    route: tuple[Tier, ...]
    exit_tiers: tuple[Tier, ...]
    codecs: tuple[str, ...]
    operating_point: OperatingPoint

    @cached_property
    def reached(self) -> tuple[float, ...]:
        """Share of requests that gets to each stop."""
        leaving = list(zip(self.exit_tiers, self.operating_point.fractions, strict=True))
        return tuple(max(0.0, 1.0 - sum(f for t, f in leaving if t.rank < stop.rank)) for stop in self.route)


@dataclass(frozen=True)
class Search:
    """One search: costs, rules and what is known of the exits.

    Attributes:
        table: Costs.
        policy: Limits.
        exits: Evidence.
        codecs: Spec texts tried at each boundary.
        training_domain: Written into the plans.
        solver: Solves the inner problem.
        variant: What the graph is of the model: `float32` itself, or `int8`, `narrow`, …
        reference_accuracy: Of the model that a variant stands in for, 0…1; NaN takes the graph's own.
        runs_on: If given, exactly these tiers run something; how a level is pinned.
        max_accuracy_loss: How far exits and codecs may fall below the whole model's own accuracy, 0…1.
    """

    table: CostTable
    policy: Policy
    exits: ExitTable
    codecs: Sequence[str] = ("none",)
    training_domain: str = FEDERATED
    solver: PlacementSolver = min_cut
    variant: str = "float32"
    runs_on: frozenset[Tier] | None = None
    max_accuracy_loss: float = 0.02
    reference_accuracy: float = nan

    def choices(self, *, accurate: bool = True) -> Iterator[Choice]:
        """Every choice the policy allows.

        Args:
            accurate: Leave out what is below the accuracy floor.

        Yields:
            Choices whose accuracy is known.
        """
        for policy in self.exits.policies:
            for route in self._routes():
                for codecs in self._codec_sets(len(route) - 1):
                    for inner in combinations_with_replacement(route, len(policy) - 1):
                        choice = self._choice(policy, route, (*inner, route[-1]), codecs)
                        if choice is not None and (not accurate or self._is_accurate(choice.operating_point.accuracy)):
                            yield choice

    def _is_accurate(self, accuracy: float) -> bool:
        """Unknown accuracy (NaN) meets no floor but 0, and is that of the whole model."""
        if isnan(accuracy):
            return self.policy.min_accuracy <= 0
        reference = self.whole_accuracy if isnan(self.reference_accuracy) else self.reference_accuracy
        return accuracy >= max(self.policy.min_accuracy, reference - self.max_accuracy_loss)

    @cached_property
    def whole_accuracy(self) -> float:
        """Of the graph run to its end, uncoded; 0 where it is not known."""
        whole = self.exits.at(((self.exits.num_exits - 1, 0.0),), ("none",))
        return 0.0 if whole is None or isnan(whole.accuracy) else whole.accuracy

    def best_choices(self) -> list[Choice]:
        """Choices that can be the best: of those that differ in thresholds only, the undominated ones.

        Where fewer requests get to every stop, every mean and quantile of latency, energy and bytes is lower, so
        only accuracy could speak for the others, and all of these are accurate enough.
        """
        alike: dict[object, list[Choice]] = {}
        for choice in self.choices():
            exits = tuple(index for index, _ in choice.operating_point.policy)
            alike.setdefault((choice.route, choice.exit_tiers, choice.codecs, exits), []).append(choice)
        return [choice for same in alike.values() for choice in _undominated(same)]

    def _routes(self) -> Iterator[tuple[Tier, ...]]:
        """Sets of tiers, the device always first: the request enters there, though it may run nothing."""
        outer = [t for t in self.table.tiers if t is not Tier.DEVICE and t in self.policy.allowed_tiers]
        sets = ((Tier.DEVICE, *rest) for size in range(len(outer) + 1) for rest in combinations(outer, size))
        yield from (s for s in sets if self.runs_on is None or set(s) - {Tier.DEVICE} == self.runs_on - {Tier.DEVICE})

    def _codec_sets(self, boundaries: int) -> Iterator[tuple[str, ...]]:
        """Codecs per boundary; two different lossy ones in a row have no evidence and are left out."""
        for codecs in product(dict.fromkeys(self.codecs), repeat=boundaries):
            if len(set(codecs) - KEEPS_THE_INPUT) <= 1:
                yield codecs

    def _choice(
        self, policy: ExitPolicy, route: tuple[Tier, ...], exit_tiers: tuple[Tier, ...], codecs: tuple[str, ...]
    ) -> Choice | None:
        seen = []
        for tier in exit_tiers:
            crossed = {c for c, stop in zip(codecs, route[1:], strict=True) if stop.rank <= tier.rank}
            seen.append(next(iter(crossed - KEEPS_THE_INPUT), "none"))
        operating_point = self.exits.at(policy, seen)
        return None if operating_point is None else Choice(route, exit_tiers, codecs, operating_point)

    def outputs(self, policy: ExitPolicy) -> tuple[tuple[str, ...], ...]:
        """Logits of each exit in use; without inner evidence all of a model's outputs are its end."""
        names, exits = [t.name for t in self.table.graph.outputs], self.table.graph.exits
        if not self.exits.rows:
            return ((*(name for name in names if name != exits[-1]), exits[-1]),)
        whole = (*(name for name in names if name not in exits), exits[-1])
        return tuple(whole if index == len(exits) - 1 else (exits[index],) for index, _ in policy)

    def needed(self, policy: ExitPolicy) -> tuple[int, ...]:
        """Indices of the groups that the exits in use depend on."""
        outputs = self.outputs(policy)
        if outputs not in self._needed:
            self._needed[outputs] = self._ancestors(outputs)
        return self._needed[outputs]

    @cached_property
    def _needed(self) -> dict[tuple[tuple[str, ...], ...], tuple[int, ...]]:
        return {}

    def _ancestors(self, outputs: tuple[tuple[str, ...], ...]) -> tuple[int, ...]:
        condensed = self.table.graph.condensed
        todo = [condensed.producer[name] for names in outputs for name in names]
        found = set[int]()
        while todo:
            index = todo.pop()
            if index >= 0 and index not in found:
                found.add(index)
                todo.extend(condensed.producer[t] for t in condensed.groups[index].inputs)
        return tuple(sorted(found))

    def problem(self, choice: Choice, prices: Prices) -> tuple[Problem, tuple[int, ...]]:
        """The inner problem of a choice.

        Args:
            choice: Everything but the placement.
            prices: What to minimise.

        Returns:
            The problem with the stops of the route as tiers, and the index of each of its groups in the condensed graph.
        """
        groups = self.needed(choice.operating_point.policy)
        position = {index: n for n, index in enumerate(groups)}
        seconds = tuple(
            tuple(
                self._group_price(index, tier, r, prices) for tier, r in zip(choice.route, choice.reached, strict=True)
            )
            for index in groups
        )
        condensed = self.table.graph.condensed
        flows = tuple(
            Flow(
                position.get(condensed.producer[name], -1),
                readers,
                tuple(self._crossing_price(choice, b, name, prices) for b in range(len(choice.codecs))),
            )
            for name in condensed.tensors
            if (readers := tuple(position[c] for c in condensed.consumers[name] if c in position))
        )
        pinned = {
            position[condensed.producer[name]]: choice.route.index(tier)
            for names, tier in zip(self.outputs(choice.operating_point.policy), choice.exit_tiers, strict=True)
            for name in names
        }
        fixed = tuple(self._fixed_price(choice, b, prices) for b in range(len(choice.codecs)))
        ones = (1.0,) * len(groups)
        call = self._call_price(prices)
        return Problem(seconds, ones, flows, fixed, call, (), tuple(pinned.items())), groups

    def _call_price(self, prices: Prices) -> float:
        """Running anything on the device; outer tiers always run something, so their calls are in the fixed prices."""
        seconds = self.table.call_s(Tier.DEVICE)
        return prices.seconds * seconds + prices.joules * self.table.energy.active_power_w * seconds

    def _group_price(self, index: int, tier: Tier, reached: float, prices: Prices) -> float:
        if tier not in self.policy.allowed_tiers or tier not in self.table.profiles:
            return inf
        seconds = self.table.group_seconds(tier, index, p95=prices.p95)
        energy = self.table.energy.active_power_w * seconds if tier is Tier.DEVICE else 0.0
        return reached * (prices.seconds * seconds + prices.joules * energy)

    def _crossing_price(self, choice: Choice, boundary: int, name: str, prices: Prices) -> float:
        source, target, codec = choice.route[boundary], choice.route[boundary + 1], choice.codecs[boundary]
        raw = name in self.table.graph.condensed.raw_tensors
        furthest = self.policy.raw_may_reach if raw else self.policy.features_may_reach
        if (
            target.rank > furthest.rank
            or (raw and codec not in KEEPS_THE_INPUT)
            or (not raw and codec in ("uint8", "png"))
        ):
            return inf
        size = self.table.coded_bytes(codec, name) + self.table.header_bytes(codec, name)
        seconds = self.table.transfer_s(source, target, size)
        seconds += self.table.codec_seconds(source, codec, name) + self.table.codec_seconds(target, codec, name)
        sent = prices.sent_bytes + prices.joules * self.table.energy.joules_per_byte
        return choice.reached[boundary + 1] * (
            prices.seconds * seconds + (sent * size if source is Tier.DEVICE else 0.0)
        )

    def _fixed_price(self, choice: Choice, boundary: int, prices: Prices) -> float:
        source, target = choice.route[boundary], choice.route[boundary + 1]
        energy = self.table.energy
        size = self.table.links[0].frame_overhead_bytes if source is Tier.DEVICE else 0
        joules = (energy.radio_tail_j if source is Tier.DEVICE else 0.0) + energy.joules_per_byte * size
        price = prices.seconds * self.table.fixed_s(source, target) + prices.joules * joules + prices.sent_bytes * size
        return choice.reached[boundary + 1] * price + prices.seconds * self._answer_s(choice, source, target)

    def _answer_s(self, choice: Choice, source: Tier, target: Tier) -> float:
        """Expected seconds that answers take back over a boundary: those of the exits beyond it."""
        point = choice.operating_point
        ends = zip(choice.exit_tiers, point.fractions, self.outputs(point.policy), strict=True)
        return sum(
            fraction * self.table.answer_s(target, source, tensors)
            for tier, fraction, tensors in ends
            if tier.rank >= target.rank
        )

    def solve(self, choice: Choice, prices: Prices) -> Plan | None:
        """The best placement of a choice.

        Args:
            choice: Everything but the placement.
            prices: What to minimise.

        Returns:
            The plan; None if the choice's tiers or data rules forbid every placement.
        """
        problem, groups = self.problem(choice, prices)
        solution = self._on_all(problem)
        if not solution.is_feasible:
            return None
        tiers = {index: choice.route[t] for index, t in zip(groups, solution.tiers, strict=True)}
        if not set(choice.route[1:-1]) <= set(tiers.values()):
            return None  # a stop without work: the choice without that stop is the same plan, cheaper
        codecs = dict(zip(pairwise(choice.route), choice.codecs, strict=True))
        placement = Placement(
            choice.operating_point, choice.exit_tiers, tiers, codecs, self.outputs(choice.operating_point.policy)
        )
        return make_plan(self.table, placement, self.training_domain, self.variant)

    def _on_all(self, problem: Problem) -> Solution:
        """Solves; where the device must run something but would not, tries each group that may be first."""
        solution = self.solver(problem)
        if self.runs_on is None or Tier.DEVICE not in self.runs_on or 0 in solution.tiers or not solution.is_feasible:
            return solution
        made = set(range(problem.num_groups)) - {u for f in problem.flows if f.producer >= 0 for u in f.consumers}
        pinned = (msgspec.structs.replace(problem, pinned=(*problem.pinned, (n, 0))) for n in sorted(made))
        return min((self.solver(p) for p in pinned), key=lambda s: s.cost)

    def lower_bound(self, choice: Choice, prices: Prices) -> float:
        """A cost that no placement of a choice is below: every group at its cheapest, boundaries at their fixed cost."""
        reached = list(zip(choice.route, choice.reached, strict=True))
        compute = sum(
            min(self._group_price(index, tier, r, prices) for tier, r in reached)
            for index in self.needed(choice.operating_point.policy)
        )
        return compute + sum(self._fixed_price(choice, b, prices) for b in range(len(choice.codecs)))

    def pinned_to(self, tiers: Sequence[Tier]) -> Search:
        """The same search on fewer tiers."""
        allowed = tuple(t for t in TIERS if t in tiers and t in self.policy.allowed_tiers)
        return replace(self, policy=msgspec.structs.replace(self.policy, allowed_tiers=allowed))


def _undominated(choices: Sequence[Choice]) -> list[Choice]:
    kept: list[Choice] = []
    for choice in sorted(choices, key=lambda c: (c.reached, -c.operating_point.accuracy)):
        if not any(all(a <= b for a, b in zip(k.reached, choice.reached, strict=True)) for k in kept):
            kept.append(choice)
    return kept
