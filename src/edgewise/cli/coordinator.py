"""`edgewise coordinator`: the process that decides for a fleet."""

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
    listen: Listen = None,
    identity: Identity = "",
    name: Annotated[str, typer.Option("--name", help="Node name; by default the certificate's.")] = "",
    state: State = "",
    fleet: Fleet = "",
    tier: Annotated[str, typer.Option("--tier", help="Where it stands: cloud or edge.")] = "cloud",
    connect: Connect = None,
    holdout: Annotated[
        str,
        typer.Option(
            "--holdout",
            help="npz with calibration_x, calibration_y, gate_x, gate_y for evidence and gate; MODEL=FILE for one model, "
            "several with commas between.",
        ),
    ] = "",
    http: Annotated[
        str,
        typer.Option(
            "--http", help="Port, or host:port, of /metrics and the health routes; port 0 picks one, without it none."
        ),
    ] = "",
    judge: Annotated[
        str, typer.Option("--judge", help="Task file whose own metrics are told of held-out data in each round.")
    ] = "",
    dilation: Dilation = 1.0,
    power: Power = 60.0,
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
    """Start the node that decides: runs, versions, plans; its log and registry survive it.

    Example:
        edgewise coordinator --identity cloud --listen tls/127.0.0.1:7447 --state cloud-state

    Example:
        edgewise coordinator --config cloud.toml
    """
    run_node(
        ctx,
        config,
        as_json,
        exit_with_parent,
        coordinator=True,
        tier=tier,
        connect=connect,
        identity=identity,
        name=name,
        state=state,
        listen=listen,
        fleet=fleet,
        holdout=holdout,
        http=http,
        judge=judge,
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
