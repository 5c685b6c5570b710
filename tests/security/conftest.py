"""One throw-away authority for the package's tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgewise.core.ids import Tier
from edgewise.security import Authority, Identity, create_authority


@pytest.fixture(scope="module")
def fleet_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with an authority in `ca` and one folder per issued node."""
    folder = tmp_path_factory.mktemp("fleet")
    create_authority(folder / "ca", "main")
    return folder


@pytest.fixture(scope="module")
def authority(fleet_folder: Path) -> Authority:
    """The fleet's authority, read back from disk."""
    return Authority.load(fleet_folder / "ca")


@pytest.fixture(scope="module")
def device(authority: Authority, fleet_folder: Path) -> Identity:
    """The identity of `device-1`."""
    return Identity.load(authority.issue("device-1", Tier.DEVICE).write(fleet_folder / "device-1"))


@pytest.fixture(scope="module")
def edge(authority: Authority, fleet_folder: Path) -> Identity:
    """The identity of `edge-1`."""
    return Identity.load(authority.issue("edge-1", Tier.EDGE).write(fleet_folder / "edge-1"))
