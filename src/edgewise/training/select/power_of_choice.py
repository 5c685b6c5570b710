"""The clients that do worst, of a few drawn at random."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

import numpy as np

from edgewise.core.errors import InputError
from edgewise.core.ids import ClientId, RoundNumber
from edgewise.core.spec import Spec
from edgewise.training.algorithm import Candidate, Select


def power_of_choice(cohort_size: int, num_candidates: int) -> Select:
    """Draws candidates in proportion to their examples and takes those with the largest last loss.

    A client without a last loss comes before all others, so everyone is heard once. Biased towards hard clients: faster at
    first, at the price of a floor that grows with the heterogeneity of the data.

    Args:
        cohort_size: Clients of a round, at least 1; m in the paper.
        num_candidates: How many are drawn first, without replacement, at least m; d in the paper. With d = m it is a plain draw.

    Returns:
        The rule; on equal losses the earlier drawn is taken.

    Raises:
        InputError: If not 1 ≤ m ≤ d.

    Reference:
        Cho, Wang & Joshi, "Client Selection in Federated Learning: Convergence Analysis and Power-of-Choice Selection
        Strategies", 2020, π_rpow-d: last known losses stand for losses asked anew.
    """
    if not 1 <= cohort_size <= num_candidates:
        raise InputError(
            f"power_of_choice takes {cohort_size!r} of {num_candidates!r} candidates. Take at least 1, of at least as many."
        )

    def last_loss(candidate: Candidate) -> float:
        return inf if candidate.last is None else candidate.last.metrics.get("loss", inf)

    def choose(
        candidates: Sequence[Candidate], round_number: RoundNumber, rng: np.random.Generator
    ) -> tuple[ClientId, ...]:
        if not candidates:
            return ()
        shares = np.array([max(1, candidate.num_examples) for candidate in candidates], np.float64)
        size = min(num_candidates, len(candidates))
        drawn = rng.choice(len(candidates), size, replace=False, p=shares / shares.sum())
        worst = sorted(drawn, key=lambda i: -last_loss(candidates[i]))[:cohort_size]
        return tuple(candidates[i].client for i in sorted(worst))

    return Select(Spec("power_of_choice", {"cohort_size": cohort_size, "num_candidates": num_candidates}), choose)
