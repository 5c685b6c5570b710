"""Drives `membership`: watches liveliness tokens, queries infos and the progress counters of awaited workers."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Iterable

from edgewise.core.backoff import Backoff
from edgewise.core.errors import EdgewiseError, FrameRefused, IdentityRefused
from edgewise.core.ids import NodeId, Tier
from edgewise.fleet.membership import membership
from edgewise.fleet.membership.membership import Membership, NodeState
from edgewise.fleet.messages import NodeInfo, Progress, ProgressRequest
from edgewise.fleet.node.node import Node
from edgewise.transport.keys import Keys

log = logging.getLogger("edgewise.fleet")

ASK_EVERY_S = 1.0
"""How often a worker's counter is asked while its work is awaited."""
INFO_RETRY = Backoff(0.05, most_s=2.0)
"""Waits between attempts to have a node prove itself while its liveliness token is present."""
CLAIM_RETRY = Backoff(0.05, most_s=30.0)
"""The same where the node is known and a token claims a newer incarnation that nobody proves."""
PROVE_EVERY_S = 30.0
"""How often nodes that are here prove it again, where this is asked for: a token may outlive its node."""
MOST_SILENT = 3
"""Proofs in a row that may be missing; and a minute of counters that nobody answers."""
MOST_SILENT_COUNTERS = 60
PROVED_AT_ONCE = 16


