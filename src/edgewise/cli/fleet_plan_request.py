"""What `edgewise plan`, `serve` and `retrain` ask of a fleet, and what their files say."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edgewise.api.source import Source
    from edgewise.models.graph.graph import Graph
    from edgewise.planning.policy import Policy


@dataclass(frozen=True, slots=True)
class FleetPlanRequest:
    """What is asked of a fleet.

    Attributes:
        connect: Endpoint.
        identity: The operator's folder.
        policy: TOML file; None for the policy in force of the model, and without one no limits.
        data: Labelled examples to evaluate on; None takes the version's own evidence.
        version: Which version; 0 for the newest that may serve.
        device: For which device; "" for the slowest.
        budget: Time to measure each node for.
        deadline: Of a request; "" follows from the plan.
        deploy: Whether to put the plan in force.
        model: Which model; "" for the only one there is.
        stages: Shares of the devices, rising to 1, e.g. `0.1,0.5,1`; "" goes device by device.
        min_requests: Requests each device of a stage serves before the next stage begins.
        share: The model's weight on a node that serves several; None for the one in force, and without one 1.
        force: Whether to serve a version that is worse than the one in force, or lacks its clients' own tensors.
        ungated: Whether to serve one that was compared with nothing.
        input_shapes: Sizes of free axes, by input; without, those of the first example of `data`.
        variants: Other ONNX files that may stand in for the version.
        int8: Where to write the version in int8.
        has_stand_ins: Whether the version in int8 and the variants are candidates.
        why: What it is deployed for, for the history; "" where an operator just asks for it.
    """

    connect: str
    identity: str
    policy: Path | None = None
    data: Path | None = None
    version: int = 0
    device: str = ""
    budget: str = "3 s"
    deadline: str = ""
    deploy: bool = False
    model: str = ""
    stages: str = ""
    min_requests: int = 0
    share: float | None = None
    force: bool = False
    ungated: bool = False
    input_shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    variants: tuple[Path, ...] = ()
    int8: Path | None = None
    has_stand_ins: bool = False
    why: str = ""


def policy_of(path: Path | None) -> Policy | None:
    """Reads a policy.

    Args:
        path: TOML; an empty file sets no limits.

    Returns:
        The policy; None without a file, which leaves the one in force.

    Raises:
        ConfigError: If the file is wrong.
    """
    from edgewise.core.config import load_toml
    from edgewise.planning.policy import Policy

    return None if path is None else load_toml(path, Policy)


def loaded_graph(data: bytes, request: FleetPlanRequest) -> Graph:
    """A version's graph with the sizes that were given, and the first of a user's examples where it needs one."""
    from edgewise.api.source import read_source
    from edgewise.models.graph.graph import Graph

    graph = Graph.load(data, request.input_shapes)
    needs_sizes = any(tensor.free or tensor.has_any_rank for tensor in graph.inputs)
    if request.data is None or not (graph.unmeasured or needs_sizes):
        return graph
    example = read_source(request.data, graph.inputs).example(0)
    shapes = {name: array.shape for name, array in example.items()} if needs_sizes else {}
    return Graph.load(data, {**shapes, **request.input_shapes}, examples=example if graph.unmeasured else None)


def first_examples(graph: Graph, data: Path) -> Source:
    """Reads the first 500 examples of a file for a graph."""
    from edgewise.api.source import read_source

    return read_source(data, graph.inputs).first(500)
