"""Stage 5 and 6: the stream along the plan, then with a slow link and with a dead edge."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping, Sequence

import msgspec

from edgewise.core.errors import EdgewiseError
from edgewise.core.ids import Tier
from edgewise.core.units import parse_rate
from edgewise.demo.scenario import SLOW_BYTES_PER_S, TASK, Demo
from edgewise.demo.streaming import Sent, revisions_changed, stream, take
from edgewise.fleet.messages import Deploy, PlanInputs
from edgewise.fleet.serving.deployments import REVISIONS_PER_DEPLOYMENT
from edgewise.inference.accuracy import prediction_error, stream_error
from edgewise.inference.evidence import CODECS
from edgewise.ledger.kpis import inference_kpis
from edgewise.planning.levels import single_node_plans
from edgewise.planning.plan import Plan
from edgewise.planning.replan.plan_map import plan_map
from edgewise.service.client import Reply
from edgewise.service.report import ExitShareRow, FaultsSection, RequestRow
from edgewise.service.report.convert import shares_of

EDGE = "edge-1"
KILL_AFTER_FRACTION = 0.25
RESTART_AFTER_FRACTION = 0.45
HOME_TIMEOUT_S = 20.0
LOOK_EVERY_S = 0.2


async def deploy_plan(demo: Demo) -> None:
    """Puts the recommended plan in force; of a variant, its graph becomes a version of the model first."""
    if demo.plan.graph != demo.version.graph:
        graph, variant = demo.graphs[demo.plan.graph], demo.plan.variant
        origin = f"{variant} of version {demo.trained.number}"
        ack = await demo.operator.register(graph, task=TASK, origin=origin, parent=demo.trained.number)
        demo.version = next(v for v in (await demo.operator.versions()).versions if v.number == ack.version)
    await deploy(demo)


async def deploy(demo: Demo) -> None:
    """Puts the plan and its alternatives in force, device by device."""
    plans, search = alternatives(demo), demo.search_of(demo.plan)
    table = search.table
    inputs = PlanInputs(
        tuple(table.profiles.values()), tuple(table.links), demo.search.policy, demo.version.evidence, CODECS
    )
    ack = await demo.operator.deploy(Deploy(demo.version.number, plans, demo.deadline_s, inputs))
    if not ack.accepted:
        raise EdgewiseError(f"version {demo.version.number} was not deployed: {ack.reason}")
    for reason in ack.codec_gates:
        demo.show.line(f"  coded cut beside uncoded: {reason}")
    demo.happened(
        "serving",
        f"version {demo.version.number} is in force on {len(ack.devices)} devices, {len(plans)} plans warm",
        "plan",
    )


def alternatives(demo: Demo) -> tuple[Plan, ...]:
    """The plan, then those of its graph that are the best at another bandwidth, then the best on the device alone."""
    search = demo.search_of(demo.plan)
    others = [*plan_map(search).plans, *single_node_plans(search)]
    found = {demo.plan.name: demo.plan}
    for plan in others:
        found.setdefault(plan.name, plan)
    return tuple(found.values())


async def serve(demo: Demo) -> None:
    """The fault-free stream; measured beside predicted."""
    parts = demo.task.parts.stream
    before = await demo.counted()
    inputs, targets = take(parts.inputs, parts.targets, demo.settings.fault_free)
    sent = await stream(demo, "fault-free", inputs, targets, plan=demo.plan)
    after = await demo.counted()
    kept = [row for row in sent.rows if not row.warm_up and row.latency_ms is not None]
    seen = [(row.exit if row.predicted_ms is not None else None, (row.latency_ms or 0.0) / 1e3) for row in kept]
    error, whole = prediction_error(demo.plan, seen, num_warm_up=0), stream_error(demo.plan, seen)
    demo.stream_sent.append(sent)
    energy_j = demo.inference_energy_j(before, after)
    kpis = inference_kpis(
        demo.entries(before, after),
        demo.tiers,
        latencies_s=sent.latencies_s,
        right=[bool(r.right) for r in sent.rows],
        peak_memory_bytes={n: a.peak_memory_bytes for n, a in after.items()},
        energy_j=energy_j,
    )
    demo.change(
        kpis=msgspec.structs.replace(demo.report.kpis, inference=kpis),
        plan=msgspec.structs.replace(
            demo.report.plan,
            measured_p50_ms=1e3 * whole.measured_s[1],
            num_warm_up=sum(row.warm_up for row in sent.rows),
            num_compared=error.num_requests,
            median_abs_error_fraction=error.median_abs_error_fraction,
            measured_mean_ms=1e3 * whole.measured_s[0],
            measured_p95_ms=1e3 * whole.measured_s[2],
            mean_error_fraction=whole.error_fractions[0],
            p50_error_fraction=whole.error_fractions[1],
            p95_error_fraction=whole.error_fractions[2],
            exit_shares=tuple(ExitShareRow(s.exit_index, s.predicted, s.measured) for s in whole.shares),
            share_error_points=100 * whole.largest_share_error,
        ),
    )
    sides = (
        ("predicted", whole.predicted_s, demo.plan.predicted.accuracy),
        ("measured", whole.measured_s, sent.accuracy),
    )
    demo.show.table(
        "Predicted and measured, the whole stream",
        ("", "mean ms", "p50 ms", "p95 ms", "accuracy", *(f"leave at exit {s.exit_index}" for s in whole.shares)),
        [
            (
                name,
                *(f"{1e3 * s:.1f}" for s in seconds),
                f"{right:.3f}",
                *(f"{getattr(s, name):.1%}" for s in whole.shares),
            )
            for name, seconds, right in sides
        ],
    )
    demo.show.line(
        f"  off by {', '.join(f'{e:.1%} ({n})' for e, n in zip(whole.error_fractions, ('mean', 'p50', 'p95'), strict=True))}; "
        f"by the path each took, median {error.median_abs_error_fraction:.1%} over {error.num_requests} requests "
        f"({demo.report.plan.num_warm_up} warm-up, {error.num_unpredicted} off the plan)"
    )


async def break_things(demo: Demo) -> None:
    """A link becomes slow, then an edge dies and returns; every request has its deadline."""
    before = demo.stream_sent[-1]
    slow = await _slow_link(demo)
    killed, killed_at_s, returned = await _dead_edge(demo)
    parts = [slow, killed]
    rows = [row for part in parts for row in part.rows]
    in_time = sum(part.in_time(demo.deadline_s) for part in parts)
    lost = sum(bool(r.error) for part in parts for r in part.replies)
    failover_ms = _failover_ms(demo, killed, killed_at_s)
    switches = revisions_changed([before, slow, killed])
    demo.change(
        faults=FaultsSection(
            requests=len(rows),
            answered_by_deadline=in_time,
            plan_switches=switches,
            lost=lost,
            failover_ms=failover_ms,
            returned_home=returned,
            shares=shares_of(rows),
            deadline_ms=1e3 * demo.deadline_s,
            notes=(_of_link(demo, slow), _of_kill(demo, killed, failover_ms, returned), *slow.notes, *killed.notes),
            phases=tuple(part.phase_row(demo.deadline_s) for part in demo.stream_sent),
        )
    )
    demo.show.table(
        f"Phases, deadline {1e3 * demo.deadline_s:.0f} ms",
        ("phase", "requests", "in time", "accuracy", "p50 ms", "p95 ms", "answered by"),
        [_phase_cells(part, demo.deadline_s) for part in demo.stream_sent],
    )
    demo.show.line(
        f"  {in_time} of {len(rows)} answered by their deadline, {lost} lost, {switches} plan switches, first answer {failover_ms or float('nan'):.0f} ms after the kill"
    )


async def _slow_link(demo: Demo) -> Sent:
    parts = demo.task.parts.stream
    inputs, targets = take(parts.inputs, parts.targets, demo.settings.link_drop, first=demo.settings.fault_free)
    devices = [d for d in demo.fleet.devices if demo.fleet.edge_of(d) == 0]
    rate = parse_rate(demo.fleet.file.devices.link.rate)

    async def fault() -> None:
        total_s = demo.settings.link_drop * demo.settings.gap_s
        await asyncio.sleep(0.15 * total_s)
        for device in devices:
            await demo.fleet.set_link(device, EDGE, bytes_per_s=SLOW_BYTES_PER_S)
        demo.happened("link drop", f"the links of {', '.join(devices)} drop to 64 kbit/s", "fault")
        await asyncio.sleep(0.85 * total_s)

    plans = alternatives(demo)
    before = edge_users(plans, await _plans_in_force(demo))
    sent, _ = await asyncio.gather(stream(demo, "link drop", inputs, targets, plan=demo.plan), fault())
    demo.stream_sent.append(sent)
    for device in devices:
        await demo.fleet.set_link(device, EDGE, bytes_per_s=rate)
    demo.happened("link drop", "the links are as before", "fault")
    missing = before
    for _ in range(int(HOME_TIMEOUT_S / LOOK_EVERY_S)):
        if not (missing := before - edge_users(plans, await _plans_in_force(demo))):
            break
        await asyncio.sleep(LOOK_EVERY_S)  # a device whose plan does not use the link probes it once a second
    which = "as before" if not missing else f"as before, but {', '.join(sorted(missing))} not yet"
    demo.happened("link drop", f"the devices' plans use the edge {which}", "plan")
    return sent


async def _plans_in_force(demo: Demo) -> dict[str, int]:
    """Each device's plan revision, asked of the device itself."""
    rows = (await demo.operator.nodes(fresh=True)).nodes
    return {
        str(r.info.node): int(r.info.models[TASK].revision)
        for r in rows
        if r.info.tier is Tier.DEVICE and TASK in r.info.models
    }


