"""Links of a loopback fabric as they are on a bad day: late, lost, twice, out of order, one way only, changed, replayed."""

from __future__ import annotations

import asyncio
import contextvars
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from edgewise.core.ids import NodeId
from edgewise.transport.loopback import Parcel

LATENCY_S = 0.001
"""Least time a frame is under way."""
LEASE_S = 2.0
"""After so long without a sign of life a link is given up, as routers do."""
MOST_REMEMBERED = 64


@dataclass
class Weather:
    """What happens to the frames of one node, each a chance in 0…1.

    Attributes:
        lose, duplicate, corrupt: Per frame, sent or received.
        delay_s: Longest extra delay.
        reorder: Chance that a frame is overtaken by later ones.
        deaf, mute: Nothing arrives at it; nothing leaves it.
    """

    lose: float = 0.0
    duplicate: float = 0.0
    corrupt: float = 0.0
    delay_s: float = 0.0
    reorder: float = 0.0
    deaf: bool = False
    mute: bool = False


@dataclass
class FaultyLinks:
    """Carries the frames of a fabric.

    Args:
        rng: Draws delays and losses.
        on_parcel: Told of every parcel as it is sent; may end the process of its sender.

    Attributes:
        weather: By node.
        sent_bytes: Bytes of frames by node, as they were handed over; received likewise where they arrived.
        remembered: Some queries that were sent, with what has them arrive: what a crafted peer replays.
    """

    rng: random.Random
    on_parcel: Callable[[Parcel], None] = lambda _: None
    weather: dict[NodeId, Weather] = field(default_factory=dict)
    sent_bytes: Counter[NodeId] = field(default_factory=Counter)
    received_bytes: Counter[NodeId] = field(default_factory=Counter)
    remembered: list[tuple[Parcel, Callable[[Any], None]]] = field(default_factory=list)
    _counted: Any = None
    _due: dict[tuple[NodeId, NodeId], float] = field(default_factory=dict)

    def carry(self, parcel: Parcel, arrive: Callable[[Any], None]) -> None:
        """As `Carrier.carry`."""
        if parcel.what in ("query", "answer") and parcel.content is not self._counted:  # one query may go to several
            self.sent_bytes[parcel.sender] += len(parcel.content)
            self._counted = parcel.content
        self.on_parcel(parcel)
        if parcel.what == "query":
            self._remember(parcel, arrive)
        one, other = self.weather.get(parcel.sender, _FAIR), self.weather.get(parcel.receiver, _FAIR)
        if parcel.what == "presence":  # routers tell it on a session of their own, in order
            self._deliver(parcel, arrive, self._delay_s(parcel, one, other), in_order=True)
            return
        if one.mute or other.deaf or self._happens(one.lose, other.lose):
            return
        times = 2 if self._happens(one.duplicate, other.duplicate) else 1
        for _ in range(times):
            content = parcel.content
            if self._happens(one.corrupt, other.corrupt):
                content = self._flipped(content)
            in_order = not self._happens(one.reorder, other.reorder)
            changed = Parcel(parcel.what, parcel.sender, parcel.receiver, parcel.key, content)
            self._deliver(changed, arrive, self._delay_s(parcel, one, other), in_order=in_order)

    def of(self, node: str) -> Weather:
        """The weather of a node, to be changed."""
        return self.weather.setdefault(NodeId(node), Weather())

    def last_due_s(self, node: NodeId) -> float:
        """When the last of what a node sent in order arrives; now or before where nothing is under way."""
        return max((due for (sender, _), due in self._due.items() if sender == node), default=0.0)

    def _delay_s(self, parcel: Parcel, one: Weather, other: Weather) -> float:
        draw = self.rng.random()
        return LATENCY_S * (1.0 + 4.0 * draw * draw) + max(one.delay_s, other.delay_s) * self.rng.random()

    def _deliver(self, parcel: Parcel, arrive: Callable[[Any], None], delay_s: float, *, in_order: bool) -> None:
        loop, way = asyncio.get_running_loop(), (parcel.sender, parcel.receiver)
        due = loop.time() + delay_s
        if in_order:
            due = self._due[way] = max(due, self._due.get(way, 0.0) + 1e-6)
        loop.call_at(due, self._arrive, parcel, arrive, context=_OUTSIDE)

    def _arrive(self, parcel: Parcel, arrive: Callable[[Any], None]) -> None:
        if isinstance(parcel.content, bytes):
            self.received_bytes[parcel.receiver] += len(parcel.content)
        arrive(parcel.content)

    def _happens(self, one: float, other: float) -> bool:
        chance = max(one, other)
        return chance > 0.0 and self.rng.random() < chance

    def _flipped(self, content: bytes) -> bytes:
        data = bytearray(content)
        for _ in range(1 + int(self.rng.random() * 3)):
            data[int(self.rng.random() * len(data))] ^= 1 << int(self.rng.random() * 8)
        return bytes(data)

    def _remember(self, parcel: Parcel, arrive: Callable[[Any], None]) -> None:
        if len(self.remembered) < MOST_REMEMBERED:
            self.remembered.append((parcel, arrive))
        else:
            self.remembered[int(self.rng.random() * MOST_REMEMBERED)] = (parcel, arrive)


_FAIR = Weather()
_OUTSIDE = contextvars.Context()
"""What is under way belongs to no process: it arrives also after its sender is gone."""
