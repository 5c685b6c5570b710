"""Fusion groups: the pieces a runtime computes at once, so that a cut between them costs nothing.

ONNX Runtime merges a convolution with the normalisation, activation and addition behind it, a matrix product with
its bias, x·sigmoid(x) into one kernel, and so on. Cutting inside such a group costs up to 18 % more compute and may
change the last bit; cutting between groups does neither. Everything here is about `PlainGraph` values; nothing runs.

    nodes ── regions of elementwise work ── epilogues join their producer ──▶ groups, a DAG in topological order
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property

import msgspec

from edgewise.core.errors import GraphError, nearest
from edgewise.models.graph.extract import extract_model
from edgewise.models.graph.fusion import FusedNodes, fuse
from edgewise.models.graph.plain import PlainGraph, PlainNode

_WEIGHTED = {"Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN", "Einsum", "ConvInteger"}
_WEIGHTED |= {"MatMulInteger", "QLinearConv", "QLinearMatMul", "FusedConv", "FusedGemm", "FusedMatMul"}


class Group(msgspec.Struct, frozen=True):
    """Nodes that run as one.

    Attributes:
        index: Position in the topological order.
        name: `g<index>.<its heaviest operator>`.
        nodes: Names of its nodes.
        inputs: Tensors it reads from other groups or the graph's inputs.
        outputs: Tensors that other groups read, or that are exits.
        flops: Estimated operations for one example.
        has_weights: Whether trained weights take part; without, its outputs still count as the input's data.
        exit_index: The first exit that needs this group (0 is the first exit).
    """

    index: int
    name: str
    nodes: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    flops: float
    has_weights: bool
    exit_index: int


class Frontier(msgspec.Struct, frozen=True):
    """A place to cut: after the first `position` groups, these tensors are alive.

    Attributes:
        position: Groups before the cut; 0 is before everything.
        tensors: Names that cross, each once, in order of production.
        size_bytes: Uncoded bytes for one example.
    """

    position: int
    tensors: tuple[str, ...]
    size_bytes: int


class Condensed(msgspec.Struct, frozen=True, dict=True):
    """The DAG of fusion groups.

    Attributes:
        graph: What it was made from.
        groups: In topological order; indices are positions.
        raw_tensors: Tensors that no trained weight has touched: the inputs and what merely rearranges them.
    """

    graph: PlainGraph
    groups: tuple[Group, ...]
    raw_tensors: frozenset[str]

    @cached_property
    def by_name(self) -> dict[str, Group]:
        """Groups by name."""
        return {group.name: group for group in self.groups}

    @cached_property
    def tensors(self) -> tuple[str, ...]:
        """Tensors between groups: inputs, then group outputs, in order."""
        return (*(t.name for t in self.graph.inputs), *(o for g in self.groups for o in g.outputs))

    @cached_property
    def producer(self) -> dict[str, int]:
        """Index of the group that makes a tensor; −1 for the graph's inputs."""
        made = {t.name: -1 for t in self.graph.inputs}
        return made | {o: g.index for g in self.groups for o in g.outputs}

    @cached_property
    def consumers(self) -> dict[str, tuple[int, ...]]:
        """Indices of the groups that read a tensor."""
        return {t: tuple(g.index for g in self.groups if t in g.inputs) for t in self.tensors}

    @cached_property
    def edges(self) -> tuple[tuple[int, int], ...]:
        """(producer, consumer) pairs of groups, each once."""
        found = {(self.producer[t], g.index) for g in self.groups for t in g.inputs}
        return tuple(sorted(e for e in found if e[0] >= 0))

    @cached_property
    def exit_groups(self) -> tuple[int, ...]:
        """Index of the group that makes each exit's logits, first exit first."""
        return tuple(self.producer[t.name] for t in self.graph.outputs)

    def live(self, position: int) -> tuple[str, ...]:
        """Tensors that groups from `position` on read from before it.

        Args:
            position: Groups before the cut, 0 … len(groups).

        Returns:
            Names in order of production.
        """
        return tuple(
            t for t in self.tensors if self.producer[t] < position and any(c >= position for c in self.consumers[t])
        )

    def cuts(self, max_tensors: int = 4) -> tuple[Frontier, ...]:
        """Places to cut, in order: cut vertices (one tensor), and wider frontiers up to a bound.

        Args:
            max_tensors: Frontiers with more tensors are left out.

        Returns:
            Frontiers; the first is before everything (the input crosses).
        """
        found = []
        for position in range(len(self.groups)):
            names = self.live(position)
            if 0 < len(names) <= max_tensors:
                found.append(Frontier(position, names, sum(self.graph.tensors[n].size_bytes for n in names)))
        return tuple(found)

    def boundary(self, groups: Iterable[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """What a set of groups needs from outside and gives to the outside.

        Args:
            groups: Names of groups.

        Returns:
            Input tensors, output tensors (read elsewhere or exits), for `Graph.extract`.

        Raises:
            GraphError: If a group does not exist.
        """
        wanted = set(groups)
        for name in sorted(wanted - set(self.by_name)):
            raise GraphError(f"graph {self.graph.name!r} has no group {name!r}.{nearest(name, self.by_name)}")
        inside = [g for g in self.groups if g.name in wanted]
        made = {o for g in inside for o in g.outputs}
        inputs = tuple(dict.fromkeys(t for g in inside for t in g.inputs if t not in made))
        indices, exits = {g.index for g in inside}, {t.name for t in self.graph.outputs}
        outputs = tuple(
            o for g in inside for o in g.outputs if o in exits or any(c not in indices for c in self.consumers[o])
        )
        return inputs, outputs

    def between(self, inputs: Iterable[str], outputs: Iterable[str]) -> tuple[int, ...]:
        """The groups that compute some tensors from others.

        Args:
            inputs: Tensors that are given.
            outputs: Tensors wanted.

        Returns:
            Indices, ascending; () if everything wanted is given.
        """
        given, found = set(inputs), set[int]()
        todo = [name for name in outputs if name not in given]
        while todo:
            index = self.producer.get(todo.pop(), -1)
            if index >= 0 and index not in found:
                found.add(index)
                todo.extend(name for name in self.groups[index].inputs if name not in given)
        return tuple(sorted(found))

    def piece(self, first: int, last: int) -> bytes:
        """The sub-model of consecutive groups.

        Args:
            first: Index of the first group.
            last: Index of the last group, inclusive.

        Returns:
            ONNX bytes.
        """
        return extract_model(self.graph, *self.boundary(g.name for g in self.groups[first : last + 1]))

    def has_weights(self, groups: Iterable[str]) -> bool:
        """Whether a segment of these groups makes something new, or only rearranges its input.

        Args:
            groups: Names of groups.

        Returns:
            True if none of its outputs to the outside is raw.
        """
        return not any(o in self.raw_tensors for o in self.boundary(groups)[1])


def condense(graph: PlainGraph) -> Condensed:
    """Groups the nodes that run as one.

    Args:
        graph: The graph.

    Returns:
        Its fusion groups.
    """
    users: dict[str, list[int]] = {name: [] for name in (*graph.tensors, *(o for n in graph.nodes for o in n.outputs))}
    for position, node in enumerate(graph.nodes):
        for name in node.inputs:
            users.setdefault(name, []).append(position)
    exits = {t.name for t in graph.outputs}
    return _build(graph, fuse(graph, users, exits), users, exits)


def _build(graph: PlainGraph, union: FusedNodes, users: dict[str, list[int]], exits: set[str]) -> Condensed:
    sets: dict[int, list[int]] = {}
    for position in range(len(graph.nodes)):
        sets.setdefault(union.find(position), []).append(position)
    made_by = {o: p for p, node in enumerate(graph.nodes) for o in node.outputs}
    order = _ordered(graph, union, sets, made_by)
    groups = [_group(graph, sorted(sets[root]), users, exits) for root in order]
    staged = sorted(_with_exits(graph, groups), key=lambda group: group.exit_index)
    named = (msgspec.structs.replace(g, index=i, name=f"g{i}.{g.name}") for i, g in enumerate(staged))
    return Condensed(graph, tuple(named), _raw_tensors(graph))


def _group(graph: PlainGraph, members: list[int], users: dict[str, list[int]], exits: set[str]) -> Group:
    nodes, inside = [graph.nodes[m] for m in members], set(members)
    own = {o for n in nodes for o in n.outputs}
    inputs = tuple(dict.fromkeys(i for n in nodes for i in n.inputs if i not in own))
    outputs = tuple(o for n in nodes for o in n.outputs if o in exits or any(u not in inside for u in users.get(o, [])))
    heaviest = max(nodes, key=lambda n: n.flops)
    flops, weighted = sum(n.flops for n in nodes), any(is_weighted(n) for n in nodes)
    return Group(0, heaviest.op, tuple(n.name for n in nodes), inputs, outputs, flops, weighted, 0)


def _ordered(graph: PlainGraph, union: FusedNodes, sets: dict[int, list[int]], made_by: dict[str, int]) -> list[int]:
    """Groups in topological order, ties by the last node's position; groups that no exit needs are left out."""
    before = {
        root: {union.find(made_by[i]) for m in members for i in graph.nodes[m].inputs if i in made_by} - {root}
        for root, members in sets.items()
    }
    needed, todo = set[int](), [union.find(made_by[t.name]) for t in graph.outputs if t.name in made_by]
    while todo:
        root = todo.pop()
        if root not in needed:
            needed.add(root)
            todo.extend(before[root])
    order: list[int] = []
    waiting = sorted(needed, key=lambda r: sets[r][-1])
    while waiting:
        ready = next(r for r in waiting if before[r] <= set(order))
        waiting.remove(ready)
        order.append(ready)
    return order


def is_weighted(node: PlainNode) -> bool:
    """Whether a node mixes its input with trained weights beyond scaling and shifting.

    Args:
        node: Any node.

    Returns:
        True for convolutions, matrix products with constants and recurrent cells.
    """
    return node.op in _WEIGHTED and len(node.weights) > 0


def _raw_tensors(graph: PlainGraph) -> frozenset[str]:
    raw = {t.name for t in graph.inputs}
    for node in graph.nodes:
        if not is_weighted(node) and any(i in raw for i in node.inputs):
            raw.update(node.outputs)
    return frozenset(raw)


def _with_exits(graph: PlainGraph, groups: list[Group]) -> list[Group]:
    """Adds to each group the first exit that needs it; ordering by it keeps producers before consumers."""
    first = [len(graph.outputs) - 1] * len(groups)
    made = {o: position for position, group in enumerate(groups) for o in group.outputs}
    for index, tensor in enumerate(graph.outputs):
        todo, seen = [made[tensor.name]] if tensor.name in made else [], set[int]()
        while todo:
            position = todo.pop()
            if position not in seen:
                seen.add(position)
                first[position] = min(first[position], index)
                todo.extend(made[i] for i in groups[position].inputs if i in made)
    return [msgspec.structs.replace(group, exit_index=e) for group, e in zip(groups, first, strict=True)]
