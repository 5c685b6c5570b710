"""When to change the plan: a pure step over observations, with estimates, hysteresis and a dwell.

    state = start(search, plan, candidates, settings)                # candidates: a plan map's plans, a local plan
    state, actions = step(state, LinkObserved(now, boundary=0, bytes_per_s=8e3))
    for action in actions: ...                                       # SwitchPlan(plan, reason, gain_s)

A switch needs a gain above max(δ · cost, 2σ) that, over the expected dwell, pays its own cost, and comes at most once
per dwell. Only the loss of a tier that the plan runs on is answered at once.
"""

from __future__ import annotations

from dataclasses import replace
from math import exp, inf, log, sqrt

import msgspec

from edgewise.core.ids import TIERS, Tier
from edgewise.planning.choose import OBJECTIVES, violations
from edgewise.planning.costs.cost import CostTable
from edgewise.planning.costs.predict import repriced
from edgewise.planning.plan import Plan
from edgewise.planning.search import Search

_SURPRISE_SIGMAS = 3.0
_SURPRISE_LEAST = log(1.5)


class Settings(msgspec.Struct, frozen=True):
    """How eager replanning is.

    Attributes:
        smoothing: Weight of a new observation in the estimates, α.
        min_gain_fraction: Least gain worth a switch, as a share of the current cost, δ.
        dwell_s: Least time between switches, and the time a gain is expected to last.
        switch_cost_s: Latency that a switch costs in all; 0 for warm plans.
        requests_per_s: Expected load, for weighing gain against the cost of switching.
    """

    smoothing: float = 0.3
    min_gain_fraction: float = 0.1
    dwell_s: float = 2.0
    switch_cost_s: float = 0.0
    requests_per_s: float = 1.0


class Estimate(msgspec.Struct, frozen=True):
    """A positive quantity, followed on a logarithmic scale so that halving and doubling count the same.

    Attributes:
        log_mean: Exponentially weighted mean of the logarithm.
        log_variance: Of the logarithm.
        surprises: Observations in a row far outside; the second one starts the estimate anew.
    """

    log_mean: float
    log_variance: float = 0.0
    surprises: int = 0

    @property
    def value(self) -> float:
        """The quantity."""
        return exp(self.log_mean)

    @property
    def sigma(self) -> float:
        """Standard deviation of its logarithm."""
        return sqrt(self.log_variance)

    def seen(self, value: float, smoothing: float) -> Estimate:
        """The estimate after an observation.

        Args:
            value: What was observed; what is not a positive number says nothing and is passed over.
            smoothing: Weight of it, α.

        Returns:
            The new estimate.
        """
        if not 0.0 < value < inf:
            return self
        gap = log(value) - self.log_mean
        surprises = self.surprises + 1 if abs(gap) > max(_SURPRISE_SIGMAS * self.sigma, _SURPRISE_LEAST) else 0
        if surprises >= 2:
            return Estimate(log(value))
        if surprises == 1:
            return msgspec.structs.replace(self, surprises=1)
        variance = (1 - smoothing) * (self.log_variance + smoothing * gap * gap)
        return Estimate(self.log_mean + smoothing * gap, variance)


class LinkObserved(msgspec.Struct, frozen=True):
    """A transfer or probe was measured; NaN-free, a quantity that was not measured is None."""

    time_s: float
    boundary: int
    bytes_per_s: float | None = None
    rtt_s: float | None = None


class StageObserved(msgspec.Struct, frozen=True):
    """A tier ran its stages in `seconds` where the profile says `profiled_s`."""

    time_s: float
    tier: Tier
    seconds: float
    profiled_s: float


class TierLost(msgspec.Struct, frozen=True):
    """No node of a tier can be reached any more."""

    time_s: float
    tier: Tier


class TierReturned(msgspec.Struct, frozen=True):
    """A node of a lost tier is back."""

    time_s: float
    tier: Tier


Observation = LinkObserved | StageObserved | TierLost | TierReturned


class SwitchPlan(msgspec.Struct, frozen=True):
    """Put another plan in force.

    Attributes:
        plan: Which, with its prediction under the present estimates.
        reason: One sentence.
        gain_s: Predicted gain in the objective; infinity where the old plan cannot run at all.
    """

    plan: Plan
    reason: str
    gain_s: float


class ReplanState(msgspec.Struct, frozen=True):
    """Everything `step` knows.

    Attributes:
        search: Costs as profiled, policy, objective.
        settings: How eager.
        current: The plan in force.
        candidates: Plans that may be switched to; they are warm or quick to warm.
        rates: Estimate of each link's bytes per second.
        rtts: Of each link's round trip.
        slowdowns: Of each tier's seconds over its profile.
        lost: Tiers that cannot be reached.
        switched_at_s: When the plan was last changed.
    """

    search: Search
    settings: Settings
    current: Plan
    candidates: tuple[Plan, ...]
    rates: tuple[Estimate, ...]
    rtts: tuple[Estimate, ...]
    slowdowns: dict[Tier, Estimate]
    lost: frozenset[Tier] = frozenset()
    switched_at_s: float = -inf


def start(
    search: Search, plan: Plan, candidates: tuple[Plan, ...], settings: Settings | None = None, *, time_s: float = -inf
) -> ReplanState:
    """The state before the first observation.

    Args:
        search: What the plans were made from.
        plan: The plan in force.
        candidates: Others, e.g. `plan_map(...).plans` and one that needs no other node.
        settings: How eager.
        time_s: When the plan was put in force.

    Returns:
        The state.
    """
    links = search.table.links
    return ReplanState(
        search,
        settings or Settings(),
        plan,
        (plan, *(c for c in candidates if c != plan)),
        tuple(Estimate(log(link.bytes_per_s)) for link in links),
        tuple(Estimate(log(max(link.rtt_s, 1e-6))) for link in links),
        {tier: Estimate(0.0) for tier in search.table.tiers},
        switched_at_s=time_s,
    )


