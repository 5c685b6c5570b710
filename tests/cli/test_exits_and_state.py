"""`--exits` and `--keep`: what a user says of a model's outputs, and what cannot be meant."""

from __future__ import annotations

import pytest

from edgewise.cli.serve import parse_exits, parse_kept
from edgewise.core.errors import InputError


def test_exits_and_state_are_read_as_they_are_written() -> None:
    assert parse_exits("early, end") == ("early", "end")
    assert parse_exits("") == ()
    assert parse_kept(["h0=hn", "c0=cn"]) == (("h0", "hn"), ("c0", "cn"))
    assert parse_kept(None) == ()


@pytest.mark.parametrize("text", ["h0", "=hn", "h0="])
def test_state_that_is_no_pair_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"is no state\. Give an input and an output of the model"):
        parse_kept([text])
