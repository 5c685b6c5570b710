"""What speaks against a deployment before anything is installed: its version, the grants of nodes, the codecs of its plans."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from edgewise.core.errors import InputError
from edgewise.core.ids import Tier
from edgewise.fleet.messages import Deploy, NodeInfo
from edgewise.fleet.serving.raw_grants import refusal_of
from edgewise.fleet.serving.versions import VersionStore
from edgewise.lifecycle.admission import Admission, admit
from edgewise.models.version import GateResult


@dataclass(frozen=True, slots=True)
class DeployCheck:
    """What was found.

    Attributes:
        refusal: Why not; "" if nothing speaks against it, or what did is overridden.
        admission: Of its version.
        codec_gates: What the gates of coded hand-overs said.
    """

    refusal: str = ""
    admission: Admission = Admission()
    codec_gates: tuple[str, ...] = ()


def admission_of(
    versions: VersionStore, number: int, serves: int, *, force: bool, ungated: bool
) -> tuple[Admission, GateResult | None]:
    """Whether a version may serve in place of another; may take the time of two passes over the gate's examples.

    Args:
        versions: The registry.
        number: Which version.
        serves: The version of its model in force; 0 for none.
        force: As `Deploy.force`.
        ungated: As `Deploy.ungated`.

    Returns:
        The answer, and the comparison behind it.
    """
    gate, missing = versions.comparison(number, serves)
    version = versions.get(number)
    return admit(version, serves, gate, missing=missing, force=force, ungated=ungated), gate


async def check_deployment(
    wanted: Deploy,
    versions: VersionStore,
    serves: int,
    infos: Iterable[NodeInfo],
    on_event: Callable[[str, dict[str, Any]], None],
) -> DeployCheck:
    """Looks at a deployment.

    Args:
        wanted: What is asked for.
        versions: The registry.
        serves: The version of its model in force; 0 for none.
        infos: Nodes that are here.
        on_event: Takes what gates of codecs said.

    Returns:
        What was found.

    Raises:
        InputError: If it has no plan, or its share is no number above 0.
    """
    version = versions.get(wanted.version)
    if not wanted.plans:
        raise InputError("a deployment needs at least one plan. Plan first, e.g. with `edgewise plan`.")
    if not 0.0 < wanted.share < float("inf"):
        raise InputError(f"the share of {version.task!r} is {wanted.share}, it must be a number > 0.")
    admission, _ = await asyncio.to_thread(
        admission_of, versions, wanted.version, serves, force=wanted.force, ungated=wanted.ungated
    )
    if admission.refusal:
        return DeployCheck(admission.refusal)
    known = tuple(infos)
    for tier in (Tier.DEVICE, Tier.EDGE):
        grants = {info.node: info.raw_may_reach for info in known if info.tier is tier}
        if refusal := refusal_of(wanted.plans, tier, grants):
            return DeployCheck(refusal)
    reasons = []
    for plan in wanted.plans:
        gate = await asyncio.to_thread(versions.codec_gate, wanted.version, plan, wanted.hints)
        if gate is None:
            continue
        on_event("codec_gate", {"model": version.task, "plan": plan.name, "passed": gate.passed, "reason": gate.reason})
        if not gate.passed:
            return DeployCheck(f"plan {plan.name!r} loses too much where it hands over: {gate.reason}")
        reasons.append(gate.reason)
    return DeployCheck("", admission, tuple(reasons))
