import numpy as np
import pytest

from edgewise.core.errors import DataError
from edgewise.datasets.split import SPLITS, by_subject, dirichlet, iid

LABELS = np.repeat(np.arange(10), 100)


def _is_partition(parts, num_examples):
    return np.array_equal(np.sort(np.concatenate(parts)), np.arange(num_examples))


def test_iid_gives_every_client_one_share():
    parts = iid(103, 10, rng=np.random.default_rng(0))
    assert _is_partition(parts, 103)
    assert sorted({len(part) for part in parts}) == [10, 11]


def test_iid_does_not_take_contiguous_blocks():
    parts = iid(1000, 10, rng=np.random.default_rng(0))
    assert all(len(np.unique(LABELS[part])) == 10 for part in parts)


@pytest.mark.parametrize("alpha", [1e-9, 1e-3, 0.1, 0.5, 100.0, 1e6])
def test_dirichlet_is_a_partition_with_a_minimum_for_every_alpha(alpha):
    parts = dirichlet(LABELS, 20, alpha=alpha, rng=np.random.default_rng(0), minimum_examples=5)
    assert _is_partition(parts, 1000)
    assert min(len(part) for part in parts) >= 5


def test_a_tiny_alpha_gives_each_label_to_one_client():
    parts = dirichlet(LABELS, 4, alpha=1e-6, rng=np.random.default_rng(0), minimum_examples=0)
    owners = [{client for client, part in enumerate(parts) if label in LABELS[part]} for label in range(10)]
    assert all(len(owner) == 1 for owner in owners)


def test_shares_have_the_variance_of_a_dirichlet():
    # Var of one of K shares of a symmetric Dirichlet: (K - 1) / (K² (K α + 1)); here K = 5, α = 0.5.
    labels = np.zeros(1000, int)
    rng = np.random.default_rng(0)
    draws = [len(dirichlet(labels, 5, alpha=0.5, rng=rng, minimum_examples=0)[0]) / 1000 for _ in range(2000)]
    assert np.mean(draws) == pytest.approx(0.2, abs=0.02)
    assert np.var(draws) == pytest.approx(4 / (25 * 3.5), rel=0.1)


def test_every_split_of_the_registry_is_deterministic_under_its_rng():
    for name, split in SPLITS.items():
        settings = {"alpha": 0.5} if name == "dirichlet" else {}
        first, second = (split(LABELS, 7, rng=np.random.default_rng(4), **settings) for _ in range(2))
        assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_by_subject_gives_each_subject_its_own_examples():
    parts = by_subject(np.array([3, 1, 3, 2]))
    assert {subject: indices.tolist() for subject, indices in parts.items()} == {1: [1], 2: [3], 3: [0, 2]}


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan"), float("inf")])
def test_an_alpha_that_is_no_concentration_is_refused(alpha):
    with pytest.raises(DataError, match=r"alpha must be above 0 and finite, got .* Try 0\.5"):
        dirichlet(LABELS, 3, alpha=alpha, rng=np.random.default_rng(0))


def test_more_clients_than_examples_are_refused():
    with pytest.raises(DataError, match="3 examples cannot be split over 5 clients with at least 1 each"):
        iid(3, 5, rng=np.random.default_rng(0))