def edge_users(plans: Sequence[Plan], revisions: Mapping[str, int]) -> set[str]:
    """The devices whose plan in force computes on an edge.

    Args:
        plans: As deployed, in order.
        revisions: Each device's plan revision.
    """
    chosen = {device: plans[revision % REVISIONS_PER_DEPLOYMENT] for device, revision in revisions.items()}
    return {device for device, plan in chosen.items() if Tier.EDGE in plan.tiers}


async def _dead_edge(demo: Demo) -> tuple[Sent, float, bool | None]:
    parts = demo.task.parts.stream
    number = demo.settings.edge_kill
    inputs, targets = take(parts.inputs, parts.targets, number, first=demo.settings.fault_free)
    total_s, killed_at_s, home = number * demo.settings.gap_s, 0.0, False
    restarted = asyncio.Event()
    users = edge_users(alternatives(demo), await _plans_in_force(demo))

    async def fault() -> None:
        nonlocal killed_at_s
        await asyncio.sleep(KILL_AFTER_FRACTION * total_s)
        killed_at_s = time.monotonic()
        await demo.fleet.children[EDGE].kill()
        demo.happened("edge killed", f"{EDGE} is killed (SIGKILL)", "fault")
        await asyncio.sleep((RESTART_AFTER_FRACTION - KILL_AFTER_FRACTION) * total_s)
        await demo.fleet.restart(EDGE)
        restarted.set()
        demo.happened("edge killed", f"{EDGE} is started again", "fault")

    def on_reply(_: int, device: str, reply: Reply) -> None:
        nonlocal home
        if restarted.is_set() and EDGE in str(reply.parameters.get("served_by", "")).split(","):
            home = True

    sent, _ = await asyncio.gather(
        stream(demo, "edge killed", inputs, targets, plan=demo.plan, on_reply=on_reply), fault()
    )
    demo.stream_sent.append(sent)
    if not any(demo.fleet.edge_of(device) == 0 for device in users):
        demo.happened("edge killed", f"no device's plan used {EDGE} when it was killed, so none returns to it", "plan")
        return sent, killed_at_s, None
    home = home or await _wait_for_home(demo)
    demo.happened("edge killed", f"{EDGE} {'is used again' if home else 'was not used again'}", "plan")
    return sent, killed_at_s, home


