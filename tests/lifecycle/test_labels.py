"""Label sources: what they label, what they send, what the policy forbids."""

from __future__ import annotations

from math import isnan

import numpy as np
import pytest

from edgewise.core.errors import InputError, PolicyViolation
from edgewise.core.ids import RequestId, Tier
from edgewise.lifecycle.hard_examples import HardExample
from edgewise.lifecycle.labels import LABEL_SOURCES, LabelHelp, Labels, agreement, feedback, label_source, teacher
from edgewise.planning.policy import Policy

EXAMPLES = tuple(HardExample(RequestId(f"r{i}"), np.full(4, i, np.float32), 0, 0.4, float(i)) for i in range(3))


def sure_teacher(values: np.ndarray) -> np.ndarray:
    """Class = first entry, sure unless it is 2."""
    chances = np.full((len(values), 3), 0.05, np.float32)
    for row, value in enumerate(values.reshape(len(values), -1)[:, 0].astype(int)):
        chances[row, value] = 0.9 if value < 2 else 0.5
    return chances


def test_feedback_gives_the_answers_that_came_back() -> None:
    labels = feedback().label(EXAMPLES, LabelHelp(answers={RequestId("r1"): 7}))
    assert labels == Labels("feedback()", (None, 7, None))
    assert labels.share == pytest.approx(1 / 3)


def test_a_teacher_on_the_device_sends_nothing() -> None:
    labels = teacher(reads="device").label(EXAMPLES, LabelHelp(teacher=sure_teacher, teacher_tier=Tier.DEVICE))
    assert (labels.labels, labels.raw_bytes_sent, labels.feature_bytes_sent) == ((0, 1, None), 0, 0)


def test_a_teacher_reads_the_cuts_features_and_their_bytes_are_counted() -> None:
    help = LabelHelp(teacher=sure_teacher, features=lambda x: np.asarray(x)[:, :2])
    labels = teacher().label(EXAMPLES, help)
    assert (labels.labels, labels.raw_bytes_sent, labels.feature_bytes_sent) == ((0, 1, None), 0, 3 * 2 * 4)


def test_a_teacher_of_raw_inputs_needs_the_policys_grant() -> None:
    source = teacher(reads="raw")
    with pytest.raises(
        PolicyViolation, match="would send raw inputs to the edge, the data policy lets them reach the device"
    ):
        source.label(EXAMPLES, LabelHelp(teacher=sure_teacher))
    granted = LabelHelp(teacher=sure_teacher, policy=Policy(raw_may_reach=Tier.EDGE))
    assert source.label(EXAMPLES, granted).raw_bytes_sent == 3 * 4 * 4


def test_features_need_a_grant_too() -> None:
    policy = Policy(features_may_reach=Tier.DEVICE)
    with pytest.raises(PolicyViolation, match="would send features to the edge"):
        teacher().label(EXAMPLES, LabelHelp(teacher=sure_teacher, features=lambda x: x, policy=policy))


def test_a_teacher_that_is_not_there_is_an_error_with_a_cure() -> None:
    with pytest.raises(InputError, match=r"has no teacher to ask. Give this device one, or use the source 'feedback'"):
        teacher().label(EXAMPLES, LabelHelp(teacher=sure_teacher))


def test_a_teacher_reads_one_of_three_things() -> None:
    with pytest.raises(InputError, match="reads 'device', 'features' or 'raw', found 'pixels'"):
        teacher(reads="pixels")


@pytest.mark.parametrize("name", LABEL_SOURCES)
def test_every_source_is_rebuilt_from_its_words_and_labels_nothing_of_nothing(name: str) -> None:
    source = label_source(name)
    assert label_source(source.spec.to_dict()).spec == source.spec
    labels = source.label((), LabelHelp())
    assert labels.labels == ()
    assert isnan(labels.share)


def test_an_unknown_source_is_refused() -> None:
    with pytest.raises(InputError, match=r"labels has no 'teachr'. Did you mean 'teacher'\?"):
        label_source("teachr")


def test_agreement_counts_what_both_know() -> None:
    labels = Labels("teacher()", (1, 2, None, 4))
    assert agreement(labels, (1, 3, 5, None)) == 0.5
    assert isnan(agreement(labels, (None,) * 4))
    with pytest.raises(InputError, match="4 labels cannot be compared with 3"):
        agreement(labels, (1, 2, 3))
