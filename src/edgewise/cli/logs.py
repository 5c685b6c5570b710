"""`edgewise logs`: what a node's process logged last, asked for over the fleet."""

from __future__ import annotations

import asyncio
import time
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from edgewise.cli.operator_options import AsOperator, InFleet, ToFleet, operator_of
from edgewise.cli.output import AsJson, Output
from edgewise.cli.running import run_async

if TYPE_CHECKING:
    from edgewise.fleet.operator.operator import Operator

FOLLOW_EVERY_S = 0.5


def command(
    node: Annotated[str, typer.Argument(help="Which node; by default the coordinator.")] = "",
    lines: Annotated[int, typer.Option("--lines", min=1, max=2000, help="At most so many, the newest.")] = 100,
    follow: Annotated[bool, typer.Option("--follow", help="Go on, and print what is new; ctrl-C ends it.")] = False,
    connect: ToFleet = "",
    identity: AsOperator = "",
    fleet: InFleet = "",
    as_json: AsJson = False,
) -> None:
    """Print the last lines that a node logged, since its process started.

    Example:
      edgewise logs device-1 --follow --connect tls/127.0.0.1:7447 --identity nodes/operator
    """

    async def speak() -> None:
        async with operator_of(connect, identity, fleet) as operator:
            await show(Output(as_json), operator, node, lines, follow=follow)

    with suppress(KeyboardInterrupt) if follow else nullcontext():
        run_async(speak())


async def show(out: Output, operator: Operator, node: str, lines: int, *, follow: bool = False) -> None:
    """Prints lines, once or until cancelled.

    Args:
        out: Where to; with `--json` one line of JSON each.
        operator: Connection to the fleet.
        node: Which; "" for the coordinator.
        lines: At most so many at first.
        follow: Whether to go on.
    """
    from edgewise.core.ids import NodeId
    from edgewise.fleet.messages import LogRequest

    asked, last = NodeId(node) or operator.coordinator, 0
    while True:
        answer = await operator.logs(asked, LogRequest(last, lines))
        for line in answer.lines:
            last = line.number
            when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(line.time_s))
            out.line(f"{when} {line.level:7} {line.text}")
            if out.as_json:
                out.event("log", node=asked, **msgspec.structs.asdict(line))
        if not follow:
            return
        await asyncio.sleep(FOLLOW_EVERY_S)
