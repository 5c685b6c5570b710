"""The digest of a task's code: nodes that train one model together run the same code, or the run does not begin."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import FunctionType

from edgewise.core.ids import Digest, NodeId, digest_of
from edgewise.models.task import Task

TASK_CODE = "task_code"
"""Key of the digest among what every node of a run must know (`RunSpec.extra`)."""


def code_digest(task: Task) -> Digest:
    """Names the code of a task: its file, and the files beside it that this one imports.

    Line ends do not count, everything else does, comments too. Settings are not part of it: they say where a node's
    data lies.

    Args:
        task: As loaded.

    Returns:
        The digest; "" for a task that was not made from a file.
    """
    codes = (f.__code__ for f in vars(type(task)).values() if isinstance(f, FunctionType))
    file = next((Path(code.co_filename) for code in codes), None)
    if file is None or not file.is_file():
        return Digest("")
    read: dict[str, bytes] = {}
    waiting = [file]
    while waiting:
        path = waiting.pop()
        name = path.relative_to(file.parent).as_posix()
        if name not in read:
            read[name] = path.read_bytes().replace(b"\r\n", b"\n")
            waiting += _beside(path.parent, read[name])
    first = read.pop(file.name)  # under no name: it may be called otherwise on another node
    return digest_of(b"\0".join([first, *(part for name in sorted(read) for part in (name.encode(), read[name]))]))


def difference(task: str, wanted: str, there: Mapping[NodeId, str]) -> str:
    """Why a run does not begin where a task's code is not the same everywhere; "" if it is.

    Args:
        task: Its name.
        wanted: Digest of the operator's; "" if it is not known, then that of most nodes.
        there: Digest by node.

    Returns:
        The sentence: who differs, and the cure.
    """
    usual = wanted or max(sorted(set(there.values())), key=list(there.values()).count, default="")
    others = sorted(node for node, digest in there.items() if digest != usual)
    if not others:
        return ""
    whose = "this job's" if wanted else "that of the other nodes"
    return (
        f"the code of task {task!r} differs on {_named(others)}: {there[others[0]][:12] or 'unknown'} there, {whose} is "
        f"{usual[:12]}. Install the same task file everywhere and start {'it' if len(others) == 1 else 'them'} again."
    )


def _named(nodes: Iterable[NodeId]) -> str:
    names = list(nodes)
    return ", ".join(names[:10]) + (", …" if len(names) > 10 else "")


def _beside(folder: Path, source: bytes) -> Iterator[Path]:
    """Files in a folder that a source imports."""
    for node in ast.walk(ast.parse(source)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
        for name in names:
            path = folder.joinpath(*name.split("."))
            yield from (found for found in (path.with_suffix(".py"), path / "__init__.py") if name and found.is_file())
