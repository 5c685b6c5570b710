"""Every plan that can be made runs, tier after tier, and answers what the whole model answers, to the last bit."""

import numpy as np
import onnxruntime
import pytest

from edgewise.core.ids import Tier
from edgewise.models.graph.graph import Graph
from edgewise.planning.choose import make_search
from edgewise.planning.plan import Plan
from edgewise.planning.policy import Policy
from edgewise.planning.profile import LinkState
from edgewise.planning.search import Prices
from tests.models.toys import digits_cnn, inception, residual
from tests.planning.scenario import evidence, profile


def run(model: bytes, feeds):
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def answers(graph: Graph, plan: Plan, feeds):
    """Runs the stages; what is handed over is all that the next tier is given."""
    known, logits = dict(feeds), {}
    for stage in plan.stages:
        handover = next((h for h in plan.handovers if h.target == stage.name), None)
        known = known if handover is None else {n: known[n] for n in handover.tensors}
        made = run(graph.extract(stage.inputs, stage.outputs), {n: known[n] for n in stage.inputs})
        known |= made
        logits |= made
    return {name: logits[name] for gate in plan.exits for name in gate.tensors}


@pytest.mark.parametrize("toy", [digits_cnn, residual, inception])
@pytest.mark.parametrize("speeds", [(30.0, 2.0, 1.0), (1.0, 1.0, 1.0), (300.0, 30.0, 0.1)])
def test_plans_answer_what_the_whole_model_answers(toy, speeds):
    graph = Graph.load(toy())
    tiers = {t: profile(t, s, of=graph) for t, s in zip(Tier, speeds, strict=True)}
    links = [LinkState(1e8, 1e-5, 0), LinkState(1e8, 1e-5, 0)]
    rows = evidence() if toy is digits_cnn else ()
    feeds = {t.name: np.random.default_rng(0).normal(size=t.shape).astype(np.float32) for t in graph.inputs}
    whole = run(graph.whole, feeds)
    for policy in (Policy(), Policy(raw_may_reach=Tier.DEVICE)):
        search = make_search(graph, tiers, links, policy, rows)
        plans = {p.digest: p for c in search.choices() if (p := search.solve(c, Prices())) is not None}
        assert plans
        for plan in plans.values():
            for name, value in answers(graph, plan, feeds).items():
                assert np.array_equal(value, whole[name]), plan.name
