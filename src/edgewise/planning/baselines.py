"""What people do without a planner: send the input, send it compressed, keep all on the device, quantise it."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import replace
from math import nan

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgewise.core.ids import Tier
from edgewise.planning.choose import find_best, violations
from edgewise.planning.levels import in_place_of
from edgewise.planning.plan import Plan
from edgewise.planning.policy import Policy
from edgewise.planning.search import Search

_PNG_FRAME_BYTES = 8 + 25 + 12 + 12


class BaselineRow(msgspec.Struct, frozen=True):
    """One plain way of serving.

    Attributes:
        name: `raw to edge`, `raw to cloud`, `PNG to cloud`, `device only`, `int8 on device`, and so of other variants.
        plan: Its plan; None if a tier or the quantised model is missing.
        allowed: Whether the policy allows it.
        reason: Why not; empty if allowed.
    """

    name: str
    plan: Plan | None
    allowed: bool
    reason: str = ""

    @property
    def predicted_p50_ms(self) -> float:
        """Median latency; NaN without a plan."""
        return nan if self.plan is None else self.plan.predicted.latency_p50_s * 1e3


def baselines(search: Search, variants: Sequence[Search] = ()) -> list[BaselineRow]:
    """Plans the plain ways of serving, each with the whole model.

    Args:
        search: The full search; sizes of `uint8` and `png` by input tensor are taken from its table where given.
        variants: The same for other graphs of the model, each with its own profile and evidence.

    Returns:
        Five rows, and one more for each variant beside `int8`.
    """
    others = {each.variant: each for each in in_place_of(search, variants)[1:]}
    ways: list[tuple[str, Search | None, Tier, str]] = [
        ("raw to edge", search, Tier.EDGE, "uint8"),
        ("raw to cloud", search, Tier.CLOUD, "uint8"),
        ("PNG to cloud", search, Tier.CLOUD, "png"),
        ("device only", search, Tier.DEVICE, "none"),
    ]
    names = dict.fromkeys(["int8", *others])
    ways += [(f"{name} on device", others.get(name), Tier.DEVICE, "none") for name in names]
    return [_row(name, source, tier, codec) for name, source, tier, codec in ways]


def _row(name: str, search: Search | None, tier: Tier, codec: str) -> BaselineRow:
    if search is None:
        return BaselineRow(name, None, False, "there is no quantised model")
    if tier not in search.table.tiers:
        return BaselineRow(name, None, False, f"there is no {tier}")
    ends = {key: row for key, row in search.exits.rows.items() if key[0] == search.exits.num_exits - 1 and not key[3]}
    free = replace(
        search,
        policy=Policy(search.policy.objective, allowed_tiers=(tier,)),
        exits=msgspec.structs.replace(search.exits, rows=ends),
        codecs=(codec,),
        runs_on=frozenset({tier}),
        reference_accuracy=0.0,
    )
    plan = find_best(free)
    if plan is None:
        return BaselineRow(name, None, False, "the model cannot be placed there")
    return BaselineRow(name, plan, *_allowed(plan, search))


def _allowed(plan: Plan, search: Search) -> tuple[bool, str]:
    tier, policy, least = plan.tiers[0], search.policy, search.reference_accuracy - search.max_accuracy_loss
    if tier not in policy.allowed_tiers:
        return False, f"tier '{tier}' is not allowed by the policy"
    if tier.rank > policy.raw_may_reach.rank:
        return False, f"raw inputs may reach '{policy.raw_may_reach}' only"
    if plan.predicted.accuracy < least:
        return False, f"accuracy would be {plan.predicted.accuracy:.3f}, at least {least:.3f} are wanted"
    broken = violations(plan, policy)
    if broken:
        return False, f"{broken[0].name} would be {broken[0].value:.4g}, the policy says {broken[0].bound:.4g}"
    return True, ""


def png_bytes(image: NDArray[np.uint8]) -> int:
    """Size of an image as PNG, each row filtered by what compresses it best in sum.

    Args:
        image: uint8[height, width] or uint8[height, width, channels].

    Returns:
        Bytes of the file with one IDAT chunk.
    """
    rows = image.reshape(image.shape[0], -1)
    channels = rows.shape[1] // image.shape[1]
    left = np.zeros_like(rows)
    left[:, channels:] = rows[:, :-channels]
    above = np.vstack([np.zeros_like(rows[:1]), rows[:-1]])
    smallest = None
    for kind, predicted in enumerate((np.zeros_like(rows), left, above)):
        data = np.hstack([np.full((len(rows), 1), kind, np.uint8), rows - predicted])
        size = len(zlib.compress(data.tobytes(), 9))
        smallest = size if smallest is None else min(size, smallest)
    assert smallest is not None
    return _PNG_FRAME_BYTES + smallest
