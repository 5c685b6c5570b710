"""The seven levels of edge intelligence as rows, the baselines beside them, and which plan to use.

A level is read off a plan: the tiers that run something and the training domain of the model it serves. Pinning a
level removes tiers and takes the evidence of that domain's model; nothing else differs.

| level | runs on | model trained |
|---|---|---|
| 0 | cloud | cloud |
| 1 | cloud and a lower tier | cloud |
| 2 | edge (and device) | cloud |
| 3 | device | cloud |
| 4 | cloud and a lower tier | federated, by all clients |
| 5 | edge (and device) | edge |
| 6 | device | device |

Reference:
    Zhou et al., "Edge Intelligence: Paving the Last Mile of Artificial Intelligence with Edge Computing",
    Proceedings of the IEEE 2019. Differs: levels are outputs of one planner, not modes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import inf, nan

import msgspec

from edgewise.core.errors import PlanInfeasible
from edgewise.core.ids import TIERS, Tier
from edgewise.models.version import FEDERATED, ExitEvidence
from edgewise.planning.choose import OBJECTIVES, best_plan, find_best
from edgewise.planning.moves.exits import ExitTable
from edgewise.planning.plan import Plan
from edgewise.planning.search import Search

DOMAINS: tuple[str, ...] = ("cloud", "cloud", "cloud", "cloud", FEDERATED, "edge", "device")
"""Training domain of each level's model."""
_FORMER = {"hierarchical": FEDERATED}
"""Words of versions and plans that were stored before a protocol and a domain had different names."""

_D, _E, _C = TIERS
_TIER_SETS: tuple[tuple[frozenset[Tier], ...], ...] = (
    (frozenset({_C}),),
    (frozenset({_D, _C}), frozenset({_E, _C}), frozenset({_D, _E, _C})),
    (frozenset({_E}), frozenset({_D, _E})),
    (frozenset({_D}),),
    (frozenset({_D, _C}), frozenset({_E, _C}), frozenset({_D, _E, _C})),
    (frozenset({_E}), frozenset({_D, _E})),
    (frozenset({_D}),),
)
"""For each level, the sets of tiers of which all, and only they, run something."""


class LevelRow(msgspec.Struct, frozen=True):
    """One level of the table.

    Attributes:
        level: 0 … 6.
        tiers: Tiers that run something in its best plan; those it would need if there is none.
        training_domain: Of the model it serves.
        feasible: Whether there is a plan.
        reason: Why not; empty if feasible.
        plan: The best plan; None if there is none.
        predicted_p50_ms: NaN if infeasible, as the numbers below.
        predicted_p95_ms: 95th percentile.
        device_energy_j: Per request, modelled.
        egress_bytes: Leaving the device per request.
        accuracy: Predicted.
    """

    level: int
    tiers: tuple[Tier, ...]
    training_domain: str
    feasible: bool
    reason: str = ""
    plan: Plan | None = None
    predicted_p50_ms: float = nan
    predicted_p95_ms: float = nan
    device_energy_j: float = nan
    egress_bytes: float = nan
    accuracy: float = nan


def level_of(plan: Plan) -> int:
    """Reads the level off a plan.

    Args:
        plan: Any plan.

    Returns:
        0 … 6. A plan of a federatedly trained model that runs below the cloud counts by where it runs and by who
        trained it together: device and edge alone as 5, device alone as 6.
    """
    tiers, trained = frozenset(plan.tiers), _FORMER.get(plan.training_domain, plan.training_domain)
    for level, domain in enumerate(DOMAINS):
        if trained == domain and tiers in _TIER_SETS[level]:
            return level
    if trained == "cloud":
        return 0
    return 4 if Tier.CLOUD in tiers else 5 if Tier.EDGE in tiers else 6


def plan_levels(search: Search, evidence: Mapping[str, Sequence[ExitEvidence]]) -> list[LevelRow]:
    """Plans every level.

    Args:
        search: The full search; its own exits are not used.
        evidence: Rows by training domain, of the model really trained so.

    Returns:
        Seven rows; a level that the policy forbids, that lacks a tier or a trained model is infeasible with the reason.
    """
    known = {_FORMER.get(domain, domain): rows for domain, rows in evidence.items()}
    return [_level_row(search, level, known) for level in range(7)]


def _level_row(search: Search, level: int, evidence: Mapping[str, Sequence[ExitEvidence]]) -> LevelRow:
    domain, sets = DOMAINS[level], _TIER_SETS[level]
    wanted = tuple(t for t in TIERS if t in sets[-1])
    if domain not in evidence:
        return LevelRow(level, wanted, domain, False, f"there is no model trained in domain {domain!r}")
    usable = [s for s in sets if s <= set(search.table.tiers) and s <= set(search.policy.allowed_tiers)]
    if not usable:
        missing = [t for t in wanted if t not in search.table.tiers] or [
            t for t in wanted if t not in search.policy.allowed_tiers
        ]
        why = "is not there" if missing[0] not in search.table.tiers else "is not allowed by the policy"
        return LevelRow(level, wanted, domain, False, f"needs tier '{missing[0]}', which {why}")
    exits = ExitTable.of(evidence[domain], len(search.table.graph.exits))
    searches = [replace(search.pinned_to(tuple(s)), exits=exits, training_domain=domain, runs_on=s) for s in usable]
    return _best_row(level, domain, wanted, searches)


def _best_row(level: int, domain: str, wanted: tuple[Tier, ...], searches: Sequence[Search]) -> LevelRow:
    objective = OBJECTIVES[searches[0].policy.objective]
    found = [plan for plan in map(find_best, searches) if plan is not None]
    if not found:
        try:
            best_plan(searches[-1])
        except PlanInfeasible as error:
            return LevelRow(level, wanted, domain, False, error.message)
    best = min(found, key=objective)
    return level_row(level, best)


