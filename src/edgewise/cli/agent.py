"""`edgewise agent`: the process that every node runs."""

from __future__ import annotations

from typing import Annotated

import typer

from edgewise.cli.node_options import (
    Capture,
    Config,
    Connect,
    CrashAfter,
    Dilation,
    ExitWithParent,
    Fleet,
    HttpCertificate,
    HttpKey,
    HttpTokens,
    Identity,
    Insecure,
    KeepBytes,
    Listen,
    MaxModels,
    ModelsBytes,
    Power,
    RawMayReach,
    Scout,
    State,
    TakeOver,
    Wait,
    run_node,
)
from edgewise.cli.output import AsJson


def command(
    ctx: typer.Context,
    config: Config = None,
    tier: Annotated[str, typer.Option("--tier", help="Where the node stands: device, edge or cloud.")] = "",
    connect: Connect = None,
    identity: Identity = "",
    name: Annotated[str, typer.Option("--name", help="Node name; by default the certificate's.")] = "",
    state: State = "",
    listen: Listen = None,
    fleet: Fleet = "",
    task: Annotated[str, typer.Option("--task", help="Task file installed on this node, or 'digits'.")] = "",
    task_settings: Annotated[str, typer.Option("--task-settings", help="JSON passed to the task.")] = "",
    client: Annotated[str, typer.Option("--client", help="Whose data the node holds; by default its own name.")] = "",
    http: Annotated[
        str, typer.Option("--http", help="Host:port of the inference endpoint, of /metrics too; port 0 picks one.")
    ] = "",
    model_name: Annotated[
        str, typer.Option("--model-name", help="Another name of its only model at the endpoint.")
    ] = "model",
    engine: Annotated[str, typer.Option("--engine", help="Local engine; by default the fastest is chosen.")] = "",
    dilation: Dilation = 1.0,
    power: Power = 3.0,
    raw_may_reach: RawMayReach = "device",
    max_models: MaxModels = 8,
    models_bytes: ModelsBytes = 0,
    keep_bytes: KeepBytes = 0,
    scout: Scout = False,
    tokens: HttpTokens = "",
    http_certificate: HttpCertificate = "",
    http_key: HttpKey = "",
    insecure: Insecure = False,
    wait: Wait = "",
    take_over: TakeOver = False,
    capture: Capture = "",
    crash_after: CrashAfter = None,
    exit_with_parent: ExitWithParent = False,
    as_json: AsJson = False,
) -> None:
    """Join a fleet: train on this node's data, run stages of a plan, answer requests.

    Example:
        edgewise agent --tier device --identity device-1 --connect tls/10.0.0.5:7447 --task digits --http 127.0.0.1:8000

    Example:
        edgewise agent --config node.toml
    """
    run_node(
        ctx,
        config,
        as_json,
        exit_with_parent,
        tier=tier,
        connect=connect,
        identity=identity,
        name=name,
        state=state,
        listen=listen,
        fleet=fleet,
        task=task,
        task_settings=task_settings,
        client=client,
        http=http,
        model_name=model_name,
        engine=engine,
        dilation=dilation,
        active_power_w=power,
        raw_may_reach=raw_may_reach,
        max_models=max_models,
        models_bytes=models_bytes,
        keep_bytes=keep_bytes,
        scout=scout,
        tokens=tokens,
        http_certificate=http_certificate,
        http_key=http_key,
        insecure=insecure,
        wait=wait,
        take_over=take_over,
        capture=capture,
        crash_after=crash_after,
    )
