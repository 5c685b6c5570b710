"""The live driver of one request: performs what `session.step` decides, on the event loop and the worker's thread."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from edgewise.core.errors import EdgewiseError, InputError, Unreachable
from edgewise.core.ids import NodeId, RequestId
from edgewise.inference import session
from edgewise.inference.observation import Observation
from edgewise.inference.peers import Peers, is_peers_fault
from edgewise.inference.prepared import PreparedPlan, StageResult, entries_of
from edgewise.inference.session import AnswerSource, Session, step
from edgewise.inference.stage_frames import stage_answer, stage_request
from edgewise.inference.stage_messages import StageAnswer
from edgewise.inference.stages import Tensors
from edgewise.inference.streams import StreamStep
from edgewise.inference.worker import Worker, to_loop
from edgewise.transport.frame import Frame

log = logging.getLogger(__name__)

_MARGIN_FRACTION = 0.15
_MAX_MARGIN_S = 0.05


@dataclass(frozen=True, slots=True)
class Served:
    """The end of a request.

    Attributes:
        outputs: Arrays by the model's output name; {} if nothing was ready in time.
        observation: What it cost, and who answered.
        refused: What the request itself was refused for, here or further out; None if it was not.
    """

    outputs: Tensors
    observation: Observation
    refused: InputError | None = None


@dataclass(frozen=True, slots=True)
class RequestResources:
    """What the requests of one device share.

    Attributes:
        node: The device.
        worker: The thread that computes this request.
        peers: Who may run the next stages.
        tenant: Whose share of the worker is used.
        expected_s: Seconds that the device's stages are expected to take.
    """

    node: NodeId
    worker: Worker
    peers: Peers
    tenant: str = ""
    expected_s: float = 0.0


class LiveRequest:
    """One request from arrival to answer; used once.

    Attributes:
        head: What the device's own stages came to; None before.
    """

    def __init__(
        self,
        resources: RequestResources,
        prepared: PreparedPlan,
        inputs: Tensors,
        *,
        budget_s: float,
        request: RequestId,
        step: StreamStep | None = None,
        targets: tuple[str, ...] | None = None,
    ) -> None:
        self._at = resources
        self._step, self._targets = step, targets
        self._prepared = prepared
        self._inputs = inputs
        self._request = request
        self._loop = asyncio.get_running_loop()
        self._arrived_s, self._budget_s = self._loop.time(), budget_s
        self._state = Session()
        self.head: StageResult | None = None
        self._outputs: Tensors = {}
        self._remote: StageAnswer | None = None
        self._stages: list[tuple[str, float]] = []
        self._nodes: list[NodeId] = []
        self._open: list[Callable[[], Any]] = []
        self._done: asyncio.Future[session.SessionAnswer] = self._loop.create_future()
        self._is_asking = self._has_asked = False
        self._refused: InputError | None = None
        optional = prepared.graph.optional
        self._is_whole = bool(optional) and any(tensor.name in inputs for tensor in optional)

    async def run(self) -> Served:
        """Serves the request.

        Returns:
            Its end; it never takes longer than the deadline.
        """
        try:
            self._on(self._arrival())
            answer = await self._done
        finally:
            for cancel in self._open:
                cancel()
        refused = self._refused if answer.source is AnswerSource.NONE else None
        return Served(self._outputs, self._observation(answer), refused)

    def _arrival(self) -> session.RequestArrived:
        prepared, stages = self._prepared, self._prepared.stages
        is_local = stages.handover is None or self._is_whole
        usable = () if is_local else self._at.peers.usable()
        if self._targets is not None:
            usable = tuple(node for node in self._targets if node in usable)
        return session.RequestArrived(
            at_s=self._arrived_s,
            deadline_s=self._arrived_s + self._budget_s,
            margin_s=min(_MARGIN_FRACTION * self._budget_s, _MAX_MARGIN_S),
            targets=usable,
            home="" if is_local else (self._targets or (self._at.peers.first,))[0],
            is_local=is_local,
            has_head=bool(stages.stages) or self._is_whole,
            tail_s=prepared.tail_p99_s(),
            remote_s=prepared.usual_remote_s,
        )

    def _on(self, event: session.Event) -> None:
        self._state, actions = step(self._state, event)
        for action in actions:
            self._perform(action)

    def _perform(self, action: session.Action) -> None:
        match action:
            case session.RunStages():
                self._compute(
                    self._run_stages,
                    self._stages_done,
                    session.StagesFailed,
                    self._at.expected_s,
                    not self._is_whole and self._prepared.is_brief(entries_of(self._inputs)),
                )
            case session.RunLocalTail():
                tensors = self._inputs if self.head is None else self.head.tensors
                self._compute(
                    lambda: self._prepared.run_tail(tensors),
                    self._tail_done,
                    session.TailFailed,
                    self._prepared.tail_seconds.largest,
                )
            case session.Offload():
                self._offload(action)
            case session.StartTimer():
                fire = self._loop.call_at(action.at_s, self._fire, action.timer)
                self._open.append(fire.cancel)
            case session.SessionAnswer():
                self._end(action)

    def _run_stages(self) -> StageResult:
        if self._is_whole:
            return self._prepared.run_whole(self._inputs, self._step)
        return self._prepared.run_stages(self._inputs, step=self._step)

    def _compute(
        self,
        job: Callable[[], Any],
        done: Callable[[Any], None],
        failed: Callable[[float, str], session.Event],
        cost_s: float,
        is_brief: bool = False,
    ) -> None:
        def settled(result: Any, error: BaseException | None) -> None:
            if self._done.done():
                return
            if error is None:
                try:
                    done(result)
                except Exception as caught:  # else the request would wait for its deadline
                    error = caught
            if error is not None:
                if isinstance(error, InputError):
                    self._refused = error
                elif not isinstance(error, EdgewiseError):
                    log.error("request %s: local work failed", self._request, exc_info=error)
                self._on(failed(self._loop.time(), f"{type(error).__name__}: {error}"))

        until_s = self._arrived_s + self._budget_s
        try:
            self._at.worker.submit(
                job,
                to_loop(settled),
                deadline_s=until_s,
                is_dropped=self._done.done,
                is_brief=is_brief,
                tenant=self._at.tenant,
                cost_s=cost_s,
            )
        except EdgewiseError as error:
            self._loop.call_soon(self._on, failed(self._loop.time(), f"{error.code}: {error.message}"))

    def _stages_done(self, result: StageResult) -> None:
        self.head = result
        self._stages.extend(result.stages)
        self._nodes.append(self._at.node)
        exit_index = None if result.gate is None else result.gate.index
        if exit_index is not None:
            self._outputs = self._prepared.public(exit_index, result.answer, self._inputs)
        self._on(session.StagesDone(self._loop.time(), exit_index, result.leaves))

    def _tail_done(self, result: tuple[Tensors, float]) -> None:
        if self._state.answer is not None:
            return
        outputs, seconds = result
        self._stages.append(("device tail", seconds))
        end = self._prepared.stages.tail_exit
        assert end is not None
        known = {**(self._inputs if self.head is None else self.head.tensors), **outputs}
        answer = {name: known[name] for name in end.tensors}
        self._outputs = self._prepared.public(end.index, answer, self._inputs)
        self._on(session.TailDone(self._loop.time(), end.index))

    def _offload(self, action: session.Offload) -> None:
        def encoded(result: StageResult) -> None:
            self.head = result
            self._stages.extend(result.stages)
            self._ask(action, result)

        def failed(at_s: float, cause: str) -> session.RemoteFailed:
            return session.RemoteFailed(at_s, action.target, cause)

        if self.head is not None and self.head.payload is not None:
            self._ask(action, self.head)
        else:
            is_brief = self._prepared.is_brief(entries_of(self._inputs))
            self._compute(self._run_stages, encoded, failed, self._at.expected_s, is_brief)

    def _ask(self, action: session.Offload, head: StageResult) -> None:
        peers, node, started = self._at.peers, action.target, self._loop.time()
        assert head.payload is not None

        def on_reply(reply: Frame | None, error: EdgewiseError | None) -> None:
            self._is_asking = False
            if self._done.done():
                return
            try:
                if reply is None:
                    raise error or Unreachable(f"{node!r} said nothing.")
                answer, tensors = stage_answer(reply)
                outputs = self._prepared.public(answer.exit_index, tensors, self._inputs)
            except EdgewiseError as caught:
                self._remote_failed(node, caught)
            else:
                self._outputs = outputs
                self._remote_answered(node, answer, self._loop.time() - started)

        self._is_asking = self._has_asked = True
        try:
            target = peers.target(node)
            peers.asked(node, self._budget_s)
            asked = stage_request(
                self._prepared, head.payload, request=self._request, timeout_s=action.timeout_s, step=self._step
            )
            self._open.append(target.transport.ask(target.key, asked, on_reply, timeout_s=action.timeout_s))
        except EdgewiseError as error:
            self._loop.call_soon(on_reply, None, error)

    def _remote_failed(self, node: str, error: EdgewiseError) -> None:
        if is_peers_fault(error):
            self._at.peers.failed(node, self._budget_s)
            self._prepared.remote_window.cut(self._prepared.in_flight, self._prepared.usual_remote_s)
        elif str(error.fields.get("remote_code", "")).startswith(f"{InputError.code}."):
            self._refused = InputError(error.message)
        self._on(session.RemoteFailed(self._loop.time(), node, f"{error.code}: {error.message}"))

    def _remote_answered(self, node: str, answer: StageAnswer, seconds: float) -> None:
        self._at.peers.succeeded(node)
        self._prepared.remote_took(seconds)
        beyond = sum(s for _, s in answer.stages)
        self._stages.append((self._prepared.stages.boundary, max(0.0, seconds - beyond)))
        self._stages.extend(answer.stages)
        self._remote = answer
        self._on(session.RemoteAnswered(self._loop.time(), node, answer.exit_index, answer.cause))

    def _fire(self, timer: session.Timer) -> None:
        self._on(session.TimerExpired(self._loop.time(), timer))

    def _end(self, answer: session.SessionAnswer) -> None:
        if self._is_asking and self._state.trying:
            self._at.peers.failed(self._state.trying, self._budget_s)
            self._prepared.remote_window.cut(self._prepared.in_flight, self._prepared.usual_remote_s)
        if answer.source is AnswerSource.NONE:
            self._outputs = {}
        if not self._done.done():
            self._done.set_result(answer)

    def _observation(self, answer: session.SessionAnswer) -> Observation:
        active, head = self._prepared.active, self.head
        sent: list[tuple[str, int]] = []
        if self._has_asked and head is not None and head.payload is not None:
            sent.append((self._prepared.stages.boundary, head.payload.size_bytes))
        remote, exits = self._remote, self._prepared.plan.exits
        first = remote if head is None or head.confidence is None else head
        return Observation(
            request=self._request,
            revision=active.revision,
            version=active.version,
            plan=self._prepared.digest,
            source=answer.source,
            exit_index=answer.exit_index,
            cause=answer.cause,
            arrived_s=self._arrived_s,
            latency_s=self._loop.time() - self._arrived_s,
            deadline_s=self._budget_s,
            served_by=(*self._nodes, *(remote.served_by if remote else ())),
            stages=tuple(self._stages),
            payload_bytes=(*sent, *(remote.payload_bytes if remote else ())),
            confidence=first.confidence if first else None,
            confidence_exit=exits[0].index if exits else 0,
            predicted=first.predicted if first else None,
        )
