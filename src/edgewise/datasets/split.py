"""Splits examples over clients: pure functions from labels or subjects to indices per client.

Every function returns one sorted index array per client; together they are a partition of all examples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from edgewise.core.errors import DataError

Indices = NDArray[np.intp]


def iid(num_examples: int, num_clients: int, *, rng: np.random.Generator) -> list[Indices]:
    """Shuffles all examples and deals them out evenly.

    Args:
        num_examples: How many there are.
        num_clients: How many share them; sizes differ by at most one.
        rng: Shuffles.

    Returns:
        Indices per client.

    Raises:
        DataError: If there are fewer examples than clients.
    """
    _check(num_examples, num_clients, 1)
    return [np.sort(part) for part in np.array_split(rng.permutation(num_examples), num_clients)]


def dirichlet(
    targets: NDArray[np.int64],
    num_clients: int,
    *,
    alpha: float,
    rng: np.random.Generator,
    minimum_examples: int = 1,
) -> list[Indices]:
    """Splits with label skew: each label's shares over the clients are Dirichlet(α).

    Cannot hang and cannot give NaN: shares come from gamma draws in logarithms, which do not underflow however
    small α is, and a client below the minimum is given examples by the largest ones instead of drawing again.

    Args:
        targets: Labels, int[n].
        num_clients: How many share them.
        alpha: Concentration α > 0; 0.1 is strong skew, 100 nearly even.
        rng: Draws shares and order.
        minimum_examples: What every client gets at least.

    Returns:
        Indices per client.

    Raises:
        DataError: If α is not above 0, or there are too few examples.

    Reference:
        Hsu, Qi & Brown, "Measuring the Effects of Non-Identical Data Distribution for Federated Visual
        Classification", 2019. Differs: a Dirichlet over clients per label (Yurochkin et al. 2019), and a
        minimum per client.
    """
    _check(len(targets), num_clients, minimum_examples)
    if not 0 < alpha < np.inf:
        raise DataError(f"alpha must be above 0 and finite, got {alpha!r}. Try 0.5, or use iid().")
    labels = np.asarray(targets)
    parts: list[list[int]] = [[] for _ in range(num_clients)]
    for label in np.unique(labels):
        indices = rng.permutation(np.flatnonzero(labels == label))
        ends = np.rint(np.cumsum(_dirichlet_shares(alpha, num_clients, rng)) * len(indices)).astype(int)
        for part, chunk in zip(parts, np.split(indices, ends[:-1]), strict=True):
            part.extend(int(i) for i in chunk)
    _top_up(parts, minimum_examples)
    return [np.sort(np.array(part, np.intp)) for part in parts]


def by_subject(subjects: NDArray[np.int64]) -> dict[int, Indices]:
    """Splits by subject: one client each.

    Args:
        subjects: Who made each example, int[n].

    Returns:
        Indices by subject, in ascending order of subject.

    Raises:
        DataError: If there are no examples.
    """
    _check(len(subjects), 1, 1)
    plain = np.asarray(subjects)
    return {int(subject): np.flatnonzero(plain == subject) for subject in np.unique(plain)}


def _iid_labels(targets: NDArray[np.int64], num_clients: int, *, rng: np.random.Generator) -> list[Indices]:
    return iid(len(targets), num_clients, rng=rng)


SPLITS: Mapping[str, Callable[..., list[Indices]]] = {"iid": _iid_labels, "dirichlet": dirichlet}
"""By name: (targets, num_clients, *, rng, **parameters) -> indices per client."""


def _dirichlet_shares(alpha: float, num_clients: int, rng: np.random.Generator) -> NDArray[np.float64]:
    # log Gamma(a) = log Gamma(a + 1) + log(U) / a: exact also where Gamma(a) itself rounds to zero.
    logs = np.log(rng.standard_gamma(alpha + 1.0, num_clients)) + np.log(rng.random(num_clients)) / alpha
    shares = np.exp(logs - logs.max())
    return np.asarray(shares / shares.sum())


def _top_up(parts: list[list[int]], minimum_examples: int) -> None:
    for part in parts:
        while len(part) < minimum_examples:
            part.append(max(parts, key=len).pop())


def _check(num_examples: int, num_clients: int, minimum_examples: int) -> None:
    if num_clients < 1 or num_examples < num_clients * max(minimum_examples, 1):
        raise DataError(
            f"{num_examples} examples cannot be split over {num_clients} clients with at least "
            f"{max(minimum_examples, 1)} each. Use fewer clients or more examples."
        )
