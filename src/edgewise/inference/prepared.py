"""A plan made ready on one node: sessions built and warm, codecs made, recent costs remembered.

Device and stage hosts run the same two things: `PreparedPlan.run_segment` in the worker's thread, and what hands over
to the next tier: `stage_question` and `stage_answer`.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewise.codecs import Codec, make_codec
from edgewise.core.ids import Digest, RequestId, Tier
from edgewise.inference.cuts import CutPayload, encode_cut
from edgewise.inference.gates.exit import confidence, decide
from edgewise.inference.stage_messages import STAGE_REQUEST, StageAnswer, StageRequest
from edgewise.inference.stages import Stage, StageSet, Tensors, build_stages, cut_after, segment_of
from edgewise.inference.worker import BRIEF_S
from edgewise.ledger.entry import Purpose
from edgewise.models.graph.graph import Graph
from edgewise.planning.plan import ActivePlan, Exit, Plan
from edgewise.transport.frame import Frame, make_frame

_WINDOW = 64
_MEMORY = 16
# A little above what was ever seen covers the next one.
_HEADROOM = 1.25
# From the event loop to the worker's thread and back, on a busy machine.
_DISPATCH_S = 0.002
# Larger first outputs are no logits of a classifier.
_MAX_LOGITS = 65_536


@dataclass(frozen=True, slots=True)
class SegmentResult:
    """What a node's segment came to.

    Attributes:
        tensors: What is known now: what was given and what was computed.
        exit: The exit that leaves, or the last one whose logits are there; None without.
        leaves: Whether the request leaves here.
        payload: The encoded cut; None if it leaves or the plan ends here.
        stages: Seconds by stage.
        confidence: Top-1 softmax at the plan's first exit, of the first example, if it was computed here.
        predicted: The class with the highest score there.
    """

    tensors: Tensors
    exit: Exit | None
    leaves: bool
    payload: CutPayload | None
    stages: tuple[tuple[str, float], ...]
    confidence: float | None = None
    predicted: int | None = None


class Slowest:
    """The largest of the last 64 values, without looking at all of them each time.

    Attributes:
        largest: It; 0 before the first.
    """

    __slots__ = ("_count", "_falling", "largest")

    def __init__(self) -> None:
        self._falling: deque[tuple[int, float]] = deque()
        self._count = 0
        self.largest = 0.0

    def add(self, value: float) -> None:
        """Takes one more; the 65th before it is forgotten."""
        # Whoever is not larger than a later one will never be the largest again.
        while self._falling and self._falling[-1][1] <= value:
            self._falling.pop()
        self._falling.append((self._count, value))
        if self._falling[0][0] <= self._count - _WINDOW:
            self._falling.popleft()
        self._count += 1
        self.largest = self._falling[0][1]


@dataclass(slots=True)
class PreparedPlan:
    """A plan on one node.

    Attributes:
        active: The plan with its epoch and version.
        digest: The plan's digest.
        graph: The graph.
        stages: Sessions.
        codec: Of the cut that leaves this node; None if the plan ends here.
        entry_codec: Of the cut that arrives here; None on the innermost node.
        rng: For codecs that round at random.
        in_flight: Requests that began on this epoch and are open.
        is_retired: Whether it is dropped once the last of them is done.
        tail_seconds: Of the local tail.
        segment_seconds: Of this node's segment, codec included.
        usual_segment_s: Their running mean.
        usual_remote_s: Running mean of the seconds from handing over to the answer; 0 before the first.
    """

    active: ActivePlan
    digest: Digest
    graph: Graph
    stages: StageSet
    codec: Codec | None
    entry_codec: Codec | None
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))
    in_flight: int = 0
    is_retired: bool = False
    tail_seconds: Slowest = field(default_factory=Slowest)
    segment_seconds: Slowest = field(default_factory=Slowest)
    usual_segment_s: float = float("inf")
    usual_remote_s: float = 0.0

    @property
    def plan(self) -> Plan:
        """The plan itself."""
        return self.active.plan

    def tail_p99_s(self) -> float | None:
        """Seconds the local tail of a request that arrives now may take, the work that goes first included.

        The worker serves the earliest deadline first, so at worst the tails of all open requests and the job at hand
        go first.

        Returns:
            The slowest of the last 64 runs, which is their 99th percentile, with headroom; None without a tail.
        """
        if self.stages.tail is None:
            return None
        waiting_s = self.tail_seconds.largest * max(1, self.in_flight) + self.segment_seconds.largest
        return _DISPATCH_S + _HEADROOM * waiting_s

    @property
    def is_brief(self) -> bool:
        """Whether this node's segment is usually done before a thread would have been woken for it."""
        return self.usual_segment_s < BRIEF_S

    def remote_took(self, seconds: float) -> None:
        """The next tier answered after so long."""
        self.usual_remote_s = _mean(self.usual_remote_s, seconds, is_first=self.usual_remote_s == 0.0)

    def run_segment(
        self, given: Mapping[str, NDArray[Any]], before: tuple[tuple[str, float], ...] = ()
    ) -> SegmentResult:
        """Runs this node's segment, decides its exits, encodes the cut; in the worker's thread.

        Args:
            given: Tensors that arrived.
            before: Stages to put in front, e.g. decoding.

        Returns:
            The result.
        """
        tier, tensors, stages = self.stages.tier, dict(given), list(before)
        if self.stages.stage is not None:
            outputs, seconds = self.stages.stage.run(given)
            tensors |= outputs
            stages.append((f"{tier} compute", seconds))
        here, is_leaving = decide(self.stages.exits, tensors) or (None, False)
        payload = None
        if self.stages.cut is not None and self.codec is not None and not is_leaving:
            started = time.perf_counter()
            payload = encode_cut(self.codec, self.stages.cut.tensors, tensors, self.rng)
            stages.append((f"{tier} codec", time.perf_counter() - started))
        self._took(sum(seconds for _, seconds in stages))
        return SegmentResult(
            tensors, here, is_leaving or self.stages.cut is None, payload, tuple(stages), *self._first_answer(tensors)
        )  # fmt: skip

    def _took(self, seconds: float) -> None:
        self.usual_segment_s = _mean(self.usual_segment_s, seconds, is_first=self.usual_segment_s == float("inf"))
        self.segment_seconds.add(seconds)

    def _first_answer(self, tensors: Tensors) -> tuple[float, int] | tuple[None, None]:
        """What drift is seen in: every request reaches the plan's first exit, wherever that is."""
        logits = tensors.get(self.plan.exits[0].tensor) if self.plan.exits else None
        if logits is None or logits.size > _MAX_LOGITS:
            return None, None
        return float(confidence(logits)[0]), int(logits[0].argmax())

    def run_tail(self, tensors: Mapping[str, NDArray[Any]]) -> tuple[Tensors, float]:
        """Runs the local tail; in the worker's thread."""
        assert self.stages.tail is not None
        outputs, seconds = self.stages.tail.run(tensors)
        self.tail_seconds.add(seconds)
        return outputs, seconds

    def answer_tensors(self, here: Exit | None, tensors: Mapping[str, NDArray[Any]]) -> Tensors:
        """What an answer carries: the exit's logits, or every output of a model without inner exits."""
        if here is not None and len(self.plan.exits) > 1:
            return {here.tensor: tensors[here.tensor]}
        return {t.name: tensors[t.name] for t in self.graph.outputs if t.name in tensors}


