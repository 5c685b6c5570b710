"""Keeps a running fleet good without a person: drives `lifecycle.loop` from an operator's seat.

    keeper = Keeper(operator, LoopSettings(), labels="feedback", train=train, roll_out=roll_out, said=print)
    await keeper.run(turns=1)

The coordinator finds drifts, trains, judges at its gate and rolls out stage by stage; this decides what follows from what.
It keeps nothing: started again it finds the drift that is still there and begins the turn anew.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeVar

from edgewise.core.errors import DeadlineExceeded, EdgewiseError, InputError, Unreachable
from edgewise.core.ids import Tier
from edgewise.fleet.messages import Held
from edgewise.fleet.operator.operator import Operator
from edgewise.lifecycle import loop
from edgewise.lifecycle.loop import LoopPhase, LoopSettings, LoopState, TimelineNote
from edgewise.transport.frame import Frame

A = TypeVar("A")
LOOK_EVERY_S = 5.0
"""A drift is told by an event, which may be lost; so often the coordinator is asked all the same."""
COUNT_EVERY_S = 2.0
ROLLOUT_S = 600.0
"""How long a rollout that was not answered in time may still take."""
AGAIN_S = 1.0


class Keeper:
    """One loop over one fleet.

    Args:
        operator: Connection to the fleet.
        settings: How the loop acts.
        labels: Words of the source of labels; a teacher labels whatever devices hold, `feedback` what they were told.
        train: Trains from a version; returns the new one, or 0 and why there is none.
        roll_out: Plans a version and puts it in force; raises why not.
        said: Told what happens.
        away: Told why the coordinator does not answer.
    """

    def __init__(
        self,
        operator: Operator,
        settings: LoopSettings,
        *,
        labels: str,
        train: Callable[[int], Awaitable[tuple[int, str]]],
        roll_out: Callable[[int], Awaitable[None]],
        said: Callable[[TimelineNote], None],
        away: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._operator = operator
        self._settings = settings
        self._has_teacher = not labels.startswith("feedback")
        self._train, self._roll_out, self._said, self._away = train, roll_out, said, away
        self._started_s = time.monotonic()
        self._noticed = asyncio.Event()

    async def run(self, turns: int = 0) -> LoopState:
        """Serves, and acts on drifts.

        Args:
            turns: Ends after so many; 0 goes on until it is cancelled.

        Returns:
            The loop after the last turn; also when too many failed one after the other.

        Raises:
            InputError: If nothing is in force on the fleet.
        """
        version = (await self._operator.versions()).current
        if not version:
            raise InputError("no version is in force on this fleet. Put one there with `edgewise plan --deploy`.")
        node = self._operator.node
        registration = await node.transport.subscribe(node.keys.event(self._operator.coordinator), self._heard)
        try:
            state, told, ended = loop.start(self._settings, version, time=self._now()), None, 0
            wish: loop.LoopAction | None = None
            while True:
                if state.timeline[-1] is not told:
                    told = state.timeline[-1]
                    self._said(told)
                if state.phase is LoopPhase.SERVING and (state.is_given_up or (turns and ended >= turns)):
                    return state
                state, actions = loop.step(state, await self._carried_out(wish, state.needed_labels))
                for action in actions:  # none: the last one goes on
                    is_end = isinstance(action, loop.EndTurn)
                    ended, wish = ended + is_end, None if is_end else action
        finally:
            with suppress(EdgewiseError):
                await registration.close()

    def _now(self) -> float:
        return time.monotonic() - self._started_s

    def _heard(self, _: str, frame: Frame) -> None:
        if frame.kind == "drift_detected":
            self._noticed.set()

    async def _carried_out(self, wish: loop.LoopAction | None, needed: int) -> loop.LoopEvent:
        """Carries out what the loop wishes, None being to serve; the one thing that comes of it is its next event."""
        match wish:
            case loop.CountExamples():
                return await self._patiently(lambda: self._count(needed))
            case loop.StartTraining():
                return await self._trained()
            case loop.JudgeVersion(candidate, _):
                return await self._patiently(lambda: self._judged(candidate))
            case loop.RollOut(version):
                return await self._rolled_out(version)
            case _:
                return await self._patiently(self._drift)

    async def _patiently(self, look: Callable[[], Awaitable[A | None]]) -> A:
        """Looks until there is something to tell; a coordinator that is away comes back."""
        while True:
            try:
                if (found := await look()) is not None:
                    return found
            except (Unreachable, DeadlineExceeded) as error:
                self._away(error.message)
                await asyncio.sleep(AGAIN_S)

    async def _drift(self) -> loop.LoopEvent | None:
        self._noticed.clear()
        if sentence := (await self._operator.nodes()).drift:
            return loop.DriftNoticed(sentence, self._now())
        with suppress(TimeoutError):
            async with asyncio.timeout(LOOK_EVERY_S):
                await self._noticed.wait()
        return None

    async def _count(self, needed: int) -> loop.LoopEvent:
        rows = (await self._operator.nodes()).nodes
        devices = [r.info.node for r in rows if r.info.tier is Tier.DEVICE and r.state == "alive" and r.info.http_port]
        answers = await asyncio.gather(*map(self._operator.held, devices), return_exceptions=True)
        held = [answer for answer in answers if isinstance(answer, Held)]
        hard = sum(h.num_hard for h in held)
        labelled = hard if self._has_teacher else sum(h.num_labelled for h in held)
        if labelled < needed:
            await asyncio.sleep(COUNT_EVERY_S)
        return loop.ExamplesHeld(hard, labelled, self._now())

    async def _in_force(self) -> int:
        """The version that serves, which somebody else may have changed meanwhile."""
        return int((await self._patiently(self._operator.versions)).current)

    async def _trained(self) -> loop.LoopEvent:
        try:
            version, cause = await self._train(await self._in_force())
        except EdgewiseError as error:
            version, cause = 0, error.message
        if version:
            return loop.TrainingFinished(version, self._now())
        return loop.TrainingFailed(cause, self._now())

    async def _judged(self, candidate: int) -> loop.LoopEvent:
        gate = next(v.gate for v in (await self._operator.versions()).versions if v.number == candidate)
        if gate is None:
            return loop.GateJudged(candidate, False, "there is no held-out data to judge it on", self._now())
        return loop.GateJudged(candidate, gate.passed, gate.reason, self._now())

    async def _rolled_out(self, candidate: int) -> loop.LoopEvent:
        await self._in_force()  # not while nobody is there to do it
        try:
            await self._roll_out(candidate)
        except (Unreachable, DeadlineExceeded) as error:  # a long rollout goes on without us
            self._away(error.message)
            if not await self._comes_into_force(candidate):
                return loop.RolloutEnded(candidate, False, error.message, self._now())
        except EdgewiseError as error:
            return loop.RolloutEnded(candidate, False, error.message, self._now())
        return loop.RolloutEnded(candidate, True, "every device that is there has it", self._now())

    async def _comes_into_force(self, candidate: int) -> bool:
        until_s = self._now() + ROLLOUT_S
        while self._now() < until_s:
            if await self._in_force() == candidate:
                return True
            await asyncio.sleep(AGAIN_S)
        return False
