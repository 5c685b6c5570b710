"""`Policy`: what a user wants and what is not allowed."""

from __future__ import annotations

import msgspec

from edgewise.core.ids import Tier


class Policy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Objective and limits of a plan.

    Attributes:
        objective: What to minimise: `latency` (expected), `latency_p95` or `device_energy`.
        raw_may_reach: Outermost tier raw inputs may reach; `device` keeps them on the device.
        features_may_reach: Outermost tier activations may reach.
        max_latency_s: Limit on predicted p95; None for none.
        min_accuracy: Floor on predicted accuracy, 0…1.
        max_device_energy_j: Limit per request.
        max_egress_bytes: Limit on bytes leaving the device per request.
        allowed_tiers: Tiers that may run a stage; pinning a level narrows this.
    """

    objective: str = "latency"
    raw_may_reach: Tier = Tier.CLOUD
    features_may_reach: Tier = Tier.CLOUD
    max_latency_s: float | None = None
    min_accuracy: float = 0.0
    max_device_energy_j: float | None = None
    max_egress_bytes: float | None = None
    allowed_tiers: tuple[Tier, ...] = (Tier.DEVICE, Tier.EDGE, Tier.CLOUD)