class Watch:
    """Watches the other nodes of a fleet.

    Attributes:
        members: The view, folded.
    """

    def __init__(
        self,
        node: Node,
        *,
        ready: Callable[[NodeInfo], None] = lambda _: None,
        lost: Callable[[NodeId, str], None] = lambda *_: None,
        tiers: Iterable[Tier] = tuple(Tier),
        ask_every_s: float = ASK_EVERY_S,
        prove_every_s: float | None = None,
        proved: Callable[[NodeInfo], None] = lambda _: None,
    ) -> None:
        """Makes a watch; `start` begins.

        Args:
            node: Who watches.
            ready: Called with the info of a node that is alive (again) and known.
            lost: Called with a node that is lost, and why.
            tiers: Tiers to watch.
            ask_every_s: How often an awaited worker's counter is asked.
            prove_every_s: How often those who are here prove it again; None never asks.
            proved: Called with the info of each that does.
        """
        self.members = Membership()
        self._node = node
        self._ready = ready
        self._lost = lost
        self._proved = proved
        self._tiers = frozenset(tiers)
        self._ask_every_s, self._prove_every_s = ask_every_s, prove_every_s
        self._claims: dict[NodeId, asyncio.Event] = {}
        self._silent: Counter[NodeId] = Counter()
        self._awaited: set[NodeId] = set()
        self._asking: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()

    async def start(self) -> None:
        """Starts to watch liveliness tokens on the node's uplink."""
        await self._node.transport.watch_presence(self._node.keys.alive("*", "*", "*"), self._presence)
        if self._prove_every_s is not None:
            self._node.spawn(self._prove_again(self._prove_every_s), "proofs of presence")

    def expect(self, nodes: Iterable[NodeId]) -> None:
        """Sets whose work is awaited; their progress counters, and those of suspects, are queried until it is done."""
        self._awaited = set(nodes)
        if self._asked and (self._asking is None or self._asking.done()):
            self._asking = self._node.spawn(self._ask_progress(), "progress watch")

    async def wait_for(self, condition: Callable[[Membership], bool], timeout_s: float) -> bool:
        """Waits until the view meets a condition or the deadline passes.

        Args:
            condition: Tells whether it does.
            timeout_s: Deadline.

        Returns:
            Whether it did by then.
        """
        try:
            async with asyncio.timeout(timeout_s):
                while not condition(self.members):
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            return condition(self.members)
        return True

    def _presence(self, key: str, there: bool) -> None:
        try:
            tier, node, generation = Keys.read_alive(key)
        except FrameRefused as error:
            self._refuse_token("a liveliness token that is none", error)
            return
        if node == self._node.name or tier not in self._tiers:
            return
        if there:
            try:
                self._node.verifier.check_generation(node, generation)
            except IdentityRefused as error:
                self._refuse_token(f"a liveliness token of {node} from the future", error)
                return
        appeared = membership.NodeAppeared(node, tier, generation)
        self._fold(appeared if there else membership.NodeVanished(node, tier, generation))

    def _refuse_token(self, what: str, error: EdgewiseError) -> None:
        if what not in self._node.refused:  # once: whoever can declare one can declare it ten times a second
            log.warning("%s refuses %s: %s", self._node.name, what, error)
        self._node.count_refusal(what)

    def _fold(self, event: membership.Event) -> None:
        self.members, actions = membership.step(self.members, event)
        for action in actions:
            match action:
                case membership.AskInfo(node):
                    self._have_asked(node)
                case membership.TellDisplaced(node, newer):
                    info = self.members.members[node].info
                    if info is None or info.capability.cores > 0:  # of operators there may be several
                        log.warning("%s: a newer process of %s displaces an older one", self._node.name, node)
                        self._node.spawn(self._node.tell_displaced(node, newer), f"tell {node} that it is displaced")
                case membership.NodeLost(node, cause):
                    info = self.members.members[node].info
                    works = info is None or info.capability.cores > 0  # an operator just has asked what it wanted
                    log.log(logging.WARNING if works else logging.DEBUG, "%s: %s", self._node.name, cause)
                    self._silent.pop(node, None)
                    self._lost(node, cause)
                case membership.NodeReady(info, after):
                    if after:
                        log.warning("%s: %s is back; %s", self._node.name, info.node, after)
                    self._ready(info)
        self._changed.set()

    def _have_asked(self, node: NodeId) -> None:
        if node in self._claims:
            self._claims[node].set()
        else:
            self._claims[node] = asyncio.Event()
            self._node.spawn(self._have_proved(node), f"proof of {node}")

    async def _have_proved(self, node: NodeId) -> None:
        """Asks a node to prove itself until nothing is claimed of it that is not proved."""
        claim, attempt, is_told = self._claims[node], 0, False
        try:
            while self.members.is_open(node):
                claim.clear()
                try:
                    for info in await self._node.proofs_of(node):
                        self._described(info)
                except IdentityRefused as error:
                    if not is_told:
                        log.warning("%s does not count %s in: %s", self._node.name, node, error)
                    is_told = True
                except EdgewiseError as error:
                    log.info("%s: no proof of %s yet: %s", self._node.name, node, error)
                if not self.members.is_open(node):
                    return
                is_here = self.members.members[node].state in (NodeState.ALIVE, NodeState.SUSPECTED)
                wait_s = (CLAIM_RETRY if is_here else INFO_RETRY).delay_s(attempt)
                attempt += 1
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait_s):
                        await claim.wait()
                        attempt = 0
        finally:
            del self._claims[node]

    def _described(self, info: NodeInfo) -> None:
        self._silent.pop(info.node, None)
        if info.tier in self._tiers:
            self._fold(membership.NodeDescribed(info))

    async def _prove_again(self, every_s: float) -> None:
        """Finds tokens that outlived their nodes: nobody answers for them."""
        gate = asyncio.Semaphore(PROVED_AT_ONCE)

        async def prove(node: NodeId) -> None:
            async with gate:
                try:
                    for info in await self._node.proofs_of(node):
                        self._described(info)
                        self._proved(info)
                except EdgewiseError as error:
                    self._missed(node, MOST_SILENT, error)

        while True:
            await asyncio.sleep(every_s)
            await asyncio.gather(*(prove(member.node) for member in self.members.alive()))

    def _missed(self, node: NodeId, most: int, error: EdgewiseError) -> None:
        self._silent[node] += 1
        member = self.members.members.get(node)
        if self._silent[node] >= most and member is not None:
            log.info("%s: %s did not answer %d times: %s", self._node.name, node, self._silent[node], error)
            self._fold(membership.NodeUnanswered(node, member.generation))
            self._have_asked(node)

    @property
    def _asked(self) -> set[NodeId]:
        """Returns the nodes whose counter is queried: awaited ones and suspects, who may recover."""
        members = self.members.members.values()
        return self._awaited | {m.node for m in members if m.state is NodeState.SUSPECTED}

    async def _ask_progress(self) -> None:
        while self._asked:
            await asyncio.sleep(self._ask_every_s)
            await asyncio.gather(*(self._ask_counter(node) for node in sorted(self._asked)))

    async def _ask_counter(self, node: NodeId) -> None:
        try:
            progress = await self._node.ask(
                node, "progress", ProgressRequest(), Progress, timeout_s=max(self._ask_every_s, 0.1)
            )
        except EdgewiseError as error:
            return self._missed(node, MOST_SILENT_COUNTERS, error)  # before that it is the token's business
        self._silent.pop(node, None)
        self._fold(membership.ProgressObserved(node, progress))
