"""Plans of models with several outputs: what is answered early travels too, and the end is the last that is named."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgewise.core.ids import Tier
from edgewise.models.graph.graph import Graph, graph_from
from edgewise.planning.choose import plan as plan_chain
from edgewise.planning.plan import ENTRY, Site
from edgewise.planning.planner import Evidence, Sites
from edgewise.planning.planners import candidates
from edgewise.planning.policy import Policy
from edgewise.planning.profile import LinkState
from tests.planning.scenario import profile


def scaled_graph(exits: tuple[str, ...] = ()) -> Graph:
    """x float32[n, 4] ─ twice `scaled`, no trained weights ─ product ─ `m` ─ product ─ `z`; answers scaled and z."""
    weights = [numpy_helper.from_array(np.float32([2.0]), "two")]
    weights += [numpy_helper.from_array(np.eye(4, dtype=np.float32), name) for name in ("w", "v")]
    nodes = [
        helper.make_node("Mul", ["x", "two"], ["scaled"]),
        helper.make_node("MatMul", ["scaled", "w"], ["m"]),
        helper.make_node("Relu", ["m"], ["r"]),
        helper.make_node("MatMul", ["r", "v"], ["k"]),
        helper.make_node("Relu", ["k"], ["q"]),
        helper.make_node("MatMul", ["q", "v"], ["z"]),
    ]
    x, scaled, z = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", 4]) for n in ("x", "scaled", "z"))
    graph = helper.make_graph(nodes, "scaled", [x], [z, scaled], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return graph_from(model, exits=exits)


@pytest.mark.parametrize("raw_may_reach", [Tier.DEVICE, Tier.CLOUD])
def test_an_answer_that_is_raw_data_stays_where_the_policy_says(raw_may_reach: Tier) -> None:
    graph, link = scaled_graph(("z",)), LinkState(1e8, 1e-5, 0)
    first, second = Site(Tier.EDGE), Site(Tier.EDGE, 1)
    known = {ENTRY: profile(Tier.DEVICE, 30.0, of=graph)}
    known |= {site: profile(Tier.EDGE, 0.1, of=graph) for site in (first, second)}
    sites = Sites(known, {(ENTRY, first): link, (first, second): link})
    found = list(candidates("pipeline", graph, sites, Policy(raw_may_reach=raw_may_reach), Evidence()))
    carries = {h.carries_raw for plan in found for h in plan.handovers}
    assert carries == (set() if raw_may_reach is Tier.DEVICE else {True})


def test_the_end_of_a_model_is_the_last_that_a_plan_answers() -> None:
    graph = scaled_graph(("z",))
    plan = plan_chain(graph, {Tier.DEVICE: profile(Tier.DEVICE, 1.0, of=graph)}, [], Policy())
    assert plan.exits[-1].tensors == ("scaled", "z")
