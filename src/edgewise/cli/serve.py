"""`edgewise serve`: a user's own ONNX model over the Open Inference Protocol, here alone or on a running fleet."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgewise.cli.fleet_options import Force, Ungated, fleet_only
from edgewise.cli.operator_options import AsOperator, ToFleet
from edgewise.cli.output import AsJson, Output
from edgewise.cli.running import run_async
from edgewise.core.errors import InputError

if TYPE_CHECKING:
    from edgewise.models.graph.graph import Graph
    from edgewise.security.http_port import PortSecurity

Shapes = Annotated[
    list[str] | None, typer.Option("--input-shape", help="Fix open axes, e.g. image=1,3,224,224; repeat for several.")
]

Exits = Annotated[
    str,
    typer.Option(
        "--exits",
        help="Outputs at which a request may end, first exit first, e.g. early,end; default: as the file says.",
    ),
]
Keep = Annotated[
    list[str] | None,
    typer.Option("--keep", help="State between requests of a sequence: input=output, e.g. h0=hn; repeat for several."),
]


def command(
    onnx: Annotated[list[Path], typer.Argument(help="The model, or several.")],
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port; 0 takes a free one.")] = 8000,
    name: Annotated[str, typer.Option("--name", help="The model's name; default: the file's.")] = "",
    dilation: Annotated[
        float, typer.Option("--dilation", min=1.0, help="Emulate a device so many times slower.")
    ] = 1.0,
    input_shape: Shapes = None,
    exits: Exits = "",
    keep: Keep = None,
    certificate: Annotated[Path | None, typer.Option("--certificate", help="PEM; with --key, serves TLS.")] = None,
    key: Annotated[Path | None, typer.Option("--key", help="PEM.")] = None,
    tokens: Annotated[
        Path | None, typer.Option("--tokens", help="File of `edgewise token`: clients need one. Needed off loopback.")
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Allow a non-loopback address without TLS and tokens.")
    ] = False,
    connect: ToFleet = "",
    identity: AsOperator = "",
    policy: Annotated[Path | None, typer.Option("--policy", help="On a fleet: TOML, objective and limits.")] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data", help="Examples: on a fleet to evaluate the model on; here for a trial run of one, not of zeros."
        ),
    ] = None,
    budget: Annotated[str, typer.Option("--budget", help="On a fleet: time to measure each node for.")] = "3 s",
    force: Force = False,
    ungated: Ungated = False,
    as_json: AsJson = False,
) -> None:
    """Serve an ONNX model over the Open Inference Protocol.

    On this machine until ctrl-C or SIGTERM. With --connect on a running fleet: the model becomes a version, is planned
    where it will run, and every device answers for it at its own port. Several models share one endpoint, each called after
    its file.

    Example:
      edgewise serve model.onnx --port 8000 --name digits

    Example:
      edgewise serve digits.onnx faces.onnx

    Example:
      edgewise serve model.onnx --connect tls/127.0.0.1:7447 --identity nodes/operator
    """
    from edgewise.cli.fleet_plan import serve_on_fleet
    from edgewise.cli.fleet_plan_request import FleetPlanRequest
    from edgewise.models.model_choice import model_name_of
    from edgewise.security.http_port import PortSecurity

    fleet_only(connect, identity=identity, policy=policy, force=force, ungated=ungated)
    if len(onnx) > 1 and (name or exits or keep or input_shape or data or connect):
        raise InputError(
            f"{len(onnx)} models are given, and --name, --exits, --keep, --input-shape, --data and --connect are for one. Give "
            "one model, or leave them out."
        )
    name = name or model_name_of(onnx[0].stem)
    if connect:
        request = FleetPlanRequest(
            connect,
            identity,
            policy,
            data,
            budget=budget,
            deploy=True,
            model=name,
            force=force,
            ungated=ungated,
            input_shapes=parse_shapes(input_shape),
        )
        if keep:
            raise InputError("--keep is for a model served on this machine alone; on a fleet a plan says what is kept.")
        graph = load_with_examples(onnx[0], input_shape, exits, data)
        run_async(serve_on_fleet(Output(as_json), request, graph, name))
        return
    security = PortSecurity.of(certificate=certificate, key=key, tokens=tokens, insecure=insecure)
    graphs = {name: load_with_examples(onnx[0], input_shape, exits, data)}
    for other in onnx[1:]:
        named = model_name_of(other.stem)
        if named in graphs:
            raise InputError(
                f"two of the models would be called {named!r}, after their files. Rename one of the files."
            )
        graphs[named] = load_with_examples(other, None, "", None)
    run_async(serve_models(Output(as_json), graphs, host, port, dilation, parse_kept(keep), security))


def load_with_examples(onnx: Path, input_shape: list[str] | None, exits: str, data: Path | None) -> Graph:
    """Loads a model, with the first of a user's examples where it does not run on zeros.

    Args:
        onnx: The model.
        input_shape: As of `--input-shape`.
        exits: As of `--exits`.
        data: As of `--data`.

    Returns:
        The graph.

    Raises:
        GraphError: As `Graph.load`.
        DataError: As `read_source`.
    """
    from edgewise.api.source import read_source
    from edgewise.models.graph.graph import Graph

    graph = Graph.load(onnx, parse_shapes(input_shape), parse_exits(exits))
    if data is None or not graph.unmeasured:
        return graph
    examples = read_source(data, graph.inputs).example(0)
    return Graph.load(onnx, parse_shapes(input_shape), parse_exits(exits), examples)


async def serve_models(
    out: Output,
    graphs: Mapping[str, Graph],
    host: str,
    port: int,
    dilation: float,
    keeps: tuple[tuple[str, str], ...],
    security: PortSecurity,
) -> None:
    """Serves models until a signal asks to stop.

    Args:
        out: Says where they are served.
        graphs: The models by their name at the endpoint.
        host: Address.
        port: Port; 0 takes a free one.
        dilation: Factor for emulating a slow device.
        keeps: Pairs (input, output) of their state.
        security: TLS and tokens.
    """
    from edgewise.core.process import keep_for_good
    from edgewise.inference.serving_node import local_servers
    from edgewise.service.open_inference import serve_http

    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    server = await local_servers(graphs, dilation=dilation, keeps=keeps)
    try:
        endpoint = await serve_http(server, host, port, security=security)
        keep_for_good()
        for name in graphs:
            out.event("serving", model=name, url=endpoint.url)
        await stop.wait()
        await endpoint.close()
        for name in graphs:
            out.event("stopped", model=name)
    finally:
        await server.close()


def parse_shapes(texts: list[str] | None) -> dict[str, tuple[int, ...]]:
    """Reads `--input-shape`.

    Args:
        texts: e.g. `["image=1,3,224,224"]`.

    Returns:
        Shape by input name.

    Raises:
        InputError: If one is written otherwise.
    """
    shapes = {}
    for text in texts or ():
        name, _, sizes = text.rpartition("=")
        if not name or not all(size.isdigit() and int(size) > 0 for size in sizes.split(",")):
            raise InputError(f"{text!r} is not an input's shape. Write it like 'image=1,3,224,224'.")
        shapes[name] = tuple(int(size) for size in sizes.split(","))
    return shapes


def parse_exits(text: str) -> tuple[str, ...]:
    """Reads `--exits`.

    Args:
        text: e.g. `early,end`.

    Returns:
        Names of outputs; () if none were given.
    """
    return tuple(name.strip() for name in text.split(",") if name.strip())


def parse_kept(texts: list[str] | None) -> tuple[tuple[str, str], ...]:
    """Reads `--keep`.

    Args:
        texts: e.g. `["h0=hn", "c0=cn"]`.

    Returns:
        Pairs (input, output).

    Raises:
        InputError: If one is no pair.
    """
    pairs = []
    for text in texts or ():
        given, equals, made = text.partition("=")
        if not given or not equals or not made:
            raise InputError(f"{text!r} is no state. Give an input and an output of the model, e.g. h0=hn.")
        pairs.append((given, made))
    return tuple(pairs)
