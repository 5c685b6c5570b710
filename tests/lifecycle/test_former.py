"""Old versions: which are tried, and which is surely better."""

from __future__ import annotations

from edgewise.core.ids import Digest
from edgewise.lifecycle.former import MOST_TRIED, PairCounts, choose_former, former_versions
from edgewise.models.version import GateResult, ModelVersion


def version(number: int, passed: bool | None = True, graph: str = "", own: tuple[str, ...] = ()) -> ModelVersion:
    gate = None if passed is None else GateResult(passed, 300, 0, 0, 1.0, 2.0, "")
    return ModelVersion(number, Digest(graph or f"graph {number}"), Digest(""), "digits", gate=gate, own=own)


def numbers(
    *versions: ModelVersion, served: tuple[int, ...], in_force: int, besides: tuple[int, ...] = ()
) -> list[int]:
    return [v.number for v in former_versions(versions, served, in_force, besides)]


def test_what_served_last_is_tried_first_and_then_what_passed_its_gate() -> None:
    known = [version(1, None), version(2), version(3), version(4), version(5)]  # 3 was taken back, 5 has not served yet
    assert numbers(*known, served=(1, 2, 1, 4), in_force=4) == [1, 2, 3]
    assert numbers(*known, served=(1, 2, 1, 4), in_force=4, besides=(1,)) == [2, 3]


def test_what_was_refused_lacks_tensors_or_is_the_same_model_is_not_tried() -> None:
    known = [
        version(1, False),
        version(2, own=("norm",)),
        version(3, graph="same"),
        version(4, graph="same"),
        version(5),
    ]
    assert numbers(*known, served=(1, 2, 3, 5, 4), in_force=4) == [5]


def test_only_so_many_are_tried() -> None:
    known = [version(number) for number in range(1, 20)]
    assert numbers(*known, served=(), in_force=19) == [18, 17, 16, 15, 14]
    assert MOST_TRIED == 5


def test_a_former_version_comes_back_only_if_it_is_surely_better() -> None:
    # P(Bin(10, 1/2) >= 9) = 11/1024 = 0.0107: enough for one that is tried, and for four, but not for five.
    better, none = PairCounts(40, 1, 9), PairCounts(40, 0, 0)
    assert choose_former({1: better})[0] == 1
    assert choose_former({1: none, 2: better, 3: none, 4: none}) == (
        2,
        "of 40 fresh examples it loses 1 and gains 9 (p = 0.0107, needed is 0.013)",
    )
    found, reason = choose_former({1: none, 2: better, 3: none, 4: none, 5: none})
    assert (found, reason.partition(":")[0]) == (0, "version 2 is not surely better")
    assert choose_former({}) == (0, "")
