"""Which source of labels the options of `edgewise train` ask for."""

from __future__ import annotations

import pytest

from edgewise.cli.train import source_of
from edgewise.core.errors import InputError


@pytest.mark.parametrize(
    ("options", "source"),
    [
        ((False, "", 0), ""),
        ((True, "", 0), "feedback()"),
        ((True, "", 3), "teacher(reads='device', min_confidence=0.8)"),
        ((False, "teacher", 0), "teacher(reads='features', min_confidence=0.8)"),
        ((False, "teacher(reads='device', min_confidence=0.9)", 2), "teacher(reads='device', min_confidence=0.9)"),
    ],
)
def test_options_say_who_labels(options: tuple[bool, str, int], source: str) -> None:
    assert source_of(*options) == source


def test_a_source_there_is_not_and_a_contradiction_are_named() -> None:
    with pytest.raises(InputError, match=r"labels has no 'teachr'. Did you mean 'teacher'"):
        source_of(False, "teachr", 0)
    with pytest.raises(
        InputError, match=r"version 3 labels on the devices, feedback\(\) asks elsewhere. Say --teacher alone"
    ):
        source_of(False, "feedback", 3)
