"""Costs of one graph on one chain of tiers: profiles, links, coded sizes and an energy model as look-ups.

Nothing here decides. `search.py` turns a `CostTable` into problems for a planner, `predict.py` into predictions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import pairwise
from math import inf, sqrt

import msgspec
import numpy as np

from edgewise.codecs import make_codec
from edgewise.core.errors import InputError
from edgewise.core.ids import TIERS, Digest, Tier, digest_of
from edgewise.models.graph.graph import Graph
from edgewise.planning.plan import Handover
from edgewise.planning.profile import LinkState, Profile

_write = msgspec.msgpack.Encoder().encode
KEEPS_THE_INPUT = frozenset({"none", "uint8", "png"})
"""Codecs that give an 8-bit input back as it came, so that no accuracy is lost by sending it."""


class EnergyCost(msgspec.Struct, frozen=True):
    """Energy of the device per request; modelled, never measured.

    E = active_power_w · compute seconds + idle_power_w · waiting seconds
        + joules_per_byte · bytes sent + radio_tail_j if anything is sent

    Attributes:
        active_power_w: Power while computing.
        joules_per_byte: Energy of sending one byte.
        idle_power_w: Power while waiting for an answer.
        radio_tail_j: Energy of the radio staying awake after a transfer.
    """

    active_power_w: float
    joules_per_byte: float
    idle_power_w: float = 0.0
    radio_tail_j: float = 0.0


@dataclass(frozen=True)
class CostTable:
    """Everything a prediction is made from.

    Attributes:
        graph: What is planned.
        profiles: Measured costs of each tier there is.
        links: Device–edge, edge–cloud; the second may be missing.
        sizes: Coded bytes by (codec, tensor) where measured; the codec itself is asked otherwise.
        energy: The device's energy; by default the device profile's power and the first link's joules per byte.
        slowdown: Factors on a tier's profiled seconds, as observed; 1 where nothing was.
    """

    graph: Graph
    profiles: Mapping[Tier, Profile]
    links: Sequence[LinkState]
    sizes: Mapping[tuple[str, str], int] = field(default_factory=dict)
    energy: EnergyCost = EnergyCost(0.0, 0.0)
    slowdown: Mapping[Tier, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.graph.check_sizes()
        for tier, profile in self.profiles.items():
            if profile.fingerprint.graph != self.graph.digest:
                raise InputError(
                    f"the profile of {tier} node {profile.node!r} was measured on graph "
                    f"{profile.fingerprint.graph[:12]}, this is graph {self.graph.digest[:12]}. Profile it again."
                )
            missing = [g.name for g in self.graph.condensed.groups if g.name not in self._by_group[tier]]
            if missing:
                raise InputError(
                    f"the profile of {tier} node {profile.node!r} lacks group {missing[0]!r} and {len(missing) - 1} "
                    "more of this graph. Profile it again."
                )

    @cached_property
    def tiers(self) -> tuple[Tier, ...]:
        """Tiers that could run something: profiled, and reachable over known links."""
        return tuple(t for t in TIERS if t in self.profiles and t.rank <= len(self.links))

    @cached_property
    def digests(self) -> tuple[Digest, ...]:
        """Names the profiles, from the device outward."""
        return tuple(digest_of(msgspec.msgpack.encode(self.profiles[t])) for t in TIERS if t in self.profiles)

    @cached_property
    def _by_group(self) -> dict[Tier, dict[str, tuple[float, float]]]:
        return {t: {g.group: (g.seconds, g.p95_seconds) for g in p.groups} for t, p in self.profiles.items()}

    @cached_property
    def _segments(self) -> dict[Tier, dict[tuple[int, int], tuple[float, float]]]:
        return {
            t: {(s.first, s.last): (s.seconds, s.p95_seconds) for s in p.segments} for t, p in self.profiles.items()
        }

    def group_seconds(self, tier: Tier, index: int, *, p95: bool = False) -> float:
        """Seconds of one fusion group on a tier.

        Args:
            tier: Where.
            index: The group's index.
            p95: The 95th percentile instead of the median.

        Returns:
            Seconds, dilation and observed slowdown included.
        """
        cost = self._by_group[tier][self.graph.condensed.groups[index].name]
        return cost[1 if p95 else 0] * self.slowdown.get(tier, 1.0)

    def segment_seconds(self, tier: Tier, indices: Iterable[int]) -> tuple[float, float]:
        """Seconds of a set of groups run in one call: measured where the very range was, else the sum and the call.

        Args:
            tier: Where.
            indices: Group indices.

        Returns:
            (median, 95th percentile).
        """
        wanted = sorted(indices)
        if not wanted:
            return 0.0, 0.0
        factor = self.slowdown.get(tier, 1.0)
        call_s = self.profiles[tier].call_s
        median, variance = call_s, 0.0
        for first, last in _runs(wanted):
            measured = self._segments[tier].get((first, last))
            names = (self.graph.condensed.groups[i].name for i in range(first, last + 1))
            parts = [measured] if measured else [self._by_group[tier][name] for name in names]
            median += max(0.0, measured[0] - call_s) if measured else sum(p[0] for p in parts)
            variance += sum(max(0.0, p[1] - p[0]) ** 2 for p in parts)
        around = self._segments[tier].get((wanted[0], wanted[-1]), (inf, inf))
        # Leaving groups out of a measured range cannot make it slower, though a call per run would.
        best = min((median, median + sqrt(variance)), around)
        return best[0] * factor, best[1] * factor

    def overhead_s(self, tier: Tier) -> float:
        """Fixed cost of a stage call on a tier; 0 for a tier without a profile, which only relays."""
        return self.profiles[tier].overhead_s if tier in self.profiles else 0.0

    def overhead_spread_s(self, tier: Tier) -> float:
        """How far the 95th percentile of a stage call's fixed cost is above its median; 0 where it is not known."""
        profile = self.profiles.get(tier)
        return 0.0 if profile is None else max(0.0, profile.overhead_p95_s - profile.overhead_s)

    def call_s(self, tier: Tier) -> float:
        """What running anything at all on a tier costs: the fixed part of a session's run."""
        return self.profiles[tier].call_s * self.slowdown.get(tier, 1.0) if tier in self.profiles else 0.0

    def coded_bytes(self, codec: str, tensor: str) -> int:
        """Bytes of one tensor after its codec.

        Args:
            codec: Spec text.
            tensor: Name.

        Returns:
            The measured size; else the size of a noise tensor after the codec, which is exact for codecs whose size
            depends on the shape alone and an upper estimate for entropy coders.
        """
        if (codec, tensor) in self.sizes:
            return self.sizes[codec, tensor]
        known = self.graph.tensor(tensor)
        return _noise(codec, known.shape, known.dtype)[0]

    def header_bytes(self, codec: str, tensor: str) -> int:
        """Bytes on the wire that say a coded tensor's name, dtypes and shapes."""
        known = self.graph.tensor(tensor)
        return _header_bytes(tensor, known.shape, _noise(codec, known.shape, known.dtype)[1])

    def sent_bytes(self, handover: Handover, link: int) -> float:
        """Bytes of a hand-over on the wire of a link: its payload, what names it, and the frame around both."""
        named = sum(self.header_bytes(handover.codec, tensor) for tensor in handover.tensors)
        return float(handover.payload_bytes + named + self.links[link].frame_overhead_bytes)

    def answered_bytes(self, tensors: Iterable[str]) -> int:
        """Bytes of an answer's tensors on the wire; they travel as they are."""
        return sum(
            known.size_bytes + len(_write((known.name, known.dtype, known.shape, ())))
            for known in map(self.graph.tensor, tensors)
        )

    def codec_seconds(self, tier: Tier, codec: str, tensor: str) -> float:
        """Seconds of one end of a codec; a profile holds seconds per uncoded byte of both ends together."""
        profile = self.profiles.get(tier)
        rate = 0.0 if profile is None else profile.codecs.get(codec, 0.0)
        return 0.5 * rate * self.graph.tensor(tensor).size_bytes * self.slowdown.get(tier, 1.0)

    def hops(self, source: Tier, target: Tier) -> tuple[LinkState, ...]:
        """Links from one tier outward to another."""
        return tuple(self.links[source.rank : target.rank])

    def transfer_s(self, source: Tier, target: Tier, size_bytes: float) -> float:
        """Seconds to send bytes over every link between two tiers, one link after the other."""
        return sum(size_bytes / link.bytes_per_s for link in self.hops(source, target))

    def answer_s(self, source: Tier, target: Tier, tensors: Iterable[str]) -> float:
        """Seconds that an answer takes from a tier back to one further in, beside the round trips."""
        size = self.answered_bytes(tensors)
        return sum((size + link.answer_overhead_bytes) / link.bytes_per_s for link in self.hops(target, source))

    def fixed_s(self, source: Tier, target: Tier) -> float:
        """Cost of handing over at all: round trips, frame bytes, relays between, overhead and call at the target."""
        relays = [t for t in TIERS if source.rank < t.rank < target.rank]
        hops = sum(link.rtt_s + link.frame_overhead_bytes / link.bytes_per_s for link in self.hops(source, target))
        return hops + sum(self.overhead_s(t) for t in (*relays, target)) + self.call_s(target)


