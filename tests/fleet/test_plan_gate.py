"""The gate of coded hand-overs: lossless plans pass unseen, a codec that loses answers is refused with its counts."""

from __future__ import annotations

import msgspec
import numpy as np

from edgewise.fleet.serving.plan_gate import answers, codec_gate
from edgewise.inference.evidence import run_graph
from edgewise.planning.plan import Plan
from tests.inference.tiny import split_plan, two_exit_graph

GRAPH = two_exit_graph()
INPUTS = np.random.default_rng(1).normal(0, 1, (400, 1, 8, 8)).astype(np.float32)


def plan(codec: str) -> Plan:
    cut = split_plan(GRAPH)
    return msgspec.structs.replace(cut, handovers=tuple(msgspec.structs.replace(h, codec=codec) for h in cut.handovers))


def labels() -> np.ndarray:
    return answers(GRAPH, plan("none"), INPUTS, coded=False)


def test_uncoded_answers_are_the_whole_models_where_nobody_leaves_early() -> None:
    never = plan("none")
    gates = tuple(msgspec.structs.replace(g, threshold=1.1 if g.threshold > 0 else 0.0) for g in never.gates)
    whole = run_graph(GRAPH.whole, {"x": INPUTS}, ["end"])[0].argmax(-1)
    found = answers(GRAPH, msgspec.structs.replace(never, gates=gates), INPUTS, coded=True)
    assert (found == whole).all()


def test_a_lossless_cut_needs_no_gate() -> None:
    assert codec_gate(GRAPH, plan("none"), INPUTS, labels()) is None


def test_a_fine_codec_passes_on_three_hundred_examples_and_more() -> None:
    gate = codec_gate(GRAPH, plan("int8"), INPUTS, labels())
    assert gate is not None
    assert gate.num_examples == 400
    assert gate.passed, gate.reason


def test_a_coarse_codec_is_refused_with_its_counts() -> None:
    gate = codec_gate(GRAPH, plan("top_k(fraction=0.01)"), INPUTS, labels())
    assert gate is not None
    assert not gate.passed
    assert f"loses {gate.reference_only_right} and gains {gate.candidate_only_right}" in gate.reason


def test_too_few_examples_are_refused() -> None:
    gate = codec_gate(GRAPH, plan("int8"), INPUTS[:50], labels()[:50])
    assert gate is not None
    assert "50 examples compared, needed are 300" in gate.reason
