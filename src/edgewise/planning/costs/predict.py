"""From a placement to a `Plan` with its prediction: every path's latency as a waterfall, energy, bytes.

The prediction follows the session: a tier runs its whole stage in one call, then asks the gates it has, then hands
over all its tensors in one frame. So a stage costs the share of requests that reach its tier.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import erf, isnan, sqrt

import msgspec

from edgewise.core.ids import TIERS, Tier
from edgewise.models.version import FEDERATED
from edgewise.planning.costs.cost import CostTable
from edgewise.planning.costs.operating_point import OperatingPoint
from edgewise.planning.plan import EXIT, FILTERED, FLOAT32, INPUT, Gate, Handover, Path, Plan, Prediction, Site, Stage

_P95_SIGMAS = 1.645
_PRECISION = 1e-7


class Placement(msgspec.Struct, frozen=True):
    """A choice that can be predicted.

    Attributes:
        operating_point: Exits, thresholds, and how the model then behaves.
        exit_tiers: Who decides at each exit in use.
        group_tiers: Tier of each needed group, by index.
        codecs: Codec by (source, target) of the hand-overs.
        outputs: Logits of each exit in use; all outputs of a model without inner exits belong to the last.
    """

    operating_point: OperatingPoint
    exit_tiers: tuple[Tier, ...]
    group_tiers: dict[int, Tier]
    codecs: dict[tuple[Tier, Tier], str]
    outputs: tuple[tuple[str, ...], ...]


def make_plan(table: CostTable, placement: Placement, training_domain: str = FEDERATED, variant: str = FLOAT32) -> Plan:
    """Writes a placement down as a plan.

    Args:
        table: Costs.
        placement: What runs where.
        training_domain: Of the model it serves.
        variant: What the graph is of the model: `float32` itself, `int8`, `narrow`, …

    Returns:
        The plan with its predicted costs.
    """
    running = tuple(t for t in TIERS if t in placement.group_tiers.values())
    route = running if running[:1] == (Tier.DEVICE,) else (Tier.DEVICE, *running)
    handovers = tuple(_handover(table, placement, a, b) for a, b in pairwise(route))
    stages = tuple(_stage(table, placement, handovers, t) for t in running)
    predicted = predict(table, placement, route, handovers)
    return Plan(
        _name(variant, running, handovers, placement, len(table.graph.exits)),
        table.graph.digest,
        stages,
        handovers,
        _gates(placement),
        variant,
        predicted,
        training_domain=training_domain,
        profiles=table.digests,
    )


def placement_of(table: CostTable, plan: Plan) -> Placement:
    """Reads a plan back, to predict it again under other costs.

    Args:
        table: Of the same graph.
        plan: Any plan of it that has one site on a tier.

    Returns:
        The placement it was made from.
    """
    policy = tuple((gate.index, gate.threshold) for gate in plan.exits)
    passing = 1.0 - sum(gate.end_fraction for gate in plan.filters)
    fractions = tuple(gate.end_fraction / passing if passing > 0 else 0.0 for gate in plan.exits)
    operating_point = OperatingPoint(policy, fractions, plan.predicted.accuracy, 0)
    tiers = {
        index: stage.site.tier
        for stage in plan.stages
        for index in table.graph.condensed.between(stage.inputs, stage.outputs)
    }
    codecs = {(plan.site_of(h.source).tier, plan.site_of(h.target).tier): h.codec for h in plan.handovers}
    at = tuple(plan.site_of(gate.at).tier for gate in plan.exits)
    return Placement(operating_point, at, tiers, codecs, tuple(gate.tensors for gate in plan.exits))


def repriced(table: CostTable, plan: Plan) -> Plan:
    """The same plan with its prediction under other costs.

    Args:
        table: Costs as they are now.
        plan: Any plan of the table's graph.

    Returns:
        The plan; everything but `predicted` is unchanged. A plan with several sites on one tier comes back as it is:
        the table knows one site of each.
    """
    if len(plan.sites) > len(plan.tiers):
        return plan
    route = tuple(dict.fromkeys((Tier.DEVICE, *plan.tiers)))
    predicted = predict(table, placement_of(table, plan), route, plan.handovers)
    for gate in plan.filters:
        predicted = filtered(predicted, gate.end_fraction, plan.predicted.accuracy, table)
    return msgspec.structs.replace(plan, predicted=predicted)


def filtered(predicted: Prediction, fraction: float, accuracy: float, table: CostTable | None = None) -> Prediction:
    """What a plan costs behind a filter that answers some requests before any stage.

    Args:
        predicted: Of the plan without it.
        fraction: Share of requests that the filter answers.
        accuracy: Of all requests.
        table: Knows what handling a request costs at all; nothing without.

    Returns:
        The prediction, with a path for the filter.
    """
    own_s = 0.0 if table is None else table.overhead_s(Tier.DEVICE)
    passing = 1.0 - fraction
    paths = (
        Path(FILTERED, fraction, own_s, own_s, ((f"{Tier.DEVICE} overhead", own_s),)),
        *(msgspec.structs.replace(path, fraction=passing * path.fraction) for path in predicted.paths),
    )
    mean = passing * predicted.latency_mean_s + fraction * own_s
    energy_j, sent, wan = (
        passing * v for v in (predicted.device_energy_j, predicted.egress_bytes, predicted.wan_bytes)
    )
    return Prediction(mean, quantile(paths, 0.5), quantile(paths, 0.95), accuracy, energy_j, sent, wan, paths)


def _crossing(table: CostTable, placement: Placement, source: Tier) -> tuple[str, ...]:
    """Tensors made at or before a tier and read beyond it, in order of production."""
    condensed, tiers = table.graph.condensed, placement.group_tiers
    return tuple(
        t
        for t in condensed.tensors
        if (condensed.producer[t] < 0 or tiers.get(condensed.producer[t], Tier.CLOUD).rank <= source.rank)
        and any(tiers[c].rank > source.rank for c in condensed.consumers[t] if c in tiers)
    )


def _handover(table: CostTable, placement: Placement, source: Tier, target: Tier) -> Handover:
    tensors = _crossing(table, placement, source)
    raw = any(t in table.graph.condensed.raw_tensors for t in tensors)
    codec, runs = placement.codecs[source, target], source in placement.group_tiers.values()
    size = sum(table.coded_bytes(codec, t) for t in tensors)
    return Handover(source if runs else INPUT, target, tensors, codec, payload_bytes=size, carries_raw=raw)


def _stage(table: CostTable, placement: Placement, handovers: Sequence[Handover], tier: Tier) -> Stage:
    condensed = table.graph.condensed
    groups = [g for g in condensed.groups if placement.group_tiers.get(g.index) is tier]
    inputs = condensed.boundary(g.name for g in groups)[0]
    made = {o for g in groups for o in g.outputs}
    logits = [
        o for tensors, t in zip(placement.outputs, placement.exit_tiers, strict=True) if t is tier for o in tensors
    ]
    crossing = [t for h in handovers if h.source == tier for t in h.tensors if t in made]
    return Stage(tier, table.graph.digest, inputs, tuple(dict.fromkeys([*crossing, *logits])), Site(tier))


def _gates(placement: Placement) -> tuple[Gate, ...]:
    left, gates = 1.0, []
    operating_point = placement.operating_point
    rows = zip(operating_point.policy, operating_point.fractions, placement.exit_tiers, placement.outputs, strict=True)
    for (index, threshold), fraction, tier, outputs in rows:
        gates.append(Gate(EXIT, tier, threshold, max(0.0, left), fraction, outputs, index))
        left -= fraction
    return tuple(gates)


def _name(
    variant: str, running: Sequence[Tier], handovers: Sequence[Handover], placement: Placement, num_exits: int
) -> str:
    coded = [h.codec + (" raw" if h.carries_raw else "") for h in handovers]
    inner = [f"exit {i} at {t:.2f}" for i, t in placement.operating_point.policy if t > 0]
    last = placement.operating_point.policy[-1][0]
    inner += [f"to exit {last}"] if last < num_exits - 1 else []
    kind = "split " if len(running) > 1 else "all on "
    model = "" if variant == FLOAT32 else f"{variant} model "
    return ", ".join([model + kind + "|".join(running), *(["+".join(coded)] if coded else []), *inner])


def predict(table: CostTable, placement: Placement, route: Sequence[Tier], handovers: Sequence[Handover]) -> Prediction:
    """Predicts what a request costs.

    Args:
        table: Costs.
        placement: What runs where.
        route: Tiers that requests visit, the device first.
        handovers: Between them, in order.

    Returns:
        The prediction, a path per exit in use.
    """
    steps, spreads = _steps(table, placement, route, handovers)
    reached = {tier: _reach(placement, tier) for tier in route}
    paths = []
    point = placement.operating_point
    ends = zip(point.policy, placement.exit_tiers, point.fractions, placement.outputs, strict=True)
    for (index, _), tier, fraction, outputs in ends:
        rows = [row for stop in route if stop.rank <= tier.rank for row in steps[stop]]
        rows += _answer(table, tier, outputs)
        p50 = sum(seconds for _, seconds in rows)
        spread = sqrt(sum(spreads[stop] ** 2 for stop in route if stop.rank <= tier.rank))
        paths.append(Path(index, fraction, p50, p50 + spread, tuple(rows)))
    ways = list(zip(pairwise(route), handovers, strict=True))
    sent = sum(reached[b] * table.sent_bytes(h, 0) for (a, b), h in ways if a is Tier.DEVICE)
    wan = sum(reached[b] * table.sent_bytes(h, 1) for (_, b), h in ways if b is Tier.CLOUD)
    mean = sum(p.fraction * p.p50_s for p in paths)
    return Prediction(
        mean,
        quantile(paths, 0.5),
        quantile(paths, 0.95),
        placement.operating_point.accuracy,
        _energy_j(table, placement, route, sent, mean, reached),
        sent,
        wan,
        tuple(paths),
    )


def _steps(
    table: CostTable, placement: Placement, route: Sequence[Tier], handovers: Sequence[Handover]
) -> tuple[dict[Tier, list[tuple[str, float]]], dict[Tier, float]]:
    """Per tier, the waterfall from the hand-over on, and p95 − p50 of its compute, its overhead and the links to it."""
    steps: dict[Tier, list[tuple[str, float]]] = {}
    spreads: dict[Tier, float] = {}
    ways = dict(zip(route[1:], zip(route, handovers, strict=False), strict=True))
    for stop in route:
        rows = _hand_over(table, *ways[stop], stop) if stop in ways else []
        rows.append((f"{stop} overhead", table.overhead_s(stop)))
        median, p95 = table.segment_seconds(stop, [i for i, t in placement.group_tiers.items() if t is stop])
        if median > 0:
            rows.append((f"{stop} compute", median))
        parts = [max(0.0, p95 - median), table.overhead_spread_s(stop)]
        if stop in ways:
            parts += [max(0.0, link.rtt_p95_s - link.rtt_s) for link in table.hops(ways[stop][0], stop)]
        steps[stop], spreads[stop] = rows, sqrt(sum(part**2 for part in parts))
    return steps, spreads


def _hand_over(table: CostTable, source: Tier, handover: Handover, target: Tier) -> list[tuple[str, float]]:
    encode = sum(table.codec_seconds(source, handover.codec, t) for t in handover.tensors)
    decode = sum(table.codec_seconds(target, handover.codec, t) for t in handover.tensors)
    rows = [(f"{source} encode", encode)]
    for tier in TIERS[source.rank : target.rank]:
        link, outer = table.links[tier.rank], TIERS[tier.rank + 1]
        rows.append((f"{tier}→{outer} transfer", table.sent_bytes(handover, tier.rank) / link.bytes_per_s))
        rows.append((f"{tier}→{outer} round trip", link.rtt_s))
        if outer is not target:
            rows.append((f"{outer} relay", table.overhead_s(outer)))
    return [*rows, (f"{target} decode", decode)]


def _answer(table: CostTable, source: Tier, tensors: Sequence[str]) -> list[tuple[str, float]]:
    """The way of an answer back to the device, by link."""
    ways = [(outer, inner) for inner, outer in pairwise(TIERS[: source.rank + 1])]
    return [(f"{outer}→{inner} answer", table.answer_s(outer, inner, tensors)) for outer, inner in reversed(ways)]


def _reach(placement: Placement, tier: Tier) -> float:
    """Share of requests that get to a tier: those that have not left further in."""
    leaving = zip(placement.exit_tiers, placement.operating_point.fractions, strict=True)
    return max(0.0, 1.0 - sum(fraction for t, fraction in leaving if t.rank < tier.rank))


def _energy_j(
    table: CostTable,
    placement: Placement,
    route: Sequence[Tier],
    sent: float,
    mean_s: float,
    reached: dict[Tier, float],
) -> float:
    own = [i for i, t in placement.group_tiers.items() if t is Tier.DEVICE]
    busy = table.segment_seconds(Tier.DEVICE, own)[0] if own else 0.0
    energy = table.energy
    handed = reached[route[1]] if len(route) > 1 else 0.0
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
