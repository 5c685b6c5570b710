"""The hierarchical protocol in memory: a cloud, edges that can be killed, clients. See `driver.py`."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from edgewise.core.ids import ClientId, Digest, Epoch, NodeId
from edgewise.core.layout import Vector
from edgewise.training.algorithm import FederatedAlgorithm
from edgewise.training.protocols.cloud_state import CloudState
from edgewise.training.protocols.driver import make_config
from edgewise.training.protocols.folding import vector_from_bytes
from edgewise.training.protocols.hierarchical import make_cloud_step
from edgewise.training.protocols.messages import Action, EndRun, Event, RequestUpdate, RunConfig, StoreModel
from edgewise.training.protocols.regional import EdgeState, make_edge_step, replay_edge, resume_edge
from edgewise.training.protocols.regions import (
    AcceptSum,
    EdgeLost,
    EdgeReturned,
    ForwardSum,
    HierarchyStarted,
    OpenRegion,
    RefuseSum,
    RegionOpened,
    RunDismissed,
    SumAcknowledged,
    SumReceived,
)
from edgewise.training.protocols.virtual_clients import Asked, Train, VirtualClients


@dataclass(slots=True)
class MemoryEdge:
    """One edge: its own log and blobs survive `MemoryHierarchy.restart_edge`, its state does not."""

    name: NodeId
    epoch: Epoch = Epoch(1)
    blobs: dict[Digest, bytes] = field(default_factory=dict)
    log: list[Event] = field(default_factory=list)
    state: EdgeState = field(default_factory=EdgeState)
    is_up: bool = True


@dataclass(slots=True)
class MemoryHierarchy:
    """Runs hierarchical rounds in one process. Messages wait in `queue` as (sender, action) until `pump` delivers them.

    Attributes:
        algorithm: The five parts.
        train: A client's local work.
        homes: Edge of each client.
        blobs: The cloud's.
        log: The cloud's.
        actions: Every action of the cloud.
        edges: By name.
        queue: Undelivered actions; a test may drop, repeat or reorder them.
        present: Clients that answer.
        state: The cloud's.
    """

    algorithm: FederatedAlgorithm
    train: Train
    homes: dict[ClientId, NodeId]
    blobs: dict[Digest, bytes] = field(default_factory=dict)
    log: list[Event] = field(default_factory=list)
    actions: list[Action] = field(default_factory=list)
    edges: dict[NodeId, MemoryEdge] = field(default_factory=dict)
    queue: deque[tuple[str, Action]] = field(default_factory=deque)
    present: dict[ClientId, Epoch] = field(default_factory=dict)
    state: CloudState | None = None
    clients: VirtualClients = field(init=False)

    def __post_init__(self) -> None:
        self.clients = VirtualClients(self.algorithm, self.train)
        self.edges = {edge: MemoryEdge(edge) for edge in dict.fromkeys(self.homes.values())}
        self.present = {client: Epoch(1) for client in self.homes}

    def start(self, run: str, model: Vector, *, waits_for_edges: bool = True, **fields: Any) -> RunConfig:
        """Starts a run; `pump` carries it on.

        Args:
            run: Its name.
            model: float32[d].
            waits_for_edges: As in `HierarchyStarted`.
            **fields: Other fields of `RunConfig`.

        Returns:
            The config.
        """
        config = make_config(self.blobs, self.algorithm, run, self.homes, model, **fields)
        edges = {edge.name: edge.epoch for edge in self.edges.values()}
        self.feed(HierarchyStarted(config, dict(self.present), dict(self.homes), edges, waits_for_edges))
        return config

    def feed(self, event: Event) -> None:
        """An event of the cloud."""
        self.log.append(event)
        self.state, actions = make_cloud_step(self.algorithm, self.blobs)(self.state, event)
        for action in actions:
            if isinstance(action, StoreModel):
                self.blobs.update(action.blobs)
        self.actions.extend(actions)
        self.queue.extend(("", action) for action in actions)

    def feed_edge(self, name: NodeId, event: Event) -> None:
        """An event of an edge; lost where the edge is down."""
        edge = self.edges[name]
        if not edge.is_up:
            return
        edge.log.append(event)
        edge.state, actions = make_edge_step(edge.blobs)(edge.state, event)
        self.queue.extend((name, action) for action in actions)

    def pump(self, most: int = 10**9) -> int:
        """Delivers waiting messages in order, each as its receiver would take it.

        Args:
            most: Messages at most.

        Returns:
            How many were delivered.
        """
        num_delivered = 0
        while self.queue and num_delivered < most:
            self.deliver(*self.queue.popleft())
            num_delivered += 1
        return num_delivered

    def deliver(self, sender: str, action: Action) -> None:
        """Carries out one action."""
        match action:
            case OpenRegion(order=order):
                self.edges[order.edge].blobs[order.model] = self.blobs[order.model]
                present = {c: self.present[c] for c in order.clients if c in self.present}
                self.feed_edge(order.edge, RegionOpened(order, present))
            case RequestUpdate():
                for client in action.clients:
                    self._answer(NodeId(sender), action, client)
            case ForwardSum(report=report, data=data):
                self.blobs[report.sum] = data
                self.feed(SumReceived(report, self.edges[NodeId(sender)].epoch))
            case AcceptSum() | RefuseSum():
                self.feed_edge(action.edge, SumAcknowledged(action.run, action.assignment))
            case EndRun(run=run):
                for name in self.edges:
                    self.feed_edge(name, RunDismissed(run))
            case _:
                pass

    def _answer(self, edge: NodeId, request: RequestUpdate, client: ClientId) -> None:
        assert self.state is not None
        if client not in self.present or not self.edges[edge].is_up:
            return
        config = self.state.run.config
        received = vector_from_bytes(self.edges[edge].blobs[request.model], config.num_entries)
        asked = Asked(request.run, request.round, config.seed, received)
        event, data = self.clients.answer(asked, client, self.present[client])
        self.edges[edge].blobs[event.payload] = data
        self.feed_edge(edge, event)

    def kill_edge(self, name: NodeId, homes: Mapping[ClientId, NodeId] | None = None) -> None:
        """Kills an edge: its state and whatever it was sending are gone, its log and blobs stay.

        Args:
            name: Which.
            homes: Where its clients turn up.
        """
        self.edges[name].is_up = False
        self.queue = deque((sender, action) for sender, action in self.queue if sender != name)
        self.homes.update(homes or {})
        self.feed(EdgeLost(name, "its process ended", dict(homes or {})))

    def restart_edge(self, name: NodeId) -> None:
        """Starts a killed edge again: it replays its log, repeats what is outstanding and shows itself."""
        edge = self.edges[name]
        edge.is_up, edge.epoch = True, Epoch(edge.epoch + 1)
        edge.state = replay_edge(make_edge_step(edge.blobs), edge.log)
        self.feed(EdgeReturned(name, edge.epoch))
        self.queue.extend((name, action) for action in resume_edge(edge.blobs, edge.state))

    @property
    def model(self) -> Vector:
        """The current model."""
        assert self.state is not None
        return vector_from_bytes(self.blobs[self.state.run.model], self.state.run.config.num_entries)