async def prepare_plan(active: ActivePlan, graph: Graph, tier: Tier, *, dilation: float = 1.0) -> PreparedPlan:
    """Builds and warms everything a node needs for a plan, off the event loop.

    Args:
        active: The plan with epoch and version.
        graph: Its graph.
        tier: This node's tier.
        dilation: This node's factor; the warm-up is not dilated.

    Returns:
        The prepared plan.
    """
    stages = await build_stages(graph, active.plan, tier, dilation=dilation)
    incoming = next((c for c in active.plan.cuts if c.target is tier), None)
    codec = None if stages.cut is None else make_codec(stages.cut.codec)
    entry_codec = None if incoming is None else make_codec(incoming.codec)
    prepared = PreparedPlan(active, active.plan.digest, graph, stages, codec, entry_codec)
    await asyncio.get_running_loop().run_in_executor(None, _warm_up_all, prepared, dilation)
    return prepared


def _warm_up_all(prepared: PreparedPlan, dilation: float) -> None:
    stages = prepared.stages
    if stages.stage is not None:
        prepared._took(dilation * warm_up(prepared.graph, stages.stage))
    if stages.tail is not None:
        prepared.tail_seconds.add(dilation * warm_up(prepared.graph, stages.tail))


def warm_up(graph: Graph, stage: Stage) -> float:
    """Runs a stage twice on zeros, undilated.

    Args:
        graph: Knows the shapes.
        stage: What to run.

    Returns:
        Seconds of the second run.
    """
    feeds = {n: np.zeros(graph.tensor(n).shape, graph.tensor(n).dtype) for n in stage.inputs}
    stage.compute(feeds)
    started = time.perf_counter()
    stage.compute(feeds)
    return time.perf_counter() - started


def _mean(mean: float, seconds: float, *, is_first: bool) -> float:
    return seconds if is_first else mean + (seconds - mean) / _MEMORY


def is_local(plan: Plan, tier: Tier) -> bool:
    """Whether a plan runs on one tier alone."""
    return cut_after(plan, tier) is None and segment_of(plan, tier) is not None


def stage_question(
    prepared: PreparedPlan,
    payload: CutPayload,
    *,
    request: RequestId,
    timeout_s: float,
    purpose: Purpose = Purpose.SERVING,
) -> Frame:
    """What hands a request over to the next tier.

    Args:
        prepared: The plan it began on.
        payload: The encoded cut.
        request: Its name.
        timeout_s: Seconds of work left.
        purpose: Why it is asked; the answer has the same.

    Returns:
        The frame.
    """
    assert prepared.stages.cut is not None
    active = prepared.active
    message = StageRequest(
        prepared.digest, active.epoch, active.version, prepared.stages.cut.target, request, payload.coded
    )
    return make_frame(
        STAGE_REQUEST, message, payload.tensors,
        purpose=purpose, deadline_s=timeout_s, run=f"version-{active.version}",
    )  # fmt: skip


def stage_answer(reply: Frame) -> tuple[StageAnswer, Tensors]:
    """Reads what the next tier answered: the answer and its tensors."""
    return reply.read(StageAnswer), {t.name: t.array for t in reply.tensors}
