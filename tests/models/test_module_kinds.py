"""Every kind of module of `docs/modules.md` trains as plain torch trains it, and the page says what was found."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.models.module_kinds import BAR, HEAD, KINDS, tried

PAGE = Path(__file__).parents[2] / "docs" / "modules.md"


@pytest.mark.parametrize("kind", KINDS, ids=[kind.title for kind in KINDS])
def test_a_kind_of_module_trains_as_plain_torch_does_and_its_row_says_so(kind):
    found = tried(kind)
    assert found.gap <= BAR
    assert "sequential" in found.engines
    row = f"| {kind.title} | {', '.join(found.engines)} | {found.export} | {kind.note} |"
    assert row in PAGE.read_text().splitlines()


def test_the_page_has_these_rows_and_no_others():
    text = PAGE.read_text()
    assert text.startswith(HEAD.format(bar=BAR))
    assert text.count("\n|") == len(KINDS) + 2
