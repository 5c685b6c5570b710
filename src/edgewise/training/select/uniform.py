"""A random cohort of fixed size."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgewise.core.errors import InputError
from edgewise.core.ids import ClientId, RoundNumber
from edgewise.core.spec import Spec
from edgewise.training.algorithm import Candidate, Select


def uniform(cohort_size: int) -> Select:
    """Draws a cohort without replacement, each client as likely as any other.

    Args:
        cohort_size: Clients of a round, at least 1; everyone where fewer are there. m in the paper.

    Returns:
        The rule.

    Raises:
        InputError: If `cohort_size` is below 1.

    Reference:
        McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017.
    """
    if cohort_size < 1:
        raise InputError(f"uniform draws a cohort of at least 1 client, found cohort_size={cohort_size!r}.")

    def choose(
        candidates: Sequence[Candidate], round_number: RoundNumber, rng: np.random.Generator
    ) -> tuple[ClientId, ...]:
        size = min(cohort_size, len(candidates))
        chosen = rng.choice(len(candidates), size, replace=False) if size else np.empty(0, int)
        return tuple(candidates[i].client for i in sorted(chosen))

    return Select(Spec("uniform", {"cohort_size": cohort_size}), choose)
