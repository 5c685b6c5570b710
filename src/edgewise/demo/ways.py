"""Ways of serving measured beside each other: each is deployed as a model of its own, and all answer the same inputs in turn.

ways = await deploy_ways(operator, plans, graphs)         # names: digits-int8-on-device, …
answers = await ask_in_turn(ports, ways, inputs, targets, gap_s=0.03)
rows = way_rows(ways, answers, recommended=plan)
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewise.core.errors import EdgewiseError
from edgewise.core.seeds import Seeds
from edgewise.demo.scenario import TASK
from edgewise.fleet.messages import Deploy
from edgewise.fleet.operator.operator import Operator
from edgewise.inference.gain import LEAST_PAIRS, MeasuredGain, measured_gain
from edgewise.models.forward import INPUT
from edgewise.planning.costs.cost import CostTable
from edgewise.planning.costs.predict import repriced
from edgewise.planning.plan import Plan
from edgewise.planning.policy import Policy
from edgewise.service.client import InferenceClient, Reply, open_loop
from edgewise.service.report import WayRow

DEADLINE_S = 10.0
"""Of a way that is only measured: late answers count as they are, no fallback hides them."""


@dataclass(slots=True)
class Way:
    """One way.

    Attributes:
        model: Its name at the endpoints.
        plan: How it is served.
        latencies_s: Of its answers by input, NaN without one; what was sent to warm up is left out.
        right: Whether each was right.
    """

    model: str
    plan: Plan
    latencies_s: list[float] = field(default_factory=list)
    right: list[bool] = field(default_factory=list)


async def deploy_ways(
    operator: Operator, plans: Sequence[Plan], graphs: Mapping[str, bytes], known: Sequence[Way] = ()
) -> list[Way]:
    """Deploys plans beside what is served.

    Args:
        operator: Connection to the fleet.
        plans: One per way.
        graphs: ONNX bytes by digest.
        known: Ways that are served already.

    Returns:
        A way for each plan, in order, one for those that run the same; known ones as they are.

    Raises:
        EdgewiseError: If the fleet does not take one.
    """
    ways = list[Way]()
    for plan in plans:
        served = next((way for way in [*known, *ways] if _is(way.plan, plan)), None)
        if served is None:
            where = f"{TASK} {len(known) + len(ways)} {plan.variant} on {' and '.join(plan.tiers)}"
            served = Way(re.sub(r"[^A-Za-z0-9]+", "-", where), plan)
            registered = await operator.register(graphs[plan.graph], task=served.model, origin=plan.name)
            order = Deploy(registered.version, (plan,), DEADLINE_S, staged=False)
            ack = await operator.deploy(order) if registered.accepted else registered
            if not ack.accepted:
                raise EdgewiseError(f"{plan.name!r} was not deployed to be measured: {ack.reason}")
        if served not in ways:
            ways.append(served)
    return ways


async def ask_in_turn(
    ports: Sequence[int], ways: Sequence[Way], inputs: NDArray[Any], targets: NDArray[Any], *, gap_s: float
) -> None:
    """Asks every way about every input, device by device, so that what disturbs one disturbs all.

    Consecutive requests go to different devices; who comes first changes from block to block. One block is sent to warm
    up, and does not count.

    Args:
        ports: Endpoints of the devices.
        ways: Their answers are added to each.
        inputs: float32[n, …].
        targets: int64[n].
        gap_s: Time between arrivals.
    """
    num, blocks = len(ports), -(-len(inputs) // len(ports))
    turns: list[tuple[int, int, bool]] = [(i % len(inputs), w, True) for w in range(len(ways)) for i in range(num)]
    for block in range(blocks):
        held = range(block * num, min((block + 1) * num, len(inputs)))
        turns += [(i, (w + block) % len(ways), False) for w in range(len(ways)) for i in held]
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(InferenceClient("127.0.0.1", port)) for port in ports]

        async def send(turn: int, due_s: float) -> Reply:
            index, way, _ = turns[turn]
            image = np.asarray(inputs[index : index + 1], np.float32)
            return await clients[index % num].infer(ways[way].model, {INPUT: image}, request_id=f"in-turn-{turn}")

        replies = await open_loop(send, [n * gap_s for n in range(len(turns))])
    found = {(i, w): reply for (i, w, warms), reply in zip(turns, replies, strict=True) if not warms}
    for number, way in enumerate(ways):
        answers = [found[index, number] for index in range(len(inputs))]
        way.latencies_s = [float("nan") if a.error else a.latency_s for a in answers]
        way.right = [_is_right(a, int(target)) for a, target in zip(answers, targets, strict=True)]


def gain_of(ours: Way, theirs: Way) -> MeasuredGain | None:
    """What one way gains over another, on the inputs that both answered; None if those are too few."""
    pairs = np.asarray([ours.latencies_s, theirs.latencies_s])
    kept = pairs[:, ~np.isnan(pairs).any(0)]
    if kept.shape[1] < LEAST_PAIRS:
        return None
    return measured_gain(kept[0].tolist(), kept[1].tolist(), Seeds(0).at("gain").rng())


def _gain(way: Way, recommended: Way | None) -> tuple[float, float, float] | None:
    if recommended is None or way is recommended:
        return None
    gain = gain_of(way, recommended)
    return None if gain is None else (gain.mean.fraction, gain.mean.low, gain.mean.high)


def _is(plan: Plan, other: Plan) -> bool:
    """Whether two plans run the same, whatever was predicted of them."""
    return (plan.graph, plan.stages, plan.handovers, [g.threshold for g in plan.gates]) == (
        other.graph, other.stages, other.handovers, [g.threshold for g in other.gates]
    )  # fmt: skip


def _is_right(reply: Reply, target: int) -> bool:
    return not reply.error and bool(next(iter(reply.outputs.values()))[0].argmax() == target)


def way_rows(
    ways: Sequence[Way], recommended: Plan, policy: Policy, table_of: Callable[[Plan], CostTable]
) -> tuple[WayRow, ...]:
    """The ways as the report has them.

    Args:
        ways: Measured.
        recommended: What the planner says.
        policy: Of the question; what sends raw inputs too far is not allowed.
        table_of: What a plan costs under the links of the question.

    Returns:
        A row each.
    """
    rows, ours = [], next((way for way in ways if _is(way.plan, recommended)), None)
    for way in ways:
        plan, taken = way.plan, 1e3 * np.asarray([s for s in way.latencies_s if not np.isnan(s)])
        furthest = max((plan.site_of(h.target).tier.rank for h in plan.handovers if h.carries_raw), default=0)
        quantiles = np.quantile(taken, (0.5, 0.95)) if len(taken) else (None, None)
        p50, p95 = (None if q is None else float(q) for q in quantiles)
        rows.append(
            WayRow(
                name=plan.name,
                variant=plan.variant,
                tiers=tuple(str(tier) for tier in plan.tiers),
                allowed=furthest <= policy.raw_may_reach.rank,
                recommended=way is ours,
                requests=len(way.latencies_s),
                answered=len(taken),
                predicted_mean_ms=1e3 * repriced(table_of(plan), plan).predicted.latency_mean_s,
                mean_ms=float(taken.mean()) if len(taken) else None,
                p50_ms=p50,
                p95_ms=p95,
                accuracy=float(np.mean(way.right)) if way.right else None,
                gain=_gain(way, ours),
            )
        )
    return tuple(rows)
