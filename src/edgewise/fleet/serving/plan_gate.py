"""The gate of a coded hand-over: answers along the plan with its codecs against the same plan without, in pairs."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewise.codecs import make_codec
from edgewise.inference.evidence import run_graph
from edgewise.inference.gates.exit import confidence
from edgewise.lifecycle.version_gate import compare
from edgewise.models.graph.graph import Graph
from edgewise.models.version import GateResult
from edgewise.planning.plan import Plan


def codec_gate(graph: Graph, plan: Plan, inputs: NDArray[Any], targets: NDArray[Any]) -> GateResult | None:
    """Compares a plan with and without its codecs on the gate's examples.

    Args:
        graph: The version's graph.
        plan: The plan.
        inputs: float32[n, …]; at least 300 are needed to pass.
        targets: int64[n].

    Returns:
        The paired comparison; None for a plan whose hand-overs are all lossless.
    """
    if all(make_codec(handover.codec).lossless for handover in plan.handovers):
        return None
    labels = np.asarray(targets)
    right = [answers(graph, plan, inputs, coded=coded) == labels for coded in (False, True)]
    return compare(*right)


def answers(graph: Graph, plan: Plan, inputs: NDArray[Any], *, coded: bool) -> NDArray[np.int64]:
    """What a plan answers, computed here stage by stage; gates in front of them let everybody pass.

    Args:
        graph: Its graph.
        plan: The plan.
        inputs: float32[n, …].
        coded: Whether what is handed over passes through its codec.

    Returns:
        int64[n] classes; an example leaves at the first exit whose threshold it reaches.
    """
    known: dict[str, NDArray[Any]] = {graph.inputs[0].name: np.asarray(inputs)}
    for stage in plan.stages:
        for handover in plan.handovers:
            if handover.target == stage.name and coded:
                known |= {name: _through(handover.codec, known[name]) for name in handover.tensors}
        feeds = {name: known[name] for name in stage.inputs}
        model = graph.extract(stage.inputs, stage.outputs)
        known |= dict(zip(stage.outputs, run_graph(model, feeds, stage.outputs), strict=True))
    chosen = np.full(len(known[graph.inputs[0].name]), -1, np.int64)
    for exit_ in plan.exits:
        logits = known[exit_.tensors[-1]].reshape(len(chosen), -1)
        leaving = (chosen < 0) & (confidence(logits) >= exit_.threshold)
        chosen[leaving] = logits[leaving].argmax(-1)
    return chosen


def _through(spec: str, array: NDArray[Any]) -> NDArray[np.float32]:
    codec = make_codec(spec)
    plain = np.asarray(array, np.float32)
    payload, _ = codec.encode(plain, codec.init(plain.shape), np.random.default_rng(0))
    return codec.decode(payload)
