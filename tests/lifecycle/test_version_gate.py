"""The gate: its bound covers, its counts are right, it refuses what it must."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import beta, binom

from edgewise.core.errors import GateRefused, InputError
from edgewise.lifecycle.version_gate import compare, improves, loss_upper_bound, require


def pairs(lost: int, gained: int, num: int) -> tuple[np.ndarray, np.ndarray]:
    reference, candidate = np.ones(num, bool), np.ones(num, bool)
    candidate[:lost] = False
    reference[lost : lost + gained] = False
    return reference, candidate


def test_the_bound_without_any_difference_is_the_rule_of_three() -> None:
    # no pair of n differs: (1 − δ)^n = 0.05
    assert loss_upper_bound(0, 0, 300) == pytest.approx(1 - 0.05 ** (1 / 300), abs=2e-5)


@pytest.mark.parametrize("lost", [1, 2, 5])
def test_the_bound_without_gains_is_clopper_pearson(lost: int) -> None:
    assert loss_upper_bound(lost, 0, 300) == pytest.approx(beta.ppf(0.95, lost + 1, 300 - lost), abs=2e-4)


def test_the_score_bound_without_gains_is_wilsons() -> None:
    z, n, b = 1.6448536, 400, 3
    wilson = (b + z * z / 2 + z * np.sqrt(b * (n - b) / n + z * z / 4)) / (n + z * z)
    assert loss_upper_bound(b, 0, n, exact=False) == pytest.approx(wilson, abs=2e-5)


def test_the_score_bound_with_nothing_different_is_z_squared_over_n_plus_z_squared() -> None:
    assert loss_upper_bound(0, 0, 5000) == pytest.approx(1.6448536**2 / (5000 + 1.6448536**2), abs=2e-5)


@pytest.mark.parametrize(("lost_share", "gained_share"), [(0.02, 0.0), (0.03, 0.01), (0.06, 0.04)])
def test_the_exact_bound_covers_a_true_loss_of_two_points(lost_share: float, gained_share: float) -> None:
    # the probability that the bound misses the truth, summed over outcomes, is at most 5 %
    num, missed = 60, 0.0
    for lost in range(num + 1):
        for gained in range(num + 1 - lost):
            chance = binom.pmf(gained, num, gained_share) * binom.pmf(
                lost, num - gained, lost_share / (1 - gained_share)
            )
            if chance > 1e-4 and loss_upper_bound(lost, gained, num) < lost_share - gained_share:
                missed += chance
    assert missed <= 0.05


def test_a_simulated_loss_beyond_the_limit_passes_at_most_one_time_in_twenty() -> None:
    # 400 examples, true loss 2.1 points; 60 draws: more than 8 passes would be 3 standard deviations above 5 %
    rng = np.random.default_rng(5)
    draws = rng.multinomial(400, (0.036, 0.015, 0.949), size=60)
    passes = sum(loss_upper_bound(int(b), int(c), 400) <= 0.02 for b, c, _ in draws)
    assert passes <= 8


def test_losses_raise_the_bound_and_gains_lower_it() -> None:
    bounds = [loss_upper_bound(b, c, 300) for b, c in [(0, 4), (0, 0), (2, 2), (4, 2), (8, 2)]]
    assert bounds == sorted(bounds)
    assert bounds[0] < bounds[1]


def test_a_candidate_that_gains_much_has_a_negative_bound() -> None:
    assert -0.2 < loss_upper_bound(2, 60, 300) < -0.1


def test_compare_passes_and_prints_the_counts() -> None:
    result = compare(*pairs(1, 2, 300))
    assert (result.passed, result.reference_only_right, result.candidate_only_right) == (True, 1, 2)
    assert "of 300 pairs the candidate loses 1 and gains 2; the 95% bound of the loss is" in result.reason


def test_compare_refuses_a_bound_above_the_limit() -> None:
    result = compare(*pairs(2, 0, 300))  # Clopper-Pearson: 2.08 points
    assert not result.passed
    assert result.upper_bound_points == pytest.approx(2.08, abs=0.01)
    assert result.reason.startswith("refused: of 300 pairs the candidate loses 2 and gains 0")


def test_compare_refuses_too_few_examples() -> None:
    result = compare(*pairs(0, 0, 299))
    assert (result.passed, result.reason[:52]) == (False, "refused: 299 examples compared, needed are 300; of 2")
    assert compare(*pairs(0, 0, 0)).upper_bound_points == 100.0


def test_compare_refuses_arrays_that_are_no_pairs() -> None:
    with pytest.raises(InputError, match=r"reference has shape \(3,\), the candidate \(2,\)"):
        compare([True] * 3, [True] * 2)


def test_improves_needs_a_sure_gain_on_recent_data() -> None:
    old = pairs(1, 1, 300)
    better = improves(*old, *pairs(1, 9, 80))  # P(Bin(10, 1/2) ≥ 9) = 11/1024
    assert (better.passed, better.gain_points) == (True, 10.0)
    assert better.p_value == pytest.approx(11 / 1024)
    unsure = improves(*old, *pairs(1, 3, 80))  # P(Bin(4, 1/2) ≥ 3) = 5/16
    assert not unsure.passed
    assert "no sure gain" in unsure.reason
    assert improves(*old, *pairs(0, 0, 80)).p_value == 1.0


def test_improves_refuses_what_loses_on_the_old_data() -> None:
    result = improves(*pairs(20, 0, 300), *pairs(0, 30, 80))
    assert not result.passed
    assert result.reason.startswith("refused on the old data: of 300 pairs the candidate loses 20")


def test_improves_refuses_too_few_recent_examples() -> None:
    assert improves(*pairs(0, 0, 300), *pairs(0, 30, 40)).reason.startswith("refused: 40 recent examples compared")


def test_require_raises_for_a_refused_candidate() -> None:
    require(compare(*pairs(0, 0, 300)), "version 2")
    with pytest.raises(
        GateRefused, match=r"version 3 may not serve: refused: of 300 pairs .* offer it again"
    ) as caught:
        require(compare(*pairs(90, 0, 300)), "version 3")
    assert caught.value.fields["reference_only_right"] == 90
