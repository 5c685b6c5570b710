"""Plain descent: the rule of FedAvg and FedProx, and what most other rules are a `replace` of."""

from __future__ import annotations

from edgewise.core.errors import InputError
from edgewise.core.spec import Spec
from edgewise.training.local.directions import StepDirection, gradient
from edgewise.training.local.local_loop import descend
from edgewise.training.local.rule import Array, Arrays, Oracle, Rule


def descent(learning_rate: float = 0.1, direction: StepDirection | None = None) -> Rule:
    """w ← w − η·direction; sends how far the model moved.

    Args:
        learning_rate: η, above 0.
        direction: `gradient()` if not given, `proximal(mu)`, `clipped(bound)`.

    Returns:
        The rule; it carries `received`, the model it came from.

    Raises:
        InputError: If the rate is out of range.
    """
    if not learning_rate > 0:
        raise InputError(f"descent takes learning_rate > 0, found {learning_rate!r}.")
    along = direction or gradient()
    is_plain = along.spec == Spec("gradient")

    def init(received: Arrays, kept: Arrays, oracle: Oracle) -> tuple[Array, Arrays]:
        return received["model"], {"received": received["model"]}

    def step(slope: Array, weights: Array, carry: Arrays) -> tuple[Array, Arrays]:
        towards = along(slope, weights, carry["received"])
        return descend(weights, towards, learning_rate, scratch=slope), carry

    def finish(weights: Array, carry: Arrays, num_steps: Array) -> tuple[Arrays, Arrays]:
        weights -= carry["received"]
        return {"model": weights}, {}

    params = {"learning_rate": learning_rate} | ({} if is_plain else {"direction": along.spec})
    return Rule(Spec("descent", params), init, step, finish, plain_rate=learning_rate if is_plain else None)
