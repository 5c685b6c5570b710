"""Options that `agent` and `coordinator` share, and running a node until it is asked to stop."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from edgewise.cli.node_file import read_node_file
from edgewise.cli.operator_options import fleet_of
from edgewise.cli.output import Output
from edgewise.cli.threads import one_thread
from edgewise.core.errors import InputError, nearest

Config = Annotated[
    Path | None, typer.Option("--config", help="TOML: the settings of the node; an option given here wins.")
]
Connect = Annotated[list[str] | None, typer.Option("--connect", help="Endpoint of the parent; again for a standby.")]
Listen = Annotated[list[str] | None, typer.Option("--listen", help="Endpoint to listen on, e.g. tls/127.0.0.1:7447.")]
Identity = Annotated[str, typer.Option("--identity", help="Folder with ca.pem, node.pem and node.key.")]
State = Annotated[str, typer.Option("--state", help="Folder for blobs, logs and the registry.")]
Fleet = Annotated[str, typer.Option("--fleet", help="Name of the fleet; by default the certificate's.")]
Dilation = Annotated[
    float, typer.Option("--dilation", min=1.0, help="Stretch inference compute, to emulate a slower machine.")
]
Power = Annotated[float, typer.Option("--power", min=0.0, help="Modelled power while computing, in watts.")]
RawMayReach = Annotated[str, typer.Option("--raw-may-reach", help="Outermost tier raw data of this node may reach.")]
MaxModels = Annotated[int, typer.Option("--max-models", min=1, help="Models it serves at once; one more is refused.")]
ModelsBytes = Annotated[
    int, typer.Option("--models-bytes", min=0, help="Bound of what its models take; 0 for half of the memory.")
]
KeepBytes = Annotated[
    int,
    typer.Option(
        "--keep-bytes",
        min=0,
        help="What its blobs may take before older versions and ended runs go; 0 for a tenth of the disk.",
    ),
]
Scout = Annotated[bool, typer.Option("--scout", help="Look for other nodes by multicast and gossip.")]
Insecure = Annotated[
    bool, typer.Option("--insecure", help="Allow a non-loopback address without TLS, and --http without tokens.")
]
HttpTokens = Annotated[
    str, typer.Option("--tokens", help="File of `edgewise token`: clients of --http need one. Needed off loopback.")
]
HttpCertificate = Annotated[
    str, typer.Option("--http-certificate", help="PEM; TLS for --http. By default the node's own, but on a device.")
]
HttpKey = Annotated[str, typer.Option("--http-key", help="PEM.")]
Wait = Annotated[
    str,
    typer.Option(
        "--wait", help="How long to wait for a parent that is away, e.g. 30s; by default as long as it takes."
    ),
]
TakeOver = Annotated[
    bool,
    typer.Option(
        "--take-over", help="A process that runs under this name or on this state stops, and this one goes on."
    ),
]
Capture = Annotated[str, typer.Option("--capture", help="Folder for a plaintext copy of every frame sent (audits).")]
CrashAfter = Annotated[
    int | None, typer.Option("--crash-after", min=1, hidden=True, help="Tests: die after that event.")
]
ExitWithParent = Annotated[bool, typer.Option("--exit-with-parent", hidden=True, help="End when stdin closes.")]

WITHOUT_OPTION = ("buffer_bytes",)
OPTION_OF = {"active_power_w": "power"}
LISTEN = "tls/127.0.0.1:7447"
"""Where a coordinator listens if nothing is said."""


def run_node(ctx: typer.Context, config: Path | None, as_json: bool, exit_with_parent: bool, **given: Any) -> None:
    """Runs a node until SIGTERM, ctrl-C or, if asked, the end of its standard input.

    Args:
        ctx: Of the verb; knows which options were written.
        config: File with the node's settings; None for none.
        as_json: Print events as JSON lines.
        exit_with_parent: End when standard input closes.
        **given: Fields of `AgentSettings`, as the options gave them.

    Raises:
        ConfigError: If the file is wrong.
        InputError: If an option is.
    """
    one_thread()
    if config is not None:
        known = {*given, *WITHOUT_OPTION} - {"coordinator", "crash_after"}
        given |= {k: v for k, v in read_node_file(config, str(ctx.info_name), known).items() if not is_written(ctx, k)}
    if not given["tier"]:
        raise typer.BadParameter("say where the node stands: --tier device, edge or cloud, or tier in --config.", ctx)
    if given.get("coordinator"):
        given["listen"] = given["listen"] or [LISTEN]
    from edgewise.core.environment import setting
    from edgewise.core.ids import Tier
    from edgewise.core.units import parse_duration
    from edgewise.fleet.agent_process import run_agent
    from edgewise.fleet.node.settings import AgentSettings
    from edgewise.security.identity import Identity as NodeIdentity

    output = Output(as_json)
    given["fleet"] = fleet_of(given["identity"], given["fleet"])
    name = given.pop("name") or str(NodeIdentity.load(given["identity"]).node)
    tier, raw = given.pop("tier"), given.pop("raw_may_reach")
    for word in (tier, raw):
        if word not in tuple(Tier):
            raise InputError(f"{word!r} is not a tier.{nearest(word, map(str, Tier))}")
    check_address(given.get("http", ""))
    if given["wait"]:
        parse_duration(given["wait"])
    task_settings = _task_settings(given.pop("task_settings", ""))
    state = given.pop("state") or os.path.join(str(setting("state")), name)
    lists: dict[str, Any] = {key: tuple(given.pop(key) or ()) for key in ("connect", "listen")}
    settings = AgentSettings(
        name=name, tier=Tier(tier), raw_may_reach=Tier(raw), state=state, task_settings=task_settings, **lists, **given
    )
    asyncio.run(run_agent(settings, output.event, open_endpoint=_open_endpoint, exit_with_parent=exit_with_parent))


def is_written(ctx: typer.Context, setting: str) -> bool:
    """Whether an option was given on the command line, so that it wins over a file.

    Args:
        ctx: Of the verb.
        setting: Field of `AgentSettings`.
    """
    source = ctx.get_parameter_source(OPTION_OF.get(setting, setting))
    return source is not None and source.name != "DEFAULT"


def _task_settings(words: Any) -> Any:
    if not isinstance(words, str):  # a table of the file
        return words
    try:
        found = json.loads(words or "{}")
    except ValueError as error:
        raise InputError(f"--task-settings is not JSON: {error}. Write it like '{{\"seed\": 1}}'.") from error
    if not isinstance(found, dict):
        raise InputError(f"--task-settings takes a JSON object, found {words!r}. Write it like '{{\"seed\": 1}}'.")
    return found


def check_address(http: str) -> None:
    """Refuses what is not `host:port`.

    Args:
        http: As from `--http`; "" for none.

    Raises:
        InputError: If it is written otherwise.
    """
    port = http.rpartition(":")[2]
    if http and not (port.isdigit() and int(port) < 65536):
        raise InputError(f"{http!r} is not an address to answer on. Write it like '127.0.0.1:8000', port 0 for any.")


async def _open_endpoint(server: Any, host: str, port: int, metrics: Any, ready: Any, security: Any) -> Any:
    """Opens the inference endpoint; the web framework is imported by nodes that have one."""
    from edgewise.service.endpoint import open_endpoint

    return await open_endpoint(server, host, port, metrics, ready, security)
