"""What push-sum moves between clients, exactly: a vector and a weight in whole numbers, parted without losing a unit.

An entry x is the integer round(x · 2³²) and a weight is one too, so however a mass is parted and joined its sums stay
what they were. A client's model is vector / weight.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgewise.core.errors import FrameRefused, InputError
from edgewise.core.ids import ClientId
from edgewise.core.layout import Vector
from edgewise.training.protocols.folding import arrays_from_bytes, arrays_to_bytes

UNIT = 2.0**32
_SHARE_BITS = 20
_MOST = 2**61


@dataclass(frozen=True, slots=True)
class Mass:
    """Integers in units of 2⁻³².

    Attributes:
        vector: int64[d], Σ weight · model.
        weight: Σ weight.
    """

    vector: NDArray[np.int64]
    weight: int

    def __add__(self, other: Mass) -> Mass:
        return checked(Mass(self.vector + other.vector, self.weight + other.weight))

    def __sub__(self, other: Mass) -> Mass:
        return Mass(self.vector - other.vector, self.weight - other.weight)

    def part(self, share: float) -> Mass:
        """A share of it, rounded down; what is left is `self - part`."""
        k = round(share * 2**_SHARE_BITS)
        mask = (1 << _SHARE_BITS) - 1
        vector = (self.vector >> _SHARE_BITS) * k + (((self.vector & mask) * k) >> _SHARE_BITS)
        return Mass(vector, (self.weight * k) >> _SHARE_BITS)

    def model(self, otherwise: Vector) -> Vector:
        """float32[d], vector / weight; `otherwise` where there is no weight."""
        return (self.vector / self.weight).astype(np.float32) if self.weight > 0 else otherwise

    def to_bytes(self) -> bytes:
        """As a blob."""
        return arrays_to_bytes({"vector": self.vector, "weight": np.array([self.weight], np.int64)})


def mass_of(vector: NDArray[np.floating], weight: float) -> Mass:
    """weight · vector, and that weight.

    Raises:
        InputError: If it is not finite or too large to be exact.
    """
    scaled = np.rint(vector.astype(np.float64) * (weight * UNIT))
    if not np.isfinite(scaled).all() or np.abs(scaled).max(initial=0.0) > _MOST or weight * UNIT > _MOST:
        raise InputError(
            f"a model with entries up to {np.abs(vector).max(initial=0.0)!s} and weight {weight!s} is not finite or too large "
            "for exact shares. Lower the learning rate, or weigh uniformly."
        )
    return Mass(scaled.astype(np.int64), round(weight * UNIT))


def mass_from_bytes(data: bytes, size: int) -> Mass:
    """Undoes `Mass.to_bytes`; FrameRefused for what is not an honest mass of that size."""
    arrays = arrays_from_bytes(data)
    if sorted(arrays) == ["vector", "weight"]:
        vector, weight = arrays["vector"], arrays["weight"]
        fits = vector.shape == (size,) and weight.shape == (1,) and vector.dtype == weight.dtype == np.int64
        if fits and 0 <= int(weight[0]) <= _MOST:
            return checked(Mass(vector, int(weight[0])))
    raise FrameRefused(f"a share of {size:,} entries is an int64 vector and a weight, found {sorted(arrays)[:10]}.")


def checked(mass: Mass) -> Mass:
    """The mass, if joining it to another cannot overflow."""
    if mass.vector.size and (mass.vector.max() > _MOST or mass.vector.min() < -_MOST):
        raise FrameRefused(f"a mass goes beyond {_MOST:,} units of 2⁻³², so sums of it would not be exact.")
    return mass


def metropolis(neighbours: Mapping[ClientId, Sequence[ClientId]]) -> dict[ClientId, dict[ClientId, float]]:
    """Weights that make a symmetric graph's mixing doubly stochastic: 1 / (1 + the larger of two degrees).

    Args:
        neighbours: Of each client; symmetric.

    Returns:
        Per client the weight of what goes to each neighbour; own share is what is left of 1.

    Reference:
        Xiao, Boyd & Kim, "Distributed average consensus with least-mean-square deviation", JPDC 2007, eq. 8.
    """
    degree = {client: len(others) for client, others in neighbours.items()}
    return {
        client: {other: 1 / (1 + max(degree[client], degree[other])) for other in others}
        for client, others in neighbours.items()
    }


def rings(clients: Sequence[ClientId], num: int, rng: np.random.Generator) -> dict[ClientId, list[ClientId]]:
    """Neighbours on `num` rings laid through all clients, the first in their order, the others at random: connected.

    Args:
        clients: All.
        num: Rings; each adds at most two neighbours.
        rng: Draws the others.

    Returns:
        Per client its neighbours, symmetric, in order.
    """
    found: dict[ClientId, set[ClientId]] = {client: set() for client in clients}
    for index in range(num):
        order = list(clients) if index == 0 else [clients[i] for i in rng.permutation(len(clients))]
        for left, right in zip(order, order[1:] + order[:1], strict=True):
            if left != right:
                found[left].add(right)
                found[right].add(left)
    return {client: [other for other in clients if other in found[client]] for client in clients}
