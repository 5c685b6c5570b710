"""`edgewise plan`: where a user's own model should run, and whether collaborating is worth it at all."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from edgewise.cli.fleet_options import (
    Deadline,
    DeviceName,
    Force,
    MinRequests,
    RolloutStages,
    Share,
    Ungated,
    VersionNumber,
    fleet_only,
    parse_shares,
)
from edgewise.cli.fleet_plan import plan_on_fleet
from edgewise.cli.fleet_plan_request import FleetPlanRequest
from edgewise.cli.operator_options import AsOperator, ModelName, ToFleet
from edgewise.cli.output import AsJson, Output
from edgewise.cli.running import run_async
from edgewise.cli.serve import Exits, Shapes, load_with_examples, parse_shapes
from edgewise.core.errors import InputError, PlanInfeasible
from edgewise.core.files import write_atomic
from edgewise.core.ids import Tier

if TYPE_CHECKING:
    from edgewise.api.model_plan import ModelPlan
    from edgewise.models.version import ExitEvidence
    from edgewise.planning.levels import Recommendation
    from edgewise.planning.plan import Plan
    from edgewise.planning.search import Search


def command(
    onnx: Annotated[Path | None, typer.Argument(help="The model; none to plan a version of a running fleet.")] = None,
    data: Annotated[
        Path | None, typer.Option("--data", help="Real inputs: npz (labels as `y`), npy or a folder.")
    ] = None,
    policy: Annotated[
        Path | None,
        typer.Option("--policy", help="TOML: objective and limits; default: none, on a fleet the one in force."),
    ] = None,
    fleet: Annotated[Path | None, typer.Option("--fleet", help="TOML: links, speeds and powers of the tiers.")] = None,
    profile: Annotated[
        list[Path] | None, typer.Option("--profile", help="A profile measured on another tier's machine; repeat.")
    ] = None,
    budget: Annotated[str, typer.Option("--budget", help="Time to measure this machine for.")] = "3 s",
    limit: Annotated[int, typer.Option("--limit", min=1, help="Use at most so many examples for accuracy.")] = 500,
    variant: Annotated[
        list[Path] | None,
        typer.Option("--variant", help="Another ONNX file that may stand in, e.g. a narrower model; repeat."),
    ] = None,
    int8: Annotated[
        Path | None, typer.Option("--int8", help="Write the model in int8, which is a candidate too, here.")
    ] = None,
    input_shape: Shapes = None,
    exits: Exits = "",
    planner: Annotated[
        str, typer.Option("--planner", help="Show another planner's best plan too, e.g. pipeline, or a plug-in's.")
    ] = "",
    connect: ToFleet = "",
    identity: AsOperator = "",
    version: VersionNumber = 0,
    model: ModelName = "",
    device: DeviceName = "",
    deadline: Deadline = "",
    deploy: Annotated[bool, typer.Option("--deploy", help="On a fleet: put the plan in force.")] = False,
    stages: RolloutStages = "",
    min_requests: MinRequests = 0,
    share: Share = None,
    force: Force = False,
    ungated: Ungated = False,
    as_json: AsJson = False,
) -> None:
    """Say where a model should run: seven levels with predictions, and the plan to use.

    Of an ONNX file: tiers without a profile of their own are this machine's, stretched to the fleet file's speeds. The
    model in int8, and each --variant, is a candidate as well. Without labels there is no accuracy, only the agreement
    with the whole model. With --connect: of a version of a running fleet, measured on its own nodes and links; with --data
    its variants are candidates there too, and the one recommended becomes a version of its own when it is deployed.

    Example:
      edgewise plan model.onnx --data test.npz --policy policy.toml --fleet fleet.toml

    Example:
      edgewise plan --connect tls/127.0.0.1:7447 --identity nodes/operator --policy policy.toml --deploy
    """
    out = Output(as_json)
    fleet_only(
        connect,
        identity=identity,
        version=version,
        model=model,
        device=device,
        deadline=deadline,
        deploy=deploy,
        stages=stages,
        min_requests=min_requests,
        force=force,
        ungated=ungated,
    )
    parse_shares(stages)
    if connect:
        if onnx is not None:
            raise InputError("a fleet plans its own versions. To bring a file there: edgewise serve FILE --connect …")
        request = FleetPlanRequest(
            connect,
            identity,
            policy=policy,
            data=data,
            version=version,
            device=device,
            budget=budget,
            deadline=deadline,
            deploy=deploy,
            model=model,
            stages=stages,
            min_requests=min_requests,
            force=force,
            ungated=ungated,
            share=share,
            input_shapes=parse_shapes(input_shape),
            variants=tuple(variant or ()),
            int8=int8,
            has_stand_ins=True,
        )
        run_async(plan_on_fleet(out, request))
        return
    if onnx is None or data is None:
        raise InputError("give a model and --data with real inputs, or --connect to plan a version of a fleet.")
    graph = load_with_examples(onnx, input_shape, exits, data)
    from edgewise.api.model_plan import plan

    with out.progress(f"measuring for {budget}", 1) as advance:
        found = plan(
            graph,
            data,
            policy=policy,
            fleet=fleet,
            profiles=profile or (),
            variants=variant or (),
            budget=budget,
            limit=limit,
        )
        advance("")
    if int8 is not None and found.int8_bytes:
        out.line(f"wrote the model in int8: {write_atomic(int8, found.int8_bytes)}")
    other = None if not planner else _other_plan(planner, found.search, found.evidence)
    _print(out, found, other)


def _other_plan(planner: str, search: Search, evidence: tuple[ExitEvidence, ...]) -> Plan:
    """The best plan of another planner; for those over several edges there is a second one, like the first and as far
    from it as the cloud.
    """
    from edgewise.planning.plan import Site
    from edgewise.planning.planner import Evidence, Sites
    from edgewise.planning.planners import best_of, candidates

    table, first, second = search.table, Site(Tier.EDGE), Site(Tier.EDGE, 1)
    chain = Sites.chain(table.profiles, table.links)
    sites = Sites(
        {**chain.profiles, second: table.profiles[Tier.EDGE]}, {**chain.links, (first, second): table.links[1]}
    )
    found = best_of(candidates(planner, table.graph, sites, search.policy, Evidence(evidence)), search.policy)
    if found is None:
        raise PlanInfeasible(
            f"planner {planner!r} finds no plan that meets the policy. Relax it, or leave --planner out."
        )
    return found


def _print(out: Output, found: ModelPlan, other: Plan | None = None) -> None:
    from edgewise.planning.baselines import baselines
    from edgewise.planning.explain import explain, level_cells, level_columns, one_node_cells, one_node_columns

    chosen, quality, said = found.recommendation, found.quality, dict[str, Any]()
    alone = baselines(found.search, found.variants)
    out.table("levels of edge intelligence, predicted", level_columns(quality), level_cells(found.levels))
    out.table("the whole model on one node, and its variants", one_node_columns(quality), one_node_cells(alone))
    out.line(found.accuracy_means if quality in found.accuracy_means else f"{quality} is {found.accuracy_means}")
    for sentence in found.assumed:
        out.line(f"assumed, {sentence}")
    out.line(f"recommended, level {chosen.level}: {chosen.reason}")
    for line in explain(chosen.plan, quality):
        out.line(line)
    if other is not None:
        out.line("asked too:")
        for line in explain(other, quality):
            out.line(line)
        said["other"] = other
    out.result(
        {
            "accuracy_means": found.accuracy_means,
            "assumed": found.assumed,
            "levels": found.levels,
            "one_node": alone,
            **said,
            "recommendation": _with_old_words(chosen),
        }
    )


def _with_old_words(chosen: Recommendation) -> dict[str, Any]:
    """A recommendation whose plan says its stages and exits in the words of 0.1.0 too, for this release."""
    said: dict[str, Any] = msgspec.to_builtins(chosen)
    plan = said["plan"]
    plan["segments"] = [
        {"tier": s["site"]["tier"], "inputs": s["inputs"], "outputs": s["outputs"]} for s in plan["stages"]
    ]
    plan["exits"] = [
        {"index": gate.index, "tensor": gate.tensors[-1], "tier": gate.at, "threshold": gate.threshold}
        for gate in chosen.plan.exits
    ]
    return said
