"""Everyone, every round."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgewise.core.ids import ClientId, RoundNumber
from edgewise.core.spec import Spec
from edgewise.training.algorithm import Candidate, Select


def all_clients() -> Select:
    """Takes every client that is there.

    Returns:
        The rule.
    """

    def choose(
        candidates: Sequence[Candidate], round_number: RoundNumber, rng: np.random.Generator
    ) -> tuple[ClientId, ...]:
        return tuple(candidate.client for candidate in candidates)

    return Select(Spec("all_clients"), choose)
