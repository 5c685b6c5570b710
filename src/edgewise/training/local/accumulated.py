"""`accumulated`: one step for several batches, for batches larger than a device's memory."""

from __future__ import annotations

from dataclasses import replace

from edgewise.core.errors import InputError
from edgewise.core.spec import Spec
from edgewise.training.local.rule import ALONE, Array, Arrays, Oracle, Rule

_SUM, _COUNT, _TRAINED = "accumulated_sum", "accumulated_count", "accumulated_trained"


def accumulated(rule: Rule, batches: int) -> Rule:
    """Any rule, stepping once for so many batches along the mean of their gradients.

    What is left at the end of a round, fewer batches, makes a last step. Buffers move with every batch, as forward writes them.

    Args:
        rule: What steps.
        batches: Batches a step; at least 1.

    Returns:
        The rule; it works one client at a time.

    Raises:
        InputError: If `batches` is below 1.
    """
    if batches < 1:
        raise InputError(f"accumulated takes batches >= 1, found {batches!r}.")

    def init(received: Arrays, kept: Arrays, oracle: Oracle) -> tuple[Array, Arrays]:
        weights, carry = rule.init(received, kept, oracle)
        return weights, {**carry, _SUM: 0.0, _COUNT: 0, _TRAINED: oracle.trained}

    def step(gradient: Array, weights: Array, carry: Arrays) -> tuple[Array, Arrays]:
        summed = carry[_SUM] + gradient
        carry = {**carry, _SUM: summed, _COUNT: carry[_COUNT] + 1}
        return flushed(weights, carry) if carry[_COUNT] == batches else (weights, carry)

    def flushed(weights: Array, carry: Arrays) -> tuple[Array, Arrays]:
        own = (_SUM, _COUNT, _TRAINED)
        inner = {name: value for name, value in carry.items() if name not in own}
        moved, after = rule.step(carry[_SUM] / carry[_COUNT], weights, inner)
        return moved, {**after, _SUM: 0.0, _COUNT: 0, _TRAINED: carry[_TRAINED]}

    def finish(weights: Array, carry: Arrays, num_steps: Array) -> tuple[Arrays, Arrays]:
        if carry[_COUNT]:
            before, trained = weights * 1, carry[_TRAINED]
            moved, carry = flushed(weights, carry)
            weights[...] = moved * trained + before * (1 - trained)
        return rule.finish(weights, carry, num_steps)

    spec = Spec("accumulated", {"rule": rule.spec, "batches": batches})
    needs = rule.needs | {ALONE}
    return replace(rule, spec=spec, init=init, step=step, finish=finish, needs=needs, plain_rate=None)
