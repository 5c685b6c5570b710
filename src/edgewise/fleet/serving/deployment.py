"""A deployment, and what is known of one model's: the history in the log, what is in force, the rollout in progress."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import msgspec

from edgewise.core.ids import Revision
from edgewise.fleet.messages import Deploy
from edgewise.fleet.serving.rollout_driver import RolloutDriver
from edgewise.planning.policy import Policy


class Deployment(msgspec.Struct, frozen=True):
    """A version of a model along plans, in force or on its way there.

    Attributes:
        model: Which model.
        deploy: Version and plans.
        revision: Of the first plan.
        policy: What its operator asked for; plans of this model keep to it until another is given.
        overridden: What spoke against the version, where an operator had it served all the same.
    """

    model: str
    deploy: Deploy
    revision: Revision
    policy: Policy = Policy()
    overridden: str = ""


@dataclass(slots=True)
class ModelDeployments:
    """One model: what served, what serves, and the rollout in progress.

    Attributes:
        history: What was in force, newest last; it is in force.
        busy: Held by whoever changes it.
        rollout: In progress; None if none is.
        rolling_out: What it brings.
    """

    history: list[Deployment] = field(default_factory=list)
    busy: asyncio.Lock = field(default_factory=asyncio.Lock)
    rollout: RolloutDriver | None = None
    rolling_out: Deployment | None = None

    @property
    def current(self) -> Deployment | None:
        """What is in force; None before the first deployment."""
        return self.history[-1] if self.history else None

    @property
    def needed(self) -> list[int]:
        """Versions that must not go: in force, the one to go back to, and the one on its way."""
        coming = [] if self.rolling_out is None else [self.rolling_out]
        return [deployment.deploy.version for deployment in (*self.history[-2:], *coming)]
