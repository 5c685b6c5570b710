"""A user's program as a type checker sees it: `make check` runs mypy on it, strictly; an unneeded `ignore` fails there."""

from __future__ import annotations

from typing import assert_type

import edgewise
from edgewise import FederatedRun, InMemoryTask, LocalEndpoint, ModelPlan, Policy, fed_avg, plan, serve, sgd, simulate


def typed(task: InMemoryTask) -> LocalEndpoint:
    """Uses every door once."""
    run = simulate(task, fed_avg(local=sgd(0.1, epochs=2)), rounds=3)
    assert_type(run, FederatedRun)
    simulate(task, rounds="3")  # type: ignore[arg-type]
    found = plan(run, [[0.0]], policy=Policy(max_latency_s=0.1))
    assert_type(found, ModelPlan)
    assert_type(found.collaborate, bool)
    print(edgewise.simulat)  # type: ignore[attr-defined]
    return serve(run)
