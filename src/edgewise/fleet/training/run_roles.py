"""All roles that a node has in runs: begun, driven, resumed after a crash, ended. No protocol is named here.

    letters in ─▶ reception ─▶ RoleDriver ─▶ actions ─▶ letters out · timers · local work · announcements

A coordinator's roles are begun by `runs.py`; an edge's and a client's by the first letter of a run that comes. What has
ended on an edge or a client is forgotten but for its name, so that a late order does not begin it anew.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Any

import msgspec

from edgewise.core.errors import EdgewiseError, StoreDamaged, StoreError, StoreUnavailable, Unreachable
from edgewise.core.ids import ClientId, Digest, Generation, NodeId, RunId, Tier
from edgewise.fleet.membership.watch import Watch
from edgewise.fleet.messages import (
    ClientPlace,
    LetterAck,
    NodeInfo,
    RunLetter,
    WhereIs,
    hard_examples_of,
)
from edgewise.fleet.node.node import Node
from edgewise.fleet.store.events import EventLog
from edgewise.fleet.store.patience import RETRY, until_taken
from edgewise.fleet.store.retention import Hold
from edgewise.fleet.training.blob_fetches import BlobFetches
from edgewise.fleet.training.letter_delivery import LetterDelivery
from edgewise.fleet.training.local_worker import LocalWorker
from edgewise.fleet.training.presence import Presence
from edgewise.fleet.training.reception import Reception
from edgewise.fleet.training.role_driver import RoleDriver
from edgewise.fleet.training.role_log import log_name, spec_in_log
from edgewise.fleet.training.run_blobs import Incoming
from edgewise.fleet.training.store_notices import StoreNotices
from edgewise.training.protocols.letters import Address, AnyLetter, BlobName, Order, RunEnded, WorkOrder
from edgewise.training.protocols.messages import (
    FORMER_RUNS,
    Action,
    Received,
    Refusal,
    Send,
    SetTimer,
    TimerFired,
    Work,
)
from edgewise.training.protocols.protocol import CLIENT, COORDINATOR, EDGE
from edgewise.training.protocols.run_spec import RunSpec

log = logging.getLogger("edgewise.fleet")
ENDED = "ended"
"""Log of the names of roles that have ended on this node."""
KEPT_OF_LAST = 2
"""Runs of one layout whose kept blobs stay: the newest, and one whose end is told late, after the run that goes on with it."""


class _Ended(msgspec.Struct, frozen=True):
    """A role that has ended here.

    Attributes:
        log: Its name.
        layout: Of its run's model.
        kept: Blobs that outlive it, e.g. what a personal model is made of; they go when a newer run of that layout has ended.
    """

    log: str
    layout: Digest
    kept: tuple[Digest, ...] = ()


OnAction = Callable[[RoleDriver, Action], None]


class RunRoles:
    """A node's part in all runs.

    Args:
        node: The node.
        events: Its log.
        watch: Its eyes, on a coordinator and an edge.
        worker: Its hands, where a task is installed.
        is_edge: Whether it gathers for a coordinator.
        on_action: Told of a coordinator's announcements and ends.
        also_held: Blobs that stay for other reasons than runs, e.g. of versions; any thread.
    """

    def __init__(
        self,
        node: Node,
        events: EventLog,
        *,
        watch: Watch | None = None,
        worker: LocalWorker | None = None,
        is_edge: bool = False,
        on_action: OnAction = lambda *_: None,
        also_held: Callable[[], set[Digest]] = set,
    ) -> None:
        self._node = node
        self._events = events
        self._worker = worker
        self._is_edge = is_edge
        self._on_action = on_action
        self._also_held = also_held
        self._drivers: dict[tuple[str, RunId], RoleDriver] = {}
        self._ended: dict[str, _Ended] = {}
        self._timers: dict[tuple[str, str], asyncio.TimerHandle] = {}
        self._places: dict[ClientId, NodeId] = {}
        self._unreadable: dict[RunId, str] = {}
        self._lacking: dict[RunId, tuple[RoleDriver, StoreDamaged]] = {}
        self._has_begun = asyncio.Event()
        self._fetches = BlobFetches(node)
        self._incoming = Incoming()
        self._letters = LetterDelivery(node, self._fetches, self._locate)
        self.presence = None if watch is None else Presence(node, watch, self._servers)
        self.stores = StoreNotices(
            node, self._of_run, lambda: () if watch is None else [m.node for m in watch.members.alive()]
        )
        reception = Reception(node, self._fetches, self._find, self._present, self._taken)
        node.route("control", RunLetter, reception.take)
        node.route("report", RunLetter, reception.take)
        node.route("report", WhereIs, self._where_is)

    def add(self, role_name: str, spec: RunSpec) -> RoleDriver:
        """Makes the driver of a role; nothing has happened to it yet.

        Args:
            role_name: `coordinator`, `edge` or `client`.
            spec: The run.

        Returns:
            The driver.

        Raises:
            InputError: If a part of the algorithm or the protocol is unknown here.
            StoreError: If the protocol has no such role.
        """
        from edgewise.training.algorithms import make_algorithm
        from edgewise.training.protocols import make_protocol

        protocol = make_protocol(spec.protocol)
        if role_name not in protocol.roles:
            raise StoreError(f"{protocol.spec} has no {role_name}; its roles are {', '.join(sorted(protocol.roles))}.")
        driver = RoleDriver(
            spec, role_name, protocol, make_algorithm(spec.algorithm), self._events, self._node.blobs,
            self._carry_out, self._folded, self.stores.met, self._holds, self._letters.is_sent_again,
            private=None if self._worker is None else self._worker.private,
            incoming=self._incoming,
        )  # fmt: skip
        self._drivers[role_name, spec.run] = driver
        self._unreadable.pop(spec.run, None)
        hard = hard_examples_of(spec)
        if hard is not None and hard.teacher is not None:
            self._node.grants.open(hard.teacher.digest)  # a graph: those who train below fetch it here
        return driver

    def set_aside(self, run: RunId, damage: str) -> None:
        """A coordinator's run whose record cannot be read: nothing drives it, and whoever reports to it keeps the report."""
        self._drivers.pop((COORDINATOR, run), None)
        self._unreadable[run] = damage

    def driver(self, role_name: str, run: RunId) -> RoleDriver | None:
        """The driver of a role; None if this node does not have it."""
        return self._drivers.get((role_name, run))

    def kept(self, run: RunId) -> tuple[Digest, ...] | None:
        """What outlives a client's part in a run, e.g. what its personal model is made of; None while it takes part."""
        ended = self._ended.get(log_name(CLIENT, run))
        return None if ended is None else ended.kept

    def held(self) -> list[Hold]:
        """What an edge's and a client's part in runs holds, and every letter under way; on the event loop.

        Of runs that have ended, it is what a client kept.

        Raises:
            StoreDamaged: While a client's part in a run lacks a blob: what else it needs is not known.
        """
        for driver, _ in self._lacking.values():
            raise StoreDamaged(self._unreadable[driver.run])
        holds = [Hold("letters under way", frozenset(self._letters.digests()) | self._incoming.digests)]
        roles = (driver for driver in self._drivers.values() if driver.role_name != COORDINATOR)
        holds += [Hold(f"run {driver.run}", driver.held) for driver in roles]
        newest: dict[tuple[str, Digest], list[_Ended]] = {}
        for ended in self._ended.values():
            newest.setdefault((ended.log.partition("/")[0], ended.layout), []).append(ended)
        last = [ended for of in newest.values() for ended in of[-KEPT_OF_LAST:]]
        kept = ((f"kept of run {ended.log.partition('/')[2]}", frozenset(ended.kept)) for ended in last if ended.kept)
        return [*holds, *(Hold(*of) for of in kept)]

    def replay(self) -> None:
        """After a restart: folds the logs of an edge's and a client's roles. Call it before the watch begins."""
        ended = [msgspec.msgpack.decode(entry.payload, type=_Ended) for entry in self._events.read(ENDED)]
        self._ended = {entry.log: entry for entry in ended}
        for name in self._events.runs():
            role_name, _, run = name.partition("/")
            if role_name not in (EDGE, CLIENT) or not run:
                continue
            spec = spec_in_log(self._events, name)
            if spec is None:
                continue
            try:
                self.add(role_name, spec).replay()
            except StoreUnavailable:  # what is there must not be taken for lost
                raise
            except EdgewiseError as error:
                log.error("%s cannot go on with %s: %s", self._node.name, name, error)
                driver = self._drivers.pop((role_name, spec.run), None)
                if driver is not None and not driver.may_begin_anew and isinstance(error, StoreDamaged):
                    self._lacks(driver, error)
                else:
                    self._events.forget(name)  # what it was to do, its server asks for again

    def resume(self) -> None:
        """After a replay: every role goes on where it was; whoever does not come back is given up after a while."""
        self._has_begun.set()
        begun = tuple(self._drivers.values())
        self.go_on(*begun)
        for lacking, error in tuple(self._lacking.values()):
            self._grant(lacking)
            self._node.spawn(self._mend(lacking, error), f"mend {lacking.log}")

    def go_on(self, *begun: RoleDriver) -> None:
        """Has roles that were replayed go on, at once or when what they lacked is there; who is absent since then is missed."""
        for driver in begun:
            self._grant(driver)
            driver.resume()
        if begun and self.presence is not None:
            self._node.spawn(self.presence.miss_absent(begun), "whoever did not come back")

    def _grant(self, driver: RoleDriver) -> None:
        """Who gave or was told of a blob before this process may have it again, if it is here: else it is named again first."""
        for digest, node in driver.gave.items():
            if self._node.blobs.has(digest):
                self._node.grants.give(digest, node)
        driver.gave.clear()

    def _lacks(self, driver: RoleDriver, error: StoreDamaged) -> None:
        self._drivers.pop((driver.role_name, driver.run), None)
        self._lacking[driver.run] = driver, error
        self._unreadable[driver.run] = f"{self._node.name} lacks what it needs for run {driver.run}: {error.message}"

    async def _mend(self, driver: RoleDriver, error: StoreDamaged) -> None:
        """Has a client's part in a run that lacks a blob wait until a node has it; then it goes on, or the run is over."""
        for attempt in itertools.count():
            self.stores.met(driver, error)
            await asyncio.sleep(RETRY.delay_s(attempt))
            if driver.run not in self._lacking:
                return
            if not self._node.blobs.has(Digest(error.fields["digest"])):
                continue
            del self._lacking[driver.run]
            driver = self.add(driver.role_name, driver.spec)
            try:
                driver.replay()
            except StoreDamaged as more:
                error = more
                self._lacks(driver, error)
                self._grant(driver)
            else:
                self.go_on(driver)
                return

    def node_ready(self, info: NodeInfo) -> None:
        """A node is here (again): its runs hear of it, letters that wait for it go out."""
        self._letters.returned(info.node, info.client or info.node)
        if self.presence is not None and (info.client or info.tier is Tier.EDGE):
            self._node.spawn(self._tell(self.presence.is_here, info), f"welcome {info.node} to runs")

    def node_lost(self, info: NodeInfo, cause: str) -> None:
        """A node is gone or hangs."""
        if self.presence is not None and (info.client or info.tier is Tier.EDGE):
            self._node.spawn(self._tell(self.presence.is_lost, info, cause), f"miss {info.node}")

    def expect(self, *, again: bool = False) -> None:
        """Says whose work is awaited, so that a hung worker is noticed; `again` where nodes have moved."""
        if self.presence is not None:
            self.presence.expect(again=again)

    async def close(self) -> None:
        """Waits for what is being written to the log."""
        for timer in self._timers.values():
            timer.cancel()
        for driver in tuple(self._drivers.values()):
            driver.close()
            await driver.settled()

    async def _tell(self, tell: Callable[..., Awaitable[None]], *sighting: Any) -> None:
        await tell(*sighting)
        self.expect(again=True)

    def _servers(self) -> Iterable[RoleDriver]:
        return [
            driver
            for driver in self._drivers.values()
            if driver.role_name != CLIENT and driver.state is not None and not driver.is_over
        ]

    def _present(self) -> Any:
        return {} if self.presence is None else self.presence.clients()

    def _holds(self, driver: RoleDriver) -> set[Digest]:
        lacking = (other for other, _ in tuple(self._lacking.values()))
        others = (other.mentioned for other in (*self._drivers.values(), *lacking) if other is not driver)
        return self._letters.digests().union(self._also_held(), *others)

    async def _find(self, run: RunId, to: Address, letter: AnyLetter) -> RoleDriver | LetterAck:
        """The role that a letter is for; a letter that says what the run is begins it."""
        await self._has_begun.wait()
        role_name = to.role
        if role_name != CLIENT:  # a server is found under whichever of its two names
            role_name = next((r for r in (to.role, EDGE, COORDINATOR) if (r, run) in self._drivers), to.role)
        elif self._worker is None or (to.name and self._worker.client != to.name):
            return LetterAck(False, Refusal.NOT_ASKED, f"{self._node.name} does not hold the data of {to.name!r}.")
        found = self._drivers.get((role_name, run))
        if found is not None:
            return found
        if run in self._lacking and role_name == CLIENT and isinstance(letter, RunEnded):
            driver, _ = self._lacking.pop(run)
            await self._end_without(driver)
            return LetterAck()
        if run in self._unreadable:
            raise StoreUnavailable(self._unreadable[run])
        if log_name(role_name, run) in self._ended:
            is_end = not isinstance(letter, Order) and letter.key == "ended"
            return LetterAck(is_end, Refusal.LATE, f"run {run} has ended on {self._node.name}.")
        spec = letter.spec if isinstance(letter, Order) else None
        may_begin = role_name == CLIENT or (role_name == EDGE and self._is_edge)
        if spec is None and role_name == CLIENT and letter.author.role == CLIENT:
            # A neighbour has begun and this client's own order is still on its way: refused for good, it would be missed.
            raise Unreachable(f"{self._node.name} does not know run {run} yet. Send {letter.key!r} again.")
        if spec is None or not may_begin:
            text = f"{self._node.name} has no part in run {run}; {letter.key!r} does not count."
            return LetterAck(letter.key == "ended", Refusal.WRONG_RUN, text)
        if spec.is_brief:
            return LetterAck(False, Refusal.RUN_UNKNOWN, f"{self._node.name} does not know run {run} yet.")
        if role_name == CLIENT and self._worker is not None and self._worker.refusal:
            return LetterAck(False, Refusal.NO_EXAMPLES, self._worker.refusal)
        former = await self._kept_in_former(spec, letter) if role_name == CLIENT else None
        driver = self.add(role_name, spec)
        if former is not None and driver.role.after is not None:
            driver.state = driver.role.after(former)
            driver.mentioned.add(former)
        return driver

    async def _kept_in_former(self, spec: RunSpec, letter: AnyLetter) -> Digest | None:
        """What this client kept in the run that a run goes on with; None without one, or where it is gone."""
        for run in map(RunId, spec.extra.get(FORMER_RUNS, ())):
            running = self._drivers.get((CLIENT, run))
            if running is not None and isinstance(letter, WorkOrder):  # its end is still on the way: this says the same
                end = RunEnded(run=run, counted=letter.counted)
                await running.dispatch(Received(letter=end, sender=running.server, generation=Generation(0)))
            kept = (
                tuple(running.role.needs(running.state)) if running is not None and running.is_over else self.kept(run)
            )
            if kept is not None:
                return next(iter(kept), None)
        return None

    async def _taken(self, driver: RoleDriver, letter: AnyLetter) -> None:
        """After a letter was dispatched: what the protocol does not know of."""
        if driver.role_name != EDGE or self.presence is None or not isinstance(letter, Order):
            return self.expect()
        await self.presence.catch_up(driver)
        hard = hard_examples_of(driver.spec)
        if hard is not None and hard.teacher is not None:  # devices ask this edge for it
            blob = BlobName(hard.teacher.digest, hard.teacher.size_bytes)
            await self._fetches.begin(
                blob, driver.server, wanted=lambda: not driver.is_closed, met=partial(driver.met, driver)
            )
        self.expect()

    def _carry_out(self, driver: RoleDriver, actions: tuple[Action, ...]) -> None:
        for action in actions:
            match action:
                case Send():
                    self._letters.send(driver, action)
                case SetTimer(name=name, seconds=seconds):
                    self._set_timer(driver, name, seconds)
                case Work():
                    assert self._worker is not None
                    self._worker.begin(driver, action)
                case _:
                    # Answers are given where letters arrived, blobs are stored by the driver.
                    self._on_action(driver, action)

    def _of_run(self, run: RunId) -> list[RoleDriver]:
        return [driver for driver in self._drivers.values() if driver.run == run]

    def _folded(self, driver: RoleDriver) -> None:
        if not driver.is_waiting:
            self.stores.over(driver)
        if driver.is_over:
            self._letters.end(driver)
        is_done = driver.role_name != COORDINATOR and driver.is_over and not self._letters.has(driver)
        # A letter may be answered between an end being folded and its own letters being sent: those are still to come.
        if is_done and driver.has_carried_out and not driver.is_closed:
            driver.is_closed = driver.has_ended = True
            former = self._kept_before(driver)  # now: what goes on with this run may end before its end is written
            self._node.spawn(self._end(driver, former), f"end of {driver.log}")
        self.expect()

    def _set_timer(self, driver: RoleDriver, name: str, seconds: float | None) -> None:
        key = (driver.log, name)
        if key in self._timers:
            self._timers.pop(key).cancel()
        if seconds is not None:
            fire = partial(self._fire, driver, name)
            self._timers[key] = asyncio.get_running_loop().call_later(seconds, fire)

    def _fire(self, driver: RoleDriver, name: str) -> None:
        self._timers.pop((driver.log, name), None)
        if not driver.is_closed:
            self._node.spawn(driver.dispatch(TimerFired(name)), f"timer {name} of {driver.run}")

    def _kept_before(self, driver: RoleDriver) -> set[Digest]:
        """What outlived earlier runs of a driver's layout."""
        return {
            digest
            for ended in self._ended.values()
            if ended.layout == driver.spec.layout and ended.log.startswith(f"{driver.role_name}/")
            for digest in ended.kept
        }

    async def _end(self, driver: RoleDriver, former: set[Digest]) -> None:
        """Forgets a role that has ended here, but for its name."""
        await driver.settled()
        for key in [key for key in self._timers if key[0] == driver.log]:
            self._timers.pop(key).cancel()
        if driver.role_name == CLIENT and self._worker is not None:
            self._worker.forget(driver)
        kept = set(driver.role.needs(driver.state))
        spare = (driver.mentioned | former) - kept
        ended = self._ended[driver.log] = _Ended(driver.log, driver.spec.layout, tuple(sorted(kept)))
        self._drivers.pop((driver.role_name, driver.run), None)
        await until_taken(partial(self._forget, driver, ended, spare), partial(self.stores.met, driver))
        self.stores.forget(driver.run)
        self._node.spare.set()
        self.expect()

    async def _end_without(self, driver: RoleDriver) -> None:
        """The run is over for a client that still lacks what it needed for it."""
        ended = self._ended[driver.log] = _Ended(driver.log, driver.spec.layout)
        self._unreadable.pop(driver.run, None)
        spare = set(driver.mentioned)
        await until_taken(partial(self._forget, driver, ended, spare), partial(self.stores.met, driver))
        self.stores.forget(driver.run)
        self._node.spare.set()

    def _forget(self, driver: RoleDriver, ended: _Ended, spare: set[Digest]) -> None:
        self._events.append(ENDED, "ended", msgspec.msgpack.encode(ended))
        self._events.forget(ended.log)
        driver.drop(lambda: spare - self._holds(driver))

    async def _locate(self, driver: RoleDriver, to: Address, is_again: bool) -> NodeId | None:
        if to.role == EDGE and to.name and (self.presence is None or self.presence.is_there(NodeId(to.name))):
            return NodeId(to.name)
        if to.role == COORDINATOR or (to.role == EDGE and not to.name):
            return driver.server or None
        if to.role != CLIENT:
            return None
        client = ClientId(to.name)
        if self.presence is not None:
            node = self.presence.nodes().get(client)
            return node if node is not None and self.presence.is_there(node) else None
        if is_again or client not in self._places:
            self._places.pop(client, None)
            # A client does not watch the fleet: its parent tells where another one is.
            parent = self._node.describe().parent or driver.server
            place = await self._node.ask(parent, "report", WhereIs(client), ClientPlace)
            if place.node:
                self._places[client] = place.node
        return self._places.get(client)

    async def _where_is(self, question: WhereIs, *_: Any) -> ClientPlace:
        if self.presence is None:
            return ClientPlace()
        node, seen = self.presence.nodes().get(question.client), self.presence.clients().get(question.client)
        return ClientPlace() if node is None or seen is None else ClientPlace(node, seen.generation)
