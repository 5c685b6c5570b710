"""Serving at the edge and in the cloud: stages of a plan at one site, answered over a transport.

    host = StageHost(NodeId("edge-1"), Tier.EDGE, dilation=2.0)
    await host.prepare(ActivePlan(Revision(1), plan, version=3), graph)
    registration = await transport.serve_sync(keys.service("edge-1", STAGE), host.handle)
    host.set_targets([Target(NodeId("cloud-1"), transport, keys.service("cloud-1", STAGE))])   # for three tiers
    host.set_targets([...], Site(Tier.EDGE, 1))                                     # the second edge of a pipeline

A stage request goes from the thread that hears it to the worker, and the answer from there to the wire; the event loop
takes part only where the next site is asked. It names its plan, revision and version; what is not prepared here, or no
longer, is refused and counted, and the device falls back. The last few plans stay prepared, so that two versions serve
side by side during a rollout. A node can stand at every site of its tier: the request says at which.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine, Sequence
from math import prod
from typing import Any

import msgspec

from edgewise.core.errors import Busy, DeadlineExceeded, EdgewiseError, FrameRefused, Unreachable
from edgewise.core.ids import NodeId, Revision, Tier
from edgewise.inference.cuts import decode_cut
from edgewise.inference.peers import SitePeers, Target, is_peers_fault
from edgewise.inference.prepared import PreparedPlan, StageResult, prepare_plan
from edgewise.inference.stage_frames import stage_answer, stage_request
from edgewise.inference.stage_messages import (
    STAGE_ANSWER,
    STAGE_REQUEST,
    STREAM_END,
    StageAnswer,
    StageRequest,
    StreamEnd,
)
from edgewise.inference.stages import Tensors
from edgewise.inference.streams import StreamStep
from edgewise.inference.text_tensors import pack_text_tensors
from edgewise.inference.worker import Worker
from edgewise.ledger.entry import Purpose
from edgewise.models.graph.graph import Graph
from edgewise.planning.plan import ActivePlan, Plan, Site
from edgewise.transport.frame import Frame, make_frame
from edgewise.transport.remote import failure_frame
from edgewise.transport.transport import Reply

log = logging.getLogger(__name__)

_DEFAULT_DEADLINE_S = 10.0
# Of the time an outer node has left, this share is kept for its own exit's way back.
_WAY_BACK_FRACTION = 0.2


class StageHost:
    """Runs the stages of one tier for whoever asks.

    Attributes:
        node: This node.
        tier: Its tier.
        dilation: Factor by which it stretches inference compute.
        keep: Plans of one model that stay prepared; the oldest beyond that is dropped.
        worker: The computing thread; its `completed` counter is this node's progress.
        refused: Requests refused because their plan is not prepared here, or they would have been late.
        answered: Requests answered.
    """

    def __init__(
        self, node: NodeId, tier: Tier, *, dilation: float = 1.0, keep: int = 4, worker: Worker | None = None
    ) -> None:
        self.node, self.tier, self.dilation, self.keep = node, tier, dilation, keep
        self.worker = worker or Worker(f"{node}-compute")
        self.refused = 0
        self.answered = 0
        self._plans: dict[Revision, dict[Site, PreparedPlan]] = {}
        self._of_model: dict[str, list[Revision]] = {}
        self._model_of: dict[Revision, str] = {}
        self._shares: dict[str, float] = {}
        self._peers = SitePeers(time.monotonic)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._handing_over: set[asyncio.Task[None]] = set()

    @property
    def revisions(self) -> tuple[Revision, ...]:
        """Revisions that are prepared, ascending."""
        return tuple(sorted(self._plans))

    async def prepare(self, active: ActivePlan, graph: Graph, *, model: str = "", share: float = 1.0) -> None:
        """Builds and warms this tier's part of a plan; it is served as soon as this returns.

        Args:
            active: The plan with revision and version.
            graph: Its graph.
            model: Of which model; what is kept of others does not depend on it.
            share: The model's weight among those here, for the thread's time.

        Raises:
            PlanInfeasible: If plan and graph do not belong together.
        """
        self._loop = asyncio.get_running_loop()
        self._plans[active.revision] = {
            site: await prepare_plan(active, graph, site, dilation=self.dilation)
            for site in sites_of_tier(active.plan, self.tier)
        }
        self._model_of[active.revision] = model
        mine = self._of_model[model] = sorted({*self._of_model.get(model, ()), active.revision})
        self._drop(mine[: -self.keep])
        del mine[: -self.keep]
        self._shares[model] = share
        self.worker.set_shares(self._shares)

    def remove(self, model: str) -> None:
        """Gives up all plans of a model."""
        self._drop(self._of_model.pop(model, ()))
        self._shares.pop(model, None)
        self.worker.set_shares(self._shares)

    def _drop(self, revisions: Sequence[Revision]) -> None:
        for revision in revisions:
            self._plans.pop(revision, None)
            self._model_of.pop(revision, None)

    def set_targets(self, targets: Sequence[Target], site: Site | None = None) -> None:
        """Sets the nodes that stand at a site, best first; without a site, at every one that has none of its own."""
        self._peers.replace(targets, site)

    def peer_lost(self, node: str) -> None:
        """A node's liveliness token is gone."""
        self._peers.lost(node)

    def peer_returned(self, node: str) -> None:
        """A node's liveliness token is back."""
        self._peers.returned(node)

    def handle(self, frame: Frame, reply: Reply) -> None:
        """Handles one stage request; a handler for `Transport.serve_sync`.

        Args:
            frame: Of kind `stage_request`.
            reply: Takes a frame of kind `stage_answer`, or an error: `DeadlineExceeded` if its time was up before it
                began, or whatever its work raised.

        Raises:
            FrameRefused: If the frame is another, or names a plan that is not prepared here.
            Busy: If too many requests wait.
        """
        if frame.kind == STREAM_END:
            self._end_stream(frame, reply)
            return
        if frame.kind != STAGE_REQUEST:
            raise FrameRefused(f"the stage service of {self.node!r} takes {STAGE_REQUEST!r}, found {frame.kind!r}.")
        message = frame.read(StageRequest)
        prepared, step = self._prepared(message), _step_of(message.step, frame)
        left_s = _DEFAULT_DEADLINE_S if frame.deadline_s is None else frame.deadline_s
        deadline_s = time.monotonic() + left_s

        def settle(result: Any, error: BaseException | None) -> None:
            if error is not None:
                reply(failure_frame(error, frame))
            elif result.leaves:
                self._answer(reply, *self._own_answer(prepared, result))
            elif self._loop is not None and not self._loop.is_closed():
                self._loop.call_soon_threadsafe(
                    self._start_hand_over, prepared, message, step, result, deadline_s, reply, frame
                )

        num_entries = sum(prod(section.shape) for section in message.sections)
        tenant, cost_s = self._model_of.get(message.revision, ""), prepared.costs.expected_s(num_entries)
        due_s = deadline_s - _WAY_BACK_FRACTION * left_s
        if not self.worker.is_idle and (late_s := self.worker.late_by_s(cost_s, due_s, tenant)) > 0.0:
            self.refused += 1
            raise Busy(
                f"what waits for {self.node!r} takes {late_s:.3f} s too long for this request; it is dropped. Ask another "
                "node, or later.",
                retry_after_s=late_s,
            )
        self.worker.submit(
            lambda: self._run(prepared, message, step, frame),
            settle,
            deadline_s=deadline_s,
            is_brief=prepared.is_brief(num_entries),
            tenant=tenant,
            cost_s=cost_s,
        )

    async def close(self) -> None:
        """Stops the worker and what is being handed over."""
        for task in tuple(self._handing_over):
            task.cancel()
        await asyncio.get_running_loop().run_in_executor(None, self.worker.close)

    def _answer(self, reply: Reply, answer: StageAnswer, tensors: Tensors) -> None:
        self.answered += 1
        reply(make_frame(STAGE_ANSWER, answer, pack_text_tensors(tensors), purpose=Purpose.SERVING))

    def _start_hand_over(
        self,
        prepared: PreparedPlan,
        message: StageRequest,
        step: StreamStep | None,
        result: StageResult,
        deadline_s: float,
        reply: Reply,
        frame: Frame,
    ) -> None:
        async def hand_over() -> None:
            try:
                self._answer(reply, *await self._hand_over(prepared, message, step, result, deadline_s))
            except Exception as error:  # the task's own boundary: the asker is told
                reply(failure_frame(error, frame))

        self._spawn(hand_over())

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._handing_over.add(task)
        task.add_done_callback(self._handing_over.discard)

    def _prepared(self, message: StageRequest | StreamEnd) -> PreparedPlan:
        prepared = self._plans.get(message.revision, {}).get(message.site)
        if prepared is not None and prepared.digest == message.plan and prepared.active.version == message.version:
            return prepared
        self.refused += 1
        if message.revision in self._plans and prepared is None:
            raise FrameRefused(
                f"site {message.site} of plan {message.plan[:12]} is wanted, {self.node!r} is tier {self.tier} and stands "
                "at none of that name. Send it to a node of that tier."
            )
        raise FrameRefused(
            f"plan {message.plan[:12]} of revision {message.revision}, version {message.version}, is not prepared on "
            f"{self.node!r}; prepared are revisions {list(self.revisions)}. Install it here, or ask again on a newer one.",
            revision=message.revision,
        )

    def _run(self, prepared: PreparedPlan, message: StageRequest, step: StreamStep | None, frame: Frame) -> StageResult:
        assert prepared.entry_codec is not None
        started = time.perf_counter()
        tensors = decode_cut(prepared.entry_codec, prepared.accepted, message.sections, frame)
        decoding = (f"{message.site} decode", time.perf_counter() - started)
        return prepared.run_stages(tensors, (decoding,), step)

    def _own_answer(self, prepared: PreparedPlan, result: StageResult, cause: str = "") -> tuple[StageAnswer, Tensors]:
        assert result.gate is not None
        answer = StageAnswer(
            result.gate.index,
            (self.node,),
            result.stages,
            cause=cause,
            confidence=result.confidence,
            predicted=result.predicted,
        )
        return answer, result.answer

    def _end_stream(self, frame: Frame, reply: Reply) -> None:
        message = frame.read(StreamEnd)
        prepared, stream = self._prepared(message), f"{frame.sender}/{message.stream}"

        def free() -> None:
            if prepared.streams is not None:
                prepared.streams.drop(stream)
            prepared.gates.drop(stream)

        def settle(_: Any, error: BaseException | None) -> None:
            reply(
                make_frame(STAGE_ANSWER, StageAnswer(0, (self.node,), ()))
                if error is None
                else failure_frame(error, frame)
            )
            if prepared.stages.target is not None and self._loop is not None and not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._spawn, end_stream(prepared, self._peers, stream))

        # Behind the stream's own requests that wait here: of one model the earliest deadline goes first.
        self.worker.submit(free, settle, tenant=self._model_of.get(message.revision, ""))

    async def _hand_over(
        self,
        prepared: PreparedPlan,
        message: StageRequest,
        step: StreamStep | None,
        result: StageResult,
        deadline_s: float,
    ) -> tuple[StageAnswer, Tensors]:
        """Asks the next site's nodes in turn; with an exit of our own we answer ourselves where they do not."""
        loop = asyncio.get_running_loop()
        assert result.payload is not None
        boundary, peers = prepared.stages.boundary, self._peers.at(prepared.stages.target)
        error: EdgewiseError = Unreachable(f"{self.node!r} reaches no node at site {prepared.stages.target}.")
        keep_back = _WAY_BACK_FRACTION if result.gate is not None else 0.0
        until_s = deadline_s - keep_back * max(0.0, deadline_s - loop.time())
        for node in peers.usable():
            started = loop.time()
            left_s = until_s - started
            if left_s <= 0:
                error = DeadlineExceeded(f"no time is left on {self.node!r} to ask {node!r}.")
                break
            peers.asked(node, left_s)
            try:
                target = peers.target(node)
                asked = stage_request(prepared, result.payload, request=message.request, timeout_s=left_s, step=step)
                answer, tensors = stage_answer(await target.transport.query(target.key, asked, timeout_s=left_s))
            except EdgewiseError as caught:
                error = caught
                if is_peers_fault(caught):
                    peers.failed(node, left_s)
                continue
            peers.succeeded(node)
            between = max(0.0, loop.time() - started - sum(s for _, s in answer.stages))
            first = answer if result.confidence is None else result
            return StageAnswer(
                exit_index=answer.exit_index,
                served_by=(self.node, *answer.served_by),
                stages=(*result.stages, (boundary, between), *answer.stages),
                payload_bytes=((boundary, result.payload.size_bytes), *answer.payload_bytes),
                cause=answer.cause,
                confidence=first.confidence,
                predicted=first.predicted,
            ), tensors
        if result.gate is not None:
            return self._own_answer(prepared, result, f"{error.code}: {error.message}")
        raise error


