"""A move: the same plan with a model's state kept where the stage that reads it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import msgspec

from edgewise.planning.plan import Plan, Stage


def keeping(pairs: Sequence[tuple[str, str]]) -> Callable[[Plan], Iterator[Plan]]:
    """Lets stages keep state between the requests of a stream.

    Args:
        pairs: (input, output) of the model: what comes out under the second name is given under the first next time.

    Returns:
        A move: plan -> the plan with its state kept, neither asked for nor answered nor handed over; nothing for a plan
        with a filter, or that parts an input from its output.
    """
    given, made = {a for a, _ in pairs}, {b for _, b in pairs}

    def move(plan: Plan) -> Iterator[Plan]:
        stages = tuple(_keeping(stage, pairs) for stage in plan.stages)
        if plan.filters or {pair for stage in stages for pair in stage.keeps} != set(pairs):
            return
        handovers = (
            msgspec.structs.replace(h, tensors=tuple(t for t in h.tensors if t not in given | made))
            for h in plan.handovers
        )
        gates = (msgspec.structs.replace(g, tensors=tuple(t for t in g.tensors if t not in made)) for g in plan.gates)
        yield msgspec.structs.replace(
            plan, name=f"{plan.name}, state kept", stages=stages, handovers=tuple(handovers), gates=tuple(gates)
        )

    return move


def _keeping(stage: Stage, pairs: Sequence[tuple[str, str]]) -> Stage:
    own = tuple(pair for pair in pairs if pair[0] in stage.inputs and pair[1] in stage.outputs)
    return msgspec.structs.replace(stage, keeps=own) if own else stage
