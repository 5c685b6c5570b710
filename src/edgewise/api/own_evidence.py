"""How good a user's own model is on a user's own inputs; `plan` asks, for a file and for a fleet."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgewise.api.source import Source
    from edgewise.models.graph.graph import Graph
    from edgewise.models.version import ExitEvidence


def said_of(meaning: str) -> str:
    """What an accuracy means, as a sentence.

    Args:
        meaning: As from `evaluate`.

    Example:
        >>> said_of("accuracy on 20 labelled examples")
        'accuracy is counted on 20 labelled examples'
        >>> said_of("agreement with the whole model on 20 examples without labels")
        'accuracy is agreement with the whole model on 20 examples without labels'
    """
    return f"accuracy is {meaning.replace('accuracy on', 'counted on', 1)}"


def evaluate(graph: Graph, source: Source) -> tuple[tuple[ExitEvidence, ...], str]:
    """How the exits of a model behave on real inputs.

    Args:
        graph: The model.
        source: Inputs, with labels or without.

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
        return plan_evidence(graph, inputs, source.targets), f"accuracy on {len(source)} labelled examples"
    whole = run_graph(graph.whole, {graph.inputs[0].name: inputs}, [graph.outputs[-1].name])[0]
    answers = whole.reshape(len(source), -1).argmax(-1)
    meaning = f"agreement with the whole model on {len(source)} examples without labels"
    return plan_evidence(graph, inputs, answers), meaning
