"""What a coordinator's `/metrics` says of its fleet: runs, versions in force, nodes. Made of what it knows anyway."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from edgewise.core.ids import Tier
from edgewise.fleet.membership.membership import KnownNode, NodeState
from edgewise.fleet.training.live_run import LiveRun
from edgewise.ledger.metric import Labels, Metric, metric
from edgewise.training.protocols.messages import OutcomeKind

RUNNING = "running"
LAST_RUNS = 20
"""So many runs have samples of their own; a coordinator that retrains for years must not grow its `/metrics`."""


def run_metrics(runs: Sequence[LiveRun]) -> list[Metric]:
    """Metrics of runs of training: how many in which state; of the last ones, and all that go on, where they stand.

    Args:
        runs: All of them, oldest first.

    Returns:
        Clients that are present are those that could take part now, `waited_for` those whose work is awaited.
    """
    states = {live.submitted.run: live.status.state for live in runs}
    counts = Counter(states.values())
    shown = [live for n, live in enumerate(runs) if n >= len(runs) - LAST_RUNS or states[live.submitted.run] == RUNNING]
    info, rounds, closed, clients = (
        dict[Labels, float](),
        dict[Labels, float](),
        dict[Labels, float](),
        dict[Labels, float](),
    )
    for live in shown:
        config, view, run = live.submitted.config, live.view, live.submitted.run
        of = ("run", str(run))
        about = (("task", live.submitted.request.task), ("protocol", str(config.spec.protocol.get("name", ""))))
        info[(of, *about, ("state", states[run]))] = 1
        rounds[(of,)] = config.num_rounds
        closed[(of,)] = live.done
        if view is not None and view.outcome is None:
            present = sum(member.can_work for member in view.members.values())
            by_state = {"listed": len(config.clients), "present": present, "waited_for": len(view.outstanding)}
            clients |= {(of, ("state", state)): num for state, num in by_state.items()}
    every = (RUNNING, *map(str, OutcomeKind))
    return [
        metric("runs", "gauge", "Runs of training by state.", {(("state", s),): counts[s] for s in every}),
        metric("run_info", "gauge", f"Runs that go on and the last {LAST_RUNS}, and their state; always 1.", info),
        metric("run_rounds", "gauge", "Rounds that a run is to have.", rounds),
        metric("run_rounds_closed", "gauge", "Rounds of a run that are closed.", closed),
        metric("run_clients", "gauge", "Clients of a run that goes on, by state.", clients),
    ]


def version_metrics(in_force: Mapping[str, int]) -> list[Metric]:
    """Which version of each model the fleet serves.

    Args:
        in_force: Versions by model.
    """
    samples: dict[Labels, float] = {(("model", model),): version for model, version in in_force.items()}
    return [metric("version_in_force", "gauge", "Version of each model that the fleet is to serve.", samples)]


def node_state_metrics(members: Iterable[KnownNode]) -> list[Metric]:
    """How many nodes the coordinator sees in which state; itself and operators left out.

    Args:
        members: As it knows them.
    """
    counts = Counter((member.tier, member.state) for member in members)
    samples: dict[Labels, float] = {
        (("tier", str(tier)), ("state", str(state))): counts[tier, state] for tier in Tier for state in NodeState
    }
    return [metric("nodes", "gauge", "Nodes of the fleet by tier and state, the coordinator left out.", samples)]
