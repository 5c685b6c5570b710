"""`edgewise restore`: a state folder from a backup."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgewise.cli.output import AsJson, Output


def command(
    file: Annotated[Path, typer.Argument(help="As `edgewise backup` wrote it.")],
    state: Annotated[Path, typer.Option("--state", help="The new state folder; it does not exist, or is empty.")],
    as_json: AsJson = False,
) -> None:
    """Make a state folder of a backup, then start the coordinator with it, under the same name.

    Versions, what is in force and the runs that had not ended are as they were when the backup was made.

    Example:
      edgewise restore cloud.backup --state cloud-state
    """
    from edgewise.fleet.store.backup import restore

    out = Output(as_json)
    found = restore(file, state)
    out.line(
        f"restored {found.versions} versions and {found.size} files into {state}; start it: edgewise coordinator --state {state} …"
    )
    out.result({"state": state, "versions": found.versions, "files": found.size, "made_s": found.made_s})
