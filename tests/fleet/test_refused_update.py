"""An update that its server cannot take ends in a cause, never in a round that waits for ever."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from edgewise.fleet.training import edge_role, runs
from edgewise.testing import LoopbackFleet

TIMEOUT_S = 20.0


@pytest.mark.parametrize(("protocol", "server"), [("synchronous", runs), ("hierarchical", edge_role)])
def test_a_server_that_fails_over_one_update_goes_on_without_it_and_says_why(protocol, server, tmp_path, monkeypatch):
    whole = server.update_event

    async def failing(node: Any, report: Any, *rest: Any) -> Any:
        if report.client == "b":
            raise RuntimeError("no space left")
        return await whole(node, report, *rest)

    monkeypatch.setattr(server, "update_event", failing)

    async def run() -> Any:
        async with LoopbackFleet(tmp_path, homes={"a": "edge-1", "b": "edge-1", "c": "edge-2"}) as fleet:
            async with asyncio.timeout(TIMEOUT_S):
                return await fleet.train({"name": "fed_avg"}, num_rounds=1, quorum_fraction=0.5, protocol=protocol)

    (closed,) = asyncio.run(run()).rounds
    assert closed.num_updates == 2
    assert list(closed.missing) == ["b"]
    assert "no space left" in closed.missing["b"]
