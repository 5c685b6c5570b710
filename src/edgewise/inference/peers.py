"""Nodes that may run the next stages, best first, with a breaker each: pure values and a small table of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from edgewise.core.backoff import Backoff
from edgewise.core.errors import Busy, DeadlineExceeded, EdgewiseError, Unreachable
from edgewise.core.ids import NodeId
from edgewise.planning.plan import Site
from edgewise.transport.transport import Transport

_MOST_DEADLINES = 2.0**6
_ITS_OWN = frozenset((Busy.code, DeadlineExceeded.code, "internal"))


@dataclass(frozen=True, slots=True)
class Breaker:
    """Whether a node is worth asking.

    Attributes:
        is_present: False once its liveliness token is gone.
        failures: Failures in a row.
        retry_at_s: Not asked before; then with one request at a time until it answers.
    """

    is_present: bool = True
    failures: int = 0
    retry_at_s: float = 0.0

    def allows(self, now_s: float) -> bool:
        """Whether it may be asked now."""
        return self.is_present and (self.failures == 0 or now_s >= self.retry_at_s)

    def asked(self, now_s: float, budget_s: float) -> Breaker:
        """A node on trial gets one request, then none for one deadline."""
        return self if self.failures == 0 else replace(self, retry_at_s=now_s + budget_s)

    def failed(self, now_s: float, budget_s: float) -> Breaker:
        """Left alone for 1, 2, 4, … deadlines of the work that failed; nobody tunes a time-out."""
        wait = Backoff(budget_s, most_s=_MOST_DEADLINES * budget_s)
        return replace(self, failures=self.failures + 1, retry_at_s=now_s + wait.delay_s(self.failures))

    def succeeded(self) -> Breaker:
        """Asked as usual again."""
        return self if self.failures == 0 else replace(self, failures=0, retry_at_s=0.0)


def is_peers_fault(error: EdgewiseError) -> bool:
    """Whether an error speaks against the node that was asked, rather than against the question.

    Args:
        error: What asking it raised.

    Returns:
        True if it is unreachable, late or full; a refused plan revision or a forbidden payload is not its fault.
    """
    return isinstance(error, (Unreachable, DeadlineExceeded)) or error.fields.get("remote_code") in _ITS_OWN


@dataclass(frozen=True, slots=True)
class Target:
    """A node that can run the next stages, and the way to it.

    Attributes:
        node: Its name.
        transport: The session that reaches it, e.g. the warm one to another edge.
        key: Its `stage` service.
    """

    node: NodeId
    transport: Transport
    key: str


class Peers:
    """Targets in order of preference, each behind its breaker."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._targets: dict[NodeId, Target] = {}
        self._breakers: dict[NodeId, Breaker] = {}

    def replace(self, targets: Sequence[Target]) -> None:
        """Sets the targets; what is known of nodes that stay is kept."""
        self._targets = {t.node: t for t in targets}
        self._breakers = {t.node: self._breakers.get(t.node, Breaker()) for t in targets}

    def target(self, node: str) -> Target:
        """The target of that name.

        Raises:
            Unreachable: If it is none any more.
        """
        name = NodeId(node)
        if name not in self._targets:
            raise Unreachable(f"{node!r} is no longer a node of the next tier. Ask one of {list(self._targets)}.")
        return self._targets[name]

    def knows(self, node: str) -> bool:
        """Whether the node is (still) a target."""
        return node in self._targets

    def usable(self) -> tuple[str, ...]:
        """Names of targets that may be asked now, best first."""
        now = self._now()
        return tuple(n for n in self._targets if self._breakers[n].allows(now))

    @property
    def first(self) -> str:
        """The preferred target, usable or not; "" without targets."""
        return next(iter(self._targets), "")

    def asked(self, node: str, budget_s: float) -> None:
        """A request goes there now."""
        self._change(node, lambda b: b.asked(self._now(), budget_s))

    def failed(self, node: str, budget_s: float) -> None:
        """It failed a request that had `budget_s`."""
        self._change(node, lambda b: b.failed(self._now(), budget_s))

    def succeeded(self, node: str) -> None:
        """It answered."""
        self._change(node, Breaker.succeeded)

    def lost(self, node: str) -> None:
        """Its liveliness token is gone."""
        self._change(node, lambda b: replace(b, is_present=False))

    def returned(self, node: str) -> None:
        """Its liveliness token is back: asked as usual, whatever was before."""
        self._change(node, lambda b: Breaker())

    def _change(self, node: str, change: Callable[[Breaker], Breaker]) -> None:
        name = NodeId(node)
        if name in self._breakers:
            self._breakers[name] = change(self._breakers[name])


class SitePeers:
    """Targets by the site at which they stand; a site without a list of its own takes the general one."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._general = Peers(now)
        self._by_site: dict[Site, Peers] = {}

    def replace(self, targets: Sequence[Target], site: Site | None = None) -> None:
        """Sets the targets of a site, or the general ones."""
        peers = self._general if site is None else self._by_site.setdefault(site, Peers(self._now))
        peers.replace(targets)

    def at(self, site: Site | None) -> Peers:
        """Targets of a site."""
        return self._general if site is None else self._by_site.get(site, self._general)

    def lost(self, node: str) -> None:
        """Its liveliness token is gone."""
        for peers in (self._general, *self._by_site.values()):
            peers.lost(node)

    def returned(self, node: str) -> None:
        """Its liveliness token is back."""
        for peers in (self._general, *self._by_site.values()):
            peers.returned(node)
