"""An operator's questions to nodes that come and go."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from edgewise.core.backoff import Backoff
from edgewise.core.errors import RemoteError, Unreachable
from edgewise.core.ids import NodeId
from edgewise.fleet.operator import operator
from edgewise.testing import LoopbackFleet

DEVICE = NodeId("device-a")


def test_a_node_that_is_moving_is_asked_again(tmp_path: Path) -> None:
    async def scene() -> None:
        async with LoopbackFleet(tmp_path, edge_of={"a": "edge-1"}) as fleet:
            fleet.fabric.cut(DEVICE)
            asking = asyncio.ensure_future(fleet.operator.ledger(DEVICE))
            await asyncio.sleep(0)
            fleet.fabric.heal(DEVICE)
            with pytest.raises(RemoteError, match="device-a takes no 'ledger_request'"):  # so it was reached
                await asking

    asyncio.run(scene())


def test_a_node_that_stays_away_is_said_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operator, "RETRY", Backoff(0.0))

    async def scene() -> None:
        async with LoopbackFleet(tmp_path, edge_of={"a": "edge-1"}) as fleet:
            fleet.fabric.cut(DEVICE)
            with pytest.raises(Unreachable, match=r"nobody serves 'ew/.*/device-a/control'"):
                await fleet.operator.ledger(DEVICE)

    asyncio.run(scene())
