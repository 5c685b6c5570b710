"""`edgewise plan`: where a user's own model should run, and whether collaborating is worth it at all."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgewise.cli.file_plan import FilePlan, plan_file
from edgewise.cli.fleet_plan import (
    Deadline,
    DeviceName,
    FleetPlanRequest,
    Force,
    MinRequests,
    RolloutStages,
    Share,
    VersionNumber,
    fleet_only,
    parse_shares,
    plan_on_fleet,
)
from edgewise.cli.operator_options import AsOperator, ModelName, ToFleet
from edgewise.cli.output import AsJson, Output
from edgewise.cli.running import run_async
from edgewise.cli.serve import Exits, Shapes, parse_exits, parse_shapes
from edgewise.core.errors import InputError
from edgewise.core.units import parse_duration


def command(
    onnx: Annotated[Path | None, typer.Argument(help="The model; none to plan a version of a running fleet.")] = None,
    data: Annotated[
        Path | None, typer.Option("--data", help="Real inputs: npz (labels as `y`), npy or a folder.")
    ] = None,
    policy: Annotated[Path | None, typer.Option("--policy", help="TOML: objective and limits; default: none.")] = None,
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
    share: Share = 1.0,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Say where a model should run: seven levels with predictions, and the plan to use.

    Of an ONNX file: tiers without a profile of their own are this machine's, stretched to the fleet file's speeds. The
    model in int8, and each --variant, is a candidate as well. Without labels there is no accuracy, only the agreement
    with the whole model. With --connect: of a version of a running fleet,
    measured on its own nodes and links.

    Example:
      edgewise plan model.onnx --data test.npz --policy policy.toml --fleet fleet.toml

    Example:
      edgewise plan --connect tls/127.0.0.1:7447 --identity nodes/operator --policy policy.toml --deploy
    """
    from edgewise.models.graph.graph import Graph

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
            share=share,
        )
        run_async(plan_on_fleet(out, request))
        return
    if onnx is None or data is None:
        raise InputError("give a model and --data with real inputs, or --connect to plan a version of a fleet.")
    graph = Graph.load(onnx, parse_shapes(input_shape), parse_exits(exits))
    wanted = FilePlan(
        graph,
        data,
        policy,
        fleet,
        tuple(profile or ()),
        parse_duration(budget),
        limit,
        planner,
        tuple(variant or ()),
        int8,
    )
    plan_file(out, wanted)
