"""Which nodes a runtime computes at once: pointwise regions, epilogues, and what cannot be parted. Read `condense.py` next."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from edgewise.models.graph.plain import PlainGraph, PlainNode

_MOVES = {"Identity", "Dropout", "Cast", "Flatten", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Split"}
_MOVES |= {"Concat", "Shape", "Gather", "Expand", "Pad", "DepthToSpace", "SpaceToDepth"}
_POINTWISE = {"Relu", "Clip", "Sigmoid", "HardSigmoid", "HardSwish", "LeakyRelu", "PRelu", "Elu", "Selu", "Celu"}
_POINTWISE |= {"Tanh", "Erf", "Gelu", "Softplus", "Softsign", "Mish", "BatchNormalization", "InstanceNormalization"}
_POINTWISE |= {"Add", "Sub", "Mul", "Div", "Pow", "Sqrt", "Neg", "Abs", "Exp", "Log", "Reciprocal", "Min", "Max"}
_POINTWISE |= {"Softmax", "LogSoftmax", "LayerNormalization", "ReduceMean", "Where", "Equal", "Not", "LRN"}
_POINTWISE |= {"QuantizeLinear", "DequantizeLinear"}
_REGION_WINDOW = 40
_JOINED_ADD = {"Conv", "MatMul", "Gemm"}


def fuse(graph: PlainGraph, users: dict[str, list[int]], exits: set[str]) -> FusedNodes:
    """Joins the nodes that run as one.

    Args:
        graph: The graph.
        users: Positions of the nodes that read a tensor, by its name.
        exits: Tensors that the graph answers.

    Returns:
        The sets of node positions.
    """
    union = FusedNodes(len(graph.nodes))
    for region in _regions(graph, users, exits):
        union.join(region)
    _attach(graph, users, exits, union)
    _weld(graph, users, union)
    return union


class FusedNodes:
    """Which nodes run as one: disjoint sets of their positions."""

    def __init__(self, size: int) -> None:
        self._parent = list(range(size))

    def find(self, item: int) -> int:
        """The position that stands for an item's set."""
        while self._parent[item] != item:
            item = self._parent[item]
        return item

    def join(self, items: Sequence[int]) -> None:
        """Makes one set of several."""
        roots = sorted({self.find(i) for i in items})
        for root in roots[1:]:
            self._parent[root] = roots[0]

    def members(self, item: int) -> list[int]:
        """Positions of an item's set, ascending."""
        root = self.find(item)
        return [i for i in range(len(self._parent)) if self.find(i) == root]


def _regions(graph: PlainGraph, users: dict[str, list[int]], exits: set[str]) -> Iterator[list[int]]:
    """Pointwise regions that spring from one tensor and end in one: SiLU, GELU, LayerNorm, a Focus of slices."""
    for root, first in users.items():
        if len(first) < 2:
            continue
        inside, made, largest = list[int](), {root}, list[int]()
        for position in range(min(first), min(len(graph.nodes), min(first) + _REGION_WINDOW)):
            node = graph.nodes[position]
            if set(node.inputs) <= made and node.op in _POINTWISE | _MOVES:
                inside.append(position)
                made.update(node.outputs)
                members = set(inside)
                leaving = [n for n in made - {root} if n in exits or any(u not in members for u in users[n])]
                if len(inside) > 1 and len(leaving) == 1 and leaving[0] in node.outputs:
                    largest = list(inside)
        if largest:
            yield largest


def _attach(graph: PlainGraph, users: dict[str, list[int]], exits: set[str], union: FusedNodes) -> None:
    """Joins what a runtime computes in its producer's epilogue; never makes a cycle.

    A group is joined to the producer of a tensor only if all users of the tensor are in that group (so no path
    leads around), or if the tensor is all that the group reads.
    """
    made_by = {o: p for p, node in enumerate(graph.nodes) for o in node.outputs}
    for position, node in enumerate(graph.nodes):
        members = union.members(position)
        if members[0] != position:
            continue
        own = {o for m in members for o in graph.nodes[m].outputs}
        read = [n for n in dict.fromkeys(i for m in members for i in graph.nodes[m].inputs) if n not in own]
        for name in read:
            if name not in made_by or name in exits or union.find(made_by[name]) == union.find(position):
                continue
            only_mine = {union.find(u) for u in users[name]} == {union.find(position)}
            if (
                only_mine
                and _single_exit(graph, users, exits, union, made_by[name], name)
                and _joins(graph, node, len(read), [graph.nodes[m] for m in union.members(made_by[name])])
            ):
                union.join([made_by[name], position])
                break


def _weld(graph: PlainGraph, users: dict[str, list[int]], union: FusedNodes) -> None:
    """Joins makers and readers of what cannot travel: sequences, and tensors of unknown rank.

    All between them joins too, and every group that reaches into that stretch, so that no path leads out and back.
    """
    stretches = [
        (position, max(users[name]))
        for position, node in enumerate(graph.nodes)
        for name in node.outputs
        if name not in graph.tensors and users.get(name)
    ]
    while stretches:
        first, last = stretches.pop()
        inside = [member for position in range(first, last + 1) for member in union.members(position)]
        union.join(inside)
        if min(inside) < first or max(inside) > last:
            stretches.append((min(inside), max(inside)))


def _single_exit(
    graph: PlainGraph, users: dict[str, list[int]], exits: set[str], union: FusedNodes, maker: int, name: str
) -> bool:
    """Whether `name` is all that leaves its group."""
    members = set(union.members(maker))
    leaving = {
        o for m in members for o in graph.nodes[m].outputs if o in exits or any(u not in members for u in users[o])
    }
    return leaving == {name}


def _joins(graph: PlainGraph, node: PlainNode, num_read: int, producers: list[PlainNode]) -> bool:
    if node.op in ("Concat", "Split", "Slice", "Gather") and num_read > 1:
        return False
    if num_read == 1:
        one_way = node.op in _POINTWISE | _MOVES - {"Pad"}
        return one_way or all(p.op in {"Pad", "Transpose", "Cast", "Shape", "Identity"} for p in producers)
    if node.op in ("Reshape", "Expand", "Where", "Slice", "Gather"):
        return all(graph.tensors[o].dtype.startswith("int") for o in producers[-1].outputs if o in graph.tensors)
    return node.op in ("Add", "Sum") and any(p.op in _JOINED_ADD for p in producers)
