from __future__ import annotations

import pytest

from edgewise.core.ids import Tier
from edgewise.fleet.node.connect import _fence
from edgewise.fleet.node.settings import AgentSettings


@pytest.mark.parametrize(("endpoint", "fenced"), [("tcp/127.0.0.1:0", False), ("tls/127.0.0.1:0", True)])
def test_rules_by_certificate_stand_only_where_there_are_certificates(endpoint: str, fenced: bool) -> None:
    settings = AgentSettings(name="edge-1", tier=Tier.EDGE, identity="", state="", listen=(endpoint,))
    assert (_fence(settings) is not None) == fenced
