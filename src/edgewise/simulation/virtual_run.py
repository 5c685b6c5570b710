"""One run in virtual time: every role of a protocol in one process, under one agenda. It knows no protocol's name.

    event ─▶ log ─▶ step ─▶ actions ─▶ letters on the agenda (bytes / rate), local work in one engine call, timers

The same steps, letters and blobs as in a fleet; what is asked of an instant's clients is worked together. Blobs are
dropped as soon as no role needs them. With a `Disturbance` letters get lost, late or doubled and nodes are killed
between any two events; then everything is delivered again until it is acknowledged, as a fleet does it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from edgewise.core.errors import EdgewiseError
from edgewise.core.ids import ClientId, Digest, Generation, NodeId, RoundNumber, digest_of
from edgewise.core.layout import Vector
from edgewise.simulation.agenda import Agenda
from edgewise.simulation.costs import VirtualCosts
from edgewise.simulation.record import SimulatedRound
from edgewise.simulation.virtual_clients import Workers
from edgewise.simulation.virtual_node import Disturbance, VirtualNode
from edgewise.simulation.virtual_store import VirtualStore
from edgewise.training.algorithm import FederatedAlgorithm
from edgewise.training.protocols.event_log import decode_event, encode_event
from edgewise.training.protocols.folding import vector_from_bytes
from edgewise.training.protocols.letters import Address, AnyLetter, BlobName, EdgeTask
from edgewise.training.protocols.messages import (
    Accept,
    Action,
    AnnounceRound,
    AnnounceWaiting,
    ClientLost,
    ClientReturned,
    Delivered,
    EdgeLost,
    EdgeReturned,
    EndRun,
    Event,
    Outcome,
    Quarantine,
    Received,
    Refusal,
    Refuse,
    RoundSummary,
    RunConfig,
    RunStarted,
    SeenClient,
    Send,
    SetTimer,
    Store,
    TimerFired,
    Work,
    WorkDone,
    WorkGivenUp,
)
from edgewise.training.protocols.protocol import CLIENT, COORDINATOR, EDGE, Protocol, RunView, replay

Fails = Callable[[RoundNumber, ClientId], bool]
"""Whether a client drops out of a round."""
Evaluate = Callable[[RoundNumber, Vector], dict[str, float]]
"""Metrics of the model after a round; empty to skip it."""
OnRound = Callable[[SimulatedRound], None]
RETRY_S = 1.0
"""Seconds until a letter without an answer is sent again."""
_NOBODY: dict[ClientId, SeenClient] = {}


def never(number: RoundNumber, client: ClientId) -> bool:
    """Nobody drops out."""
    return False


def unjudged(number: RoundNumber, vector: Vector) -> dict[str, float]:
    """No model is evaluated."""
    return {}


@dataclass(slots=True)
class VirtualRun:
    """A run, its nodes and what became of it.

    Attributes:
        config: The run.
        algorithm: The parts.
        protocol: When they are called.
        workers: Do the local work.
        blobs: Bytes by digest, the initial model in it.
        costs: What the clock charges.
        edge_of: Edge of each client; empty without edges.
        num_examples: What each client is known to hold.
        evaluate: Judges the model after each round.
        fails: Who drops out.
        on_round: Called with each closed round.
        disturbance: What goes wrong; None for nothing.
        agenda: What is to happen.
        nodes: By role and name.
        records: Of closed rounds.
        outcome: How the run ended; None before.
        announced: Rounds, waiting sentences and quarantines, as they were announced.
        store: Keeps the blobs.
        refusals: How often each reason was given, by role of who gave it.
    """

    config: RunConfig
    algorithm: FederatedAlgorithm
    protocol: Protocol
    workers: Workers
    blobs: dict[Digest, Any]
    costs: VirtualCosts = VirtualCosts()
    edge_of: Mapping[ClientId, NodeId] = field(default_factory=dict)
    num_examples: Mapping[ClientId, int] = field(default_factory=dict)
    evaluate: Evaluate = unjudged
    fails: Fails = never
    on_round: OnRound | None = None
    disturbance: Disturbance | None = None
    agenda: Agenda = field(default_factory=Agenda)
    nodes: dict[str, dict[str, VirtualNode]] = field(default_factory=dict)
    records: list[SimulatedRound] = field(default_factory=list)
    outcome: Outcome | None = None
    announced: list[Action] = field(default_factory=list)
    refusals: dict[tuple[str, Refusal], int] = field(default_factory=dict)
    store: VirtualStore = field(init=False)
    _works: list[tuple[VirtualNode, Generation, Work]] = field(default_factory=list)
    _timers: dict[tuple[str, str, str], int] = field(default_factory=dict)
    _touched: dict[int, VirtualNode] = field(default_factory=dict)
    _num_put: int = 0
    _up_bytes: int = 0
    _down_bytes: int = 0
    _wan_bytes: int = 0

    def __post_init__(self) -> None:
        edges = tuple(dict.fromkeys(self.edge_of.values())) if EDGE in self.protocol.roles else ()
        names = {COORDINATOR: ("",), EDGE: edges, CLIENT: self.config.clients}
        for role, part in self.protocol.roles.items():
            step = part.make_step(self.algorithm, self.blobs)
            self.nodes[role] = {name: VirtualNode(role, name, part, step, Address(role, name)) for name in names[role]}
        self.store = VirtualStore(self.blobs)

    # -- running -------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Starts the run; `go` carries it on."""
        present = {c: self.seen(c) for c in self.config.clients if self.nodes[CLIENT][c].is_up}
        edges = {NodeId(n.name): n.generation for n in self.nodes.get(EDGE, {}).values() if n.is_up}
        self.feed(self.coordinator, RunStarted(self.config, present, edges))

    def go(self, until: Callable[[], bool] = lambda: False) -> None:
        """Works the agenda off."""
        self._work()
        self.carry_on(until)

    def carry_on(self, until: Callable[[], bool] = lambda: False) -> None:
        """Works the agenda off from between two instants, where `until` is asked."""
        self.agenda.run(self._work, until)
        self._sweep()

    def pump(self, most: int = 10**6) -> int:
        """Works off so many calls of the agenda at most, or up to the outcome.

        Args:
            most: Calls.

        Returns:
            How many were worked off.
        """
        num = 0
        while num < most and self.outcome is None and self.agenda.step(self._work):
            num += 1
        return num

    def run(self) -> Vector:
        """Runs to the terminal state.

        Returns:
            float32[d], the last good model.
        """
        self.start()
        self.go()
        return self.model

    @property
    def coordinator(self) -> VirtualNode:
        """The coordinator's node."""
        return self.nodes[COORDINATOR][""]

    @property
    def view(self) -> RunView:
        """The run as everybody sees it."""
        return self.protocol.view(self.coordinator.state)

    @property
    def model(self) -> Vector:
        """The current model."""
        return vector_from_bytes(self.blobs[self.view.model], self.config.num_entries)

    def seen(self, client: ClientId) -> SeenClient:
        """A client as a sighting tells of it."""
        edge = self.edge_of.get(client, NodeId("")) if EDGE in self.nodes else NodeId("")
        return SeenClient(self.nodes[CLIENT][client].generation, self.num_examples.get(client, 0), edge)

    def feed(self, node: VirtualNode, event: Event) -> tuple[Action, ...]:
        """An event of a node: logged, stepped, its actions carried out.

        Args:
            node: Whose.
            event: What happened.

        Returns:
            The actions.
        """
        if self.disturbance is not None:
            node.log.append(event)
            if self.disturbance.kills(node, event):
                self.restart(node)
                return ()
        node.state, actions = node.step(node.state, event)
        self._touched[id(node)] = node
        for action in actions:
            _ACT[type(action)](self, node, action)
        return actions

    # -- letters -------------------------------------------------------------------------------------------------

    def _send(self, node: VirtualNode, action: Send) -> None:
        to, letter = action.to, action.letter
        if self.disturbance is not None:
            key = (to, letter.key)
            is_new = key not in node.outbox
            node.outbox[key] = letter
            if is_new:
                self._attempt(node, node.generation, to, letter)
            return
        receiver = self.nodes[to.role][to.name]
        self._post(node, receiver, letter, 0.0)

    def _attempt(self, node: VirtualNode, generation: Generation, to: Address, letter: AnyLetter) -> None:
        if generation != node.generation or node.outbox.get((to, letter.key)) is None:
            return
        letter = node.outbox[to, letter.key]
        if not node.part.wants(node.state, to, letter):
            del node.outbox[to, letter.key]
            return
        assert self.disturbance is not None
        receiver = self.nodes[to.role][to.name]
        self.agenda.after(RETRY_S, self._attempt, node, generation, to, letter)
        if not node.is_up:
            return
        for extra in self.disturbance.fate(node, letter):
            self._post(node, receiver, letter, extra)

    def _post(self, sender: VirtualNode, receiver: VirtualNode, letter: AnyLetter, extra: float) -> None:
        blobs = letter.blobs
        seconds = self._charge(sender, receiver, self.store.sent(blobs, receiver.held))
        self.agenda.after(seconds + extra, self._arrive, sender, sender.generation, receiver, letter, blobs)

    def _charge(self, sender: VirtualNode, receiver: VirtualNode, size: int) -> float:
        if receiver.role == CLIENT:
            if sender.role == CLIENT:
                self._up_bytes += size
                return self.costs.up_s(ClientId(sender.name), size) + self.costs.down_s(ClientId(receiver.name), 0)
            self._down_bytes += size
            return self.costs.down_s(ClientId(receiver.name), size)
        if sender.role == CLIENT:
            self._up_bytes += size
            return self.costs.up_s(ClientId(sender.name), size)
        self._wan_bytes += size
        return self.costs.wan_s(size)

    def _arrive(
        self,
        sender: VirtualNode,
        generation: Generation,
        receiver: VirtualNode,
        letter: AnyLetter,
        blobs: tuple[BlobName, ...],
    ) -> None:
        self.store.arrived(blobs)
        if not receiver.is_up:
            return
        if blobs and receiver.role != COORDINATOR:
            receiver.held = frozenset([name.digest for name in blobs])
        present = _NOBODY
        if type(letter) is EdgeTask:
            present = {c: self.seen(c) for c in letter.clients if self._is_under(c, receiver.name)}
        event = Received(letter=letter, sender=NodeId(sender.name), generation=generation, present=present)
        for action in self.feed(receiver, event):
            if type(action) is Accept:
                self._answer(sender, generation, receiver, letter, True, "")
            elif type(action) is Refuse:
                accepted = action.reason is Refusal.DUPLICATE
                self._answer(sender, generation, receiver, letter, accepted, action.text)

    def _is_under(self, client: ClientId, edge: str) -> bool:
        return self.edge_of.get(client) == edge and self.nodes[CLIENT][client].is_up

    def _answer(
        self,
        sender: VirtualNode,
        generation: Generation,
        receiver: VirtualNode,
        letter: AnyLetter,
        accepted: bool,
        reason: str,
    ) -> None:
        if accepted and self.disturbance is None and type(letter) in sender.part.ignores_yes:
            return
        event = Delivered(to=receiver.address, key=letter.key, accepted=accepted, reason=reason)
        seconds = self._charge(receiver, sender, 0)
        extras = (0.0,) if self.disturbance is None else self.disturbance.fate(receiver, letter)
        for extra in extras:
            self.agenda.after(seconds + extra, self._answered, sender, generation, event, letter)

    def _answered(self, sender: VirtualNode, generation: Generation, event: Delivered, letter: AnyLetter) -> None:
        # An answer to a dead process reaches nobody.
        if generation != sender.generation:
            return
        if self.disturbance is not None:
            sender.outbox.pop((event.to, event.key), None)
        elif sender.role == CLIENT:
            sender.delivered.update([name.digest for name in letter.blobs])
        self.feed(sender, event)

    # -- work and time -------------------------------------------------------------------------------------------

    def _work(self) -> None:
        """Has the clients of this instant work together."""
        if self.store.has_many:
            self._sweep()
        works = [(node, work) for node, generation, work in self._works if generation == node.generation]
        self._works.clear()
        able = []
        for node, work in works:
            if self.fails(work.order.round, work.order.client):
                cause = "dropped out of the simulation"
                self.feed(node, WorkGivenUp(work.order.round, work.order.exchange, cause))
            else:
                able.append((node, work))
        if not able:
            return
        orders = [(work.order, self.blobs[work.kept] if work.kept else b"") for _, work in able]
        try:
            done = self.workers.work(orders, self.blobs)
        except EdgewiseError as error:
            if len(able) == 1:
                raise
            raise type(error)(f"{len(able)} clients work together: {error.message}") from error
        for (node, work), worked in zip(able, done, strict=True):
            order = work.order
            if worked.cause:
                diverged = worked.has_diverged
                self.feed(node, WorkGivenUp(order.round, order.exchange, worked.cause, has_diverged=diverged))
                continue
            made = [BlobName(self.put(data), len(data)) for data in (worked.update, worked.kept) if data]
            event = WorkDone(
                round=order.round,
                update=made[0],
                num_examples=worked.num_examples,
                exchange=order.exchange,
                kept=made[1].digest if worked.kept else None,
                metrics=worked.metrics,
            )
            self.store.sent(made, frozenset())  # no role knows of them before the work is done: they are under way
            seconds = self.costs.work_s(order.client, worked.num_steps)
            self.agenda.after(seconds, self._worked, node, node.generation, event, made)

    def _worked(self, node: VirtualNode, generation: Generation, event: WorkDone, made: list[BlobName]) -> None:
        self.store.arrived(made)
        if generation == node.generation:
            self.feed(node, event)

    def put(self, data: bytes) -> Digest:
        """Stores a client's bytes. Undisturbed they come once, so a number names them as well as their digest does."""
        self._num_put += 1
        digest = Digest(f"{self._num_put:064x}") if self.disturbance is None else digest_of(data)
        return self.store.put(digest, data)

    def _set_timer(self, node: VirtualNode, action: SetTimer) -> None:
        key = (node.role, node.name, action.name)
        count = self._timers[key] = self._timers.get(key, 0) + 1
        if action.seconds is not None:
            self.agenda.after(action.seconds, self._fire, node, node.generation, key, count)

    def _fire(self, node: VirtualNode, generation: Generation, key: tuple[str, str, str], count: int) -> None:
        if generation == node.generation and self._timers[key] == count:
            self.feed(node, TimerFired(key[2]))

    # -- what becomes of a round ---------------------------------------------------------------------------------

    def _round_closed(self, node: VirtualNode, action: AnnounceRound) -> None:
        self.announced.append(action)
        self.records.append(self._record(action.summary))
        self._up_bytes = self._down_bytes = self._wan_bytes = 0
        if self.on_round is not None:
            self.on_round(self.records[-1])
        self._sweep()

    def _record(self, summary: RoundSummary) -> SimulatedRound:
        return SimulatedRound(
            round=summary.round,
            virtual_s=self.agenda.now,
            metrics=self.evaluate(summary.round, vector_from_bytes(self.blobs[summary.model], self.config.num_entries)),
            client_metrics=dict(summary.metrics),
            participants=len(summary.participants),
            missing={str(client): cause for client, cause in summary.missing.items()},
            uplink_bytes=self._up_bytes,
            downlink_bytes=self._down_bytes,
            wan_bytes=self._wan_bytes,
        )

    def _sweep(self) -> None:
        if self.disturbance is None:
            self.store.sweep(self._touched.values())
            self._touched.clear()

    def _store(self, node: VirtualNode, action: Store) -> None:
        self.store.update(action.blobs)

    def _announce(self, node: VirtualNode, action: Action) -> None:
        self.announced.append(action)

    def _refuse(self, node: VirtualNode, action: Refuse) -> None:
        key = (node.role, action.reason)
        self.refusals[key] = self.refusals.get(key, 0) + 1

    def _end(self, node: VirtualNode, action: EndRun) -> None:
        if node.role == COORDINATOR:
            self.outcome = action.outcome

    def _remember_work(self, node: VirtualNode, action: Work) -> None:
        self._works = [w for w in self._works if w[0] is not node] if self.disturbance is not None else self._works
        self._works.append((node, node.generation, action))

    # -- what can happen to nodes --------------------------------------------------------------------------------

    def restart(self, node: VirtualNode) -> None:
        """Kills a node and starts it again: its log and blobs are there, its state and what it was doing are not.

        Args:
            node: Which.
        """
        node.generation = Generation(node.generation + 1)
        node.outbox.clear()
        log = [decode_event(encode_event(event)) for event in node.log]
        node.state = replay(node.step, log, self.blobs)
        if node.state is not None:
            for action in node.part.resume(node.state):
                _ACT[type(action)](self, node, action)
        node.is_up = True
        self._sighted(node)

    def lose(self, node: VirtualNode, cause: str = "lost") -> None:
        """Cuts a node off; whoever leads it hears of it. `restart` or `bring_back` ends it."""
        node.is_up = False
        for watcher in self._watchers(node):
            if node.role == EDGE:
                self.feed(watcher, EdgeLost(NodeId(node.name), cause))
            else:
                self.feed(watcher, ClientLost(ClientId(node.name), cause))

    def bring_back(self, node: VirtualNode) -> None:
        """Ends `lose`: the same process is there again."""
        node.is_up = True
        self._sighted(node)

    def move(self, client: ClientId, edge: NodeId) -> None:
        """Has a client turn up under another edge."""
        former = self.nodes[EDGE][self.edge_of[client]]
        if former.is_up:
            self.feed(former, ClientLost(client, f"moved to {edge}"))
        self.edge_of = {**self.edge_of, client: edge}
        self._sighted(self.nodes[CLIENT][client])

    def _sighted(self, node: VirtualNode) -> None:
        for watcher in self._watchers(node):
            if node.role == EDGE:
                self.feed(watcher, EdgeReturned(NodeId(node.name), node.generation))
            else:
                client = ClientId(node.name)
                self.feed(watcher, ClientReturned(client, self.seen(client)))

    def _watchers(self, node: VirtualNode) -> Iterable[VirtualNode]:
        """Servers that hear of a node, those that have begun with the run."""
        found = [] if node.role == COORDINATOR else [self.coordinator]
        if node.role == CLIENT and EDGE in self.nodes:
            found.insert(0, self.nodes[EDGE][self.edge_of[ClientId(node.name)]])
        return [watcher for watcher in found if watcher.state is not None and watcher.is_up]


def _nothing(run: VirtualRun, node: VirtualNode, action: Action) -> None:
    """Answers to a letter are given where it arrived."""


_ACT: dict[type, Callable[[VirtualRun, VirtualNode, Any], None]] = {
    Send: VirtualRun._send,
    Store: VirtualRun._store,
    SetTimer: VirtualRun._set_timer,
    Work: VirtualRun._remember_work,
    Accept: _nothing,
    Refuse: VirtualRun._refuse,
    AnnounceRound: VirtualRun._round_closed,
    AnnounceWaiting: VirtualRun._announce,
    Quarantine: VirtualRun._announce,
    EndRun: VirtualRun._end,
}
