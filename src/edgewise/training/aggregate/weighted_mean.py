"""The mean of updates, weighted by examples or by any real number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from edgewise.core.errors import InputError
from edgewise.core.layout import Vector
from edgewise.core.spec import Spec
from edgewise.training.aggregate import fixed_point, sum_planes
from edgewise.training.aggregate.fixed_point import FixedPointSum
from edgewise.training.aggregate.weigh import make_weigh, num_lows_of, units_of
from edgewise.training.algorithm import EVERYTHING, Aggregator, Closed, Counted, Kind, State, Weigh

SAMPLED, ALL = "sampled", "all"


@dataclass(frozen=True)
class WeightedMean(Aggregator):
    """An exact sum and what it is divided by; made by `weighted_mean`.

    Attributes:
        spec, weigh: As in `Aggregator`.
        divisor: `sampled` or `all`.
        disk_entries: From so many entries the sum lies on disk; None keeps it in memory.
    """

    spec: Spec
    weigh: Weigh
    divisor: str = SAMPLED
    disk_entries: int | None = None
    kind: Kind = Kind.SUM

    def check(self, array: NDArray[Any]) -> None:
        fixed_point.check_update(array, array.shape[-1])

    def units(self, weights: Sequence[float]) -> int:
        return sum(units_of(self.weigh, weights).tolist())

    def init(self, size: int) -> FixedPointSum:
        on_disk = self.disk_entries is not None and size >= self.disk_entries
        return fixed_point.zero(size, num_lows_of(self.weigh), on_disk)

    def add(self, state: FixedPointSum, rows: NDArray[Any], weights: Sequence[float]) -> State:
        return fixed_point.add(state, rows, units_of(self.weigh, weights))

    def merge(self, left: FixedPointSum, right: FixedPointSum) -> State:
        return fixed_point.merge(left, right)

    def weight_of(self, state: FixedPointSum) -> int:
        return state.total_units

    def finish(self, state: FixedPointSum, closed: Closed, entries: slice = EVERYTHING) -> Vector:
        return fixed_point.mean(state, self._population(closed) if self.divisor == ALL else None, entries)

    def forget(self, state: FixedPointSum, entries: slice) -> None:
        fixed_point.forget(state, entries)

    def to_arrays(self, state: FixedPointSum) -> dict[str, NDArray[Any]]:
        return sum_planes.to_arrays(state)

    def add_arrays(self, state: FixedPointSum, arrays: Mapping[str, NDArray[Any]]) -> State:
        return sum_planes.add_arrays(state, arrays)

    def _population(self, closed: Closed) -> int:
        if closed.population:
            return self.units([self.weigh.weight(counted) for counted in closed.population])
        if self.weigh.spec.name != "uniform":
            raise InputError(
                f"{self.spec} divides by what all {closed.num_clients} clients weigh, and their examples are not known. "
                "Weigh uniformly, or divide by the sampled."
            )
        return closed.num_clients * self.units([self.weigh.weight(Counted(1))])


def weighted_mean(
    weigh: Weigh | Spec | str = "examples", divisor: str = SAMPLED, disk_entries: int | None = None
) -> WeightedMean:
    """Averages updates with their weights, exactly, in any order.

    Folds in O(d) memory: 12 bytes an entry where weights are whole numbers, 16 where they are real (`fixed_point.py` has
    scale, width and overflow rule). The result is the float64 mean rounded to float32, up to 2⁻⁴¹ for entries below 2⁻¹⁷.

    Args:
        weigh: How much each counts: `examples`, `uniform`, `loss`, `staleness`.
        divisor: Whose weights the sum is divided by: of the `sampled` clients that answered, or of `all` of the run.
        disk_entries: From so many entries the sum is kept in a file of the temporary folder, not in memory.

    Returns:
        The aggregator.

    Raises:
        InputError: If `divisor` is another word.

    Reference:
        McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017.
        Differs: sums in fixed point, so the result does not depend on the order of arrival.
    """
    if divisor not in (SAMPLED, ALL):
        raise InputError(f"a mean divides by the weights of 'sampled' or of 'all' clients, found divisor={divisor!r}.")
    made = make_weigh(weigh)
    given = {"weigh": made.spec, "divisor": divisor, "disk_entries": disk_entries}
    plain = {"weigh": Spec("examples"), "divisor": SAMPLED, "disk_entries": None}
    params = {name: value for name, value in given.items() if value != plain[name]}
    return WeightedMean(Spec("weighted_mean", params), made, divisor, disk_entries)
