"""Decides which class of data may reach which tier; the frame encoder asks before a byte leaves.

Data classes come from the value itself (`core/provenance.py`): `raw` until a trained model or a training step made
something new of it. What may leave is granted here, once, by the operator of the node that holds the data.

Example:
    >>> DataPolicy().allow(frozenset({"raw"}), Tier.EDGE)
    Traceback (most recent call last):
    ...
    edgewise.core.errors.PolicyViolation: data of class 'raw' may not leave its device, it was to go to tier edge. ...
    >>> DataPolicy(raw=Tier.EDGE).allow(frozenset({"raw"}), Tier.EDGE)
"""

from __future__ import annotations

import threading
from collections import Counter

import msgspec

from edgewise.core.errors import PolicyViolation
from edgewise.core.ids import TIERS, Tier
from edgewise.core.provenance import Origins


class DataPolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Names the outermost tier each class of data may reach; by default raw data stays on its device.

    `device` means the very device: whatever travels in a frame leaves it, also to another device.

    Attributes:
        raw: Examples, inputs and labels, in any encoding.
        feature: Activations at a cut, after a layer with trained weights.
        update: What local training sends.
        answer: What a model answers.
        public: Data that belongs to nobody, e.g. a public holdout set.
    """

    raw: Tier = Tier.DEVICE
    feature: Tier = Tier.CLOUD
    update: Tier = Tier.CLOUD
    answer: Tier = Tier.CLOUD
    public: Tier = Tier.CLOUD

    def allow(self, origins: Origins, target: Tier) -> None:
        """Allows data towards a tier, or raises.

        Args:
            origins: Data classes the value descends from.
            target: Tier of the node it would reach.

        Raises:
            PolicyViolation: If one class may not go that far; an unknown class may go nowhere.
        """
        for data_class in sorted(origins):
            limit = getattr(self, data_class, None) if data_class in self.__struct_fields__ else None
            if limit is None:
                raise PolicyViolation(
                    f"data of class {data_class!r} is not named by the data policy, so it may not leave. "
                    f"Known classes: {', '.join(self.__struct_fields__)}.",
                    data_class=data_class,
                    tier=target.value,
                )
            if target.rank > limit.rank or limit is Tier.DEVICE:
                self._refuse(data_class, limit, target)

    @property
    def grants(self) -> dict[str, tuple[Tier, ...]]:
        """Returns per data class the tiers it may travel to; empty for what stays on its device."""
        return {
            name: () if getattr(self, name) is Tier.DEVICE else TIERS[: getattr(self, name).rank + 1]
            for name in self.__struct_fields__
        }

    def _refuse(self, data_class: str, limit: Tier, target: Tier) -> None:
        reach = "leave its device" if limit is Tier.DEVICE else f"go further than tier {limit.value}"
        raise PolicyViolation(
            f"data of class {data_class!r} may not {reach}, it was to go to tier {target.value}. "
            f"Plan so that it stays, or grant it in the data policy ({data_class} = {target.value!r}).",
            data_class=data_class,
            tier=target.value,
            limit=limit.value,
        )


class AuditEntry(msgspec.Struct, frozen=True, kw_only=True):
    """Counts the frames of one data class that were allowed or refused towards one tier.

    Attributes:
        data_class: The class.
        tier: The tier.
        granted: Whether it went.
        num_frames: Frames.
        size_bytes: Their size; 0 where refused.
    """

    data_class: str
    tier: Tier
    granted: bool
    num_frames: int
    size_bytes: int


class EgressAudit:
    """Applies a policy and counts what it allowed and refused; thread-safe."""

    def __init__(self, policy: DataPolicy) -> None:
        self.policy = policy
        self._frames: Counter[tuple[str, Tier, bool]] = Counter()
        self._bytes: Counter[tuple[str, Tier, bool]] = Counter()
        self._lock = threading.Lock()

    def allow(self, origins: Origins, target: Tier, size_bytes: int = 0) -> None:
        """Applies `DataPolicy.allow` and counts its outcome.

        Args:
            origins: Data classes.
            target: Tier it would reach.
            size_bytes: Bytes that would leave.

        Raises:
            PolicyViolation: As `DataPolicy.allow`.
        """
        try:
            self.policy.allow(origins, target)
        except PolicyViolation as error:
            self._count([str(error.fields["data_class"])], target, False, 0)
            raise
        self._count(sorted(origins), target, True, size_bytes)

    @property
    def entries(self) -> tuple[AuditEntry, ...]:
        """Returns the counts by class, tier and outcome."""
        with self._lock:
            return tuple(
                AuditEntry(
                    data_class=data_class,
                    tier=tier,
                    granted=granted,
                    num_frames=number,
                    size_bytes=self._bytes[data_class, tier, granted],
                )
                for (data_class, tier, granted), number in sorted(self._frames.items())
            )

    def _count(self, classes: list[str], target: Tier, granted: bool, size_bytes: int) -> None:
        with self._lock:
            for data_class in classes:
                self._frames[data_class, target, granted] += 1
                self._bytes[data_class, target, granted] += size_bytes


__all__ = ["AuditEntry", "DataPolicy", "EgressAudit"]