def level_row(level: int, plan: Plan) -> LevelRow:
    """A feasible row from a plan.

    Args:
        level: 0 … 6.
        plan: Its best plan.

    Returns:
        The row.
    """
    predicted = plan.predicted
    return LevelRow(
        level,
        plan.tiers,
        plan.training_domain,
        True,
        "",
        plan,
        predicted.latency_p50_s * 1e3,
        predicted.latency_p95_s * 1e3,
        predicted.device_energy_j,
        predicted.egress_bytes,
        predicted.accuracy,
    )


def margin_fraction(plan: Plan, single_node_plans: Sequence[Plan]) -> float:
    """How much faster a plan is than the best that uses one node.

    Args:
        plan: The plan.
        single_node_plans: Allowed plans with one running tier.

    Returns:
        1 − p50(plan) / p50(best of them); negative if collaborating does not pay, 1 if nothing else is allowed.
    """
    best = min((p.predicted.latency_p50_s for p in single_node_plans if not p.collaborates), default=inf)
    return 1.0 - plan.predicted.latency_p50_s / best if best > 0 else 0.0


class Recommendation(msgspec.Struct, frozen=True):
    """Which plan to use, and why.

    Attributes:
        plan: The plan.
        level: Read off it.
        margin_fraction: Of the median latency, over the best allowed plan that uses one node.
        collaborate: Whether more than one node computes.
        reason: One sentence.
        alone: The best allowed plan that uses one node, by the policy's objective; None if none is allowed.
        gain_fraction: What the plan gains over it in the objective; negative would be a loss, NaN without one.
        others: The best allowed plans of every other way: each variant on each node alone, and each variant shared.
    """

    plan: Plan
    level: int
    margin_fraction: float
    collaborate: bool
    reason: str
    alone: Plan | None = None
    gain_fraction: float = nan
    others: tuple[Plan, ...] = ()


def recommend(search: Search, variants: Sequence[Search] = (), *, min_margin_fraction: float = 0.03) -> Recommendation:
    """Chooses between collaborating and not, so that collaborating never does harm.

    Every variant of the model is a candidate in every way: on one node, and shared among several.

    Args:
        search: The full search with the served model's exits.
        variants: The same for other graphs that may be served in its place, e.g. quantised or narrower ones; they count
            where they are as accurate as the model, up to the search's `max_accuracy_loss`.
        min_margin_fraction: What a split must gain over the best single node, in objective; below it, one node is
            recommended, for it has fewer ways to fail.

    Returns:
        The recommendation.

    Raises:
        PlanInfeasible: If the policy cannot be met at all.
    """
    objective = OBJECTIVES[search.policy.objective]
    searches = in_place_of(search, variants)
    shared = [plan for plan in map(find_best, searches) if plan is not None]
    singles = [plan for each in searches for plan in single_node_plans(each)]
    if not shared:
        shared = [best_plan(search)]
    best = min(shared, key=objective)
    alone = min(singles, key=objective, default=None)
    if not best.collaborates:  # what sharing would cost is worth knowing then
        shared += [plan for each in searches for plan in shared_plans(each)]
    ways = {plan.digest: plan for plan in (*singles, *shared)}

    def said(plan: Plan, reason: str) -> Recommendation:
        gain = nan if alone is None or objective(alone) <= 0 else 1.0 - objective(plan) / objective(alone)
        others = tuple(sorted((p for d, p in ways.items() if d != plan.digest), key=objective))
        margin = margin_fraction(plan, singles)
        return Recommendation(plan, level_of(plan), margin, plan.collaborates, reason, alone, gain, others)

    if not best.collaborates:
        return said(best, f"do not collaborate: {best.name} is the best plan")
    if alone is None:
        return said(best, f"{best.name}: no single node meets the policy")
    gain = 1.0 - objective(best) / objective(alone) if objective(alone) > 0 else 0.0
    if gain >= min_margin_fraction:
        return said(best, f"{best.name} gains {gain:.1%} over {alone.name}")
    reason = (
        f"do not collaborate: {best.name} gains {gain:.1%} over {alone.name}, under the margin of "
        f"{min_margin_fraction:.0%} that is worth a second node"
    )
    return said(alone, reason)


def in_place_of(search: Search, variants: Sequence[Search]) -> tuple[Search, ...]:
    """The searches of a model and its variants, all under the model's policy and held to its accuracy.

    Args:
        search: Of the model.
        variants: Of other graphs that may be served in its place.

    Returns:
        The model's, then one of each variant.
    """
    policy, accuracy, loss = search.policy, search.whole_accuracy, search.max_accuracy_loss
    return (
        search,
        *(replace(each, policy=policy, reference_accuracy=accuracy, max_accuracy_loss=loss) for each in variants),
    )


def shared_plans(search: Search) -> list[Plan]:
    """The best allowed plan of each set of several tiers that all run something.

    Args:
        search: The full search.

    Returns:
        At most four plans.
    """
    there = {t for t in search.table.tiers if t in search.policy.allowed_tiers}
    sets = dict.fromkeys(s for tiers in _TIER_SETS for s in tiers if len(s) > 1 and s <= there)
    found = (find_best(replace(search.pinned_to(tuple(s)), runs_on=s)) for s in sets)
    return [plan for plan in found if plan is not None]


def single_node_plans(search: Search) -> list[Plan]:
    """The best allowed plan of each tier alone.

    Args:
        search: The full search.

    Returns:
        At most three plans.
    """
    alone = [t for t in search.table.tiers if t in search.policy.allowed_tiers]
    found = (find_best(replace(search.pinned_to((t,)), runs_on=frozenset({t}))) for t in alone)
    return [plan for plan in found if plan is not None]
