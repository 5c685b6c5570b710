from __future__ import annotations

import pytest

from edgewise.core.errors import FrameRefused
from edgewise.core.ids import Tier
from edgewise.transport.keys import Keys, matches


def test_keys_match_chunk_by_chunk() -> None:
    keys = Keys("f")
    assert matches(keys.service("*", "info"), keys.service("n", "info"))
    assert not matches(keys.service("*", "info"), keys.service("n", "blob"))
    assert not matches("ew/*", "ew/a/b")
    assert Keys.read_alive(keys.alive(Tier.EDGE, "e", 12)) == (Tier.EDGE, "e", 12)


@pytest.mark.parametrize(
    "end",
    [
        "device/e/soon",
        "device/e/-1",
        "boss/e/1",
        "device/E/1",
        "device/e/1_0",
        "device/e/" + 20 * "9",
        "device/e/",
        "1",
    ],
)
def test_a_key_that_names_no_incarnation_is_refused(end: str) -> None:
    with pytest.raises(FrameRefused, match="is no liveliness token of a node"):
        Keys.read_alive(f"ew/f/alive/{end}")
