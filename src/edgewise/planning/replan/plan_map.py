"""Which plan is best at which bandwidth: the whole answer from a handful of min-cuts.

The mean latency of a plan is a line in λ = 1/bandwidth, its slope the expected bytes over the link, both ways. The best plan's
latency is the lower envelope of those lines, concave and piecewise linear, so its corners are found by solving where
two known lines meet, until nothing better appears there.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import msgspec

from edgewise.core.errors import InputError, PlanInfeasible
from edgewise.planning.choose import find_best
from edgewise.planning.costs.predict import repriced
from edgewise.planning.plan import Plan
from edgewise.planning.search import Search

_TOLERANCE = 1e-9


class PlanMap(msgspec.Struct, frozen=True):
    """Plans by bandwidth of one link.

    Attributes:
        boundary: 0 for device–edge, 1 for edge–cloud.
        plans: From the narrowest link to the widest; `valid_bytes_per_s` of each is where it is the best.
    """

    boundary: int
    plans: tuple[Plan, ...]

    def at(self, bytes_per_s: float) -> Plan:
        """The best plan at a bandwidth.

        Args:
            bytes_per_s: Of the map's link.

        Returns:
            A plan of the map.
        """
        return next((p for p in self.plans if bytes_per_s <= p.valid_bytes_per_s[1]), self.plans[-1])


def plan_map(
    search: Search, *, boundary: int = 0, low_bytes_per_s: float = 1e3, high_bytes_per_s: float = 1e9
) -> PlanMap:
    """Finds every plan that is the best at some bandwidth.

    Args:
        search: The full search, with objective `latency` and without a limit on latency, which would break the map.
        boundary: Which link varies.
        low_bytes_per_s: Narrowest bandwidth looked at.
        high_bytes_per_s: Widest.

    Returns:
        The map; its first plan also stands for anything narrower, its last for anything wider.

    Raises:
        InputError: If the search's policy does not fit.
        PlanInfeasible: If there is no plan at all.

    Reference:
        Eisner & Severance, "Mathematical Techniques for Efficient Record Segmentation in Large Shared Databases",
        Journal of the ACM 1976.
    """
    if search.policy.objective != "latency" or search.policy.max_latency_s is not None:
        raise InputError(
            f"a plan map needs objective 'latency' and no max_latency_s, found {search.policy.objective!r} and "
            f"{search.policy.max_latency_s}. Make it from the policy without them and check plans afterwards."
        )
    narrow, wide = (_Line.at(search, boundary, 1.0 / rate) for rate in (low_bytes_per_s, high_bytes_per_s))
    lines = [wide, *_between(search, boundary, wide, narrow), narrow]
    kept = [line for n, line in enumerate(lines) if n == 0 or abs(line.slope - lines[n - 1].slope) > _TOLERANCE]
    corners = [_meet(a, b) for a, b in pairwise(kept)]
    lows = [*(1.0 / c for c in corners), 0.0]
    highs = [float("inf"), *(1.0 / c for c in corners)]
    plans = [
        msgspec.structs.replace(line.plan, valid_bytes_per_s=(low, high))
        for line, low, high in zip(kept, lows, highs, strict=True)
    ]
    return PlanMap(boundary, tuple(reversed(plans)))


class _Line(msgspec.Struct, frozen=True):
    """Mean latency of a plan as a + slope · λ."""

    plan: Plan
    constant: float
    slope: float

    @staticmethod
    def at(search: Search, boundary: int, inverse_rate: float) -> _Line:
        links = list(search.table.links)
        links[boundary] = msgspec.structs.replace(links[boundary], bytes_per_s=1.0 / inverse_rate)
        plan = find_best(replace(search, table=replace(search.table, links=tuple(links))))
        if plan is None:
            raise PlanInfeasible("no plan meets the policy at any bandwidth of this link. Ask `plan` for the limit.")
        links[boundary] = msgspec.structs.replace(links[boundary], bytes_per_s=1.0)
        slowest = repriced(replace(search.table, links=tuple(links)), plan).predicted
        slope = (slowest.latency_mean_s - plan.predicted.latency_mean_s) / (1.0 - inverse_rate)
        return _Line(plan, plan.predicted.latency_mean_s - slope * inverse_rate, slope)

    def value(self, inverse_rate: float) -> float:
        return self.constant + self.slope * inverse_rate


def _meet(a: _Line, b: _Line) -> float:
    """λ at which two lines cross."""
    return (b.constant - a.constant) / (a.slope - b.slope)


def _between(search: Search, boundary: int, wide: _Line, narrow: _Line) -> list[_Line]:
    if abs(wide.slope - narrow.slope) <= _TOLERANCE:
        return []
    corner = _meet(wide, narrow)
    if corner <= 0:
        return []
    found = _Line.at(search, boundary, corner)
    if found.value(corner) >= wide.value(corner) * (1 - _TOLERANCE):
        return []
    return [
        *_between(search, boundary, wide, found),
        found,
        *_between(search, boundary, found, narrow),
    ]
