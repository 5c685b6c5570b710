"""Staged rollout with rollback, as `step(state, event) -> (state, actions)`. Read `loop.py` next.

Stage by stage the present nodes install the version, serve with it, and are evaluated by their health; the first bad
evaluation, an unhealthy node or a request takes every node back. A node that is away gets its order when it returns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TypeAlias

from edgewise.core.errors import InputError
from edgewise.core.ids import NodeId
from edgewise.lifecycle.health import HealthLimits, HealthObserved, HealthView, added, fault_of


class RolloutPhase(StrEnum):
    """Where a rollout stands."""

    INSTALLING = "installing"
    WATCHING = "watching"
    COMPLETED = "completed"
    REVERTING = "reverting"
    ROLLED_BACK = "rolled_back"


@dataclass(frozen=True, slots=True)
class NodeUpdated:
    """A node serves `version`; also the answer to a revert."""

    node: NodeId
    version: int
    time: float


@dataclass(frozen=True, slots=True)
class NodeUnhealthy:
    """A node says itself that it cannot serve the version."""

    node: NodeId
    cause: str
    time: float


@dataclass(frozen=True, slots=True)
class InstalledNodeLost:
    """A node is away."""

    node: NodeId
    time: float


@dataclass(frozen=True, slots=True)
class NodeReturned:
    """A node is back, serving `version`."""

    node: NodeId
    version: int
    time: float


@dataclass(frozen=True, slots=True)
class RollbackRequested:
    """Somebody wants the former version back, during the rollout or after it."""

    cause: str
    time: float


@dataclass(frozen=True, slots=True)
class TimePassed:
    """The moment asked for by `WakeAt`."""

    time: float


RolloutEvent: TypeAlias = (
    NodeUpdated | NodeUnhealthy | HealthObserved | InstalledNodeLost | NodeReturned | RollbackRequested | TimePassed
)


@dataclass(frozen=True, slots=True)
class InstallVersion:
    """Order a node to serve the new version."""

    node: NodeId
    version: int


@dataclass(frozen=True, slots=True)
class RevertVersion:
    """Order a node to serve the former version again; 0 for none."""

    node: NodeId
    version: int


@dataclass(frozen=True, slots=True)
class CompleteRollout:
    """Make the version the current one in the registry."""

    version: int


@dataclass(frozen=True, slots=True)
class EndRollout:
    """The terminal state and why: `completed` or `rolled_back`."""

    outcome: str
    cause: str


@dataclass(frozen=True, slots=True)
class WakeAt:
    """Send `TimePassed` at this time."""

    time: float


RolloutAction: TypeAlias = InstallVersion | RevertVersion | CompleteRollout | EndRollout | WakeAt


@dataclass(frozen=True, slots=True)
class RolloutState:
    """One rollout.

    Attributes:
        version: What is rolled out; a fleet gives the revision, for a version may be deployed again along other plans.
        previous: What every node goes back to.
        stages: Nodes by stage, in order.
        limits: When a stage is bad.
        phase: Where it stands.
        stage: Index of the stage in work.
        ordered: Nodes that were ordered to install.
        updated: Nodes that serve the new version.
        away: Nodes known to be away.
        health: What each node served under the new version, in this stage.
        since: When the phase of the stage began.
        cause: Why it is rolled back; "" otherwise.
    """

    version: int
    previous: int
    stages: tuple[tuple[NodeId, ...], ...]
    limits: HealthLimits = HealthLimits()
    phase: RolloutPhase = RolloutPhase.INSTALLING
    stage: int = 0
    ordered: frozenset[NodeId] = frozenset()
    updated: frozenset[NodeId] = frozenset()
    away: frozenset[NodeId] = frozenset()
    health: Mapping[NodeId, HealthView] = field(default_factory=dict)
    since: float = 0.0
    cause: str = ""

    @property
    def nodes(self) -> tuple[NodeId, ...]:
        """Everyone the rollout is for, in order."""
        return tuple(node for stage in self.stages for node in stage)

    @property
    def present(self) -> tuple[NodeId, ...]:
        """Nodes of the stage in work that are not away."""
        return tuple(node for node in self.stages[self.stage] if node not in self.away)


Outcome: TypeAlias = tuple[RolloutState, tuple[RolloutAction, ...]]


def stages_by_fraction(
    nodes: Sequence[NodeId], fractions: Sequence[float] = (0.1, 0.5, 1.0)
) -> tuple[tuple[NodeId, ...], ...]:
    """Splits nodes into stages that end at these shares of all.

    Args:
        nodes: In the order they are updated.
        fractions: Rising shares; the last must be 1.

    Returns:
        Nodes by stage; at least one node each, empty stages left out.

    Raises:
        InputError: If the fractions do not rise to 1.
    """
    if not fractions or fractions[-1] != 1.0 or any(b <= a for a, b in zip((0.0, *fractions), fractions, strict=False)):
        raise InputError(f"rollout fractions {tuple(fractions)!r} must rise from above 0 to 1, e.g. (0.1, 0.5, 1.0).")
    ends = [max(1, round(share * len(nodes))) for share in fractions]
    stages = [tuple(nodes[start:end]) for start, end in zip([0, *ends], ends, strict=False)]
    return tuple(stage for stage in stages if stage)


def start(
    version: int,
    previous: int,
    stages: Sequence[Sequence[NodeId]],
    *,
    limits: HealthLimits | None = None,
    away: frozenset[NodeId] = frozenset(),
    time: float = 0.0,
) -> Outcome:
    """Begins a rollout.

    Args:
        version: What to roll out; it has passed its gate.
        previous: What serves now.
        stages: Nodes by stage; one node per stage is "device by device".
        limits: When a stage is bad.
        away: Nodes that are away now.
        time: Seconds on the fleet's clock.

    Returns:
        The first state and orders.

    Raises:
        InputError: If there is no stage, an empty one, or a node twice.
    """
    nodes = [node for stage in stages for node in stage]
    if not nodes or not all(stages) or len(set(nodes)) != len(nodes):
        raise InputError(f"rollout stages {[list(s) for s in stages]!r} must name every node once and none be empty.")
    state = RolloutState(
        version, previous, tuple(tuple(s) for s in stages), limits or HealthLimits(), away=away, since=time
    )
    return _enter_stage(state, time)


def step(state: RolloutState, event: RolloutEvent) -> Outcome:
    """Takes one event; what does not concern this rollout any more changes nothing.

    Args:
        state: From `start` or the last step.
        event: What happened.

    Returns:
        The next state, and what to do.
    """
    match event:
        case NodeUpdated():
            return _on_updated(state, event)
        case HealthObserved():
            return _on_health(state, event)
        case InstalledNodeLost():
            return _proceed(replace(state, away=state.away | {event.node}), event.time)
        case NodeReturned():
            return _on_returned(state, event)
        case NodeUnhealthy():
            if state.phase in (RolloutPhase.REVERTING, RolloutPhase.ROLLED_BACK) or event.node not in state.ordered:
                return state, ()
            return _roll_back(state, f"{event.node} is unhealthy: {event.cause}", event.time)
        case RollbackRequested():
            if state.phase in (RolloutPhase.REVERTING, RolloutPhase.ROLLED_BACK):
                return state, ()
            return _roll_back(state, event.cause, event.time)
        case TimePassed():
            return _on_time(state, event.time)


def _on_updated(state: RolloutState, event: NodeUpdated) -> Outcome:
    if event.node not in state.ordered:
        return state, ()
    if event.version == state.version:
        state = replace(state, updated=state.updated | {event.node})
    elif event.version == state.previous:
        state = replace(state, updated=state.updated - {event.node})
    return _proceed(replace(state, away=state.away - {event.node}), event.time)


def _on_returned(state: RolloutState, event: NodeReturned) -> Outcome:
    updated = state.updated | {event.node} if event.version == state.version else state.updated - {event.node}
    state = replace(state, away=state.away - {event.node}, updated=updated)
    if state.phase in (RolloutPhase.REVERTING, RolloutPhase.ROLLED_BACK):
        orders: tuple[RolloutAction, ...] = (
            (RevertVersion(event.node, state.previous),) if event.version == state.version else ()
        )
    else:
        reached = (
            state.nodes
            if state.phase is RolloutPhase.COMPLETED
            else [n for s in state.stages[: state.stage + 1] for n in s]
        )
        is_due = event.node in reached and event.version != state.version
        state = replace(state, ordered=state.ordered | {event.node}) if is_due else state
        orders = (InstallVersion(event.node, state.version),) if is_due else ()
        if is_due and state.phase is RolloutPhase.WATCHING and event.node in state.stages[state.stage]:
            state = replace(state, phase=RolloutPhase.INSTALLING, since=event.time)
            orders = (*orders, WakeAt(event.time + state.limits.patience_s))
    state, more = _proceed(state, event.time)
    return state, (*orders, *more)


def _on_health(state: RolloutState, event: HealthObserved) -> Outcome:
    is_current = event.version == state.version and event.node in state.updated
    if state.phase not in (RolloutPhase.INSTALLING, RolloutPhase.WATCHING) or not is_current or event.num_requests <= 0:
        return state, ()
    health = added(state.health.get(event.node, HealthView()), event)
    return _proceed(replace(state, health={**state.health, event.node: health}), event.time)


def _on_time(state: RolloutState, time: float) -> Outcome:
    if (
        state.phase not in (RolloutPhase.INSTALLING, RolloutPhase.WATCHING)
        or time < state.since + state.limits.patience_s
    ):
        return state, ()
    late = [node for node in state.present if node not in state.updated]
    if late:
        return _roll_back(state, f"{late[0]} did not install it within {state.limits.patience_s:g} s", time)
    if not state.present or not any(node in state.health for node in state.present):
        return state, (WakeAt(time + state.limits.patience_s),)  # nobody to evaluate: a rollout does not pass unseen
    return _evaluate(state, time)


def _proceed(state: RolloutState, time: float) -> Outcome:
    """Goes on as far as what is known allows."""
    if state.phase is RolloutPhase.REVERTING:
        pending = [n for n in state.ordered if n in state.updated and n not in state.away]
        if pending:
            return state, ()
        return replace(state, phase=RolloutPhase.ROLLED_BACK), (EndRollout("rolled_back", state.cause),)
    if state.phase is RolloutPhase.INSTALLING and not state.present:
        return _pass_over(state, time)
    if state.phase is RolloutPhase.INSTALLING and all(n in state.updated for n in state.present):
        state = replace(state, phase=RolloutPhase.WATCHING, since=time)
        state, more = _proceed(state, time)
        return state, (WakeAt(time + state.limits.patience_s), *more)
    if state.phase is RolloutPhase.WATCHING and not state.present:
        return _pass_over(state, time)
    if state.phase is RolloutPhase.WATCHING:
        enough = state.limits.min_requests
        if all(state.health.get(n, HealthView()).num_requests >= enough for n in state.present):
            return _evaluate(state, time)
    return state, ()


def _evaluate(state: RolloutState, time: float) -> Outcome:
    fault = fault_of([state.health[n] for n in state.present if n in state.health], state.limits)
    if fault:
        return _roll_back(state, f"stage {state.stage + 1} of {len(state.stages)}: {fault}", time)
    if state.stage + 1 < len(state.stages):
        return _enter_stage(replace(state, stage=state.stage + 1, phase=RolloutPhase.INSTALLING, since=time), time)
    return _complete(state, len(state.stages))


def _pass_over(state: RolloutState, time: float) -> Outcome:
    """Nobody of the stage is there: the next stage with somebody goes first; none left completes what was evaluated."""
    rest = state.stages[state.stage :]
    if all(node in state.away for stage in rest for node in stage):
        return _complete(state, state.stage) if state.stage else (state, ())
    stages = (*state.stages[: state.stage], *rest[1:], rest[0])
    return _enter_stage(replace(state, stages=stages, phase=RolloutPhase.INSTALLING, since=time), time)


def _complete(state: RolloutState, num_healthy: int) -> Outcome:
    waiting = [n for n in state.nodes if n in state.away]
    cause = f"{num_healthy} of {len(state.stages)} stages healthy"
    if waiting:
        cause += f"; away, to be updated when they return: {', '.join(waiting[:10])}"
    return replace(state, phase=RolloutPhase.COMPLETED), (
        CompleteRollout(state.version),
        EndRollout("completed", cause),
    )


def _enter_stage(state: RolloutState, time: float) -> Outcome:
    orders = tuple(InstallVersion(n, state.version) for n in state.present if n not in state.updated)
    state = replace(state, ordered=state.ordered | set(state.stages[state.stage]), health={})
    state, more = _proceed(state, time)
    return state, (*orders, WakeAt(time + state.limits.patience_s), *more)


def _roll_back(state: RolloutState, cause: str, time: float) -> Outcome:
    # whoever was ordered to install may be doing so this moment: they count as updated until they say otherwise
    touched = state.updated | state.ordered
    orders = tuple(RevertVersion(n, state.previous) for n in state.nodes if n in touched and n not in state.away)
    state = replace(state, phase=RolloutPhase.REVERTING, updated=touched, ordered=touched, cause=cause, since=time)
    state, more = _proceed(state, time)
    return state, (*orders, *more)
