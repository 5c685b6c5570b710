"""Certificates of a throw-away fleet, and of a stranger's."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgewise.core.ids import Tier
from edgewise.security import Authority, create_authority


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders `edge-1`, `device-1`, `device-2`, `stranger` (another authority) and `expired`."""
    folder = tmp_path_factory.mktemp("transport-fleet")
    for ca, names in (("ca", ("edge-1", "device-1", "device-2")), ("other-ca", ("stranger",))):
        create_authority(folder / ca, "main")
        authority = Authority.load(folder / ca)
        for name in names:
            tier = Tier.DEVICE if name.startswith("device") else Tier.EDGE
            authority.issue(name, tier, folder=folder / name)
    Authority.load(folder / "ca").issue("expired", Tier.EDGE, days=1e-9, folder=folder / "expired")
    return folder
