"""Fusion groups by themselves: what joins what, what is alive between them, and the pieces they make."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgewise.core.errors import GraphError
from edgewise.models.graph.condense import Condensed, condense, is_weighted
from edgewise.models.graph.graph import Graph, graph_from
from edgewise.models.graph.plain import PlainNode


def small(*, twice: bool = False) -> Graph:
    """x ─ conv ─ relu `a` ─ conv `b` (+ `a` if twice) ─ relu `c` ─ flatten ─ product `y`."""
    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), name)
        for name, shape in (("w1", (2, 1, 3, 3)), ("w2", (2, 2, 3, 3)), ("w3", (32, 3)))
    ]
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a0"], pads=[1] * 4, name="conv1"),
        helper.make_node("Relu", ["a0"], ["a"], name="relu1"),
        helper.make_node("Conv", ["a", "w2"], ["b"], pads=[1] * 4, name="conv2"),
        *([helper.make_node("Add", ["b", "a"], ["s"], name="add")] if twice else []),
        helper.make_node("Relu", ["s" if twice else "b"], ["c"], name="relu2"),
        helper.make_node("Flatten", ["c"], ["f"], name="flatten"),
        helper.make_node("MatMul", ["f", "w3"], ["y"], name="product"),
    ]
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1, 4, 4])
    made = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])
    graph = helper.make_graph(nodes, "small", [given], [made], weights)
    return graph_from(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def groups(graph: Graph) -> list[tuple[str, ...]]:
    return [group.nodes for group in graph.condensed.groups]


def test_an_activation_joins_the_convolution_before_it() -> None:
    assert groups(small())[:2] == [("conv1", "relu1"), ("conv2", "relu2", "flatten")]


def test_a_skip_connection_joins_the_convolution_it_is_added_to_and_keeps_its_source_alive() -> None:
    graph = small(twice=True)
    assert ("conv2", "add", "relu2", "flatten") in groups(graph)
    assert graph.condensed.live(1) == ("a",)
    assert graph.condensed.consumers["a"] == (1,)


def test_condensing_is_of_the_plain_graph_alone_and_each_node_stands_in_one_group() -> None:
    graph = small()
    made = condense(graph)
    assert isinstance(made, Condensed)
    assert sorted(n for group in made.groups for n in group.nodes) == sorted(node.name for node in graph.nodes)
    assert [group.index for group in made.groups] == list(range(len(made.groups)))
    assert all(a < b for a, b in made.edges)


def test_what_lies_between_two_cuts_is_found_backwards_from_what_is_wanted() -> None:
    condensed = small().condensed
    assert condensed.between(["x"], ["y"]) == tuple(range(len(condensed.groups)))
    assert condensed.between(["a"], ["y"]) == tuple(range(1, len(condensed.groups)))
    assert condensed.between(["x"], ["a"]) == (0,)
    assert condensed.between(["y"], ["y"]) == ()


@pytest.mark.parametrize("twice", [False, True])
def test_a_stages_tensors_give_back_its_groups(twice: bool) -> None:
    condensed = small(twice=twice).condensed
    for position in range(1, len(condensed.groups)):
        head, tail = condensed.groups[:position], condensed.groups[position:]
        for part in (head, tail):
            assert condensed.between(*condensed.boundary(g.name for g in part)) == tuple(g.index for g in part)


def test_a_group_that_is_not_there_is_named_with_the_nearest() -> None:
    with pytest.raises(GraphError, match=r"has no group 'g0\.Covn'.* Did you mean 'g0\.Conv'"):
        small().condensed.boundary(["g0.Covn"])


def test_scaling_is_no_training_but_a_product_with_weights_is() -> None:
    product = PlainNode(0, "n", "MatMul", ("x",), ("y",), ((3, 3),), 0.0)
    scale = PlainNode(0, "n", "Mul", ("x",), ("y",), ((3, 3),), 0.0)
    two_inputs = PlainNode(0, "n", "MatMul", ("x", "z"), ("y",), (), 0.0)
    assert [is_weighted(node) for node in (product, scale, two_inputs)] == [True, False, False]
