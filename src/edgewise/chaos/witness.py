"""What really happened in a campaign, noted beside the code that is tried: work that was done, letters that were acknowledged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from edgewise.codecs.bundle import bundle_to_bytes
from edgewise.core.ids import Digest, NodeId, digest_of
from edgewise.fleet.membership.watch import Watch
from edgewise.fleet.messages import LetterAck, Message, NodeInfo, RunLetter
from edgewise.fleet.node.node import Node, Route
from edgewise.fleet.training.local_worker import LocalWorker
from edgewise.fleet.training.role_driver import RoleDriver
from edgewise.fleet.training.run_blobs import MappedBlobs
from edgewise.fleet.training.run_roles import RunRoles
from edgewise.training.client_update import ClientUpdate
from edgewise.training.protocols.client_role import ClientState
from edgewise.training.protocols.folding import blob
from edgewise.training.protocols.letters import PeerShare, SumReport, UpdateReport
from edgewise.training.protocols.messages import (
    Accept,
    AnnounceRound,
    RoundSummary,
    RunStarted,
    Work,
    WorkDone,
    WorkGivenUp,
)
from edgewise.training.protocols.protocol import CLIENT, COORDINATOR
from edgewise.transport.frame import Frame

MOST_REMEMBERED = 20_000
MOST_STATES = 64
STEPS = 100
"""By which local work moves a worker's counter."""

Place = tuple[str, int, int]
"""A client, a round, an exchange."""


