"""`edgewise backup`: a coordinator's state folder in one file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgewise.cli.output import AsJson, Output
from edgewise.core.units import format_bytes


def command(
    state: Annotated[Path, typer.Argument(help="The coordinator's state folder, on its machine.")],
    file: Annotated[Path, typer.Option("--out", help="The file to write.")],
    as_json: AsJson = False,
) -> None:
    """Copy a coordinator's state into one file, also while it runs: log, registry, graphs and weights of every version.

    Its certificate is not in it. Keep the file as you keep the folder.

    Example:
      edgewise backup cloud-state --out cloud.backup
    """
    from edgewise.fleet.store.backup import write_backup

    out = Output(as_json)
    made = write_backup(state, file)
    size = file.stat().st_size
    out.line(f"wrote {file}: {made.versions} versions, {made.size} files, {format_bytes(size)}")
    out.result({"file": file, "size_bytes": size, "versions": made.versions, "files": made.size, "made_s": made.made_s})
