from __future__ import annotations

from edgewise.core.ids import Tier
from edgewise.transport.keys import Keys, matches


def test_keys_match_chunk_by_chunk() -> None:
    keys = Keys("f")
    assert matches(keys.service("*", "info"), keys.service("n", "info"))
    assert not matches(keys.service("*", "info"), keys.service("n", "blob"))
    assert not matches("ew/*", "ew/a/b")
    assert Keys.read_alive(keys.alive(Tier.EDGE, "e", 12)) == (Tier.EDGE, "e", 12)
