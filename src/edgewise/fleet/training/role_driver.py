"""One role of one run on one node: event → step → log → actions. The same for every protocol and every role.

A step is pure, so it is computed first; what it stores and the event are on the disk before its state counts and before
anybody hears of its actions. An event that changes nothing is not logged. A snapshot takes the place of old events when
blobs fall free: the space of a run is bounded. A role that has nothing to lose yet has no log (`Role.needs_log`).

A store that takes nothing now stops a role, it loses nothing: a letter is refused for now, its sender keeps it and sends it
again; an event of this node's own waits here and is folded when the store is back. Read `run_roles.py` next: it carries out
the actions.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from edgewise.core.errors import StoreDamaged, StoreError, StoreUnavailable
from edgewise.core.files import storing
from edgewise.core.ids import ClientId, Digest, NodeId, RunId
from edgewise.fleet.messages import hard_examples_of
from edgewise.fleet.store.events import EventLog
from edgewise.fleet.store.patience import PASSING, RETRY
from edgewise.fleet.training.role_log import SNAPSHOT, Snapshot, log_name, state_in
from edgewise.fleet.training.run_blobs import Incoming, MappedBlobs
from edgewise.fleet.training.run_bytes import RunBytes
from edgewise.training.algorithm import FederatedAlgorithm
from edgewise.training.protocols.event_log import decode_event, encode_event
from edgewise.training.protocols.letters import Address, Order
from edgewise.training.protocols.messages import (
    Action,
    AnnounceRound,
    ClientLost,
    ClientReturned,
    Delivered,
    EndRun,
    Event,
    LetterInvalid,
    Received,
    RunStarted,
    Send,
    Store,
    WorkDone,
)
from edgewise.training.protocols.protocol import CLIENT, COORDINATOR, Protocol, Role
from edgewise.training.protocols.run_spec import RunSpec
from edgewise.transport.bulk.blobs import FolderBlobs

MOST_SPARE, SPARE_BYTES = 32, 2**22
"""So many blobs, or about so many bytes, may lie about before a snapshot is made and they are dropped."""
QUICK_ENTRIES = 2**18
"""Of a model whose letters are folded on the event loop, on a client."""


_LETTERS = (Received, LetterInvalid)
"""Events that somebody else keeps until they count; all others are known to this node alone."""


@dataclass(slots=True)
class _Waiting:
    event: Event
    taken: asyncio.Future[tuple[Action, ...]]

    def fail(self, error: BaseException) -> None:
        if not self.taken.done():
            self.taken.set_exception(error)
            self.taken.exception()  # looked at, also if whoever asked has left


@dataclass(slots=True)
class RoleDriver:
    """Folds the events of one role.

    Attributes:
        spec: The run.
        role_name: `coordinator`, `edge` or `client`.
        protocol, algorithm: As built from the spec.
        events: The node's log.
        blobs: The node's.
        carry_out: Takes this driver and the actions of one event, on the event loop; returns at once.
        folded: Told when all actions of the events so far are on their way.
        met: Told of a store that takes nothing now, or has lost what is needed.
        holds: Digests that must stay for other reasons: letters under way, other runs.
        is_sent_again: Whether a letter is under way anew since it was answered.
        state: As folded; None before the first event.
        server: Who sent the newest order; what this node reports goes there. "" before.
        seen: Clients that were there, on an edge.
        awaited: Clients that were given an order and have not answered.
        mentioned: Blobs that events and actions named and that are not dropped yet.
        moved: Bytes that its letters carried.
        private: Blobs that are given to nobody: what a client keeps.
        incoming: The node's blobs that no state names yet.
        is_closed: Whether nothing is sent or folded for it any more.
        has_ended: Whether its log is being forgotten: an event that comes late would begin a new one, and be folded alone.
        most_spare: Blobs that may lie about until the run is over, as long as they are small.
        gave: After a replay, who gave blobs or was told of them, and may ask for them.
        has_carried_out: Whether all that `state` called for is on its way; not while it is ahead of its actions.
    """

    spec: RunSpec
    role_name: str
    protocol: Protocol
    algorithm: FederatedAlgorithm
    events: EventLog
    blobs: FolderBlobs
    carry_out: Callable[[RoleDriver, tuple[Action, ...]], None]
    folded: Callable[[RoleDriver], None] = field(default=lambda _: None)
    met: Callable[[RoleDriver, StoreError], None] = field(default=lambda *_: None)
    holds: Callable[[RoleDriver], set[Digest]] = field(default=lambda _: set())
    is_sent_again: Callable[[RoleDriver, Delivered], bool] = field(default=lambda *_: False)
    state: Any = None
    server: NodeId = NodeId("")
    seen: set[ClientId] = field(default_factory=set)
    awaited: set[ClientId] = field(default_factory=set)
    mentioned: set[Digest] = field(default_factory=set)
    moved: RunBytes = field(default_factory=RunBytes)
    private: FolderBlobs | None = None
    incoming: Incoming = field(default_factory=Incoming)
    is_closed: bool = False
    has_ended: bool = False
    has_carried_out: bool = True
    gave: dict[Digest, NodeId] = field(default_factory=dict)
    most_spare: int = MOST_SPARE
    _step: Any = None
    _waiting: list[_Waiting] = field(default_factory=list)
    _folding: asyncio.Task[None] | None = None
    _dropping: asyncio.Task[None] | None = None
    _spared: set[Digest] = field(default_factory=set)
    _is_logged: bool = False
    _is_quick: bool = False
    _nudge: asyncio.Event = field(default_factory=asyncio.Event)
    _refusal: StoreError | None = None
    _must_last: bool = False

    def __post_init__(self) -> None:
        self._is_logged = self.role.needs_log is None
        # A client that logs all has told its neighbours what it took: nobody gives that again.
        self._must_last = self.role_name == COORDINATOR or (self.role_name == CLIENT and self._is_logged)
        # A client's step reads no blob and its log waits for no disk: a thread would cost more than it does.
        self._is_quick = self.role_name == CLIENT and self.spec.num_entries < QUICK_ENTRIES
        self._step = self.role.make_step(self.algorithm, MappedBlobs(self.blobs))

    @property
    def run(self) -> RunId:
        """The run's name."""
        return self.spec.run

    @property
    def role(self) -> Role:
        """This side of the protocol."""
        return self.protocol.roles[self.role_name]

    @property
    def log(self) -> str:
        """Name of its log."""
        return log_name(self.role_name, self.run)

    @property
    def is_waiting(self) -> bool:
        """Whether its store took nothing when it was asked last."""
        return self._refusal is not None

    @property
    def may_begin_anew(self) -> bool:
        """Whether its server asks again for what it was to do; a client that logs all has told others of what it took."""
        return self.role_name != CLIENT or self.role.needs_log is not None

    @property
    def is_over(self) -> bool:
        """Whether this node has nothing more to do with the run."""
        return self.state is not None and self.role.is_over(self.state)

    async def dispatch(self, event: Event, *, is_urgent: bool = False) -> tuple[Action, ...]:
        """Takes one event; those that come while one is folded are folded together, in order, and logged as one.

        Args:
            event: What happened.
            is_urgent: Whether it goes before those that wait for the store.

        Returns:
            The actions; they are on their way. An event that is no letter waits for a store that takes nothing now.

        Raises:
            StoreUnavailable: If a letter cannot be logged now; then nothing of it counts, and its sender sends it again.
            StoreError: If it cannot be logged for good.
        """
        if isinstance(self._refusal, StoreUnavailable) and self._folding is not None and isinstance(event, _LETTERS):
            raise self._refusal
        if self._is_quick and self._refusal is None and self._folding is None and not self._waiting:
            (result,) = results = self._fold([event])
            self._note_refusal(results)
            if not _is_left(event, result):
                if isinstance(result, BaseException):
                    raise result
                self.carry_out(self, result)
                self.folded(self)
                self._drop_beside()
                return result
        waiting = _Waiting(event, asyncio.get_running_loop().create_future())
        self._waiting.insert(0 if is_urgent else len(self._waiting), waiting)
        if is_urgent:
            self._nudge.set()
        if self._folding is None:
            self._folding = asyncio.get_running_loop().create_task(self._fold_all(), name=f"fold {self.log}")
        return await asyncio.shield(waiting.taken)

    def close(self) -> None:
        """Folds and sends nothing more; what waits for the store is given up, as if the process had ended."""
        self.is_closed = True
        self._nudge.set()

    async def settled(self) -> None:
        """Returns when every event so far is folded, or the folding has failed."""
        while tasks := {task for task in (self._folding, self._dropping) if task is not None}:
            await asyncio.wait(tasks)

    def replay(self) -> None:
        """Folds what the log has.

        Raises:
            StoreDamaged: If a blob is missing or spoiled that the state needs, as after a loss of power.
        """
        self._is_logged = True
        has_lost = False
        for entry in self.events.read(self.log):
            if entry.kind == SNAPSHOT:
                self._restore(msgspec.msgpack.decode(entry.payload, type=Snapshot))
                self._note_told()
                continue
            event = decode_event(entry.payload)
            try:
                self.state, actions = self._step(self.state, event)
            except StoreDamaged:  # what it was to do with that blob, its server asks for again; an end may still follow
                if self.state is None or self.role.without_order is None:
                    raise
                self.state, actions, has_lost = self.role.without_order(self.state), (), True
            self._store(actions)
            self._note(event, actions)
            if isinstance(event, Received):
                self.gave.update((blob.digest, event.sender) for blob in event.letter.blobs)
            self._note_told()
            self.moved = self.moved.after(event, actions)
        if self.role_name == COORDINATOR or self.state is None:
            return
        if self.role.without_order is not None and (has_lost or self._lacks(self.state)):
            self.state = self.role.without_order(self.state)
            self.let_go()
        if lacks := self._lacks(self.state):
            raise StoreDamaged(
                f"blob {lacks[:12]} of {self.log} is missing or spoiled; this node begins it anew, or waits for it.",
                digest=str(lacks),
            )

    def _note_told(self) -> None:
        """What was told to the server, it may ask for and be asked for."""
        if self.state is not None and self.server:
            told = self.role.reports(self.state)
            self.gave.update((blob.digest, self.server) for letter in told for blob in letter.blobs)

    def _lacks(self, state: Any) -> Digest | None:
        """A blob that a state needs and that is not here, or spoiled, which is moved aside; None where all are."""
        stores = (self.blobs,) if self.private is None else (self.blobs, self.private)
        needed = self.role.needs(state)
        lost = next((digest for digest in needed if not any(store.is_whole(digest) for store in stores)), None)
        for store in stores:
            if lost is not None and store.has(lost):
                with contextlib.suppress(StoreDamaged):
                    store.check(lost)
        return lost

    @property
    def held(self) -> frozenset[Digest]:
        """Blobs that this role still reads, sends or names; on the event loop."""
        needed = () if self.state is None else self.role.needs(self.state)
        hard = hard_examples_of(self.spec)
        teacher = () if hard is None or hard.teacher is None else (hard.teacher.digest,)
        return frozenset((*set(self.mentioned), *needed, *teacher))

    def let_go(self) -> None:
        """Before blobs of a run that is over go: its log says how it ended, nothing of it is folded again. On a thread."""
        self.events.compact(self.log, SNAPSHOT, self._snapshot(self.state, self.moved), num_events=0)

    def resume(self) -> None:
        """After a replay: goes on with what is outstanding."""
        if self.state is not None:
            actions = self.role.resume(self.state)
            self._note(None, actions)
            self.carry_out(self, actions)
            self.folded(self)

    async def _fold_all(self) -> None:
        attempt = 0
        try:
            while self._waiting:
                has_left = await self._fold_waiting()
                attempt = attempt + 1 if has_left else 0
                if has_left:
                    await self._wait_for_store(attempt)
        finally:
            self._folding = None
        self._drop_beside()

    async def _wait_for_store(self, attempt: int) -> None:
        """Until it is worth another attempt; gives up what waits where this node ends."""
        self._nudge.clear()
        if not self.is_closed:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(RETRY.delay_s(attempt)):
                    await self._nudge.wait()
        if self.is_closed:
            given_up, self._waiting = self._waiting, []
            for waiting in given_up:
                assert self._refusal is not None
                waiting.fail(self._refusal)

    def _note_refusal(self, results: list[tuple[Action, ...] | BaseException]) -> None:
        self._refusal = next((result for result in results if isinstance(result, PASSING)), None)
        if self._refusal is not None:
            self.met(self, self._refusal)

    async def _fold_waiting(self) -> bool:
        """Folds what waits; returns whether something of it is to be folded again."""
        batch, self._waiting = self._waiting, []
        self.has_carried_out = False
        try:
            events = [waiting.event for waiting in batch]
            is_quick = self._is_quick and self._refusal is None  # a store that hangs would hold up the event loop
            results = self._fold(events) if is_quick else await asyncio.to_thread(self._fold, events)
        except BaseException as error:
            results = [error] * len(batch)
        self._note_refusal(results)
        left = []
        for waiting, result in zip(batch, results, strict=True):
            if _is_left(waiting.event, result):
                left.append(waiting)
            elif isinstance(result, BaseException):
                waiting.fail(result)
            else:
                waiting.taken.set_result(result)
                self.carry_out(self, result)
        self._waiting[:0] = left
        self.has_carried_out = True
        self.folded(self)
        return bool(left)

    def _fold(self, events: list[Event]) -> list[tuple[Action, ...] | BaseException]:
        """On a thread: the results of some events, all of them durable."""
        state, moved, rows = self.state, self.moved, []
        results: list[tuple[Action, ...] | BaseException] = []
        folded: list[tuple[Event, tuple[Action, ...]]] = []
        called: set[tuple[Address, str]] = set()
        for event in events:
            if isinstance(event, Delivered) and ((event.to, event.key) in called or self.is_sent_again(self, event)):
                results.append(())  # an answer to a former attempt says nothing of the newest
                continue
            try:
                with storing(self.blobs.folder):
                    after, actions = self._step(state, event)
                    self._store(actions)
            except StoreUnavailable as error:
                results += [error] * (len(events) - len(results))  # those after it may depend on it
                break
            except Exception as error:  # a step that cannot judge an event leaves it out; its sender hears why
                results.append(error)
                continue
            if after is not state or actions:
                rows.append((type(event).__name__, encode_event(event)))
                moved = moved.after(event, actions)
            state = after
            called.update((action.to, action.letter.key) for action in actions if isinstance(action, Send))
            results.append(actions)
            folded.append((event, actions))
        for event, actions in folded:
            self._note(event, actions)
        if rows:
            spare = self._spare(state, folded)
            try:
                with storing(self.blobs.folder):
                    self._write(state, moved, rows, folded, spare)
            except StoreUnavailable as error:  # none of them counts
                return [error] * len(events)
            self.state, self.moved = state, moved
            self._spared |= spare
        return results

    def _write(
        self,
        state: Any,
        moved: RunBytes,
        rows: list[tuple[str, bytes]],
        folded: list[tuple[Event, tuple[Action, ...]]],
        spare: set[Digest],
    ) -> None:
        """Makes events last; their log begins, with what came before, where they bring what nobody could give again."""
        if self.has_ended:
            return
        needs_log = self.role.needs_log
        begins = not self._is_logged and needs_log is not None and any(needs_log(event) for event, _ in folded)
        if not self._is_logged and not begins:
            return
        durable = self._is_durable(folded, spare)
        # A log that has ended names nothing but what its state needs: what else it mentions may go at any time. One that
        # begins with another letter than an order (that waits for the store still) would not say which run it is of.
        ends_or_is_nameless = _has_ended(folded) or (self.state is None and not _names_run(folded[0][0]))
        if spare or begins or (ends_or_is_nameless and self.role.state is not None):
            encoded = self._snapshot(state, moved)
            self.events.compact(self.log, SNAPSHOT, encoded, num_events=len(rows), durable=durable)
        else:
            self.events.append_many(self.log, rows, durable=durable)
        self._is_logged = True

    def _is_durable(self, folded: list[tuple[Event, tuple[Action, ...]]], spare: set[Digest]) -> bool:
        """Whether a loss of power may not undo some events: what a client keeps, a part in a run, its end; the rest is asked for again."""
        # An edge that knows of no run hands its end on to nobody.
        begins = self.state is None and self.role_name != CLIENT
        if self._must_last or begins or _has_ended(folded):
            return True
        private = None if self.role_name != CLIENT else self.private
        keeps = any(isinstance(event, WorkDone) and event.kept is not None for event, _ in folded)
        return private is not None and (keeps or any(map(private.has, spare)))

    def put(self, data: bytes, *, must_last: bool = False) -> Digest:
        """Stores a blob that events will name, as long-lived as this role's log is.

        Args:
            data: The blob.
            must_last: Whether the event that names it begins the log.

        Returns:
            Its name.
        """
        if self._is_logged or must_last:
            return self.blobs.put(data, durable=self._must_last)
        return self.blobs.hold(data)

    def drop(self, judge: Callable[[], set[Digest]]) -> set[Digest]:
        """Deletes blobs, on a thread, as `Incoming.drop` does."""

        def delete(digest: Digest) -> None:
            with contextlib.suppress(StoreUnavailable):  # it lies about until the folder can be written
                self.blobs.drop(digest)
                if self.private is not None:
                    self.private.drop(digest)

        return self.incoming.drop(judge, delete)

    def _drop_beside(self) -> None:
        """Begins to delete what fell free; what is left when the process ends falls free again."""
        if self._spared and self._dropping is None:
            self._dropping = asyncio.get_running_loop().create_task(self._drop_spared(), name=f"drop {self.log}")

    async def _drop_spared(self) -> None:
        try:
            while spared := frozenset(self._spared):
                await asyncio.to_thread(self._drop, spared)
        finally:
            self._dropping = None

    def _drop(self, spared: frozenset[Digest]) -> None:
        """On a thread: events are folded meanwhile, and what they name stays."""
        self.mentioned -= self.drop(lambda: set(spared) - self.holds(self) - set(self.role.needs(self.state)))
        self._spared -= spared

    def _store(self, actions: Iterable[Action]) -> None:
        for action in actions:
            if isinstance(action, Store):
                self.incoming.name(action.blobs, self.mentioned)
                for data in action.blobs.values():
                    self.put(data)  # also where it is here: a loss of power may have torn it

    def _note(self, event: Event | None, actions: Iterable[Action]) -> None:
        """Keeps account of what the role's state does not say to everybody."""
        match event:
            case Received(letter=letter, sender=sender, present=present):
                self.mentioned.update(blob.digest for blob in letter.blobs)
                if letter.author.role == CLIENT:
                    self.awaited.discard(ClientId(letter.author.name))
                elif letter.author.role in ("server", COORDINATOR):
                    self.server = sender
                self.seen.update(present)
            case WorkDone(update=update, kept=kept):
                self.mentioned.update((update.digest, *(() if kept is None else (kept,))))
            case RunStarted(config=config):
                former = () if config.former is None else config.former.sections.values()
                self.mentioned.update((config.initial_model, *(section.blob.digest for section in former)))
            case ClientLost(client=client):
                self.awaited.discard(client)
            case ClientReturned(client=client):
                self.seen.add(client)
        for action in actions:
            match action:
                case Store(blobs=blobs):
                    self.mentioned.update(blobs)
                case Send(to=to, letter=letter):
                    if isinstance(letter, Order) and to.role == CLIENT:
                        self.awaited.add(ClientId(to.name))
                case EndRun():
                    self.awaited.clear()

    def _spare(self, state: Any, folded: list[tuple[Event, tuple[Action, ...]]]) -> set[Digest]:
        """Blobs that nobody needs any more; a coordinator looks for them when a round has closed."""
        kinds = {type(action) for _, actions in folded for action in actions}
        is_over = EndRun in kinds
        must_wait = self.role_name == COORDINATOR and not kinds & {AnnounceRound, EndRun}
        if must_wait or self.role.state is None or (self._is_little(self.mentioned) and not is_over):
            return set()
        letters = [action.letter for _, actions in folded for action in actions if isinstance(action, Send)]
        sent = {blob.digest for letter in letters for blob in letter.blobs}
        spare = self.mentioned - self._spared - set(self.role.needs(state)) - sent - self.holds(self)
        return set() if self._is_little(spare) and not is_over else spare

    def _is_little(self, digests: set[Digest]) -> bool:
        return len(digests) < self.most_spare and 4 * self.spec.num_entries * len(digests) < SPARE_BYTES

    def _snapshot(self, state: Any, moved: RunBytes) -> bytes:
        encoded, seen, mentioned = msgspec.Raw(msgspec.msgpack.encode(state)), sorted(self.seen), sorted(self.mentioned)
        return msgspec.msgpack.encode(Snapshot(self.spec, encoded, self.server, tuple(seen), tuple(mentioned), moved))

    def _restore(self, found: Snapshot) -> None:
        self.state = state_in(found, self.role.state)
        self.server, self.seen, self.mentioned = found.server, set(found.seen), set(found.mentioned)
        self.moved = found.moved


def _has_ended(folded: Iterable[tuple[Event, tuple[Action, ...]]]) -> bool:
    return any(isinstance(action, EndRun) for _, actions in folded for action in actions)


def _names_run(event: Event) -> bool:
    """Whether a log that begins with an event can be replayed."""
    spec: RunSpec | None = getattr(event.letter, "spec", None) if isinstance(event, Received) else None
    return isinstance(event, RunStarted) or (spec is not None and not spec.is_brief)


def _is_left(event: Event, result: tuple[Action, ...] | BaseException) -> bool:
    """Whether an event is folded again, because its store does not take it now and nobody else has it."""
    return isinstance(result, PASSING) and not isinstance(event, _LETTERS)
