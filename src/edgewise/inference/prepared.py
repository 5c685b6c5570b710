"""A plan made ready on one node: sessions built and warm, codecs and gates made, recent costs remembered.

Device and stage hosts run the same two things: `PreparedPlan.run_stages` in the worker's thread, and what hands over
to the next site: `stage_request` and `stage_answer`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewise.codecs import Codec, make_codec
from edgewise.codecs.bundle import CodedBundle, Section
from edgewise.core.errors import FrameRefused, InputError
from edgewise.core.ids import Digest
from edgewise.inference.cuts import encode_cut, sections_of
from edgewise.inference.gates.exit import first_answer
from edgewise.inference.gates.gate import Answer
from edgewise.inference.gates.gate_states import GateStates
from edgewise.inference.recent_costs import CostBySize, Slowest, running_mean
from edgewise.inference.remote_window import RemoteWindow
from edgewise.inference.stages import LoadedStage, StageSet, Tensors, build_stages, make_session
from edgewise.inference.streams import StreamStates, StreamStep
from edgewise.inference.warm_up import warm_up, zeros
from edgewise.inference.worker import BRIEF_S
from edgewise.models.graph.graph import Graph, PlainTensor
from edgewise.models.graph.living import peak_bytes
from edgewise.models.graph.optional_inputs import with_optional
from edgewise.planning.plan import ActivePlan, Gate, Handover, Plan, Site

# A little above what was ever seen covers the next one.
_HEADROOM = 1.25
# From the event loop to the worker's thread and back, on a busy machine.
_DISPATCH_S = 0.002
# Larger first outputs are no logits of a classifier.
_MAX_LOGITS = 65_536


@dataclass(frozen=True, slots=True)
class StageResult:
    """What a node's stages came to.

    Attributes:
        tensors: What is known now: what was given and what was computed.
        gate: The gate where the request ends, or the last exit that could end it; None without.
        answer: What it would be answered with there.
        leaves: Whether the request ends here.
        payload: What is handed over, encoded; None if it ends here.
        stages: Seconds by stage.
        confidence: Top-1 softmax at the plan's first exit, of the first example, if it was computed here.
        predicted: The class with the highest score there.
    """

    tensors: Tensors
    gate: Gate | None
    answer: Answer
    leaves: bool
    payload: CodedBundle | None
    stages: tuple[tuple[str, float], ...]
    confidence: float | None = None
    predicted: int | None = None


@dataclass(slots=True)
class PreparedPlan:
    """A plan on one node, at one site.

    Attributes:
        active: The plan with its revision and version.
        digest: The plan's digest.
        graph: The graph.
        stages: Sessions.
        codec: Of what leaves this node; None if the plan ends here.
        entry_codec: Of what arrives here; None at the first site.
        accepted: What may arrive here.
        filters: Gates in front of every stage; asked by the device.
        gates: Gates behind the stages of this site.
        streams: State of the streams; None if no stage here keeps any.
        inputs: What a request must bring: the graph's inputs, less state that stages keep.
        first_exit: The scores of the plan's first exit, wherever that is.
        rng: For codecs that round at random.
        in_flight: Requests that began on this revision and are open.
        num_streams: Streams that began on it and are open.
        is_retired: Whether it is dropped once the last of them is done.
        tail_seconds: Of the local tail.
        stage_seconds: Of this node's stages, codec included.
        usual_stage_s: Their running mean.
        usual_entries: Running mean of the entries that they were given.
        has_loop: Whether the graph has a loop, whose time depends on the data.
        usual_remote_s: Running mean of the seconds from handing over to the answer; 0 before the first.
        dilation: This node's factor.
        costs: What the stages took, by the entries that they were given.
        least_entries: Entries of one example.
        bytes_per_entry: Memory that computing takes, by the entries that are given.
        tried_s: When a request was last taken although it was expected to be late.
        remote_window: Open requests that the next site is trusted with.
    """

    active: ActivePlan
    digest: Digest
    graph: Graph
    stages: StageSet
    codec: Codec | None
    entry_codec: Codec | None
    accepted: tuple[Section, ...]
    filters: GateStates
    gates: GateStates
    streams: StreamStates | None
    inputs: tuple[PlainTensor, ...]
    first_exit: str
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))
    in_flight: int = 0
    num_streams: int = 0
    is_retired: bool = False
    tail_seconds: Slowest = field(default_factory=Slowest)
    stage_seconds: Slowest = field(default_factory=Slowest)
    usual_stage_s: float = float("inf")
    usual_entries: float = float("inf")
    has_loop: bool = False
    usual_remote_s: float = 0.0
    dilation: float = 1.0
    costs: CostBySize = field(default_factory=CostBySize)
    least_entries: int = 1
    bytes_per_entry: float = 0.0
    tried_s: float = float("-inf")
    remote_window: RemoteWindow = field(default_factory=RemoteWindow)
    _whole_session: Any = None

    @property
    def plan(self) -> Plan:
        """The plan itself."""
        return self.active.plan

    @property
    def is_idle(self) -> bool:
        """Whether nothing that began on it is open."""
        return not self.in_flight and not self.num_streams

    @property
    def is_shared_state(self) -> bool:
        """Whether requests change what others are answered, so that no two may run at once."""
        return self.stages.handover is not None or self.gates.learns or self.streams is not None

    def tail_p99_s(self) -> float | None:
        """Seconds the local tail of a request that arrives now may take, the work that goes first included.

        The worker serves the earliest deadline first, so at worst the tails of all open requests and the job at hand
        go first.

        Returns:
            The slowest of the last 64 runs, which is their 99th percentile, with headroom; None without a tail.
        """
        if self.stages.tail is None:
            return None
        waiting_s = self.tail_seconds.largest * max(1, self.in_flight) + self.stage_seconds.largest
        return _DISPATCH_S + _HEADROOM * waiting_s

    def is_brief(self, num_entries: int) -> bool:
        """Whether this node's stages are done before a thread would have been woken for them.

        Args:
            num_entries: Of what they are given; more than usual may take the square of it longer. How long a loop
                takes depends on the data.
        """
        if self.has_loop or num_entries <= self.usual_entries:
            return not self.has_loop and self.usual_stage_s < BRIEF_S
        return self.usual_stage_s * (num_entries / self.usual_entries) ** 2 < BRIEF_S

    def remote_took(self, seconds: float) -> None:
        """The next site answered after so long."""
        self.usual_remote_s = running_mean(self.usual_remote_s, seconds, is_first=self.usual_remote_s == 0.0)
        self.remote_window.grow()

    def run_stages(
        self,
        given: Mapping[str, NDArray[Any]],
        before: tuple[tuple[str, float], ...] = (),
        step: StreamStep | None = None,
    ) -> StageResult:
        """Runs this node's stages, asks its gates, encodes what is handed over; in the worker's thread.

        Args:
            given: Tensors that arrived.
            before: Stages to put in front, e.g. decoding.
            step: The request's place in its stream, if it has one.

        Returns:
            The result.

        Raises:
            StreamLost: If a stage's state does not stand at this step.
        """
        site, tensors, stages = self.stages.name, dict(given), list(before)
        if self.streams is not None:
            tensors |= self.streams.before(step)
        for _, stage in self.stages.stages:
            outputs, seconds = stage.run(tensors)
            tensors.update(outputs)
            stages.append((f"{site} compute", seconds))
        if self.streams is not None:
            self.streams.after(step, {given: tensors[made] for given, made in self.stages.keeps})
        asked = self.gates.ask(tensors, "" if step is None else step.stream)
        gate, answer, leaves = (None, {}, False) if asked is None else asked
        payload = None
        if self.stages.handover is not None and self.codec is not None and not leaves:
            started = time.perf_counter()
            payload = encode_cut(self.codec, self.stages.handover.tensors, tensors, self.rng)
            stages.append((f"{site} codec", time.perf_counter() - started))
        self._took(sum([seconds for _, seconds in stages]), entries_of(given))
        ends = leaves or self.stages.handover is None
        return StageResult(tensors, gate, answer, ends, payload, tuple(stages), *self._first_answer(tensors))

    def run_whole(self, given: Mapping[str, NDArray[Any]], step: StreamStep | None = None) -> StageResult:
        """Runs the whole model here, whatever the plan says: for a request that gives optional inputs.

        Args:
            given: The inputs, optional ones among them.
            step: The request's place in its stream, if it has one.

        Returns:
            The result; it ends the request.

        Raises:
            InputError: If the plan keeps state on another node.
        """
        site, graph, end, tensors = self.stages.name, self.graph, self.plan.exits[-1], dict(given)
        if len(self.plan.state) > len(self.stages.keeps):
            raise InputError(
                f"optional inputs cannot be given to {graph.name!r} now: its plan keeps state on another node, where they "
                f"are constants. Leave out {sorted({t.name for t in graph.optional} & set(given))}."
            )
        if self._whole_session is None:
            self._whole_session = make_session(with_optional(graph.model_bytes))
        if self.streams is not None:
            tensors |= self.streams.before(step)
        wanted = dict.fromkeys((*graph.constants, *end.tensors, *(output for _, output in self.stages.keeps)))
        made = tuple(name for name in wanted if name not in tensors)
        learned = set(made) - graph.condensed.raw_tensors
        stage = LoadedStage(self._whole_session, tuple(tensors), made, learned=learned, dilation=self.dilation)
        outputs, seconds = stage.run(tensors)
        tensors.update(outputs)
        if self.streams is not None:
            self.streams.after(step, {given: tensors[output] for given, output in self.stages.keeps})
        answer = {name: tensors[name] for name in (*graph.constants, *end.tensors)}
        stages = ((f"{site} compute", seconds),)
        return StageResult(tensors, end, answer, True, None, stages, *self._first_answer(tensors))

    def _took(self, seconds: float, num_entries: int) -> None:
        if num_entries != self.usual_entries:
            is_first = self.usual_entries == float("inf")
            self.usual_entries = running_mean(self.usual_entries, max(1, num_entries), is_first=is_first)
        self.usual_stage_s = running_mean(self.usual_stage_s, seconds, is_first=self.usual_stage_s == float("inf"))
        self.stage_seconds.add(seconds)
        self.costs.add(num_entries, seconds)

    def _first_answer(self, tensors: Tensors) -> tuple[float, int] | tuple[None, None]:
        """What drift is seen in: every request reaches the plan's first exit, wherever that is."""
        logits = tensors.get(self.first_exit)
        if logits is None or logits.ndim < 2 or not 0 < logits.size <= _MAX_LOGITS or logits.dtype.kind != "f":
            return None, None
        return first_answer(logits)

    def run_tail(self, tensors: Mapping[str, NDArray[Any]]) -> tuple[Tensors, float]:
        """Runs the local tail; in the worker's thread."""
        assert self.stages.tail is not None
        outputs, seconds = self.stages.tail.run(tensors)
        self.tail_seconds.add(seconds)
        return outputs, seconds

    def public(
        self, index: int | None, answer: Mapping[str, NDArray[Any]], given: Mapping[str, NDArray[Any]]
    ) -> Tensors:
        """An answer under the names of the model's end, whichever exit gave it; constants and inputs first.

        Raises:
            FrameRefused: If it lacks a tensor of that exit.
        """
        exits, fixed = self.plan.exits, {**self.graph.constants, **{name: given[name] for name in self.graph.echoes}}
        own = next((gate for gate in exits[:-1] if gate.index == index), None) if len(exits) > 1 else None
        lacking = [name for name in (own or exits[-1]).tensors if name not in answer and name not in fixed]
        if lacking:
            raise FrameRefused(f"an answer of exit {index} lacks {lacking[:10]}, it has {sorted(answer)[:10]}.")
        if own is None:
            return {**fixed, **answer}
        names = exits[-1].tensors[-len(own.tensors) :]
        return {**fixed, **{end: answer[name] for end, name in zip(names, own.tensors, strict=True)}}


