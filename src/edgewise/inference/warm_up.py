"""A first run of a stage, on zeros or on the examples that its model came with: kernels are made, and its time is known."""

from __future__ import annotations

import time
from math import inf

from edgewise.inference.stages import CannotCompute, LoadedStage, Tensors
from edgewise.models.graph.graph import Graph
from edgewise.models.graph.infer_shapes import empty_array


def zeros(graph: Graph, names: list[str] | tuple[str, ...]) -> Tensors:
    """Tensors of a graph, of one example: full of zeros, or as the graph's own examples are."""
    return {
        n: graph.examples[n] if n in graph.examples else empty_array(graph.tensor(n).shape, graph.tensor(n).dtype)
        for n in names
    }


def warm_up(graph: Graph, stage: LoadedStage) -> float:
    """Runs a stage twice on zeros, undilated.

    Args:
        graph: Knows the shapes.
        stage: What to run.

    Returns:
        Seconds of the second run; infinite where it cannot run on zeros.
    """
    feeds = zeros(graph, stage.inputs)
    try:
        stage.compute(feeds)
        if stage.dilation > 1.0:
            stage.measure(feeds)
        started = time.perf_counter()
        stage.compute(feeds)
    except CannotCompute:
        return inf
    return time.perf_counter() - started
