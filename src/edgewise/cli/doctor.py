"""`edgewise doctor`: whether this machine has what Edgewise needs, and what is missing for what."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shlex
import shutil
import socket
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from edgewise.cli.output import AsJson, Output
from edgewise.core.environment import setting
from edgewise.core.private_files import exposed

_NEEDED = (
    "numpy",
    "onnx",
    "onnxruntime",
    "eclipse-zenoh",
    "msgspec",
    "cryptography",
    "litestar",
    "igraph",
    "SQLAlchemy",
)
_FOR_TRAINING = ("torch", "scikit-learn")


class Finding(msgspec.Struct, frozen=True):
    """One thing that was looked at.

    Attributes:
        what: What was looked at.
        found: What is there.
        ok: Whether it is enough.
        cure: What to do if it is not; empty if nothing.
    """

    what: str
    found: str
    ok: bool
    cure: str = ""


def command(
    state: Annotated[
        list[Path] | None,
        typer.Option("--state", help="State folder of a node; again for more. By default all below EDGEWISE_STATE."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check that this machine has what Edgewise needs, and that nodes' states are theirs alone.

    Exits with 1 if something that every node needs is missing, or others may read what a node keeps.

    Example:
      edgewise doctor
    """
    out = Output(as_json)
    findings = [
        _python(),
        *map(_package, _NEEDED),
        *map(_training_package, _FOR_TRAINING),
        _loopback(),
        _space(),
        _data(),
        *map(_state, state or _states()),
    ]
    out.table("edgewise doctor", ["", "what", "found", "do"], [_row(finding) for finding in findings])
    out.result(findings)
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


def _row(finding: Finding) -> tuple[str, str, str, str]:
    return ("ok" if finding.ok else "no", finding.what, finding.found, finding.cure)


def _python() -> Finding:
    found = ".".join(map(str, sys.version_info[:3]))
    return Finding(
        "Python", found, sys.version_info >= (3, 11), "" if sys.version_info >= (3, 11) else "use 3.11 or newer"
    )


def _package(name: str) -> Finding:
    try:
        return Finding(name, importlib.metadata.version(name), True)
    except importlib.metadata.PackageNotFoundError:
        return Finding(name, "not installed", False, "pip install edgewise")


def _training_package(name: str) -> Finding:
    finding = _package(name)
    # A node that only infers and serves is complete without them.
    return (
        finding if finding.ok else Finding(name, "not installed", True, "only to train: pip install 'edgewise[train]'")
    )


def _loopback() -> Finding:
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            return Finding("loopback port", str(server.getsockname()[1]), True)
    except OSError as error:
        return Finding("loopback port", str(error), False, "allow this user to listen on 127.0.0.1")


def _space() -> Finding:
    folder = Path(tempfile.gettempdir())
    free = shutil.disk_usage(folder).free
    enough = free > 500_000_000
    return Finding(
        "free space", f"{free / 1e9:.1f} GB in {folder}", enough, "" if enough else "free 0.5 GB or set TMPDIR"
    )


def _data() -> Finding:
    folder = os.environ.get("EDGEWISE_DATA")
    if folder is None:
        return Finding("EDGEWISE_DATA", "not set", True, "only for examples on larger data; digits need nothing")
    exists = Path(folder).is_dir()
    return Finding("EDGEWISE_DATA", folder, exists, "" if exists else "no such folder; set it to the data's folder")


def _states() -> list[Path]:
    """State folders of nodes that ran here with no `--state` of their own."""
    root = Path(str(setting("state")))
    return sorted(path for path in root.glob("*") if path.is_dir())


def _state(folder: Path) -> Finding:
    what = f"state {folder}"
    if not folder.is_dir():
        return Finding(what, "no such folder", False, "give the folder that a node's --state names")
    if not (open_to_others := exposed(folder)):
        return Finding(what, "for its owner alone", True)
    more = f" and {len(open_to_others) - 1:,} more" if len(open_to_others) > 1 else ""
    found = f"others may read or enter {open_to_others[0]}{more}"
    return Finding(what, found, False, f"chmod -R go-rwx {shlex.quote(str(folder))}; a node does it as it starts")
