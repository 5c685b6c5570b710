"""One step along the folded update."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgewise.codecs.bundle import Bundle
from edgewise.core.spec import Spec
from edgewise.training.algorithm import MODEL, Closed, ServerRule


def step(learning_rate: float = 1.0, sends: Sequence[str] = (MODEL,)) -> ServerRule:
    """Moves the model along the folded update: w ← w + η·Δ. With η = 1 this is FedAvg's averaging.

    Args:
        learning_rate: η.
        sends: Sections that go down, where clients need more than the model.

    Returns:
        The rule; it keeps no state.
    """
    rate = np.float32(learning_rate)

    def apply(state: Bundle, folded: Bundle, closed: Closed) -> Bundle:
        return {MODEL: state[MODEL] + rate * folded[MODEL]}

    params = {"learning_rate": learning_rate} | ({} if tuple(sends) == (MODEL,) else {"sends": tuple(sends)})
    return ServerRule(Spec("step", params), lambda model: {}, apply, tuple(sends))