def step(state: ReplanState, observation: Observation) -> tuple[ReplanState, list[SwitchPlan]]:
    """Takes in an observation and decides whether another plan is worth it.

    Args:
        state: Before.
        observation: What was seen.

    Returns:
        State after, and at most one action.
    """
    state = _estimated(state, observation)
    table = estimated_table(state)
    current = _cost(state, table, state.current)
    priced = [(current if plan == state.current else _cost(state, table, plan), plan) for plan in state.candidates]
    least, best = min(priced, key=lambda row: row[0])
    gain = current - least
    if best == state.current or not gain > 0 or least == inf:
        return state, []
    if current < inf and not _is_worth_it(state, observation.time_s, best, current, gain):
        return state, []
    chosen = repriced(table, best)
    reason = _reason(state, current, gain, best)
    switched = msgspec.structs.replace(state, current=best, switched_at_s=observation.time_s)
    return switched, [SwitchPlan(chosen, reason, gain)]


def _estimated(state: ReplanState, observation: Observation) -> ReplanState:
    change, alpha = msgspec.structs.replace, state.settings.smoothing
    if isinstance(observation, TierLost):
        return change(state, lost=state.lost | {observation.tier})
    if isinstance(observation, TierReturned):
        return change(state, lost=state.lost - {observation.tier})
    if isinstance(observation, StageObserved):
        factor = observation.seconds / observation.profiled_s if observation.profiled_s > 0 else 0.0
        known = state.slowdowns.get(observation.tier, Estimate(0.0))
        return change(state, slowdowns={**state.slowdowns, observation.tier: known.seen(factor, alpha)})
    at = observation.boundary
    if observation.bytes_per_s is not None:
        state = change(state, rates=_replaced(state.rates, at, state.rates[at].seen(observation.bytes_per_s, alpha)))
    if observation.rtt_s is not None:
        state = change(state, rtts=_replaced(state.rtts, at, state.rtts[at].seen(observation.rtt_s, alpha)))
    return state


def _replaced(estimates: tuple[Estimate, ...], at: int, new: Estimate) -> tuple[Estimate, ...]:
    return (*estimates[:at], new, *estimates[at + 1 :])


def estimated_table(state: ReplanState) -> CostTable:
    """Costs under the present estimates.

    Args:
        state: With estimates.

    Returns:
        The search's table with links and slowdowns as estimated.
    """
    table = state.search.table
    links = tuple(
        msgspec.structs.replace(link, bytes_per_s=rate.value, rtt_s=rtt.value)
        for link, rate, rtt in zip(table.links, state.rates, state.rtts, strict=True)
    )
    return replace(table, links=links, slowdown={t: e.value for t, e in state.slowdowns.items()})


def _cost(state: ReplanState, table: CostTable, plan: Plan) -> float:
    """The objective of a plan; infinity if it uses a lost tier, also one that only relays, or breaks a limit."""
    furthest = max((tier.rank for tier in plan.tiers), default=0)
    if state.lost & set(TIERS[1 : furthest + 1]):
        return inf
    now = repriced(table, plan)
    policy = state.search.policy
    return inf if plan != state.current and violations(now, policy) else OBJECTIVES[policy.objective](now)


def _is_worth_it(state: ReplanState, time_s: float, best: Plan, current: float, gain: float) -> bool:
    settings = state.settings
    if time_s - state.switched_at_s < settings.dwell_s:
        return False
    if gain <= max(settings.min_gain_fraction * current, 2.0 * gain_sigma(state, best)):
        return False
    return gain * settings.requests_per_s * settings.dwell_s > settings.switch_cost_s


def gain_sigma(state: ReplanState, best: Plan) -> float:
    """Standard deviation of the gain of a plan over the current one, from that of every estimate.

    Args:
        state: With estimates.
        best: The other plan.

    Returns:
        Seconds (or joules): root of the summed squares of half the gain's change over ±1σ of each estimate.
    """
    change = msgspec.structs.replace
    total = 0.0
    for name in ("rates", "rtts"):
        estimates: tuple[Estimate, ...] = getattr(state, name)
        for at, estimate in enumerate(estimates):
            moved = [change(state, **{name: _replaced(estimates, at, _shifted(estimate, s))}) for s in (-1, 1)]
            total += _spread(moved, best, estimate)
    for tier, estimate in state.slowdowns.items():
        moved = [change(state, slowdowns={**state.slowdowns, tier: _shifted(estimate, s)}) for s in (-1, 1)]
        total += _spread(moved, best, estimate)
    return sqrt(total)


def _shifted(estimate: Estimate, sigmas: int) -> Estimate:
    return msgspec.structs.replace(estimate, log_mean=estimate.log_mean + sigmas * estimate.sigma)


def _spread(moved: list[ReplanState], best: Plan, estimate: Estimate) -> float:
    if estimate.log_variance == 0.0:
        return 0.0
    gains = []
    for state in moved:
        table = estimated_table(state)
        objective = OBJECTIVES[state.search.policy.objective]
        gains.append(objective(repriced(table, state.current)) - objective(repriced(table, best)))
    return (0.5 * (gains[1] - gains[0])) ** 2


def _reason(state: ReplanState, current: float, gain: float, best: Plan) -> str:
    if current == inf:
        lost = ", ".join(sorted(state.lost)) or "a limit"
        return f"{state.current.name} cannot run without {lost}; {best.name} can"
    return f"{best.name} is predicted {gain * 1e3:.2f} ms ({gain / current:.0%}) better than {state.current.name}"
