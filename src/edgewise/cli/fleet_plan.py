"""`edgewise plan` and `edgewise serve` with `--connect`: on a running fleet, measured where it will run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from edgewise.api.own_evidence import evaluate, said_of
from edgewise.cli.operator_options import operator_of
from edgewise.cli.output import Output
from edgewise.core.errors import GateRefused, InputError, RemoteError
from edgewise.core.units import parse_duration

if TYPE_CHECKING:
    from edgewise.fleet.messages import NodeInfo
    from edgewise.fleet.operator.operator import Operator
    from edgewise.models.graph.graph import Graph
    from edgewise.models.version import ModelVersion
    from edgewise.planning.levels import Recommendation
    from edgewise.planning.policy import Policy
    from edgewise.planning.search import Search

VersionNumber = Annotated[
    int, typer.Option("--version", min=0, help="On a fleet: which version; 0 for the newest that may serve.")
]
DeviceName = Annotated[str, typer.Option("--device", help="On a fleet: plan for this device; default: the slowest.")]
RolloutStages = Annotated[
    str, typer.Option("--stages", help="On a fleet: share of devices by stage, e.g. 0.1,0.5,1; default: one by one.")
]
MinRequests = Annotated[
    int, typer.Option("--min-requests", min=0, help="On a fleet: requests a device serves before the next stage.")
]
Share = Annotated[
    float, typer.Option("--share", min=0.001, help="On a fleet: the model's weight where a node serves several.")
]
Force = Annotated[
    bool,
    typer.Option(
        "--force", help="On a fleet: serve a version although its clients keep a part of the model to themselves."
    ),
]
Deadline = Annotated[
    str, typer.Option("--deadline", help="On a fleet: of a request; default: 3 x the predicted p95, at least 100 ms.")
]


@dataclass(frozen=True, slots=True)
class FleetPlanRequest:
    """What is asked of a fleet.

    Attributes:
        connect: Endpoint.
        identity: The operator's folder.
        policy: TOML file; None for no limits.
        data: Labelled examples to evaluate on; None takes the version's own evidence.
        version: Which version; 0 for the newest that may serve.
        device: For which device; "" for the slowest.
        budget: Time to measure each node for.
        deadline: Of a request; "" follows from the plan.
        deploy: Whether to put the plan in force.
        model: Which model; "" for the only one there is.
        stages: Shares of the devices, rising to 1, e.g. `0.1,0.5,1`; "" goes device by device.
        min_requests: Requests each device of a stage serves before the next stage begins.
        share: The model's weight on a node that serves several.
        force: Whether to serve a version that lacks its clients' own tensors.
    """

    connect: str
    identity: str
    policy: Path | None = None
    data: Path | None = None
    version: int = 0
    device: str = ""
    budget: str = "3 s"
    deadline: str = ""
    deploy: bool = False
    model: str = ""
    stages: str = ""
    min_requests: int = 0
    share: float = 1.0
    force: bool = False


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
        GateRefused: If it is worse than the version that serves.
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
        if version.gate is not None and not version.gate.passed:
            raise GateRefused(f"version {number} may not serve: {version.gate.reason}", version=number)
        out.result(await plan_and_deploy(out, request, policy, operator, version))


def policy_of(path: Path | None) -> Policy:
    """Reads a policy.

    Args:
        path: TOML; None for no limits.

    Returns:
        The policy.

    Raises:
        ConfigError: If the file is wrong.
    """
    from edgewise.core.config import load_toml
    from edgewise.planning.policy import Policy

    return Policy() if path is None else load_toml(path, Policy)


async def plan_and_deploy(
    out: Output, request: FleetPlanRequest, policy: Policy, operator: Operator, version: ModelVersion
) -> dict[str, Any]:
    """Measures a version where it will run, prints levels and answer, and puts the plan in force if asked.

    Args:
        out: Where to print.
        request: What.
        policy: As read.
        operator: Connection to the fleet.
        version: Which.

    Returns:
        The same for `--json`.

    Raises:
        RemoteError: If the rollout was refused or halted; with the cause.
    """
    from edgewise.fleet.serving.fleet_planning import choose_chain, measure, search_of, with_evidence
    from edgewise.models.graph.graph import Graph
    from edgewise.planning.levels import recommend

    chain = choose_chain((await operator.nodes()).nodes, request.device)
    graph = Graph.load(await operator.graph(version.number))
    meaning = "measured on the coordinator's held-out data"
    if request.data is not None:
        evidence, meaning = _evaluated(graph, request.data)
        version = with_evidence(version, evidence)
    with out.progress(f"version {version.number}: measuring", len(chain)) as advance:
        measured = await measure(
            operator, graph.model_bytes, chain, budget_s=parse_duration(request.budget), done=advance
        )
    search = search_of(graph, measured, policy, version.evidence, version.training_domain)
    recommended = recommend(search)
    meaning = meaning if version.evidence else "unknown: no held-out data; give --data, or the coordinator --holdout"
    found = show_plan(out, version, search, recommended, chain, meaning)
    if request.deploy:
        found["deployed"] = await deploy_plan(out, request, operator, version, search, recommended)
    return found


async def deploy_plan(
    out: Output,
    request: FleetPlanRequest,
    operator: Operator,
    version: ModelVersion,
    search: Search,
    recommended: Recommendation,
) -> dict[str, Any]:
    """Puts a plan in force, device by device.

    Args:
        out: Where to print.
        request: Deadline.
        operator: Connection to the fleet.
        version: What is served.
        search: What the plan was made from.
        recommended: The plan.

    Returns:
        Version, revision, devices, deadline, names of the plans.

    Raises:
        RemoteError: If the rollout was refused or halted; with the cause.
    """
    from edgewise.fleet.serving.fleet_planning import deployment

    order = deployment(
        version, search, recommended.plan, parse_duration(request.deadline) if request.deadline else None
    )
    order = msgspec.structs.replace(
        order,
        shares=parse_shares(request.stages),
        min_requests=request.min_requests,
        share=request.share,
        force=request.force,
    )
    ack = await operator.deploy(order)
    if not ack.accepted:
        raise RemoteError(f"version {version.number} was not deployed: {ack.reason}")
    ports = {r.info.node: r.info.http_port for r in (await operator.nodes()).nodes if r.info.http_port}
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
) -> dict[str, Any]:
    """Prints links, levels and the answer.

    Args:
        out: Where to.
        version: What was planned.
        search: From what.
        recommended: The answer.
        chain: Who was measured.
        meaning: What accuracy means here.

    Returns:
        The same for `--json`.
    """
    from edgewise.planning.explain import LEVEL_COLUMNS, explain, level_cells
    from edgewise.planning.levels import plan_levels

    rows = plan_levels(search, {version.training_domain: version.evidence})
    for link, inner, outer in zip(search.table.links, chain, chain[1:], strict=False):
        speed = f"{link.bytes_per_s * 8e-6:.1f} Mbit/s, round trip {link.rtt_s * 1e3:.1f} ms ({link.source})"
        out.line(f"link {inner.node} → {outer.node}: {speed}")
    out.table(f"version {version.number}: levels of edge intelligence, predicted", LEVEL_COLUMNS, level_cells(rows))
    out.line(said_of(meaning))
    if version.caution:
        out.line(f"caution: {version.caution}")
    out.line(f"recommended, level {recommended.level}: {recommended.reason}")
    for line in explain(recommended.plan):
        out.line(line)
    return {
        "version": version.number,
        "measured": [info.node for info in chain],
        "links": list(search.table.links),
        "levels": rows,
        "recommendation": recommended,
        "accuracy_means": meaning,
        "caution": version.caution,
    }


def _evaluated(graph: Graph, data: Path) -> tuple[tuple[Any, ...], str]:
    from edgewise.api.source import read_source

    return evaluate(graph, read_source(data, graph.inputs).first(500))


def parse_shares(text: str) -> tuple[float, ...]:
    """Reads `--stages`.

    Args:
        text: e.g. `0.1,0.5,1`; "" for none.

    Returns:
        The shares.

    Raises:
        InputError: If it is written otherwise.
    """
    from edgewise.lifecycle.rollout import stages_by_fraction

    try:
        shares = tuple(float(share) for share in text.split(",") if text)
    except ValueError as error:
        raise InputError(f"{text!r} are no stages. Write them like '0.1,0.5,1'.") from error
    if shares:
        stages_by_fraction((), shares)
    return shares


def fleet_only(connect: str, **given: Any) -> None:
    """Refuses options that mean nothing without a fleet.

    Args:
        connect: As from `--connect`.
        **given: Option -> its value; what is false was not given.

    Raises:
        InputError: It names the option.
    """
    for name, value in given.items():
        if value and not connect:
            raise InputError(f"--{name.replace('_', '-')} is for a running fleet. Say --connect and --identity too.")
