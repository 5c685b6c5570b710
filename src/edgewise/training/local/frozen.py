"""`frozen`: some tensors stay as they were received, batch norm among them as it serves."""

from __future__ import annotations

from collections.abc import Sequence

from edgewise.core.spec import Spec
from edgewise.training.local.fixed_entries import with_fixed
from edgewise.training.local.rule import Rule


def frozen(rule: Rule, stays: Sequence[str]) -> Rule:
    """Any rule, on a model of which some tensors do not move, and nothing is sent for them.

    A layer whose running statistics are among them uses these, in training as when it serves, and not those of a batch.

    Args:
        rule: What trains the model.
        stays: Which tensors: names with `*` and `?` (`backbone.*`), kinds, or `batch_norm`.

    Returns:
        The rule.
    """
    names = (stays,) if isinstance(stays, str) else tuple(stays)
    spec = Spec("frozen", {"rule": rule.spec, "stays": names})
    return with_fixed(rule, spec, lambda oracle: oracle.hold(names), lambda layout: layout.entries(names))
