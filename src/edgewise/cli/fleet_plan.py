"""`edgewise plan` and `edgewise serve` with `--connect`: on a running fleet, measured where it will run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from edgewise.api.own_evidence import evaluate
from edgewise.api.stand_ins import StandIns
from edgewise.cli.fleet_options import parse_shares
from edgewise.cli.fleet_plan_request import FleetPlanRequest, first_examples, loaded_graph, policy_of
from edgewise.cli.fleet_stand_ins import Beside, make_stand_ins, measure_beside, passing, version_of
from edgewise.cli.operator_options import operator_of
from edgewise.cli.output import Output
from edgewise.core.errors import GateRefused, PlanInfeasible, RemoteError
from edgewise.core.files import write_atomic
from edgewise.core.units import parse_duration

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgewise.fleet.messages import NodeInfo, NodeRow
    from edgewise.fleet.operator.operator import Operator
    from edgewise.models.graph.graph import Graph
    from edgewise.models.graph.input_hints import InputHints
    from edgewise.models.version import ModelVersion
    from edgewise.planning.levels import Recommendation
    from edgewise.planning.policy import Policy
    from edgewise.planning.search import Search


async def plan_on_fleet(out: Output, request: FleetPlanRequest) -> None:
    """Plans a version where it will run, prints levels and answer, and deploys it if asked.

    Args:
        out: Where to print.
        request: What.
    """
    from edgewise.fleet.serving.fleet_planning import choose_version

    policy = policy_of(request.policy)
    async with operator_of(request.connect, request.identity, "") as operator:
        version = choose_version((await operator.versions()).versions, request.version, request.model)
        out.result(await plan_and_deploy(out, request, policy, operator, version))


async def serve_on_fleet(out: Output, request: FleetPlanRequest, graph: Graph, name: str) -> None:
    """Brings a user's own model to a fleet: registers it as a version, plans it, puts it in force.

    Args:
        out: Where to print.
        request: What; always deployed.
        graph: The model, its shapes fixed.
        name: Names its task.

    Raises:
        GateRefused: If it is worse than the version that serves, or nothing says whether it is.
    """
    policy = policy_of(request.policy)
    async with operator_of(request.connect, request.identity, "") as operator:
        known = await operator.versions()
        ack = await operator.register(graph.model_bytes, task=name, parent=known.in_force.get(name, 0))
        if not ack.accepted:
            raise RemoteError(ack.reason)
        number = ack.version
        out.event("registered", version=number, task=name)
        version = next(v for v in (await operator.versions()).versions if v.number == number)
        out.result(await plan_and_deploy(out, request, policy, operator, version))


async def plan_and_deploy(
    out: Output, request: FleetPlanRequest, policy: Policy | None, operator: Operator, version: ModelVersion
) -> dict[str, Any]:
    """Measures a version where it will run, prints levels and answer, and puts the plan in force if asked.

    Args:
        out: Where to print.
        request: What.
        policy: As read; None for the one in force.
        operator: Connection to the fleet.
        version: Which.

    Returns:
        The same for `--json`.

    Raises:
        GateRefused: If it is to be deployed and may not; before anything is measured.
        PlanInfeasible: If no plan keeps to policy and grants.
        RemoteError: If the rollout was refused or halted; with the cause.
    """
    from edgewise.fleet.serving.fleet_planning import choose_chain, measure, search_of, with_evidence
    from edgewise.models.graph.input_hints import hints_of
    from edgewise.planning.levels import recommend

    if request.deploy:
        await check_admission(out, request, operator, version)
    rows = (await operator.nodes()).nodes
    chain = choose_chain(rows, request.device)
    asked, kept, held = await keeping(operator, version.task, policy, rows)
    graph = loaded_graph(await operator.graph(version.number), request)
    graph.check_sizes()
    hints = hints_of(graph)
    meaning = "measured on the coordinator's held-out data"
    source = None if request.data is None else first_examples(graph, request.data)
    if source is not None:
        evidence, meaning = evaluate(graph, source)
        version = with_evidence(version, evidence)
    others = await make_stand_ins(graph, source, request.variants) if request.has_stand_ins else StandIns()
    others = others if request.force else await passing(operator, others, version.task)
    budget_s = parse_duration(request.budget)
    with out.progress(f"version {version.number}: measuring", len(chain) * (1 + len(others.graphs))) as advance:
        measured = await measure(operator, graph.model_bytes, chain, budget_s=budget_s, hints=hints, done=advance)
        search = search_of(graph, measured, kept, version.evidence, version.training_domain)
        beside = await measure_beside(
            operator, graph, others, source, chain, (search, measured), budget_s=budget_s, done=advance
        )
    try:
        recommended = recommend(search, beside.searches)
    except PlanInfeasible as error:
        raise PlanInfeasible(" ".join([error.message, *held.values()]), **error.fields) from error
    meaning = meaning if version.evidence else "unknown: no held-out data; give --data, or the coordinator --holdout"
    found = show_plan(out, version, search, recommended, chain, meaning, beside)
    for sentence in held.values():
        out.line(sentence)
    found["policy"] = {"asked": asked, "kept": kept, **held}
    if request.int8 is not None and beside.int8_bytes:
        out.line(f"wrote version {version.number} in int8: {write_atomic(request.int8, beside.int8_bytes)}")
    if request.deploy:
        hints = hints_of(beside.graphs.get(recommended.plan.variant, graph))
        served = await version_of(operator, version, recommended.plan, beside)
        if served.number != version.number:
            out.line(f"{recommended.plan.variant} of version {version.number} is version {served.number}")
            await check_admission(out, request, operator, served)
        planned = next(s for s in (search, *beside.searches) if s.table.graph.digest == recommended.plan.graph)
        served = with_evidence(served, beside.evidence.get(recommended.plan.variant, version.evidence))
        found["deployed"] = await deploy_plan(out, request, operator, served, planned, recommended, asked, hints)
    return found


async def check_admission(out: Output, request: FleetPlanRequest, operator: Operator, version: ModelVersion) -> None:
    """Asks the coordinator whether a version may serve, before anything is measured.

    Args:
        out: Where to print what to know of one that may.
        request: What is overridden.
        operator: Connection to the fleet.
        version: Which.

    Raises:
        GateRefused: If it may not; says why, and what would let it.
    """
    ack = await operator.admission(version.number, force=request.force, ungated=request.ungated)
    if not ack.accepted:
        raise GateRefused(ack.reason, version=version.number, serves=ack.serves)
    for sentence in filter(None, (ack.note, ack.overridden and f"overridden: {ack.overridden}")):
        out.line(sentence)


async def keeping(
    operator: Operator, model: str, policy: Policy | None, rows: Sequence[NodeRow]
) -> tuple[Policy, Policy, dict[str, str]]:
    """What plans of a model keep to: the policy given or in force, under the grants of the devices.

    Args:
        operator: Connection to the fleet.
        model: Which model.
        policy: As given; None for the one in force.
        rows: The coordinator's view of the fleet.

    Returns:
        What is asked for, what is left of it, and sentences that say where both come from.
    """
    from edgewise.fleet.serving.raw_grants import granted
    from edgewise.planning.policy import Policy

    in_force = (await operator.versions()).policies.get(model)
    asked = policy or in_force or Policy()
    kept, narrowed = granted(asked, [row.info for row in rows if row.state == "alive"])
    said = {"grants": narrowed} if narrowed else {}
    if policy is None and in_force is not None and in_force != Policy():
        said["from"] = f"policy: the one in force of {model!r}, since none is given; --policy FILE gives another."
    return asked, kept, said


async def deploy_plan(
    out: Output,
    request: FleetPlanRequest,
    operator: Operator,
    version: ModelVersion,
    search: Search,
    recommended: Recommendation,
    policy: Policy | None = None,
    hints: InputHints | None = None,
) -> dict[str, Any]:
    """Puts a plan in force, device by device.

    Args:
        out: Where to print.
        request: Deadline.
        operator: Connection to the fleet.
        version: What is served.
        search: What the plan was made from.
        recommended: The plan.
        policy: What was asked for, if the search's is narrower.
        hints: What the graph was planned with.

    Returns:
        Version, revision, devices, deadline, names of the plans.

    Raises:
        RemoteError: If the rollout was refused or halted; with the cause.
    """
    from edgewise.fleet.serving.fleet_planning import deployment
    from edgewise.models.graph.input_hints import NO_HINTS

    deadline_s = parse_duration(request.deadline) if request.deadline else None
    order = deployment(version, search, recommended.plan, deadline_s, policy, hints or NO_HINTS)
    share = request.share or (await operator.versions()).shares.get(version.task, 1.0)
    order = msgspec.structs.replace(
        order,
        shares=parse_shares(request.stages),
        min_requests=request.min_requests,
        share=share,
        force=request.force,
        ungated=request.ungated,
        why=request.why,
    )
    ack = await operator.deploy(order)
    if not ack.accepted:
        raise RemoteError(f"version {version.number} was not deployed: {ack.reason}")
    # Edges and the cloud may have a port too: it is for their health and metrics, they answer no requests.
    infos = [row.info for row in (await operator.nodes()).nodes]
    ports = {info.node: info.http_port for info in infos if info.http_port and info.node in ack.devices}
    out.line(
        f"version {version.number} of {version.task} is in force on {len(ack.devices)} devices, "
        f"{len(order.plans)} plans warm, deadline {order.deadline_s * 1e3:.0f} ms"
    )
    for node, port in ports.items():
        out.line(
            f"  ask {node} at port {port}: edgewise infer --url http://HOST:{port} --model {version.task} --source FILE"
        )
    done = {"model": ack.model, "version": ack.version, "revision": ack.revision, "devices": list(ack.devices)}
    return {
        **done,
        "codec_gates": list(ack.codec_gates),
        "overridden": ack.overridden,
        "deadline_s": order.deadline_s,
        "plans": [p.name for p in order.plans],
        "ports": ports,
    }


def show_plan(
    out: Output,
    version: ModelVersion,
    search: Search,
    recommended: Recommendation,
    chain: tuple[NodeInfo, ...],
    meaning: str,
    beside: Beside | None = None,
) -> dict[str, Any]:
    """Prints links, levels and the answer.

    Args:
        out: Where to.
        version: What was planned.
        search: From what.
        recommended: The answer.
        chain: Who was measured.
        meaning: What accuracy means here.
        beside: Other candidates; None says nothing of any.

    Returns:
        The same for `--json`.
    """
    from edgewise.api.own_evidence import quality_of
    from edgewise.planning.baselines import baselines
    from edgewise.planning.explain import explain, level_cells, level_columns, one_node_cells, one_node_columns
    from edgewise.planning.levels import plan_levels

    rows = plan_levels(search, {version.training_domain: version.evidence})
    for link, inner, outer in zip(search.table.links, chain, chain[1:], strict=False):
        speed = f"{link.bytes_per_s * 8e-6:.1f} Mbit/s, round trip {link.rtt_s * 1e3:.1f} ms ({link.source})"
        out.line(f"link {inner.node} → {outer.node}: {speed}")
    quality = quality_of(meaning)
    for info in chain:
        profile = search.table.profiles[info.tier]
        slower = f", {profile.fingerprint.dilation:g} x slower" if profile.fingerprint.dilation > 1 else ""
        whole = f"{profile.segments[0].seconds * 1e3:.3g} ms" if profile.segments else "unknown"
        out.line(f"{info.tier}: {info.node}, whole model {whole} (measured there{slower})")
    out.table(
        f"version {version.number}: levels of edge intelligence, predicted", level_columns(quality), level_cells(rows)
    )
    alone = [] if beside is None else baselines(search, beside.searches)
    if alone:
        out.table("the whole model on one node, and its variants", one_node_columns(quality), one_node_cells(alone))
    for sentence in () if beside is None else beside.notes:
        out.line(sentence)
    out.line(meaning if quality in meaning else f"{quality} is {meaning}")
    if version.caution:
        out.line(f"caution: {version.caution}")
    out.line(f"recommended, level {recommended.level}: {recommended.reason}")
    for line in explain(recommended.plan, quality):
        out.line(line)
    return {
        "version": version.number,
        "measured": [info.node for info in chain],
        "links": list(search.table.links),
        "levels": rows,
        "recommendation": recommended,
        "accuracy_means": meaning,
        "caution": version.caution,
        "one_node": alone,
    }
