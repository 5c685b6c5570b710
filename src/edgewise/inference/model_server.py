"""One model on one device: its prepared plans, who may run its outer stages, its streams; requests along the plan in force.

model = node.deploy("digits")                                         # `serving_node.py`
await model.prepare(ActivePlan(Revision(1), plan, version=3), graph)  # builds and warms, nothing changes yet
model.activate(Revision(1))                                           # warm switch
served = await model.infer({"input": image}, deadline_s=0.25)         # Served: outputs and observation
stream = model.stream()                                               # state stays where the plan's stages keep it
served = await stream.infer({"x": sample})
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import isfinite
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewise.core.errors import Busy, EdgewiseError, InputError, PlanInfeasible, Unreachable
from edgewise.core.ids import NodeId, RequestId, Revision
from edgewise.inference.cuts import encode_cut
from edgewise.inference.device_streams import OpenStreams, Stream
from edgewise.inference.observation import Observation, unanswered
from edgewise.inference.peers import SitePeers, Target
from edgewise.inference.prepared import PreparedPlan, entries_of, prepare_plan
from edgewise.inference.request_admission import Lanes, admit
from edgewise.inference.request_driver import LiveRequest, RequestResources, Served
from edgewise.inference.request_inputs import check_inputs
from edgewise.inference.serving_metrics import Count, ServingCounts, model_metrics
from edgewise.inference.session import AnswerSource
from edgewise.inference.stage_frames import stage_answer, stage_request
from edgewise.inference.stages import Tensors
from edgewise.inference.streams import StreamLost, StreamStep
from edgewise.inference.worker import Worker
from edgewise.ledger.entry import Purpose
from edgewise.ledger.metric import Metric
from edgewise.models.graph.graph import Graph, PlainTensor
from edgewise.planning.plan import ENTRY, FILTERED, ActivePlan, Handover, Site

_LABELLING_S = 30.0
"""For an answer to learn from; hosts serve the earliest deadline first, so requests go first."""


_MANY_ENTRIES = 2**18
LONG_NICENESS = 10
FORMER_PLANS = 4
"""Of one model, that stay for streams which began on them; on older ones streams end."""


class ModelServer:
    """Answers inference requests for one model on one device along its active plan.

    Attributes:
        node: The device.
        name: The model's name at the endpoint.
        dilation: Factor by which this device stretches inference compute.
        default_deadline_s: For requests that bring none.
        max_in_flight: Open requests; one more is refused with `Busy`.
        streams: Those that are open.
        worker: The device's computing thread.
        refused: Requests refused when they arrived: too many were open, or they would have been late.
        served: What its requests came to.

    `on_observation` and `on_served` are called for each request once its answer is on its way.
    """

    def __init__(
        self,
        node: NodeId,
        worker: Worker,
        *,
        name: str = "model",
        dilation: float = 1.0,
        default_deadline_s: float = 10.0,
        max_in_flight: int = 64,
        on_observation: Callable[[Observation], None] = lambda observation: None,
        on_served: Callable[[Tensors, Served], None] = lambda inputs, served: None,
        on_feedback: Callable[[Mapping[str, int]], int] | None = None,
        lanes: Lanes | None = None,
    ) -> None:
        self._lanes = lanes or Lanes(worker, lambda: Worker(f"{node}-long", niceness=LONG_NICENESS))
        self.node, self.name, self.dilation, self.worker = node, name, dilation, worker
        self.default_deadline_s, self.max_in_flight = default_deadline_s, max_in_flight
        self.refused = self._num_open = 0
        self.served = ServingCounts()
        self._on_observation, self._on_served, self._on_feedback = on_observation, on_served, on_feedback
        self._peers = SitePeers(lambda: asyncio.get_running_loop().time())
        self._plans: dict[Revision, PreparedPlan] = {}
        self._active: PreparedPlan | None = None
        self.streams = OpenStreams(node, self._peers)
        self._numbers = itertools.count(1)

    @property
    def counts(self) -> Mapping[AnswerSource, Count]:
        """Requests by who answered."""
        return self.served.by_source

    def metrics(self) -> list[Metric]:
        """What the endpoint's `/metrics` says of this model."""
        return model_metrics(self.name, self.served, self.active, self.refused)

    @property
    def active(self) -> ActivePlan | None:
        """The plan in force; None before the first `activate`."""
        return None if self._active is None else self._active.active

    @property
    def revisions(self) -> tuple[Revision, ...]:
        """Revisions that are prepared, ascending."""
        return tuple(sorted(self._plans))

    @property
    def is_ready(self) -> bool:
        """Whether requests are answered."""
        return self._active is not None

    @property
    def inputs(self) -> tuple[PlainTensor, ...]:
        """What a request must bring: the model's inputs, less state that stages keep; () before the first plan."""
        return () if self._active is None else self._active.inputs

    @property
    def outputs(self) -> tuple[PlainTensor, ...]:
        """What answers carry, in the file's order: the outputs of the model's end, constants, and inputs that are outputs."""
        if self._active is None:
            return ()
        graph, end = self._active.graph, self._active.plan.exits[-1].tensors
        known = {*end, *graph.constants, *graph.echoes}
        return tuple(tensor for tensor in graph.answers if tensor.name in known)

    @property
    def graph(self) -> Graph | None:
        """The whole model in force; None before the first plan."""
        return None if self._active is None else self._active.graph

    @property
    def handover(self) -> Handover | None:
        """What the plan in force hands over from this device; None if it does not."""
        return None if self._active is None else self._active.stages.handover

    @property
    def target(self) -> Site | None:
        """Where it hands over to; None likewise."""
        return None if self._active is None else self._active.stages.target

    def features(self, inputs: NDArray[Any]) -> NDArray[Any]:
        """What this device's stage makes of examples, whatever its gates say. Blocks: call it off the event loop.

        Args:
            inputs: [n, ...], examples of the model's first input.

        Returns:
            [n, ...], the first tensor handed over.

        Raises:
            Busy: If the plan in force has no stage and hand-over here.
        """
        prepared, handover = self._handing_over()
        if not prepared.stages.stages:
            raise Busy(f"{self.node!r} runs no stage of the plan in force, so it makes no features.")
        name, rows = prepared.graph.inputs[0].name, list[NDArray[Any]]()
        for row in inputs:
            known: Tensors = {name: row[None]}
            for _, stage in prepared.stages.stages:
                known |= stage.run(known)[0]
            rows.append(known[handover.tensors[0]])
        return np.concatenate(rows)

    async def beyond(self, features: NDArray[Any]) -> NDArray[Any]:
        """What the next site answers to the tensor this device hands over, one request each; behind every request.

        Args:
            features: [n, ...], as from `features`; of a plan that sends the input, examples.

        Returns:
            Logits float[n, classes].

        Raises:
            Busy: If the plan in force hands over nothing here.
            Unreachable: If no node of the next site is there.
            TransportError: As `Transport.query`; also of what may not leave.
        """
        (prepared, handover), rows = self._handing_over(), list[NDArray[Any]]()
        peers, codec = self._peers.at(prepared.stages.target), prepared.codec
        assert codec is not None
        for index, row in enumerate(features):
            nodes = peers.usable()
            if not nodes:
                raise Unreachable(
                    f"{self.node!r} reaches no node at site {prepared.stages.target} now. Ask again when one is back."
                )
            target = peers.target(nodes[0])
            payload = encode_cut(codec, handover.tensors, {handover.tensors[0]: row[None]}, prepared.rng)
            asked = stage_request(
                prepared,
                payload,
                request=RequestId(f"{self.node}-beyond-{index}"),
                timeout_s=_LABELLING_S,
                purpose=Purpose.TRAINING,
            )
            reply = await target.transport.query(target.key, asked, timeout_s=_LABELLING_S)
            rows.append(next(reversed(stage_answer(reply)[1].values())))
        return np.concatenate(rows)

    def _handing_over(self) -> tuple[PreparedPlan, Handover]:
        if self._active is None or self._active.stages.handover is None:
            raise Busy(f"no plan is in force on {self.node!r} that hands over to another node.")
        return self._active, self._active.stages.handover

    async def prepare(self, active: ActivePlan, graph: Graph) -> None:
        """Builds and warms the sessions of a plan; requests go on meanwhile on the plan in force.

        Args:
            active: The plan with revision and version.
            graph: Its graph.

        Raises:
            PlanInfeasible: If plan and graph do not belong together.
        """
        self._plans[active.revision] = await prepare_plan(active, graph, ENTRY, dilation=self.dilation)

    def activate(self, revision: Revision, *, keep: Iterable[Revision] = ()) -> None:
        """Switches to a prepared plan at once; what is open finishes on the revision it began with.

        Args:
            revision: The plan in force from now on.
            keep: Other revisions that stay warm, e.g. the alternatives of a plan map; other older ones are
                dropped when their last request or stream is done; streams of all but the last `FORMER_PLANS` end.

        Raises:
            PlanInfeasible: If it was not prepared.
        """
        if revision not in self._plans:
            raise PlanInfeasible(
                f"revision {revision} is not prepared on {self.node!r}, prepared are {list(self.revisions)}. "
                "Prepare it first."
            )
        self._active = self._plans[revision]
        wanted = {revision, *keep}
        for other, prepared in self._plans.items():
            prepared.is_retired = other < revision and other not in wanted
        former = [other for other in self.revisions if self._plans[other].is_retired]
        for other in former[:-FORMER_PLANS]:  # streams that nobody ends would keep every model there ever was
            self.streams.end_all(self._plans[other])
        self._drop_idle()

    def set_targets(self, targets: Sequence[Target], site: Site | None = None) -> None:
        """Sets the nodes that stand at a site, best first; without a site, at every one that has none of its own."""
        self._peers.replace(targets, site)

    def peer_lost(self, node: str) -> None:
        """A node's liveliness token is gone: it is not asked until it returns."""
        self._peers.lost(node)

    def peer_returned(self, node: str) -> None:
        """A node's liveliness token is back: it is asked as usual."""
        self._peers.returned(node)

    async def infer(
        self,
        inputs: Mapping[str, NDArray[Any]],
        *,
        deadline_s: float | None = None,
        request: str = "",
        stream: StreamStep | None = None,
    ) -> Served:
        """Serves one request along the active plan.

        Args:
            inputs: Arrays by input name; from here on they are raw data of this device.
            deadline_s: Seconds it may take; `default_deadline_s` if None.
            request: Its name; made up if "".
            stream: Its place in a stream, whose requests are taken in order; its first has index 0, the others any
                other. None for a request of its own.

        Returns:
            Outputs and observation, by the deadline. Source `none` says that nothing was ready, and why.

        Raises:
            InputError: If a name, dtype or shape is wrong.
            StreamLost: If the stream is not open here, or no longer.
            Busy: If no plan is active or too many requests are open.
        """
        if stream is not None:
            return await self._infer_next(stream, inputs, deadline_s, request)
        return await self._infer(self._in_force(), inputs, deadline_s, request)

    def _in_force(self) -> PreparedPlan:
        if self._active is None:
            raise Busy(f"{self.node!r} has no active plan yet. Wait until the model is ready.")
        return self._active

    async def _infer(
        self,
        prepared: PreparedPlan,
        inputs: Mapping[str, NDArray[Any]],
        deadline_s: float | None,
        request: str,
        step: StreamStep | None = None,
        targets: tuple[str, ...] | None = None,
    ) -> Served:
        if self._num_open >= self.max_in_flight:
            self.refused += 1
            raise Busy(
                f"{self.max_in_flight} requests are open on {self.node!r}, this one is dropped. Send less.",
                retry_after_s=prepared.usual_stage_s if isfinite(prepared.usual_stage_s) else 1.0,
            )
        checked = await self._checked(prepared, inputs)
        name = RequestId(request or f"{self.node}-{next(self._numbers)}")
        budget_s = self.default_deadline_s if deadline_s is None else deadline_s
        stream = "" if step is None else step.stream
        served = self._filtered(prepared, checked, stream, name, budget_s) if prepared.filters else None
        if served is None:
            peers = self._peers.at(prepared.stages.target)
            num, may_part = entries_of(checked), step is None and not prepared.is_shared_state
            try:
                worker, cost_s = admit(prepared, self._lanes, num, budget_s, self.name, may_part=may_part)
            except EdgewiseError as error:
                self.refused += 1
                if error.fields.get("plan_is_slow"):  # which speaks against what is being rolled out
                    seen = unanswered(name, prepared.active, prepared.digest, error.message, budget_s)
                    asyncio.get_running_loop().call_soon(self._tell, checked, Served({}, seen))
                raise
            resources = RequestResources(self.node, worker, peers, self.name, cost_s)
            live = LiveRequest(
                resources, prepared, checked, budget_s=budget_s, request=name, step=step, targets=targets
            )
            self._num_open, prepared.in_flight = self._num_open + 1, prepared.in_flight + 1
            try:
                served = await live.run()
            finally:
                self._num_open, prepared.in_flight = self._num_open - 1, prepared.in_flight - 1
                if prepared.is_retired:
                    self._drop_idle()
            if served.observation.source in (AnswerSource.PLAN, AnswerSource.OTHER_EDGE):
                if prepared.filters.learns:
                    prepared.filters.learn(checked, served.outputs, stream)
                if prepared.gates.learns and live.head is not None:
                    prepared.gates.learn(live.head.tensors, served.outputs, stream)
        # Whoever asked does not wait until everybody has learned from it.
        asyncio.get_running_loop().call_soon(self._tell, checked, served)
        return served

    async def _checked(self, prepared: PreparedPlan, inputs: Mapping[str, NDArray[Any]]) -> Tensors:
        """The inputs as the model takes them; many are converted off the event loop."""
        tensors, optional = prepared.inputs, prepared.graph.optional
        if sum([array.size for array in inputs.values() if array is not None]) <= _MANY_ENTRIES:
            return check_inputs(tensors, inputs, optional)
        return await asyncio.to_thread(check_inputs, tensors, inputs, optional)

    def _filtered(
        self, prepared: PreparedPlan, inputs: Tensors, stream: str, request: RequestId, budget_s: float
    ) -> Served | None:
        """Asks the gates in front of every stage; None lets the request pass."""
        loop = asyncio.get_running_loop()
        arrived_s = loop.time()
        asked = prepared.filters.ask(inputs, stream)
        if asked is None:
            return None
        active, seconds = prepared.active, loop.time() - arrived_s
        seen = Observation(
            request=request,
            revision=active.revision,
            version=active.version,
            plan=prepared.digest,
            source=AnswerSource.FILTER,
            exit_index=FILTERED,
            cause="",
            arrived_s=arrived_s,
            latency_s=seconds,
            deadline_s=budget_s,
            served_by=(),
            stages=(("filter", seconds),),
            confidence_exit=prepared.plan.exits[0].index,
        )
        echoes = {name: inputs[name] for name in prepared.graph.echoes}
        return Served({**asked[1], **echoes}, seen)

    def stream(self, name: str = "") -> Stream:
        """Begins a stream of requests: a plan's stages keep their state between them.

        Args:
            name: Made up if ""; a stream of that name that is open ends.

        Returns:
            The stream; it stays on the plan in force now.

        Raises:
            Busy: If no plan is active.
        """
        prepared, name = self._in_force(), name or f"stream-{next(self._numbers)}"
        self.streams.begin(name, prepared)
        self._drop_idle()
        return Stream(name, self.infer, self.end_stream)

    def end_stream(self, name: str) -> None:
        """Ends a stream and frees its state on every node that it can tell; nothing happens if it is not open."""
        self.streams.end(name)
        self._drop_idle()

    async def _infer_next(
        self, step: StreamStep, inputs: Mapping[str, NDArray[Any]], deadline_s: float | None, request: str
    ) -> Served:
        if step.index == 0 and not self.streams.is_new(step.stream):
            self.stream(step.stream)
        stream = self.streams.opened(step.stream)
        stream.num_asked += 1
        async with stream.turn:
            if not self.streams.is_open(step.stream, stream):
                raise StreamLost(
                    f"stream {step.stream!r} ended while this request waited for its turn. Begin a new one."
                )
            at = StreamStep(stream.key, stream.num_sent, step.is_last)
            try:
                served = await self._infer(stream.prepared, inputs, deadline_s, request, at, stream.nodes)
                stream.num_sent += 1  # what was refused has not moved the state
                stream.answered(self.node, served.observation.served_by)
            except BaseException:
                if step.is_last and not stream.num_sent:  # it was to be the only one
                    self.end_stream(step.stream)
                raise
            finally:
                if not self.streams.is_open(step.stream, stream):
                    self.streams.free(stream)
        if step.is_last and self.streams.is_open(step.stream, stream):
            self.end_stream(step.stream)
        return served

    def _tell(self, inputs: Tensors, served: Served) -> None:
        self.served.add(served.observation)
        self._on_observation(served.observation)
        self._on_served(inputs, served)

    def feedback(self, labels: Mapping[str, int]) -> int:
        """Takes what was right.

        Args:
            labels: True classes by request name.

        Returns:
            How many belong to examples that are kept here.

        Raises:
            InputError: If this node keeps none.
        """
        if self._on_feedback is None:
            raise InputError(f"{self.node!r} keeps no examples to learn from. Serve the model on a device of a fleet.")
        return self._on_feedback(labels)

    def retire(self) -> None:
        """Answers no more requests; open ones end with what they have."""
        self._active = None
        self.streams.end_all()

    def _drop_idle(self) -> None:
        for revision in [r for r, p in self._plans.items() if p.is_retired and p.is_idle]:
            del self._plans[revision]
