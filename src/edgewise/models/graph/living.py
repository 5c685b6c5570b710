"""How much memory a graph's tensors take while it is computed: what lives at one time, node by node."""

from __future__ import annotations

from edgewise.models.graph.plain import PlainGraph


def peak_bytes(graph: PlainGraph) -> int:
    """Bytes of all tensors that live at one time while a graph is computed node by node, for one example.

    Args:
        graph: The model.
    """
    last = {name: node.index for node in graph.nodes for name in node.inputs}
    sizes = {name: tensor.size_bytes for name, tensor in graph.tensors.items()}
    living = {tensor.name for tensor in graph.inputs}
    ends = {tensor.name for tensor in graph.outputs}
    peak = 0
    for node in graph.nodes:
        living.update(node.outputs)
        peak = max(peak, sum(sizes.get(name, 0) for name in living))
        living = {name for name in living if last.get(name, -1) > node.index or name in ends}
    return peak
