"""`only`: a part of the model trains, the rest stays as it was received."""

from __future__ import annotations

from collections.abc import Sequence

from edgewise.core.spec import Spec
from edgewise.training.local.fixed_entries import with_fixed
from edgewise.training.local.rule import Rule


def only(rule: Rule, trains: Sequence[str]) -> Rule:
    """Any rule, moving some tensors alone: heads, adapters, low-rank parts.

    What does not train has no gradient, and nothing is sent for it.

    Args:
        rule: What trains the model.
        trains: Which tensors: names with `*` and `?`, or kinds (`adapter`).

    Returns:
        The rule.

    Reference:
        Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022, for adapters.
    """
    names = (trains,) if isinstance(trains, str) else tuple(trains)
    spec = Spec("only", {"rule": rule.spec, "trains": names})
    return with_fixed(rule, spec, lambda oracle: ~oracle.entries(names), lambda layout: ~layout.entries(names))
