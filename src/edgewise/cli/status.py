"""`edgewise status`: what the nodes of this machine are doing, from their state folders; no fleet is asked."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgewise.cli.output import AsJson, Output

if TYPE_CHECKING:
    from edgewise.fleet.node.node_status import StatusRecord


def command(
    state: Annotated[
        str, typer.Option("--state", help="State folder of a node; by default of every node of this machine.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Say what the nodes of this machine are doing, and what they wait for; works without their fleet.

    Example:
      edgewise status --state state/device-1
    """
    from edgewise.core.environment import setting
    from edgewise.core.errors import InputError
    from edgewise.fleet.node.node_status import STATUS_FILE, read_status

    root = Path(str(setting("state")))
    folders = [Path(state)] if state else sorted(file.parent for file in root.glob(f"*/{STATUS_FILE}"))
    found = [(folder, record) for folder in folders if (record := read_status(folder)) is not None]
    if not found:
        raise InputError(
            f"no node has left its status in {state or str(root)!r}. Give its state folder, --state, as it was started with."
        )
    out = Output(as_json)
    rows = [_row(folder, record) for folder, record in found]
    for row in rows:
        out.line(_sentence(row))
        for what, cause in row["waits_for"].items():
            out.line(f"  waits for {what}: {cause}")
    out.result({"nodes": rows})


def _row(folder: Path, record: StatusRecord) -> dict[str, Any]:
    from edgewise.fleet.node.sole_process import is_held

    # One that is displaced lets its folder go.
    runs = is_held(folder) or (record.phase == "displaced" and Path(f"/proc/{record.process}").exists())
    now_s = time.time()
    return {
        "node": record.node,
        "tier": record.tier,
        "state": str(folder),
        "phase": record.phase if runs else "not running",
        "process": record.process if runs else 0,
        "for_s": round(max(0.0, now_s - record.since_s)),
        "cause": record.cause,
        "endpoint": record.endpoint,
        "http_port": record.http_port,
        "models": record.models,
        "waits_for": {
            what: f"{wait.cause} ({now_s - wait.since_s:.0f} s, {wait.attempts} attempts)"
            for what, wait in (record.waits_for.items() if runs else ())
        },
    }


def _sentence(row: dict[str, Any]) -> str:
    parts = [f"{row['node']} ({row['tier']}) is {row['phase']}"]
    if row["process"]:
        parts.append(f"process {row['process']}, for {row['for_s']} s")
    if row["http_port"]:
        parts.append(f"http port {row['http_port']}")
    parts += [f"{model} v{version}" for model, version in row["models"].items()]
    return ", ".join(parts) + (f": {row['cause']}" if row["cause"] else "")
