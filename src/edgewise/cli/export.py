"""`edgewise export`: a version of a fleet's model as an ONNX file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgewise.cli.operator_options import AsOperator, InFleet, ToFleet, operator_of
from edgewise.cli.output import AsJson, Output
from edgewise.cli.running import run_async

if TYPE_CHECKING:
    from edgewise.fleet.operator.operator import Operator


def command(
    version: Annotated[int, typer.Argument(min=1, help="The version's number, as `edgewise versions` lists it.")],
    file: Annotated[Path, typer.Option("--out", help="The ONNX file to write.")],
    connect: ToFleet = "",
    identity: AsOperator = "",
    fleet: InFleet = "",
    as_json: AsJson = False,
) -> None:
    """Write a version as an ONNX file, exits as outputs, weights inside.

    Example:
      edgewise export 2 --out digits.onnx --connect tls/127.0.0.1:7447 --identity nodes/operator
    """

    async def speak() -> None:
        async with operator_of(connect, identity, fleet) as operator:
            await export(Output(as_json), operator, version, file)

    run_async(speak())


async def export(out: Output, operator: Operator, number: int, file: Path) -> None:
    """Fetches a version and writes it.

    Args:
        out: Where to print what was written.
        operator: Connection to the fleet.
        number: Which version.
        file: Where; whole or not there, whatever happens meanwhile.

    Raises:
        RemoteError: If there is no such version; lists those there are.
    """
    import asyncio

    from edgewise.core.files import write_atomic

    graph = await operator.graph(number)
    version = next(v for v in (await operator.versions()).versions if v.number == number)
    await asyncio.to_thread(write_atomic, file, graph)
    out.line(f"wrote {file}: version {number} of {version.task}, {len(graph):,} bytes")
    if version.caution:
        out.line(f"caution: {version.caution}")
    size, caution = len(graph), version.caution
    out.result({"version": number, "model": version.task, "file": file, "size_bytes": size, "caution": caution})
