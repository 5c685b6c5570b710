"""A model is called after its file, whatever that is called."""

from __future__ import annotations

import pytest

from edgewise.models.model_choice import MOST_CHARACTERS, check_model_name, model_name_of


@pytest.mark.parametrize(
    ("stem", "name"),
    [
        ("digits", "digits"),
        (" my model (1) é ", "my model (1) é"),
        ("stats", "stats_"),
        ("..", ".._"),
        ("", "_"),
        ("a\tb\n", "a_b_"),
        ("x" * 300, "x" * MOST_CHARACTERS),
        ("x" * (MOST_CHARACTERS - 1) + " y", "x" * (MOST_CHARACTERS - 1)),
    ],
)
def test_a_file_gives_a_name_that_the_endpoint_takes(stem: str, name: str) -> None:
    assert model_name_of(stem) == name
    check_model_name(name)
