"""Retrains a model of a running fleet whenever its inputs drift: drives `lifecycle.loop` from an operator's seat.

    retraining = RetrainingLoop(operator, "digits", LoopSettings(), labels="feedback", train=train, roll_out=roll_out,
                                on_note=print)
    await retraining.run(turns=1)

The coordinator finds drifts, trains, evaluates at its gate and rolls out stage by stage; this decides what follows from
what. It stores nothing: started again it finds the drift that is still there and begins the turn anew.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, TypeVar

from edgewise.core.errors import DeadlineExceeded, EdgewiseError, StoreUnavailable, Unreachable
from edgewise.core.ids import Tier
from edgewise.fleet.messages import ExampleCounts
from edgewise.fleet.operator.operator import Operator
from edgewise.lifecycle import loop
from edgewise.lifecycle.loop import LoopPhase, LoopSettings, LoopState, TimelineNote
from edgewise.lifecycle.shift_kind import ShiftKind
from edgewise.models.model_choice import choose_model
from edgewise.transport.frame import Frame

A = TypeVar("A")
LOOK_EVERY_S = 5.0
"""A drift is published as an event, which may be lost; so often the coordinator is asked all the same."""
COUNT_EVERY_S = 2.0
ROLLOUT_S = 600.0
"""How long a rollout that was not answered in time may still take."""
AGAIN_S = 1.0
LOOKS_IDLE = 3
"""So often in a row a coordinator is seen at no rollout of the model before it is taken to have none."""


class RetrainingLoop:
    """One loop over one model of a fleet.

    Args:
        operator: Connection to the fleet.
        model: Which model.
        settings: How the loop acts.
        force: Whether a version serves whatever the gate says of it.
        ungated: Whether one serves that no held-out data can judge.
        labels: Spec of the source of labels; a teacher labels whatever devices hold, `feedback` what a label came for.
        train: Trains from a version; returns the new one, or 0 and why there is none.
        roll_out: Plans a version and puts it in force, with why for the history; raises why not.
        on_note: Takes what happens.
        on_unreachable: Takes why the coordinator does not answer.
    """

    def __init__(
        self,
        operator: Operator,
        model: str,
        settings: LoopSettings,
        *,
        labels: str,
        train: Callable[[int], Awaitable[tuple[int, str]]],
        roll_out: Callable[[int, str], Awaitable[None]],
        on_note: Callable[[TimelineNote], None],
        on_unreachable: Callable[[str], None] = lambda _: None,
        force: bool = False,
        ungated: bool = False,
    ) -> None:
        self._operator, self._model = operator, model
        self._settings = settings
        self._force, self._ungated = force, ungated
        self._has_teacher = not labels.startswith("feedback")
        self._train, self._roll_out = train, roll_out
        self._on_note, self._on_unreachable = on_note, on_unreachable
        self._started_s = time.monotonic()
        self._waited = ""
        self._noticed = asyncio.Event()

    async def run(self, turns: int = 0) -> LoopState:
        """Serves, and acts on drifts.

        Args:
            turns: Ends after so many; 0 goes on until it is cancelled.

        Returns:
            The loop after the last turn; also when too many failed one after the other.

        Raises:
            InputError: If the model is not in force on the fleet.
        """
        in_force = (await self._operator.versions()).in_force
        version = in_force[choose_model(in_force, self._model)]
        node = self._operator.node
        registration = await node.transport.subscribe(node.keys.event(self._operator.coordinator), self._on_message)
        try:
            state, last, ended = loop.start(self._settings, version, time=self._now()), None, 0
            wanted: loop.LoopAction | None = None
            while True:
                if state.timeline[-1] is not last:
                    last = state.timeline[-1]
                    self._on_note(last)
                if state.phase is LoopPhase.SERVING and (state.is_given_up or (turns and ended >= turns)):
                    return state
                state, actions = loop.step(state, await self._carried_out(wanted, state.needed_labels))
                for action in actions:  # none: the last one goes on
                    is_end = isinstance(action, loop.EndTurn)
                    ended, wanted = ended + is_end, None if is_end else action
        finally:
            with suppress(EdgewiseError):
                await registration.close()

    def _now(self) -> float:
        return time.monotonic() - self._started_s

    def _on_message(self, _: str, frame: Frame) -> None:
        if frame.kind == "drift_detected":
            self._noticed.set()

    async def _carried_out(self, wanted: loop.LoopAction | None, needed: int) -> loop.LoopEvent:
        """Carries out what the loop wants, None being to serve; the one thing that comes of it is its next event."""
        match wanted:
            case loop.CountExamples():
                return await self._patiently(lambda: self._count(needed))
            case loop.TryFormer(besides):
                return await self._patiently(lambda: self._former(besides))
            case loop.StartTraining():
                return await self._trained()
            case loop.EvaluateVersion(candidate, _):
                return await self._patiently(lambda: self._evaluated(candidate))
            case loop.RollOut(version, why):
                return await self._rolled_out(version, why)
            case _:
                return await self._patiently(self._drift)

    async def _patiently(self, look: Callable[[], Awaitable[A | None]]) -> A:
        """Looks until there is something to tell; a coordinator that is away comes back."""
        while True:
            try:
                if (found := await look()) is not None:
                    return found
            except (Unreachable, DeadlineExceeded) as error:
                self._on_unreachable(error.message)
                await asyncio.sleep(AGAIN_S)

    async def _drift(self) -> loop.LoopEvent | None:
        self._noticed.clear()
        known = (await self._operator.nodes()).monitors.get(self._model)
        if known is not None and known.sentence:
            if known.calls_for_training or (self._has_teacher and known.kind != ShiftKind.CLASS_MIX):
                return loop.DriftNoticed(known.sentence, self._now())
            if known.sentence != self._waited:
                self._waited = known.sentence
                return loop.DriftWaited(f"{known.sentence} Waits for {known.waits_for}.", self._now())
        with suppress(TimeoutError):
            async with asyncio.timeout(LOOK_EVERY_S):
                await self._noticed.wait()
        return None

    async def _count(self, needed: int) -> loop.LoopEvent:
        rows = (await self._operator.nodes()).nodes
        devices = [r.info.node for r in rows if r.info.tier is Tier.DEVICE and r.state == "alive" and r.info.http_port]
        asked = (self._operator.example_counts(device, self._model) for device in devices)
        answers = await asyncio.gather(*asked, return_exceptions=True)
        counts = [answer for answer in answers if isinstance(answer, ExampleCounts)]
        hard = sum(c.num_hard for c in counts)
        labelled = hard if self._has_teacher else sum(c.num_labelled for c in counts)
        if labelled < needed:
            await asyncio.sleep(COUNT_EVERY_S)
        return loop.ExamplesCounted(hard, labelled, self._now())

    async def _former(self, besides: tuple[int, ...]) -> loop.LoopEvent:
        if self._has_teacher:  # its labels are another model's answers: they judge nobody
            return loop.FormerTried(0, "", self._now())
        found = await self._operator.former(self._model, besides)
        return loop.FormerTried(found.version, found.reason, self._now())

    async def _in_force(self) -> int:
        """The version that serves, which somebody else may have changed meanwhile; 0 if none does."""
        return (await self._patiently(self._operator.versions)).in_force.get(self._model, 0)

    async def _once_stored(self, order: Callable[..., Awaitable[A]], *words: Any) -> A:
        """Gives an order again while the coordinator's store takes nothing: nothing of it has begun."""
        while True:
            try:
                return await order(*words)
            except EdgewiseError as error:
                if error.fields.get("remote_code", error.code) != StoreUnavailable.code:
                    raise
                self._on_unreachable(error.message)
                await asyncio.sleep(AGAIN_S)

    async def _trained(self) -> loop.LoopEvent:
        try:
            version, cause = await self._once_stored(self._train, await self._in_force())
        except EdgewiseError as error:
            version, cause = 0, error.message
        if version:
            return loop.TrainingFinished(version, self._now())
        return loop.TrainingFailed(cause, self._now())

    async def _evaluated(self, candidate: int) -> loop.LoopEvent:
        found = await self._operator.admission(candidate, force=self._force, ungated=self._ungated)
        passed = found.gate.reason if found.gate is not None else found.note
        reason = found.reason or (f"serves all the same: {found.overridden}" if found.overridden else passed)
        return loop.GateEvaluated(candidate, found.accepted, reason, self._now())

    async def _rolled_out(self, candidate: int, why: str) -> loop.LoopEvent:
        await self._in_force()  # not while nobody is there to do it
        try:
            await self._once_stored(self._roll_out, candidate, why)
        except (Unreachable, DeadlineExceeded) as error:  # a long rollout goes on without us
            self._on_unreachable(error.message)
            if not await self._comes_into_force(candidate):
                return loop.RolloutEnded(candidate, False, error.message, self._now())
        except EdgewiseError as error:
            return loop.RolloutEnded(candidate, False, error.message, self._now())
        return loop.RolloutEnded(candidate, True, "every device that is there has it", self._now())

    async def _comes_into_force(self, candidate: int) -> bool:
        """Waits for a rollout as long as the coordinator is at it: one that was started again does not go on with it."""
        until_s, looks_idle = self._now() + ROLLOUT_S, 0
        while self._now() < until_s and looks_idle < LOOKS_IDLE:
            known = await self._patiently(self._operator.versions)
            if known.in_force.get(self._model, 0) == candidate:
                return True
            looks_idle = 0 if self._model in known.changing else looks_idle + 1
            await asyncio.sleep(AGAIN_S)
        return False