@dataclass
class Witness:
    """Notes of one campaign.

    Attributes:
        now: Virtual seconds.
        worked: Digests of what clients' work really came to, by place.
        acknowledged: Reports that a server said yes to, with the digest and who said it.
        forwarded: Reports that an edge said yes to, with its name.
        kept: What a client keeps if that work of its counts.
        last: The last update of each client that counted, None for none; where a crash leaves in doubt which it is, both.
        before: The one before that, by client.
        accepted: The newest update of each client that a node accepted.
        have_lost: Clients that said that what they kept is gone, or on whose disk it was damaged.
        wrongs: What must never happen, seen as it did.
        rounds: Who took part in each round, as its coordinator closed it.
        closed_s: When that was; of round 0, when the run began.
        roles: Of each node.
        heard: Letters that were taken anew, by who was told so and by whom.
    """

    now: Callable[[], float] = field(default=lambda: 0.0)
    worked: dict[Place, set[Digest]] = field(default_factory=dict)
    acknowledged: dict[Place, set[tuple[Digest, str]]] = field(default_factory=dict)
    forwarded: dict[Place, set[str]] = field(default_factory=dict)
    kept: dict[Place, set[Digest | None]] = field(default_factory=dict)
    last: dict[str, tuple[Place | None, ...]] = field(default_factory=dict)
    before: dict[str, tuple[Place | None, ...]] = field(default_factory=dict)
    accepted: dict[tuple[str, str], Place] = field(default_factory=dict)
    have_lost: set[str] = field(default_factory=set)
    wrongs: list[str] = field(default_factory=list)
    rounds: dict[int, tuple[str, ...]] = field(default_factory=dict)
    closed_s: dict[int, float] = field(default_factory=dict)
    roles: dict[str, RunRoles] = field(default_factory=dict)
    heard: set[tuple[str, str, str]] = field(default_factory=set)

    def watch_steps(self, roles: RunRoles, node: str, *, most_spare: int) -> None:
        """Notes what servers of a node's runs accept.

        Args:
            roles: The node's.
            node: Its name.
            most_spare: As of its `RoleDriver`s.
        """
        add = roles.add
        self.roles[node] = roles

        def watched(role_name: str, spec: Any) -> RoleDriver:
            driver = add(role_name, spec)
            driver.most_spare = most_spare
            if role_name == COORDINATOR:  # began anew: what it closed last may not have been on its disk
                self.last = {client: (*places, *self.before[client]) for client, places in self.last.items()}
            if role_name != CLIENT:
                driver._step = self._counting(driver._step, node)
            else:
                driver._step = self._keeping(driver._step)
            return driver

        roles.add = watched  # type: ignore[method-assign]

    def watch_absences(self, watch: Watch, node: str) -> None:
        """Notes who is given up because its token is gone, and whose token is there as far as the watch itself was told.

        Args:
            watch: A server's.
            node: The server's name.
        """
        tell = watch._lost

        def lost(name: NodeId, cause: str) -> None:
            member = watch.members.members[name]
            if "token is gone" in cause and (member.tier, member.generation) in member.tokens:
                self.wrongs.append(f"{node} takes {name} for gone, whose token is there")
            tell(name, cause)

        watch._lost = lost

    def must_last(self, node: str) -> set[Digest]:
        """What a node's roles name and nobody would give again: it outlives a loss of power, too."""
        drivers = self.roles[node]._drivers.values() if node in self.roles else ()
        lasting = [d for d in drivers if d.role_name == COORDINATOR or (d.role_name == CLIENT and not d.role.needs_log)]
        return {digest for d in lasting if d.state is not None for digest in d.role.needs(d.state)}

    def _counting(self, step: Any, node: str) -> Any:
        """A step that notes an update which counts twice in one line of states; a line is what one state led to."""
        lines: dict[int, tuple[Any, frozenset[Place]]] = {}

        def counted(state: Any, event: Any) -> Any:
            after, actions = step(state, event)
            _, places = lines.get(id(state), (None, frozenset()))
            letter = getattr(event, "letter", None)
            if isinstance(letter, UpdateReport) and any(isinstance(action, Accept) for action in actions):
                place = (str(letter.client), int(letter.round), letter.exchange)
                if place in places:
                    self.wrongs.append(f"{node} counts the update of {letter.client} in round {letter.round} twice")
                places = places | {place}
                self.accepted[node, place[0]] = place
            if isinstance(event, RunStarted):
                self.closed_s.setdefault(0, self.now())
            for action in actions:
                if isinstance(action, AnnounceRound):
                    self._closed(node, action.summary)
            if after is not state:
                lines[id(after)] = (after, places)  # the state is kept: its id is not another's
                if len(lines) > MOST_STATES:
                    del lines[next(iter(lines))]
            return after, actions

        return counted

    def _closed(self, node: str, summary: RoundSummary) -> None:
        number, clients = int(summary.round), sorted(map(str, summary.participants))
        for client in self.rounds.get(number, ()):  # closed once before, and the store did not take it
            self.last[client] = self.before[client]
        self.closed_s.setdefault(number, self.now())
        self.rounds[number] = tuple(clients)
        for client in clients:
            self.before[client] = self.last.get(client, (None,))
            self.last[client] = (self.accepted.get((node, client), (client, number, 0)),)

    def kept_by(self, client: str) -> set[Digest | None]:
        """What a client may keep by now: what came of its last update that counted; empty where nobody knows."""
        if client in self.have_lost:
            return set()
        known = [{None} if place is None else self.kept.get(place) for place in self.last.get(client, (None,))]
        return {digest for each in known if each for digest in each} if all(known) else set()

    def _keeping(self, step: Any) -> Any:
        """A client's step that notes what comes of its work beside its update, and what it works from."""

        def noted(state: Any, event: Any) -> Any:
            order = getattr(state, "order", None)
            if isinstance(event, WorkDone) and order is not None:
                place = (str(order.client), int(event.round), event.exchange)
                self.kept.setdefault(place, set()).add(event.kept)
            if isinstance(event, WorkGivenUp) and event.has_lost and order is not None:
                self.have_lost.add(order.client)
            after, actions = step(state, event)
            for action in actions:
                if isinstance(action, Work) and isinstance(after, ClientState):
                    self._check_base(action)
            return after, actions

        return noted

    def _check_base(self, work: Work) -> None:
        """A client works from what came of its last update that counted."""
        order = work.order
        rounds = [place[1] for place in self.last.get(order.client, ()) if place is not None]
        if order.exchange or max(rounds, default=0) >= order.round:  # an order of a round that has closed
            return
        expected = self.kept_by(order.client)
        if expected and work.kept not in expected:
            self.wrongs.append(
                f"{order.client} works in round {order.round} from what its last update that counted did not leave"
            )


