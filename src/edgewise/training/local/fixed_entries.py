"""What `only` and `frozen` share: some entries of the model stay as they were received, whatever a rule does with them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from edgewise.core.layout import Layout
from edgewise.core.spec import Spec
from edgewise.training.local.rule import VECTOR, Array, Arrays, Oracle, Rule


def with_fixed(
    rule: Rule, spec: Spec, fixed: Callable[[Oracle], Array], unsent: Callable[[Layout], NDArray[np.bool_]]
) -> Rule:
    """Any rule, on a model of which a part does not move: no gradient, and 0 in all that is sent.

    Args:
        rule: What trains the model.
        spec: The new rule's words.
        fixed: Asked once for each client: bool[d], what does not move.
        unsent: The same of a layout.

    Returns:
        The rule.
    """

    key = f"fixed_entries of {spec}"  # rules of this kind may stand in each other

    def init(received: Arrays, kept: Arrays, oracle: Oracle) -> tuple[Array, Arrays]:
        weights, carry = rule.init(received, kept, oracle)
        return weights, {**carry, key: (fixed(oracle),)}  # in a tuple: the loop takes rows of arrays

    def step(gradient: Array, weights: Array, carry: Arrays) -> tuple[Array, Arrays]:
        still = carry[key][0]
        if gradient is not None:
            gradient[..., still] = 0
        before = weights[..., still]
        moved, after = rule.step(gradient, weights, carry)
        moved[..., still] = before  # also where weights decay without a gradient
        return moved, {**after, key: carry[key]}

    def finish(weights: Array, carry: Arrays, num_steps: Array) -> tuple[Arrays, Arrays]:
        sent, kept = rule.finish(weights, carry, num_steps)
        for section in rule.sends:
            if section.shape == VECTOR:
                sent[section.name][..., carry[key][0]] = 0  # also what a forward pass moved
        return sent, kept

    return replace(
        rule,
        spec=spec,
        init=init,
        step=step,
        finish=finish,
        plain_rate=None,
        unsent=lambda layout: rule.unsent(layout) | unsent(layout),
    )
