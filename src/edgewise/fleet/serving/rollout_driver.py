"""One rollout of one model, live: performs what `lifecycle.rollout` decides, and feeds it what happens.

    driver = RolloutDriver(deployment, before, stages, limits, actions, node.spawn)
    cause = await driver.run()                     # "" once every device has it
    driver.on_event(RollbackRequested("…", now))   # meanwhile: an operator, the membership watch

A rollout is told apart by its revision, for a version may be deployed again along other plans.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol

from edgewise.core.errors import EdgewiseError
from edgewise.core.ids import NodeId
from edgewise.fleet.messages import Health
from edgewise.lifecycle import rollout
from edgewise.lifecycle.health import HealthLimits, HealthObserved

log = logging.getLogger("edgewise.fleet")
HEALTH_EVERY_S = 0.1


class RolloutActions(Protocol):
    """What a rollout needs done on devices."""

    async def install(self, device: NodeId) -> str:
        """Installs the new deployment; why not, "" if it did."""
        ...

    async def revert(self, device: NodeId) -> str:
        """Restores the former deployment, or none; why not, "" if it did."""
        ...

    async def health(self, device: NodeId) -> Health:
        """How the device's requests under the new deployment went."""
        ...


class RolloutDriver:
    """Drives one rollout to its end.

    Attributes:
        revision: What is rolled out.
        outcome: `completed` or `rolled_back`; "" while it goes on.
    """

    def __init__(
        self,
        revision: int,
        previous: int,
        stages: Sequence[Sequence[NodeId]],
        limits: HealthLimits,
        actions: RolloutActions,
        spawn: Callable[[Coroutine[Any, Any, None], str], Any],
    ) -> None:
        """Makes a driver; `run` begins.

        Args:
            revision: What is rolled out.
            previous: What every device goes back to; 0 for nothing.
            stages: Devices by stage.
            limits: When a stage is bad.
            actions: Installs, reverts, asks.
            spawn: Runs something beside, under a name.
        """
        self.revision, self.previous, self.outcome = revision, previous, ""
        self._stages, self._limits, self._actions, self._spawn = stages, limits, actions, spawn
        self._events: asyncio.Queue[rollout.RolloutEvent] = asyncio.Queue()
        self._ended = asyncio.Event()
        self._reported: dict[NodeId, tuple[int, int]] = {}

    def on_event(self, event: rollout.RolloutEvent) -> None:
        """Takes what happened elsewhere: a request to roll back, a node that is lost or has returned."""
        self._events.put_nowait(event)

    async def ended(self) -> str:
        """Waits for the end; returns the outcome."""
        await self._ended.wait()
        return self.outcome

    async def run(self) -> str:
        """Rolls out.

        Returns:
            Why it was taken back; "" if it completed.
        """
        try:
            return await self._run()
        finally:
            self._ended.set()

    async def _run(self) -> str:
        state, actions = rollout.start(
            self.revision, self.previous, self._stages, limits=self._limits, time=time.monotonic()
        )
        while True:
            for action in actions:
                match action:
                    case rollout.InstallVersion(device, _):
                        self._spawn(self._install(device), f"install on {device}")
                    case rollout.RevertVersion(device, _):
                        self._spawn(self._revert(device), f"revert {device}")
                    case rollout.WakeAt(moment):
                        wait_s = max(0.0, moment - time.monotonic())
                        asyncio.get_running_loop().call_later(wait_s, self.on_event, rollout.TimePassed(moment))
                    case rollout.EndRollout(outcome, cause):
                        self.outcome = outcome
                        return "" if outcome == "completed" else cause
                    case rollout.CompleteRollout():
                        pass  # recorded by the caller, once for log and registry
            if state.phase is rollout.RolloutPhase.WATCHING and self._events.empty():
                self._spawn(self._observe_health(state.present), "health")
            state, actions = rollout.step(state, await self._events.get())

    async def _install(self, device: NodeId) -> None:
        cause, now = await self._actions.install(device), time.monotonic()
        self.on_event(
            rollout.NodeUnhealthy(device, cause, now) if cause else rollout.NodeUpdated(device, self.revision, now)
        )

    async def _revert(self, device: NodeId) -> None:
        cause, now = await self._actions.revert(device), time.monotonic()
        self.on_event(  # one that cannot be reached gets what is in force when it returns
            rollout.InstalledNodeLost(device, now) if cause else rollout.NodeUpdated(device, self.previous, now)
        )

    async def _observe_health(self, devices: Sequence[NodeId]) -> None:
        for device in devices:
            try:
                self.on_event(self._news_of(device, await self._actions.health(device)))
            except EdgewiseError as error:
                # Whether it is away is for the fleet's watch to say: it may be back before this question fails.
                log.info("%s does not tell its health now: %s", device, error)
        await asyncio.sleep(HEALTH_EVERY_S)
        self.on_event(rollout.TimePassed(time.monotonic()))

    def _news_of(self, device: NodeId, seen: Health) -> HealthObserved:
        """What a device served since it was asked last; one that was started again counts anew."""
        requests, errors = self._reported.get(device, (0, 0))
        if seen.num_requests < requests:
            requests = errors = 0
        self._reported[device] = seen.num_requests, seen.num_errors
        return HealthObserved(
            node=device,
            version=int(seen.revision),
            num_requests=seen.num_requests - requests,
            num_errors=seen.num_errors - errors,
            time=time.monotonic(),
            p95_latency_s=seen.p95_latency_s or None,
        )