class WitnessedNode(Node):
    """A node whose letters' answers are noted as they come to it."""

    witness: Witness
    taken: dict[str, set[tuple[int, int]]]

    async def _verified(self, frame: Frame, route: Route, service: str) -> NodeInfo:
        sender = await super()._verified(frame, route, service)
        seen, number = self.taken.setdefault(frame.sender, set()), (frame.generation, frame.sequence)
        if number in seen:
            self.witness.wrongs.append(f"{self.name} takes {frame.kind} of {frame.sender} twice")
        if seen and frame.generation < max(seen)[0]:
            self.witness.wrongs.append(f"{self.name} takes {frame.kind} of a former incarnation of {frame.sender}")
        seen.add(number)
        return sender

    async def ask(self, node: Any, service: str, message: Message, answer: Any, *rest: Any, **how: Any) -> Any:
        """As `Node.ask`."""
        found = await super().ask(node, service, message, answer, *rest, **how)
        if isinstance(message, RunLetter) and isinstance(found, LetterAck) and found.accepted:
            letter = message.letter
            self._note_taken(message, str(node), found)
            if isinstance(letter, UpdateReport) and message.to.role == COORDINATOR:
                place = (str(letter.client), int(letter.round), letter.exchange)
                self.witness.acknowledged.setdefault(place, set()).add((letter.update.digest, str(node)))
            elif isinstance(letter, UpdateReport):
                place = (str(letter.client), int(letter.round), letter.exchange)
                self.witness.forwarded.setdefault(place, set()).add(str(node))
        return found

    def _note_taken(self, message: RunLetter, node: str, ack: LetterAck) -> None:
        """Who takes a letter anew that it had said yes to has lost what it acknowledged."""
        letter, to = message.letter, message.to.role
        lasts = isinstance(letter, PeerShare) or (to == COORDINATOR and isinstance(letter, UpdateReport | SumReport))
        if not lasts or ack.refusal is not None:
            return
        place = (self.name, node, letter.key)
        if place in self.witness.heard:
            self.witness.wrongs.append(f"{node} takes {letter.key} of {self.name} anew, which it had acknowledged")
        self.witness.heard.add(place)


_REMEMBERED: dict[tuple[Any, ...], ClientUpdate] = {}


class RememberingWorker(LocalWorker):
    """A worker that does the same work once in a process: local work is a pure function, and campaigns repeat it."""

    witness: Witness

    def _update(self, driver: RoleDriver, work: Work, job: Any) -> ClientUpdate:
        key, counter = self._key(driver, work), self.counted.counter
        if key not in _REMEMBERED:
            if len(_REMEMBERED) >= MOST_REMEMBERED:
                _REMEMBERED.clear()
            _REMEMBERED[key] = super()._update(driver, work, job)
        elif work.kept is not None:
            self._kept(work, is_needed=False)
        self.counted.counter = counter + STEPS  # whether it was done or remembered is not to be seen
        update, order = _REMEMBERED[key], work.order
        place = (str(self.client), int(order.round), order.exchange)
        self.witness.worked.setdefault(place, set()).add(digest_of(bundle_to_bytes(update.coded)))
        return update

    def _key(self, driver: RoleDriver, work: Work) -> tuple[Any, ...]:
        order, held, blobs = work.order, {}, MappedBlobs(self.node.blobs)
        for section in order.sections:  # read as the worker does: what is missing is told as that
            held[section.name] = digest_of(blob(blobs, section.blob.digest))
        kept = ""
        if work.kept is not None and self.private.has(work.kept):
            kept = digest_of(self.private.read(work.kept))
        return (
            self.task_source,
            repr(self.task_settings),
            str(self.client),
            repr(order.spec.algorithm),
            order.spec.seed,
            order.round,
            order.exchange,
            tuple(sorted(held.items())),
            kept,
            repr(order.spec.extra),
        )