def default_energy(profiles: Mapping[Tier, Profile], links: Sequence[LinkState]) -> EnergyCost:
    """The energy model that profiles and links imply.

    Args:
        profiles: With the device's `active_power_w`.
        links: The first with `joules_per_byte`.

    Returns:
        The model, without idle power and radio tail.
    """
    device = profiles.get(Tier.DEVICE)
    return EnergyCost(device.active_power_w if device else 0.0, links[0].joules_per_byte if links else 0.0)


def _runs(indices: Sequence[int]) -> list[tuple[int, int]]:
    """Maximal runs of consecutive numbers, as (first, last)."""
    if not indices:
        return []
    breaks = [n for n, (a, b) in enumerate(pairwise(indices)) if b != a + 1]
    starts, ends = [0, *(n + 1 for n in breaks)], [*breaks, len(indices) - 1]
    return [(indices[a], indices[b]) for a, b in zip(starts, ends, strict=True)]


_Parts = tuple[tuple[str, str, tuple[int, ...]], ...]
"""Of a coded tensor: name, dtype and shape of each array that travels."""


@lru_cache(maxsize=65536)
def _noise(codec: str, shape: tuple[int, ...], dtype: str) -> tuple[int, _Parts]:
    """Coded bytes of noise, and the arrays it travels as."""
    entries = int(np.prod(shape))
    if codec == "uint8" or codec == "png":
        size = entries + (67 + shape[-2] if codec == "png" and len(shape) > 1 else 0)
        return size, (("values", "uint8", shape),)
    if dtype != "float32" or codec == "none":
        return entries * int(np.dtype(dtype).itemsize), (("values", dtype, shape),)
    built = make_codec(codec)
    noise = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    payload = built.encode(noise, built.init(shape), np.random.default_rng(0))[0]
    return payload.size_bytes, tuple((n, str(a.dtype), a.shape) for n, a in payload.arrays.items())


@lru_cache(maxsize=65536)
def _header_bytes(name: str, shape: tuple[int, ...], parts: _Parts) -> int:
    """Bytes that name a tensor and its arrays in a message and in its frame's header, as msgpack writes them."""
    headers = sum(len(_write((f"{name}/{part}", dtype, size, ()))) for part, dtype, size in parts)
    return len(_write((name, shape))) + headers
