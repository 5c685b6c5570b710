"""Serving at the edge and in the cloud: one stage of a plan, answered over a transport.

    host = StageHost(NodeId("edge-1"), Tier.EDGE, dilation=2.0)
    await host.prepare(ActivePlan(Epoch(1), plan, version=3), graph)
    registration = await transport.hear(keys.service("edge-1", STAGE), host.hear)
    host.set_targets([Target(NodeId("cloud-1"), transport, keys.service("cloud-1", STAGE))])   # for three tiers

A stage request goes from the thread that hears it to the worker, and the answer from there to the wire; the event loop
takes part only where the next tier is asked. It names its plan, epoch and version; what is not prepared here, or no
longer, is refused and counted, and the device falls back. The last few plans stay prepared, so that two versions serve side by side during a rollout.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from edgewise.core.errors import DeadlineExceeded, EdgewiseError, FrameRefused, Unreachable
from edgewise.core.ids import Epoch, NodeId, Tier
from edgewise.inference.cuts import decode_cut
from edgewise.inference.peers import Peers, Target, is_peers_fault
from edgewise.inference.prepared import PreparedPlan, SegmentResult, prepare_plan, stage_answer, stage_question
from edgewise.inference.stage_messages import STAGE_ANSWER, STAGE_REQUEST, StageAnswer, StageRequest
from edgewise.inference.stages import Tensors, segment_of
from edgewise.inference.worker import Worker
from edgewise.ledger.entry import Purpose
from edgewise.models.graph.graph import Graph
from edgewise.planning.plan import ActivePlan
from edgewise.transport.frame import Frame, make_frame
from edgewise.transport.remote import failure_frame
from edgewise.transport.transport import Reply

_DEFAULT_DEADLINE_S = 10.0
# Of the time an outer node has left, this share is kept for its own exit's way back.
_WAY_BACK_FRACTION = 0.2


class StageHost:
    """Runs the segments of one tier for whoever asks.

    Attributes:
        node: This node.
        tier: Its tier.
        dilation: Factor by which it stretches inference compute.
        keep: Plans of one model that stay prepared; the oldest beyond that is dropped.
        worker: The computing thread; its `completed` counter is this node's progress.
        refused: Requests refused because their plan is not prepared here.
        answered: Requests answered.
    """

    def __init__(
        self, node: NodeId, tier: Tier, *, dilation: float = 1.0, keep: int = 4, worker: Worker | None = None
    ) -> None:
        self.node, self.tier, self.dilation, self.keep = node, tier, dilation, keep
        self.worker = worker or Worker(f"{node}-compute")
        self.refused = 0
        self.answered = 0
        self._plans: dict[Epoch, PreparedPlan] = {}
        self._of_model: dict[str, list[Epoch]] = {}
        self._peers = Peers(time.monotonic)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._handing_over: set[asyncio.Task[None]] = set()

    @property
    def epochs(self) -> tuple[Epoch, ...]:
        """Epochs that are prepared, ascending."""
        return tuple(sorted(self._plans))

    async def prepare(self, active: ActivePlan, graph: Graph, *, model: str = "") -> None:
        """Builds and warms this tier's part of a plan; it is served as soon as this returns.

        Args:
            active: The plan with epoch and version.
            graph: Its graph.
            model: Of which model; what is kept of others does not depend on it.

        Raises:
            PlanInfeasible: If plan and graph do not belong together.
        """
        self._loop = asyncio.get_running_loop()
        self._plans[active.epoch] = await prepare_plan(active, graph, self.tier, dilation=self.dilation)
        mine = self._of_model[model] = sorted({*self._of_model.get(model, ()), active.epoch})
        for oldest in mine[: -self.keep]:
            self._plans.pop(oldest, None)
        del mine[: -self.keep]

    def remove(self, model: str) -> None:
        """Gives up all plans of a model."""
        for epoch in self._of_model.pop(model, ()):
            self._plans.pop(epoch, None)

    def set_targets(self, targets: Sequence[Target]) -> None:
        """Sets the nodes of the next tier, best first."""
        self._peers.replace(targets)

    def peer_lost(self, node: str) -> None:
        """A node's liveliness token is gone."""
        self._peers.lost(node)

    def peer_returned(self, node: str) -> None:
        """A node's liveliness token is back."""
        self._peers.returned(node)

    def hear(self, frame: Frame, reply: Reply) -> None:
        """Takes one stage request; give it to `Transport.hear`.

        Args:
            frame: Of kind `stage_request`.
            reply: Takes a frame of kind `stage_answer`, or an error: `DeadlineExceeded` if its time was up before it
                began, or whatever its work raised.

        Raises:
            FrameRefused: If the frame is another, or names a plan that is not prepared here.
            Busy: If too many requests wait.
        """
        if frame.kind != STAGE_REQUEST:
            raise FrameRefused(f"the stage service of {self.node!r} takes {STAGE_REQUEST!r}, found {frame.kind!r}.")
        message = frame.read(StageRequest)
        prepared = self._prepared(message)
        left_s = _DEFAULT_DEADLINE_S if frame.deadline_s is None else frame.deadline_s
        deadline_s = time.monotonic() + left_s

        def settle(result: Any, error: BaseException | None) -> None:
            if error is not None:
                reply(failure_frame(error, frame))
            elif result.leaves:
                self._answer(reply, *self._own_answer(prepared, result))
            elif self._loop is not None and not self._loop.is_closed():
                self._loop.call_soon_threadsafe(
                    self._start_hand_over, prepared, message, result, deadline_s, reply, frame
                )

        self.worker.submit(
            lambda: self._run(prepared, message, frame), settle, deadline_s=deadline_s, is_brief=prepared.is_brief
        )

    async def close(self) -> None:
        """Stops the worker and what is being handed over."""
        for task in tuple(self._handing_over):
            task.cancel()
        await asyncio.get_running_loop().run_in_executor(None, self.worker.close)

    def _answer(self, reply: Reply, answer: StageAnswer, tensors: Tensors) -> None:
        self.answered += 1
        reply(make_frame(STAGE_ANSWER, answer, tensors, purpose=Purpose.SERVING))

    def _start_hand_over(
        self,
        prepared: PreparedPlan,
        message: StageRequest,
        result: SegmentResult,
        deadline_s: float,
        reply: Reply,
        frame: Frame,
    ) -> None:
        async def hand_over() -> None:
            try:
                self._answer(reply, *await self._hand_over(prepared, message, result, deadline_s))
            except Exception as error:  # the task's own boundary: the asker is told
                reply(failure_frame(error, frame))

        task = asyncio.get_running_loop().create_task(hand_over())
        self._handing_over.add(task)
        task.add_done_callback(self._handing_over.discard)

    def _prepared(self, message: StageRequest) -> PreparedPlan:
        prepared = self._plans.get(message.epoch)
        if prepared is None or prepared.digest != message.plan or prepared.active.version != message.version:
            self.refused += 1
            raise FrameRefused(
                f"plan {message.plan[:12]} of epoch {message.epoch}, version {message.version}, is not prepared on "
                f"{self.node!r}; prepared are epochs {list(self.epochs)}. Install it here, or ask again on a newer epoch.",
                epoch=message.epoch,
            )
        if message.tier is not self.tier or segment_of(prepared.plan, self.tier) is None:
            self.refused += 1
            raise FrameRefused(
                f"tier {message.tier} of plan {prepared.plan.name!r} is wanted, {self.node!r} is tier {self.tier}. "
                "Send it to a node of that tier."
            )
        return prepared

    def _run(self, prepared: PreparedPlan, message: StageRequest, frame: Frame) -> SegmentResult:
        assert prepared.entry_codec is not None
        started = time.perf_counter()
        tensors = decode_cut(prepared.entry_codec, message.coded, frame)
        decoding = (f"{self.tier} decode", time.perf_counter() - started)
        assert prepared.stages.stage is not None
        missing = sorted(set(prepared.stages.stage.inputs) - set(tensors))
        if missing:
            raise FrameRefused(f"stage request {message.request!r} lacks the tensors {missing[:10]} of its cut.")
        return prepared.run_segment(tensors, (decoding,))

    def _own_answer(
        self, prepared: PreparedPlan, result: SegmentResult, cause: str = ""
    ) -> tuple[StageAnswer, Tensors]:
        assert result.exit is not None
        answer = StageAnswer(result.exit.index, (self.node,), result.stages, cause=cause, confidence=result.confidence)
        return answer, prepared.answer_tensors(result.exit, result.tensors)

    async def _hand_over(
        self, prepared: PreparedPlan, message: StageRequest, result: SegmentResult, deadline_s: float
    ) -> tuple[StageAnswer, Tensors]:
        """Asks the next tier's nodes in turn; with an exit of our own we answer ourselves where they do not."""
        loop = asyncio.get_running_loop()
        assert result.payload is not None
        assert prepared.stages.cut is not None
        boundary = f"{prepared.stages.cut.source}→{prepared.stages.cut.target}"
        error: EdgewiseError = Unreachable(f"{self.node!r} reaches no node of tier {prepared.stages.cut.target}.")
        keep_back = _WAY_BACK_FRACTION if result.exit is not None else 0.0
        until_s = deadline_s - keep_back * max(0.0, deadline_s - loop.time())
        for node in self._peers.usable():
            started = loop.time()
            left_s = until_s - started
            if left_s <= 0:
                error = DeadlineExceeded(f"no time is left on {self.node!r} to ask {node!r}.")
                break
            self._peers.asked(node, left_s)
            try:
                target = self._peers.target(node)
                question = stage_question(prepared, result.payload, request=message.request, timeout_s=left_s)
                answer, tensors = stage_answer(await target.transport.query(target.key, question, timeout_s=left_s))
            except EdgewiseError as caught:
                error = caught
                if is_peers_fault(caught):
                    self._peers.failed(node, left_s)
                continue
            self._peers.succeeded(node)
            between = max(0.0, loop.time() - started - sum(s for _, s in answer.stages))
            return StageAnswer(
                answer.exit_index, (self.node, *answer.served_by),
                (*result.stages, (boundary, between), *answer.stages),
                ((boundary, result.payload.size_bytes), *answer.payload_bytes), answer.cause,
                answer.confidence if result.confidence is None else result.confidence,
            ), tensors  # fmt: skip
        if result.exit is not None:
            return self._own_answer(prepared, result, f"{error.code}: {error.message}")
        raise error
