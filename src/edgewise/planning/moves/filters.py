"""A move: the same plan behind a filter that answers requests like the last one without any stage.

rows = filter_evidence(frames, answers)                      # `inference/evidence.py`: what a filter does on a recording
for plan in filters(rows, graph)(found): ...                 # a plan per row that agrees with the model often enough
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import msgspec

from edgewise.models.graph.graph import Graph
from edgewise.planning.costs.cost import CostTable
from edgewise.planning.costs.predict import filtered
from edgewise.planning.plan import INPUT, Gate, Plan


class FilterEvidence(msgspec.Struct, frozen=True):
    """What a filter did on a recording.

    Attributes:
        spec: Rule of the gate, without its threshold.
        threshold: Its threshold.
        filtered_fraction: Share of the requests that it answered.
        agreement: Share of those whose class is the model's own.
        num_examples: Requests of the recording.
    """

    spec: str
    threshold: float
    filtered_fraction: float
    agreement: float
    num_examples: int


def filters(
    rows: Iterable[FilterEvidence], graph: Graph, table: CostTable | None = None, *, min_agreement: float = 0.98
) -> Callable[[Plan], Iterator[Plan]]:
    """Puts filters in front of a plan.

    Args:
        rows: Evidence.
        graph: Whose inputs are compared.
        table: Costs, for what handling a filtered request takes.
        min_agreement: Filters that agree with the model more rarely are left out.

    Returns:
        A move: plan -> plans, one per filter that may be used; none for a plan whose stages keep state, which must see
        every request.
    """

    def move(plan: Plan) -> Iterator[Plan]:
        for row in rows:
            if plan.state or plan.filters or row.agreement < min_agreement:
                continue
            passing = 1.0 - row.filtered_fraction
            inputs = tuple(tensor.name for tensor in graph.inputs)
            gate = Gate(row.spec, INPUT, row.threshold, 1.0, row.filtered_fraction, inputs)
            rest = (
                msgspec.structs.replace(
                    g, reach_fraction=passing * g.reach_fraction, end_fraction=passing * g.end_fraction
                )
                for g in plan.gates
            )
            accuracy = plan.predicted.accuracy * (passing + row.filtered_fraction * row.agreement)
            yield msgspec.structs.replace(
                plan,
                name=f"{plan.name}, {row.spec.partition('(')[0]} below {row.threshold:.3g}",
                gates=(gate, *rest),
                predicted=filtered(plan.predicted, row.filtered_fraction, accuracy, table),
            )

    return move