async def prepare_plan(active: ActivePlan, graph: Graph, site: Site, *, dilation: float = 1.0) -> PreparedPlan:
    """Builds and warms everything a node needs for a plan, off the event loop.

    Args:
        active: The plan with revision and version.
        graph: Its graph.
        site: This node's place in it.
        dilation: This node's factor; the warm-up is not dilated.

    Returns:
        The prepared plan.
    """
    plan = active.plan
    stages = await build_stages(graph, plan, site, dilation=dilation)
    incoming = arriving(plan, site)
    prepared = PreparedPlan(
        active,
        plan.digest,
        graph,
        stages,
        None if stages.handover is None else make_codec(stages.handover.codec),
        None if incoming is None else make_codec(incoming.codec),
        () if incoming is None else sections_of(graph, incoming.tensors),
        GateStates(plan.filters),
        GateStates(stages.gates),
        StreamStates(zeros(graph, [given for given, _ in stages.keeps])) if stages.keeps else None,
        tuple(t for t in graph.inputs if t.name not in {given for given, _ in plan.state}),
        next(reversed(plan.exits[0].tensors), ""),
        has_loop=any(node.op in ("Loop", "Scan") for node in graph.nodes),
        dilation=dilation,
    )
    prepared.least_entries = max(1, sum(t.num_entries for t in prepared.inputs))
    prepared.bytes_per_entry = peak_bytes(graph) / prepared.least_entries
    await asyncio.get_running_loop().run_in_executor(None, _warm_up_all, prepared, dilation)
    return prepared


def arriving(plan: Plan, site: Site) -> Handover | None:
    """What comes to a site from another one; None at the first."""
    there = (h for h in plan.handovers if plan.site_of(h.target) == site != plan.site_of(h.source))
    return next(there, None)


def _warm_up_all(prepared: PreparedPlan, dilation: float) -> None:
    stages = prepared.stages
    if stages.stages:
        made = {name for stage, _ in stages.stages for name in (*stage.outputs, *(given for given, _ in stage.keeps))}
        given = {name for stage, _ in stages.stages for name in stage.inputs} - made
        seconds = dilation * sum(warm_up(prepared.graph, stage) for _, stage in stages.stages)
        if isfinite(seconds):
            prepared._took(seconds, sum(prepared.graph.tensor(name).num_entries for name in given))
    if stages.tail is not None and isfinite(seconds := warm_up(prepared.graph, stages.tail)):
        prepared.tail_seconds.add(dilation * seconds)


def entries_of(tensors: Mapping[str, NDArray[Any]]) -> int:
    """How many numbers they are in all."""
    return sum([array.size for array in tensors.values()])
