"""`edgewise profile`: what a model costs on this machine, piece by piece, as the planner will read it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from edgewise.cli.output import AsJson, Output
from edgewise.cli.serve import Shapes, load_with_examples
from edgewise.core.files import write_atomic
from edgewise.core.units import format_bytes, parse_duration

if TYPE_CHECKING:
    from edgewise.models.graph.graph import Graph
    from edgewise.planning.profile import Profile


def command(
    onnx: Annotated[Path, typer.Argument(help="The model.")],
    data: Annotated[Path | None, typer.Option("--data", help="Examples to run on: npz, npy or a folder.")] = None,
    tier: Annotated[str, typer.Option("--tier", help="Where this machine stands: device, edge or cloud.")] = "device",
    node: Annotated[str, typer.Option("--node", help="Name of this machine in the profile.")] = "local",
    budget: Annotated[str, typer.Option("--budget", help="Time to measure for.")] = "3 s",
    cadence: Annotated[
        str, typer.Option("--cadence", help="Gap between runs, as between requests in serving.")
    ] = "0 ms",
    dilation: Annotated[
        float, typer.Option("--dilation", min=1.0, help="Emulate a machine so many times slower.")
    ] = 1.0,
    power: Annotated[float, typer.Option("--power", min=0.0, help="Modelled power while computing, watts.")] = 3.0,
    input_shape: Shapes = None,
    to: Annotated[
        Path | None, typer.Option("--out", help="Write the profile here, for: edgewise plan --profile.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure what an ONNX model costs on this machine, at every cut worth considering.

    Example:
      edgewise profile model.onnx --tier edge --out edge.json
    """
    from edgewise.api.source import read_source
    from edgewise.core.ids import node_id
    from edgewise.inference.profiler import profile_graph
    from edgewise.security.certificates import tier_of

    out = Output(as_json)
    graph = load_with_examples(onnx, input_shape, "", data)
    inputs = None if data is None else read_source(data, graph.inputs).example(0)
    with out.progress(f"measuring for {budget}", 1) as advance:
        found = profile_graph(
            graph,
            node_id(node),
            tier_of(tier),
            dilation=dilation,
            cadence_s=parse_duration(cadence),
            budget_s=parse_duration(budget),
            inputs=inputs,
            active_power_w=power,
        )
        advance("")
    print_profile(out, graph, found)
    if to is not None:
        write_atomic(to, msgspec.json.encode(found))
        out.line(f"wrote {to}")
    out.result(found)


def print_profile(out: Output, graph: Graph, profile: Profile) -> None:
    """Prints a profile as a table of cuts.

    Args:
        out: Where to.
        graph: What was measured.
        profile: What was found.
    """
    whole = profile.segments[0]
    out.line(
        f"{graph.name}: {len(graph.condensed.groups)} fusion groups, whole {whole.seconds * 1e3:.3f} ms "
        f"(p95 {whole.p95_seconds * 1e3:.3f}, {whole.num_runs} runs), call {profile.call_s * 1e3:.3f} ms, "
        f"overhead {profile.overhead_s * 1e3:.3f} ms, memory {format_bytes(profile.memory_bytes)}"
    )
    out.line(f"{profile.fingerprint.machine}, {profile.fingerprint.runtime}, dilation {profile.fingerprint.dilation:g}")
    sizes = {cut.position: cut for cut in graph.condensed.cuts()}
    heads = {segment.last + 1: segment for segment in profile.segments if segment.first == 0 and segment is not whole}
    tails = {segment.first: segment for segment in profile.segments if segment.first > 0}
    rows = [
        (
            position,
            ", ".join(sizes[position].tensors),
            format_bytes(sizes[position].size_bytes),
            heads[position].seconds * 1e3,
            tails[position].seconds * 1e3,
        )
        for position in sorted(heads)
        if position in sizes and position in tails
    ]
    out.table("measured cuts", ["after group", "tensors", "size", "head ms", "tail ms"], rows)
