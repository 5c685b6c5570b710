"""Drives `protocols/hierarchical.py` and `regional.py` under a virtual clock: one cloud, one state per edge."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from edgewise.core.ids import ClientId, NodeId
from edgewise.core.layout import Vector
from edgewise.simulation.rounds import FIRST_EPOCH, Rounds
from edgewise.training.protocols.cloud_state import CloudState
from edgewise.training.protocols.hierarchical import make_cloud_step
from edgewise.training.protocols.messages import (
    Action,
    AnnounceRound,
    EndRun,
    Event,
    RequestUpdate,
    RoundTimedOut,
    SetRoundDeadline,
    StoreModel,
)
from edgewise.training.protocols.regional import EdgeState, make_edge_step
from edgewise.training.protocols.regions import (
    AcceptSum,
    ForwardSum,
    HierarchyStarted,
    OpenRegion,
    RefuseSum,
    RegionOpened,
    RegionOrder,
    RunDismissed,
    SumAcknowledged,
    SumReceived,
)


@dataclass(slots=True)
class HierarchicalSimulation:
    """One run through edges.

    Attributes:
        rounds: Clients, clock, blobs and records.
        homes: Edge of each client.
    """

    rounds: Rounds
    homes: Mapping[ClientId, NodeId]
    _cloud: CloudState | None = None
    _edges: dict[NodeId, EdgeState] = field(default_factory=dict)
    _edge_step: Callable[[EdgeState, Event], tuple[EdgeState, tuple[Action, ...]]] = field(init=False)

    def __post_init__(self) -> None:
        algorithm = self.rounds.clients.algorithm
        self._edge_step = make_edge_step(self.rounds.blobs, lambda _: algorithm)
        self._edges = {edge: EdgeState() for edge in dict.fromkeys(self.homes.values())}

    def run(self) -> Vector:
        """Runs to the terminal state.

        Returns:
            float32[d], the last good model.
        """
        config = self.rounds.config
        present = dict.fromkeys(config.clients, FIRST_EPOCH)
        edges = dict.fromkeys(self._edges, FIRST_EPOCH)
        self._feed_cloud(HierarchyStarted(config, present, dict(self.homes), edges))
        self.rounds.clock.run()
        assert self._cloud is not None
        return self.rounds.model(self._cloud.run.model)

    def _feed_cloud(self, event: Event) -> None:
        self.rounds.log.append(event)
        step = make_cloud_step(self.rounds.clients.algorithm, self.rounds.blobs)
        self._cloud, actions = step(self._cloud, event)
        for action in actions:
            self._act_cloud(action)

    def _act_cloud(self, action: Action) -> None:
        rounds = self.rounds
        match action:
            case StoreModel():
                rounds.blobs.update(action.blobs)
            case OpenRegion(order=order):
                self._open(order)
            case AcceptSum(run=run, edge=edge, assignment=number) | RefuseSum(run=run, edge=edge, assignment=number):
                self._after_edge(edge, rounds.costs.wan_s(0), SumAcknowledged(run, number))
            case SetRoundDeadline(run=run, round=number, deadline_s=seconds) if seconds is not None:
                rounds.after(seconds, RoundTimedOut(run, number), self._feed_cloud)
            case AnnounceRound(summary=summary):
                rounds.close(summary)
            case EndRun(run=run, outcome=outcome):
                rounds.outcome = outcome
                for edge in self._edges:
                    self._after_edge(edge, rounds.costs.wan_s(0), RunDismissed(run))

    def _open(self, order: RegionOrder) -> None:
        size = len(self.rounds.blobs[order.model])
        self.rounds.wan_bytes += size
        opened = RegionOpened(order, dict.fromkeys(order.clients, FIRST_EPOCH))
        self._after_edge(order.edge, self.rounds.costs.wan_s(size), opened)

    def _after_edge(self, edge: NodeId, seconds: float, event: Event) -> None:
        self.rounds.after(seconds, event, lambda e: self._feed_edge(edge, e))

    def _feed_edge(self, edge: NodeId, event: Event) -> None:
        self._edges[edge], actions = self._edge_step(self._edges[edge], event)
        for action in actions:
            self._act_edge(edge, action)

    def _act_edge(self, edge: NodeId, action: Action) -> None:
        rounds = self.rounds
        match action:
            case RequestUpdate():
                rounds.ask(action, lambda e: self._feed_edge(edge, e))
            case SetRoundDeadline(run=run, round=number, deadline_s=seconds) if seconds is not None:
                self._after_edge(edge, seconds, RoundTimedOut(run, number))
            case ForwardSum(report=report, data=data):
                rounds.blobs[report.sum] = data
                rounds.wan_bytes += len(data)
                rounds.after(rounds.costs.wan_s(len(data)), SumReceived(report, FIRST_EPOCH), self._feed_cloud)
