"""From a placement to a `Plan` with its prediction: every path's latency as a waterfall, energy, bytes.

The prediction follows the session: a tier runs its whole segment in one call, then decides at the exits it has, then
hands over all tensors of its cut in one frame. So a segment costs the share of requests that reach its tier.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import erf, isnan, sqrt

import msgspec

from edgewise.core.ids import TIERS, Tier
from edgewise.planning.costs.cost import CostTable
from edgewise.planning.moves.exits import OperatingPoint
from edgewise.planning.plan import Cut, Exit, Path, Plan, Prediction, Segment

_P95_SIGMAS = 1.645
_PRECISION = 1e-7


class Placement(msgspec.Struct, frozen=True):
    """A choice that can be predicted.

    Attributes:
        point: Exits, thresholds, and how the model then behaves.
        exit_tiers: Who decides at each exit in use.
        group_tiers: Tier of each needed group, by index.
        codecs: Codec by (source, target) of the cuts.
        outputs: Logits of each exit in use; all outputs of a model without inner exits belong to the last.
    """

    point: OperatingPoint
    exit_tiers: tuple[Tier, ...]
    group_tiers: dict[int, Tier]
    codecs: dict[tuple[Tier, Tier], str]
    outputs: tuple[tuple[str, ...], ...]


def make_plan(
    table: CostTable, placement: Placement, training_domain: str = "hierarchical", variant: str = "float32"
) -> Plan:
    """Writes a placement down as a plan.

    Args:
        table: Costs.
        placement: What runs where.
        training_domain: Of the model it serves.
        variant: `float32` or `int8`.

    Returns:
        The plan with its predicted costs.
    """
    running = tuple(t for t in TIERS if t in placement.group_tiers.values())
    stops = running if running[:1] == (Tier.DEVICE,) else (Tier.DEVICE, *running)
    cuts = tuple(_cut(table, placement, a, b) for a, b in pairwise(stops))
    segments = tuple(_segment(table, placement, cuts, t) for t in TIERS if t.rank <= stops[-1].rank)
    predicted = predict(table, placement, stops, cuts)
    return Plan(
        _name(running, cuts, placement, len(table.graph.outputs)),
        table.graph.digest,
        segments,
        cuts,
        _exits(placement),
        variant,
        predicted,
        training_domain=training_domain,
        profiles=table.digests,
    )


def placement_of(table: CostTable, plan: Plan) -> Placement:
    """Reads a plan back, to predict it again under other costs.

    Args:
        table: Of the same graph.
        plan: Any plan of it.

    Returns:
        The placement it was made from.
    """
    index = {g.name: g.index for g in table.graph.condensed.groups}
    policy = tuple((e.index, e.threshold) for e in plan.exits)
    point = OperatingPoint(policy, tuple(e.exit_fraction for e in plan.exits), plan.predicted.accuracy, 0)
    names = {t.name for t in table.graph.outputs}
    if len(plan.exits) > 1:
        outputs: tuple[tuple[str, ...], ...] = tuple((e.tensor,) for e in plan.exits)
    else:
        outputs = (tuple(o for s in plan.segments for o in s.outputs if o in names),)
    tiers = {index[name]: s.tier for s in plan.segments for name in s.groups}
    codecs = {(c.source, c.target): c.codec for c in plan.cuts}
    return Placement(point, tuple(e.tier for e in plan.exits), tiers, codecs, outputs)


def repriced(table: CostTable, plan: Plan) -> Plan:
    """The same plan with its prediction under other costs.

    Args:
        table: Costs as they are now.
        plan: Any plan of the table's graph.

    Returns:
        The plan; everything but `predicted` is unchanged.
    """
    stops = tuple(dict.fromkeys((Tier.DEVICE, *plan.tiers)))
    return msgspec.structs.replace(plan, predicted=predict(table, placement_of(table, plan), stops, plan.cuts))


def _crossing(table: CostTable, placement: Placement, source: Tier) -> tuple[str, ...]:
    """Tensors made at or before a tier and read beyond it, in order of production."""
    condensed, tiers = table.graph.condensed, placement.group_tiers
    return tuple(
        t
        for t in condensed.tensors
        if (condensed.producer[t] < 0 or tiers.get(condensed.producer[t], Tier.CLOUD).rank <= source.rank)
        and any(tiers[c].rank > source.rank for c in condensed.consumers[t] if c in tiers)
    )


def _cut(table: CostTable, placement: Placement, source: Tier, target: Tier) -> Cut:
    tensors = _crossing(table, placement, source)
    raw = any(t in table.graph.condensed.raw_tensors for t in tensors)
    codec = placement.codecs[source, target]
    return Cut(source, target, tensors, codec, sum(table.coded_bytes(codec, t) for t in tensors), raw)


def _segment(table: CostTable, placement: Placement, cuts: Sequence[Cut], tier: Tier) -> Segment:
    condensed = table.graph.condensed
    groups = [g for g in condensed.groups if placement.group_tiers.get(g.index) is tier]
    inputs = condensed.boundary(g.name for g in groups)[0]
    made = {o for g in groups for o in g.outputs}
    logits = [
        o for tensors, t in zip(placement.outputs, placement.exit_tiers, strict=True) if t is tier for o in tensors
    ]
    crossing = [t for cut in cuts if cut.source is tier for t in cut.tensors if t in made]
    return Segment(tier, tuple(g.name for g in groups), inputs, tuple(dict.fromkeys([*crossing, *logits])))


def _exits(placement: Placement) -> tuple[Exit, ...]:
    left, exits = 1.0, []
    point = placement.point
    rows = zip(point.policy, point.fractions, placement.exit_tiers, placement.outputs, strict=True)
    for (index, threshold), fraction, tier, outputs in rows:
        exits.append(Exit(index, outputs[-1], tier, threshold, max(0.0, left), fraction))
        left -= fraction
    return tuple(exits)


def _name(running: Sequence[Tier], cuts: Sequence[Cut], placement: Placement, num_exits: int) -> str:
    coded = [cut.codec + (" raw" if cut.carries_raw else "") for cut in cuts]
    inner = [f"exit {i} at {t:.2f}" for i, t in placement.point.policy if t > 0]
    last = placement.point.policy[-1][0]
    inner += [f"to exit {last}"] if last < num_exits - 1 else []
    kind = "split " if len(running) > 1 else "all on "
    return ", ".join([kind + "|".join(running), *(["+".join(coded)] if coded else []), *inner])


def predict(table: CostTable, placement: Placement, stops: Sequence[Tier], cuts: Sequence[Cut]) -> Prediction:
    """Predicts what a request costs.

    Args:
        table: Costs.
        placement: What runs where.
        stops: Tiers that requests visit, the device first.
        cuts: Between them.

    Returns:
        The prediction, a path per exit in use.
    """
    steps, spreads = _steps(table, placement, stops, cuts)
    reached = {tier: _reach(placement, tier) for tier in stops}
    paths = []
    for (index, _), tier, fraction in zip(
        placement.point.policy, placement.exit_tiers, placement.point.fractions, strict=True
    ):
        rows = [row for stop in stops if stop.rank <= tier.rank for row in steps[stop]]
        p50 = sum(seconds for _, seconds in rows)
        spread = sqrt(sum(spreads[stop] ** 2 for stop in stops if stop.rank <= tier.rank))
        paths.append(Path(index, fraction, p50, p50 + spread, tuple(rows)))
    sent = sum(reached[c.target] * _wire_bytes(table, c, 0) for c in cuts if c.source is Tier.DEVICE)
    wan = sum(reached[c.target] * _wire_bytes(table, c, 1) for c in cuts if c.target is Tier.CLOUD)
    mean = sum(p.fraction * p.p50_s for p in paths)
    return Prediction(
        mean,
        quantile(paths, 0.5),
        quantile(paths, 0.95),
        placement.point.accuracy,
        _energy_j(table, placement, stops, sent, mean, reached),
        sent,
        wan,
        tuple(paths),
    )


def _steps(
    table: CostTable, placement: Placement, stops: Sequence[Tier], cuts: Sequence[Cut]
) -> tuple[dict[Tier, list[tuple[str, float]]], dict[Tier, float]]:
    """Per tier, the waterfall from the hand-over on, and p95 − p50 of its compute."""
    steps: dict[Tier, list[tuple[str, float]]] = {}
    spreads: dict[Tier, float] = {}
    for stop in stops:
        rows = [row for cut in cuts if cut.target is stop for row in _hand_over(table, cut)]
        rows.append((f"{stop} overhead", table.overhead_s(stop)))
        median, p95 = table.segment_seconds(stop, [i for i, t in placement.group_tiers.items() if t is stop])
        if median > 0:
            rows.append((f"{stop} compute", median))
        steps[stop], spreads[stop] = rows, max(0.0, p95 - median)
    return steps, spreads


def _hand_over(table: CostTable, cut: Cut) -> list[tuple[str, float]]:
    encode = sum(table.codec_seconds(cut.source, cut.codec, t) for t in cut.tensors)
    decode = sum(table.codec_seconds(cut.target, cut.codec, t) for t in cut.tensors)
    rows = [(f"{cut.source} encode", encode)]
    for tier in TIERS[cut.source.rank : cut.target.rank]:
        link, outer = table.links[tier.rank], TIERS[tier.rank + 1]
        size = cut.payload_bytes + link.frame_overhead_bytes
        rows.append((f"{tier}→{outer} transfer", size / link.bytes_per_s))
        rows.append((f"{tier}→{outer} round trip", link.rtt_s))
        if outer is not cut.target:
            rows.append((f"{outer} relay", table.overhead_s(outer)))
    return [*rows, (f"{cut.target} decode", decode)]


def _wire_bytes(table: CostTable, cut: Cut, link: int) -> float:
    return float(cut.payload_bytes + table.links[link].frame_overhead_bytes)


def _reach(placement: Placement, tier: Tier) -> float:
    """Share of requests that get to a tier: those that have not left further in."""
    leaving = zip(placement.exit_tiers, placement.point.fractions, strict=True)
    return max(0.0, 1.0 - sum(fraction for t, fraction in leaving if t.rank < tier.rank))


def _energy_j(
    table: CostTable,
    placement: Placement,
    stops: Sequence[Tier],
    sent: float,
    mean_s: float,
    reached: dict[Tier, float],
) -> float:
    own = [i for i, t in placement.group_tiers.items() if t is Tier.DEVICE]
    busy = table.segment_seconds(Tier.DEVICE, own)[0] if own else 0.0
    energy = table.energy
    handed = reached[stops[1]] if len(stops) > 1 else 0.0
    waiting = energy.idle_power_w * max(0.0, mean_s - busy)
    return energy.active_power_w * busy + energy.joules_per_byte * sent + energy.radio_tail_j * handed + waiting


def quantile(paths: Sequence[Path], share: float) -> float:
    """Quantile of the latency over all paths, each a normal spread about its median.

    Args:
        paths: With fractions that sum to 1.
        share: Which quantile, 0…1.

    Returns:
        Seconds.
    """
    taken = [p for p in paths if p.fraction > 0 and not isnan(p.p50_s)]
    low, high = min(p.p50_s for p in taken), max(2 * p.p95_s - p.p50_s for p in taken)
    rows = [(p.fraction, p.p50_s, (p.p95_s - p.p50_s) / _P95_SIGMAS * sqrt(2)) for p in taken]
    wanted = share * sum(p.fraction for p in taken)
    while high - low > _PRECISION * high:
        middle = 0.5 * (low + high)
        below = 0.0
        for fraction, median, width in rows:
            below += fraction * (0.5 * (1 + erf((middle - median) / width)) if width > 0 else middle >= median)
        low, high = (middle, high) if below < wanted else (low, middle)
    return high