def sites_of_tier(plan: Plan, tier: Tier) -> tuple[Site, ...]:
    """Sites of a plan at which a node of a tier can stand."""
    return tuple(site for site in plan.sites if site.tier is tier)


def _step_of(step: StreamStep | None, frame: Frame) -> StreamStep | None:
    """The same under a name that no other sender's stream has."""
    return None if step is None else msgspec.structs.replace(step, stream=f"{frame.sender}/{step.stream}")


async def end_stream(prepared: PreparedPlan, peers: SitePeers, stream: str, nodes: Sequence[str] = ()) -> None:
    """Tells the next site that a stream ends; who is not reached frees it when it needs the room.

    Args:
        prepared: The plan it ran on.
        peers: Who stands where.
        stream: Its name.
        nodes: Who is told; by default all that can be asked.
    """
    active, target = prepared.active, prepared.stages.target
    assert target is not None
    there = peers.at(target)
    message = StreamEnd(prepared.digest, active.revision, active.version, target, stream)
    for node in nodes or there.usable():
        try:
            reached = there.target(node)
            await reached.transport.query(
                reached.key, make_frame(STREAM_END, message, purpose=Purpose.SERVING), timeout_s=_DEFAULT_DEADLINE_S
            )
        except EdgewiseError as error:
            log.info("%r was not told of the end of stream %r: %s", node, stream, error)
