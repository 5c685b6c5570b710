"""The chain planner: `plan(...)` gives the best plan that meets a policy, or says which limit is in the way.

How to use::

    found = plan(graph, {Tier.DEVICE: p0, Tier.EDGE: p1, Tier.CLOUD: p2}, [device_edge, edge_cloud], policy,
                 version.evidence, codecs=("none", "int8"), training_domain=version.training_domain)
    print("\\n".join(explain(found)))                      # explain.py
    rows = plan_levels(...)                               # levels.py: all seven levels, baselines, recommendation

Codecs are names that `make_codec` builds. Sizes of data-dependent codecs are given as `sizes[codec, tensor]`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any

import msgspec

from edgewise.core.errors import InputError, PlanInfeasible, nearest
from edgewise.core.ids import Tier
from edgewise.models.graph.graph import Graph
from edgewise.models.version import FEDERATED, ExitEvidence
from edgewise.planning.costs.cost import CostTable, EnergyCost, default_energy
from edgewise.planning.moves.exits import ExitTable
from edgewise.planning.placement import PLACEMENT_SOLVERS
from edgewise.planning.plan import Plan
from edgewise.planning.policy import Policy
from edgewise.planning.profile import LinkState, Profile
from edgewise.planning.search import Choice, Prices, Search

_BISECTIONS = 8
_STEEPEST = 1e6

OBJECTIVES: dict[str, Callable[[Plan], float]] = {
    "latency": lambda plan: plan.predicted.latency_mean_s,
    "latency_p95": lambda plan: plan.predicted.latency_p95_s,
    "device_energy": lambda plan: plan.predicted.device_energy_j,
}


class Limit(msgspec.Struct, frozen=True):
    """A limit of a policy beside a plan's value.

    Attributes:
        name: The policy's field.
        value: What the plan is predicted to have.
        bound: What the policy allows.
    """

    name: str
    value: float
    bound: float


def make_search(
    graph: Graph,
    profiles: Mapping[Tier, Profile],
    links: Sequence[LinkState],
    policy: Policy,
    evidence: Iterable[ExitEvidence] = (),
    *,
    codecs: Sequence[str] = ("none",),
    training_domain: str = FEDERATED,
    sizes: Mapping[tuple[str, str], int] | None = None,
    energy: EnergyCost | None = None,
    slowdown: Mapping[Tier, float] | None = None,
    solver: str = "min_cut",
    max_accuracy_loss: float = 0.02,
    variant: str = "float32",
) -> Search:
    """Puts together what a plan is made from; levels, maps and replanning work on it too.

    Args:
        graph: What to run.
        profiles: Of this very graph, by tier.
        links: Device–edge, edge–cloud; leave the second out if there is no cloud.
        policy: Objective and limits.
        evidence: Accuracy and exit shares from calibration data; without, the model runs to its end, uncoded.
        codecs: Names tried at each boundary.
        training_domain: Of the model.
        sizes: Measured coded bytes by (codec, tensor).
        energy: The device's energy model; by default from profile and link.
        slowdown: Observed factors on profiled seconds, by tier.
        solver: Name in `PLACEMENT_SOLVERS`.
        max_accuracy_loss: How far exits and codecs may fall below the whole model's own accuracy, 0…1.
        variant: What the graph is of the model: `float32` itself, `int8`, `narrow`, …

    Returns:
        The search.

    Raises:
        InputError: If a profile does not belong to the graph, or a name is unknown.
    """
    if solver not in PLACEMENT_SOLVERS:
        raise InputError(f"there is no placement solver {solver!r}.{nearest(solver, PLACEMENT_SOLVERS)}")
    if policy.objective not in OBJECTIVES:
        raise InputError(f"a policy has no objective {policy.objective!r}.{nearest(policy.objective, OBJECTIVES)}")
    table = CostTable(graph, profiles, links, sizes or {}, energy or default_energy(profiles, links), slowdown or {})
    exits = ExitTable.of(evidence, len(graph.exits))
    return Search(
        table,
        policy,
        exits,
        tuple(codecs),
        training_domain,
        PLACEMENT_SOLVERS[solver],
        variant,
        max_accuracy_loss=max_accuracy_loss,
    )


def plan(
    graph: Graph,
    profiles: Mapping[Tier, Profile],
    links: Sequence[LinkState],
    policy: Policy,
    evidence: Iterable[ExitEvidence] = (),
    **settings: Any,
) -> Plan:
    """Finds the best plan that meets a policy: `best_plan` of `make_search`, whose arguments these are.

    Args:
        graph: What to run.
        profiles: As in `make_search`.
        links: As in `make_search`.
        policy: Objective and limits.
        evidence: As in `make_search`.
        **settings: As in `make_search`.

    Returns:
        The best plan, with predictions.

    Raises:
        PlanInfeasible: If no plan meets the policy; names the binding limit and its nearest feasible value.
        InputError: As `make_search`.
    """
    return best_plan(make_search(graph, profiles, links, policy, evidence, **settings))


def best_plan(search: Search) -> Plan:
    """The best plan of a search.

    Args:
        search: From `make_search`.

    Returns:
        The plan.

    Raises:
        PlanInfeasible: As `plan`.
    """
    found = find_best(search)
    if found is None:
        raise _infeasible(search)
    return found


def find_best(
    search: Search, objective: Callable[[Plan], float] | None = None, prices: Prices | None = None
) -> Plan | None:
    """The best plan of a search, or None.

    Args:
        search: From `make_search`.
        objective: What to minimise over the choices; by default the policy's.
        prices: What to minimise inside a choice; by default those of the policy's objective.

    Returns:
        The best plan that keeps every limit.
    """
    choices = search.best_choices() if objective is not _inaccuracy else search.choices()
    prunes = objective is None and search.policy.objective == "latency"
    objective, prices = objective or OBJECTIVES[search.policy.objective], prices or _prices(search)
    bounds = [(search.lower_bound(choice, prices), number, choice) for number, choice in enumerate(choices)]
    # Constant for every plan, so the bounds leave it out: the request is handled on the device in any case.
    overhead_s = search.table.overhead_s(Tier.DEVICE)
    best: Plan | None = None
    for bound, _, choice in sorted(bounds, key=lambda row: row[:2]):
        if not isfinite(bound) or (prunes and best is not None and bound + overhead_s >= objective(best)):
            break
        for candidate in _within_limits(search, choice, prices):
            if best is None or objective(candidate) < objective(best):
                best = candidate
    return best


def _prices(search: Search) -> Prices:
    if search.policy.objective == "device_energy":
        return Prices(seconds=max(search.table.energy.idle_power_w, 1e-9), joules=1.0)
    return Prices(p95=search.policy.objective == "latency_p95")


def violations(plan: Plan, policy: Policy) -> tuple[Limit, ...]:
    """Limits that a plan does not keep.

    Args:
        plan: With predictions.
        policy: With limits.

    Returns:
        The limits that are broken; empty if the plan is allowed.
    """
    found, predicted = [], plan.predicted
    if policy.min_accuracy > 0 and not predicted.accuracy >= policy.min_accuracy:
        found.append(Limit("min_accuracy", predicted.accuracy, policy.min_accuracy))
    for name, value, bound in (
        ("max_latency_s", predicted.latency_p95_s, policy.max_latency_s),
        ("max_device_energy_j", predicted.device_energy_j, policy.max_device_energy_j),
        ("max_egress_bytes", predicted.egress_bytes, policy.max_egress_bytes),
    ):
        if bound is not None and value > bound:
            found.append(Limit(name, value, bound))
    return tuple(found)


def _within_limits(search: Search, choice: Choice, prices: Prices) -> list[Plan]:
    """The best placement, or where it breaks a budget the best ones on the way to the cheapest (Lagrange)."""
    first = search.solve(choice, prices)
    broken = violations(first, search.policy) if first is not None else ()
    if first is None or not broken:
        return [first] if first is not None else []
    weigh = {"max_device_energy_j": ("joules", 1.0), "max_egress_bytes": ("sent_bytes", 1e-3)}
    budgets = [limit.name for limit in broken if limit.name in weigh]
    if not budgets:
        return []
    field, unit = weigh[budgets[0]]
    found, low, high = [], 0.0, _STEEPEST
    for step in range(_BISECTIONS + 1):
        weight = high if step == 0 else (low * high) ** 0.5 if low > 0 else high * 1e-2
        candidate = search.solve(choice, msgspec.structs.replace(prices, **{field: weight * unit}))
        if candidate is not None and not violations(candidate, search.policy):
            found.append(candidate)
            high = weight
        elif step == 0:
            return []
        else:
            low = weight
    return found


def _infeasible(search: Search) -> PlanInfeasible:
    for relaxation in _relaxations(search.policy):
        name, relaxed = relaxation.name, replace(search, policy=relaxation.policy)
        other = find_best(relaxed, relaxation.objective, relaxation.prices)
        if other is None:
            continue
        value, bound = relaxation.read(other), getattr(search.policy, name)
        return PlanInfeasible(
            f"no plan meets the policy: {name} = {_text(bound)} is binding, the nearest feasible is {_text(value)} "
            f"with {other.name!r}. Set {name} to {_text(value)}, or relax another limit.",
            constraint=name,
            bound=bound,
            nearest=value,
            plan=other.name,
        )
    tiers = ", ".join(search.table.tiers) or "none"
    return PlanInfeasible(
        f"no plan meets the policy, and no single limit is in the way: tiers there are: {tiers}; allowed: "
        f"{', '.join(search.policy.allowed_tiers) or 'none'}. Relax several limits, allow more tiers, or profile "
        "another node.",
        constraint="several",
    )


@dataclass(frozen=True)
class _Relaxation:
    """A policy without one of its limits, and how to come as near to that limit as can be."""

    name: str
    policy: Policy
    objective: Callable[[Plan], float]
    prices: Prices
    read: Callable[[Plan], float | str]


def _relaxations(policy: Policy) -> Iterator[_Relaxation]:
    change = msgspec.structs.replace
    if policy.min_accuracy > 0:
        free = change(policy, min_accuracy=0.0)
        yield _Relaxation("min_accuracy", free, _inaccuracy, Prices(), lambda p: p.predicted.accuracy)
    if policy.max_latency_s is not None:
        free, p95 = change(policy, max_latency_s=None), OBJECTIVES["latency_p95"]
        yield _Relaxation("max_latency_s", free, p95, Prices(p95=True), p95)
    if policy.max_device_energy_j is not None:
        free, joules = change(policy, max_device_energy_j=None), OBJECTIVES["device_energy"]
        yield _Relaxation("max_device_energy_j", free, joules, Prices(seconds=1e-9, joules=1.0), joules)
    if policy.max_egress_bytes is not None:
        free = change(policy, max_egress_bytes=None)
        prices = Prices(seconds=1e-9, sent_bytes=1.0)
        yield _Relaxation("max_egress_bytes", free, _egress, prices, _egress)
    for name in ("raw_may_reach", "features_may_reach"):
        free = change(policy, **{name: Tier.CLOUD})
        yield _Relaxation(name, free, OBJECTIVES["latency"], Prices(), lambda p: str(p.site_of(p.handovers[-1].target)))


def _inaccuracy(plan: Plan) -> float:
    return -plan.predicted.accuracy if plan.predicted.accuracy >= 0 else 1.0


def _egress(plan: Plan) -> float:
    return plan.predicted.egress_bytes


def _text(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


__all__ = ["OBJECTIVES", "Limit", "best_plan", "find_best", "make_search", "plan", "violations"]
