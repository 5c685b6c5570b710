"""How good a user's own model is on a user's own inputs; `plan` asks, for a file and for a fleet."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgewise.api.source import Source
    from edgewise.models.graph.graph import Graph
    from edgewise.models.version import ExitEvidence


UNSEEN = "whether the model was trained on them is not known here: give examples it has not seen, or it is too high"


def evaluate(graph: Graph, source: Source, model: Graph | None = None) -> tuple[tuple[ExitEvidence, ...], str]:
    """How the exits of a model behave on real inputs.

    Args:
        graph: The model, or a variant of it.
        source: Inputs, with labels or without.
        model: The model whose answers count where there are no labels; None for the graph itself.

    Returns:
        Evidence, and what its accuracy means. There is none for a model that is no classifier of one input.
    """
    from edgewise.inference.evidence import plan_evidence, run_graph

    sizes = {tensor.num_entries for tensor in graph.outputs}
    is_classifier = len(sizes) == 1 and all(tensor.num_entries == max(tensor.shape) for tensor in graph.outputs)
    if len(graph.inputs) != 1 or not is_classifier or sizes == {1}:
        return (), "unknown: the model is not a classifier of one input, so it runs to its end and uncoded"
    inputs = source.inputs[graph.inputs[0].name]
    if source.targets is not None:
        return plan_evidence(graph, inputs, source.targets), f"accuracy on {len(source)} labelled examples; {UNSEEN}"
    model = model or graph
    whole = run_graph(model.whole, {model.inputs[0].name: inputs}, [model.outputs[-1].name])[0]
    answers = whole.reshape(len(source), -1).argmax(-1)
    meaning = f"agreement with the whole model on {len(source)} examples without labels"
    return plan_evidence(graph, inputs, answers), meaning


def quality_of(meaning: str) -> str:
    """What the share of right answers is called.

    Args:
        meaning: As `evaluate` says it.

    Returns:
        `agreement` where the model's own answers stood for labels, else `accuracy`.
    """
    from edgewise.planning.explain import ACCURACY, AGREEMENT

    return AGREEMENT if meaning.startswith(AGREEMENT) else ACCURACY
