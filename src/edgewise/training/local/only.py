"""`only`: a part of the model trains, the rest stays as it was received."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from edgewise.core.spec import Spec
from edgewise.training.local.rule import VECTOR, Array, Arrays, Oracle, Rule

_FIXED = "fixed_entries"


def only(rule: Rule, trains: Sequence[str]) -> Rule:
    """Any rule, moving some tensors alone: heads, adapters, low-rank parts.

    What does not train has no gradient and is 0 in all that is sent, so a codec that packs zeros sends next to nothing for it.

    Args:
        rule: What trains the model.
        trains: Which tensors: names with `*` and `?`, or kinds (`adapter`).

    Returns:
        The rule.

    Reference:
        Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022, for adapters.
    """
    names = (trains,) if isinstance(trains, str) else tuple(trains)

    def init(received: Arrays, kept: Arrays, oracle: Oracle) -> tuple[Array, Arrays]:
        weights, carry = rule.init(received, kept, oracle)
        return weights, {**carry, _FIXED: (~oracle.entries(names),)}  # in a tuple: the loop takes rows of arrays

    def step(gradient: Array, weights: Array, carry: Arrays) -> tuple[Array, Arrays]:
        fixed = carry[_FIXED][0]
        gradient[..., fixed] = 0
        before = weights[..., fixed]
        moved, after = rule.step(gradient, weights, carry)
        moved[..., fixed] = before  # also where weights decay without a gradient
        return moved, {**after, _FIXED: carry[_FIXED]}

    def finish(weights: Array, carry: Arrays, num_steps: Array) -> tuple[Arrays, Arrays]:
        sent, kept = rule.finish(weights, carry, num_steps)
        for section in rule.sends:
            if section.shape == VECTOR:
                sent[section.name][..., carry[_FIXED][0]] = 0  # also what a forward pass moved
        return sent, kept

    spec = Spec("only", {"rule": rule.spec, "trains": names})
    return replace(rule, spec=spec, init=init, step=step, finish=finish, plain_rate=None)
