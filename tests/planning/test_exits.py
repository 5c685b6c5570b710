"""Exit evidence against direct counting."""

import numpy as np
import pytest

from edgewise.core.errors import InputError
from edgewise.planning.moves.exits import ExitTable, measure_exits

RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 4, 200)


def logits(skill):
    rows = RNG.normal(size=(200, 4))
    rows[np.arange(200), LABELS] += skill
    return rows


LOGITS = {"none": [logits(1.0), logits(2.0), logits(3.0)], "int8": [logits(0.8), logits(1.8), logits(2.8)]}


def counted(policy, codecs):
    """Accuracy and shares, one example after the other."""
    leaving, right = np.zeros(len(policy)), 0
    for n, label in enumerate(LABELS):
        for place, ((index, threshold), codec) in enumerate(zip(policy, codecs, strict=True)):
            row = np.exp(LOGITS[codec][index][n])
            if row.max() / row.sum() >= threshold:
                leaving[place] += 1
                right += row.argmax() == label
                break
    return right / 200, leaving / 200


def table():
    return ExitTable.of(measure_exits(LOGITS, LABELS, (0.6, 0.8)), 3)


def test_operating_points_are_what_counting_gives():
    for policy in table().policies:
        point = table().at(policy, ["none"] * len(policy))
        accuracy, shares = counted(policy, ["none"] * len(policy))
        assert point.accuracy == pytest.approx(accuracy)
        assert point.fractions == pytest.approx(tuple(shares))


def test_an_exit_behind_a_coded_cut_is_counted_with_its_coded_logits():
    policy = ((0, 0.8), (2, 0.0))
    point = table().at(policy, ("none", "int8"))
    assert point.accuracy == pytest.approx(counted(policy, ("none", "int8"))[0])


def test_every_subset_of_exits_is_a_policy_and_ends_with_threshold_nought():
    policies = table().policies
    assert {tuple(i for i, _ in p) for p in policies} == {(0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)}
    assert all(p[-1][1] == 0.0 for p in policies)
    assert len(policies) == 3 + 3 * 2 + 4


def test_a_codec_without_evidence_has_no_operating_point():
    assert table().at(((2, 0.0),), ("zstd",)) is None


def test_without_any_evidence_only_the_uncoded_end_is_known():
    empty = ExitTable.of((), 3)
    assert empty.policies == (((2, 0.0),),)
    assert empty.at(((2, 0.0),), ("none",)).fractions == (1.0,)
    assert empty.at(((2, 0.0),), ("int8",)) is None


def test_evidence_needs_examples_and_uncoded_logits():
    with pytest.raises(InputError, match=r"found 200 examples and \['int8'\]"):
        measure_exits({"int8": LOGITS["int8"]}, LABELS)
    with pytest.raises(InputError, match=r"found 0 examples"):
        measure_exits(LOGITS, LABELS[:0])