async def _wait_for_home(demo: Demo) -> bool:
    """Goes on asking the edge's devices until one request is served there again."""
    parts = demo.task.parts.stream
    end = time.monotonic() + HOME_TIMEOUT_S
    while time.monotonic() < end:
        inputs, targets = take(parts.inputs, parts.targets, 40)
        sent = await stream(demo, "edge back", inputs, targets, plan=demo.plan)
        demo.stream_sent.append(sent)
        if any(EDGE in str(r.parameters.get("served_by", "")).split(",") for r in sent.replies):
            return True
        with contextlib.suppress(EdgewiseError):
            await demo.operator.nodes()
    return False


def _failover_ms(demo: Demo, sent: Sent, killed_at_s: float) -> float | None:
    """From the kill to the first answer, at a device of that edge, that did without it."""
    done = [
        reply.scheduled_s + reply.latency_s - killed_at_s
        for device, reply, row in zip(sent.devices, sent.replies, sent.rows, strict=True)
        if demo.fleet.edge_of(device) == 0 and _did_without(row) and reply.scheduled_s + reply.latency_s > killed_at_s
    ]
    return 1e3 * min(done) if done else None


def _of_link(demo: Demo, sent: Sent) -> str:
    """What the slow link did, from the answers of the devices behind it."""
    rows = [r for r, d in zip(sent.rows, sent.devices, strict=True) if demo.fleet.edge_of(d) == 0]
    return f"Link drop: {revisions_changed([sent])} plan changes; behind the slow link {_shares(rows)}."


def _of_kill(demo: Demo, sent: Sent, failover_ms: float | None, returned: bool | None) -> str:
    """What the death of the edge did, from the answers of its devices."""
    rows = [r for r, d in zip(sent.rows, sent.devices, strict=True) if demo.fleet.edge_of(d) == 0]
    first = "" if failover_ms is None else f"; the first answer without it came {failover_ms:.0f} ms after the kill"
    back = {True: f"; started again, {EDGE} was used again", False: f"; {EDGE} was not used again", None: ""}[returned]
    return f"Edge killed: its devices' requests were answered by {_shares(rows)}{first}{back}."


def _shares(rows: Sequence[RequestRow]) -> str:
    return ", ".join(f"{who} {share:.0%}" for who, share in shares_of(rows).items()) or "nobody"


def _did_without(row: RequestRow) -> bool:
    return row.by in ("another edge", "device exit")


def _phase_cells(part: Sent, deadline_s: float) -> tuple[str, ...]:
    row = part.phase_row(deadline_s)
    shares = ", ".join(f"{who} {share:.0%}" for who, share in row.shares.items())
    return (
        part.phase,
        str(row.requests),
        str(row.answered_by_deadline),
        f"{row.accuracy:.3f}",
        f"{row.p50_ms:.1f}",
        f"{row.p95_ms:.1f}",
        shares,
    )
