"""An update that its server cannot take ends in a cause, never in a round that waits for ever."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from edgewise.fleet.training.reception import Reception
from edgewise.testing import LoopbackFleet

TIMEOUT_S = 20.0


@pytest.mark.parametrize("protocol", ["synchronous", "hierarchical"])
def test_a_server_that_fails_over_one_update_goes_on_without_it_and_says_why(protocol, tmp_path, monkeypatch):
    whole = Reception._take

    async def failing(self: Any, driver: Any, letter: Any, *rest: Any) -> Any:
        if letter.key.startswith("update/b"):
            raise RuntimeError("no space left")
        return await whole(self, driver, letter, *rest)

    monkeypatch.setattr(Reception, "_take", failing)

    async def run() -> Any:
        async with LoopbackFleet(tmp_path, edge_of={"a": "edge-1", "b": "edge-1", "c": "edge-2"}) as fleet:
            async with asyncio.timeout(TIMEOUT_S):
                return await fleet.train("fed_avg", num_rounds=1, quorum=2, protocol=protocol)

    (closed,) = asyncio.run(run()).rounds
    assert closed.num_updates == 2
    assert list(closed.missing) == ["b"]
    assert "no space left" in closed.missing["b"]
