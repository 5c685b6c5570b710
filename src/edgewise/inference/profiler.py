"""Measures what a graph costs on this node: `profile_graph` fills a `Profile` for the planner.

    profile = await asyncio.to_thread(profile_graph, graph, node, Tier.DEVICE, dilation=30.0, cadence_s=0.02, budget_s=3.0)
    check_fingerprint(profile, graph, dilation=30.0)          # before planning or serving from it

Pieces between fusion-safe cuts are really cut out and run: rounds are interleaved (whole, head, tail, next cut, …) so that
a slow minute of the machine hits all alike, and an idle gap as long as the serving cadence precedes every run, for small
graphs run slower after idling. Dilation multiplies what a piece takes undisturbed, here as in serving. Nothing here
needs torch. Blocks for the budget: call it off the event loop.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from pathlib import Path
from platform import machine, processor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewise.codecs import make_codec
from edgewise.core.errors import GraphError, InputError, PlanInfeasible
from edgewise.core.ids import Digest, NodeId, RequestId, Revision, Tier
from edgewise.inference.cuts import encode_cut
from edgewise.inference.stage_messages import STAGE_REQUEST, StageRequest
from edgewise.inference.stages import LoadedStage, Tensors, make_stage
from edgewise.inference.warm_up import zeros
from edgewise.inference.worker import Worker
from edgewise.models.graph.condense import Frontier
from edgewise.models.graph.graph import Graph
from edgewise.planning.plan import Site
from edgewise.planning.profile import Fingerprint, GroupCost, Profile, SegmentCost
from edgewise.transport.frame import decode_frame, encode_frame, make_frame

THREADS = 1
_MIN_ROUNDS = 7
_BUILD_S = 0.01
_CUTS_BYTES = 2**30
"""What the sessions of all measured cuts may hold together; a graph larger than this is measured at one."""
_CODEC_RUNS = 9
_OVERHEAD_RUNS = 7


@dataclass(slots=True)
class _Piece:
    """Groups first…last with what they are fed; the seconds of each run, undilated."""

    first: int
    last: int
    stage: LoadedStage
    feeds: Tensors
    runs: list[float] = field(default_factory=list)

    def warm(self) -> None:
        """One run that is not counted."""
        self.stage.compute(self.feeds)

    def run(self) -> None:
        """One timed run."""
        started = time.perf_counter()
        self.stage.compute(self.feeds)
        self.runs.append(time.perf_counter() - started)

    def measure(self) -> None:
        """Measures anew what a run takes undisturbed; the least counts."""
        self.stage.measure_again(self.feeds)

    def cost(self, dilation: float) -> SegmentCost:
        seconds = np.asarray(self.runs)
        if dilation > 1.0:
            seconds = np.maximum(seconds, dilation * self.stage.measure(self.feeds))  # as `LoadedStage.run` does
        middle = float(np.median(seconds))
        mad = float(np.median(np.abs(seconds - middle)))
        return SegmentCost(self.first, self.last, middle, float(np.quantile(seconds, 0.95)), mad, len(self.runs))


def profile_graph(
    graph: Graph,
    node: NodeId,
    tier: Tier,
    *,
    dilation: float = 1.0,
    cadence_s: float = 0.0,
    budget_s: float = 3.0,
    codecs: Sequence[str] = ("none", "int8"),
    inputs: Tensors | None = None,
    active_power_w: float = 0.0,
    endpoint_overhead_s: float = 0.0,
    max_cuts: int = 12,
    measures_memory: bool = True,
) -> Profile:
    """Measures segments, codecs, overhead and memory of a graph on this machine.

    Args:
        graph: The graph.
        node: Who measures.
        tier: Where it stands.
        dilation: This node's factor, multiplied in.
        cadence_s: Gap between requests in serving; a dilated piece takes as long after any.
        budget_s: Seconds of measuring, building sessions included; a very slow graph takes at least 7 rounds of one cut.
        codecs: Spec texts of codecs to time.
        inputs: Example inputs; zeros if None (sparse activations run as fast, but compress better).
        active_power_w: Modelled power while computing.
        endpoint_overhead_s: Seconds a request spends at this node's HTTP endpoint, added to the overhead.
        max_cuts: Cuts measured, at most; fewer of a large graph, as the sessions of all are in memory at once.
        measures_memory: Whether to measure peak memory, in a child process of half a second.

    Returns:
        The profile; group costs and the call sum to the median of the whole.

    Raises:
        InputError: If budget, cadence or dilation cannot be.
        GraphError: If an axis other than the batch is free.
    """
    graph.check_sizes()
    if budget_s <= 0 or cadence_s < 0 or dilation < 1:
        raise InputError(
            f"budget {budget_s} s, cadence {cadence_s} s, dilation {dilation} cannot be profiled with. "
            "Needed are budget > 0, cadence >= 0 and dilation >= 1."
        )
    started = time.perf_counter()
    feeds = inputs or zeros(graph, [t.name for t in graph.inputs])
    gap_s = cadence_s if dilation == 1.0 else 0.0
    pieces = _pieces(graph, feeds, gap_s, budget_s, max_cuts)
    overhead_s = measure_overhead(cadence_s)
    coding = {text: _codec_seconds_per_byte(text, pieces) for text in codecs}
    _measure(pieces, gap_s, started + budget_s, is_dilated=dilation > 1.0)
    costs = [piece.cost(dilation) for piece in pieces]
    call_s = _call_seconds(costs)
    return Profile(
        node,
        tier,
        fingerprint(graph, dilation=dilation, cadence_s=cadence_s),
        _group_costs(graph, costs, call_s),
        tuple(costs),
        coding,
        overhead_s + endpoint_overhead_s,
        active_power_w,
        measure_memory(graph) if measures_memory else 0,
        call_s,
    )


def fingerprint(graph: Graph, *, dilation: float, cadence_s: float) -> Fingerprint:
    """What a profile measured here and now stands for.

    Args:
        graph: The graph.
        dilation: This node's factor.
        cadence_s: Gap between runs.

    Returns:
        The fingerprint.
    """
    import onnxruntime

    runtime = f"onnxruntime {onnxruntime.__version__} CPUExecutionProvider"
    return Fingerprint(graph.digest, runtime, THREADS, _machine(), dilation, cadence_s)


def check_fingerprint(profile: Profile, graph: Graph, *, dilation: float) -> None:
    """Refuses a profile that was measured under something else than what runs here.

    Args:
        profile: To be planned from.
        graph: What will run.
        dilation: This node's factor.

    Raises:
        PlanInfeasible: If graph, runtime, threads, machine or dilation differ; cadence is a matter of load.
    """
    taken, now = profile.fingerprint, fingerprint(graph, dilation=dilation, cadence_s=profile.fingerprint.cadence_s)
    for name in taken.__struct_fields__:
        if getattr(taken, name) != getattr(now, name):
            raise PlanInfeasible(
                f"the profile of {profile.node!r} was measured with {name} {getattr(taken, name)!r}, here it is "
                f"{getattr(now, name)!r}. Profile this graph on this node again."
            )


@cache
def _machine() -> str:
    name = processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        name = lines[0].partition(":")[2].strip() if lines else name
    return f"{name or 'unknown processor'} {machine()}"


def _pieces(graph: Graph, feeds: Tensors, gap_s: float, budget_s: float, max_cuts: int) -> list[_Piece]:
    """The whole, then head and tail at as many cuts as the budget can measure well; all warm."""
    condensed, last = graph.condensed, len(graph.condensed.groups) - 1
    whole = _piece(graph, 0, last, feeds)
    whole.run()
    once_s = whole.runs.pop()
    # Head and tail together cost about one whole; their sessions take `_BUILD_S` or a few runs each.
    per_cut_s = _MIN_ROUNDS * 2 * (once_s + gap_s) + 2 * max(_BUILD_S, 4 * once_s)
    affordable = int((budget_s - _MIN_ROUNDS * (once_s + gap_s)) / per_cut_s)
    max_cuts = min(max_cuts, _CUTS_BYTES // len(graph.model_bytes))  # head and tail together hold one whole
    pieces = [whole]
    for cut in _useful(condensed.cuts(), max(1, min(affordable, max_cuts))):
        head = _piece(graph, 0, cut.position - 1, feeds)
        made = dict(zip(head.stage.outputs, head.stage.compute(feeds), strict=True))
        pieces += [head, _piece(graph, cut.position, last, feeds | made)]
    for piece in pieces:
        piece.run()
        piece.runs.clear()
    return pieces


def _piece(graph: Graph, first: int, last: int, known: Tensors) -> _Piece:
    names = [group.name for group in graph.condensed.groups[first : last + 1]]
    stage = make_stage(graph, *graph.condensed.boundary(names))
    return _Piece(first, last, stage, {name: known[name] for name in stage.inputs})


def _useful(cuts: Iterable[Frontier], num: int) -> list[Frontier]:
    """Cuts with one tensor as small as all before first, then the others in order of size; back in graph order.

    Of equal ones the later goes first: what lies between is an exit, which whoever cuts there usually decides.
    """
    inner = [cut for cut in cuts if cut.position > 0]
    ranked, smallest = list[tuple[int, int, Frontier]](), float("inf")
    for cut in inner:
        is_record = cut.size_bytes <= smallest
        smallest = min(smallest, cut.size_bytes)
        ranked.append((0 if is_record else len(cut.tensors), cut.size_bytes, cut))
    chosen = [cut for _, _, cut in sorted(ranked, key=lambda r: (r[0], r[1], -r[2].position))[:num]]
    return sorted(chosen, key=lambda cut: cut.position)


def _measure(pieces: Sequence[_Piece], gap_s: float, until: float, *, is_dilated: bool) -> None:
    """Runs all pieces in turn until the time is up, in a worker's thread woken by an event loop, as in serving.

    Before each timed run the same piece ran one gap earlier, so that caches hold what they would hold in serving. What a
    dilated piece takes undisturbed is measured in every round, for a round may fall into a busy moment.
    """

    async def rounds() -> None:
        worker = Worker("profile")
        await worker.run(pieces[0].warm)
        while len(pieces[0].runs) < _MIN_ROUNDS or time.perf_counter() < until:
            for piece, following in zip(pieces, [*pieces[1:], pieces[0]], strict=True):
                if len(piece.runs) > _MIN_ROUNDS and time.perf_counter() >= until:
                    break
                if gap_s > 0:
                    await asyncio.sleep(gap_s)
                    _write_and_read_a_frame()
                await worker.run(piece.run)
                if gap_s > 0:
                    await worker.run(following.warm)
                if is_dilated and time.perf_counter() < until:
                    await worker.run(piece.measure)
        await asyncio.get_running_loop().run_in_executor(None, worker.close)

    with asyncio.Runner() as runner:
        runner.run(rounds())


def _write_and_read_a_frame() -> None:
    """What surrounds a stage call on every node: a cut encoded, a frame written, checked and read."""
    value = np.zeros((1, 256), np.float32)
    payload = encode_cut(make_codec("none"), ("x",), {"x": value}, np.random.default_rng(0))
    message = StageRequest(
        plan=Digest("0" * 64),
        revision=Revision(1),
        version=1,
        site=Site(Tier.EDGE),
        request=RequestId("r"),
        sections=payload.sections,
    )
    decode_frame(encode_frame(make_frame(STAGE_REQUEST, message, payload.arrays)))


def _call_seconds(costs: Sequence[SegmentCost]) -> float:
    """The fixed part of a session's run: what cutting the graph in two adds, which is one more call.

    The median of head + tail − whole over the measured cuts, at most nine tenths of the cheapest piece, whose groups
    cost something. A small first segment is nearly all call, and a slow device's call is slow, too.
    """
    whole, pieces = costs[0].seconds, costs[1:]
    added = [head.seconds + tail.seconds - whole for head, tail in zip(pieces[::2], pieces[1::2], strict=True)]
    return min(max(0.0, float(np.median(added))), 0.9 * min(c.seconds for c in costs)) if added else 0.0


def _group_costs(graph: Graph, costs: Sequence[SegmentCost], call_s: float) -> tuple[GroupCost, ...]:
    """Group costs from the medians of heads: increments between measured cuts, shared by operations within.

    Head medians are made monotone first, from the call on, and capped by the whole, so that no group costs less than
    nothing and all with the call sum to the whole.
    """
    groups, whole = graph.condensed.groups, costs[0]
    heads = {c.last + 1: c.seconds for c in costs[1:] if c.first == 0}
    known, latest = [(0, call_s)], call_s
    for position, seconds in sorted(heads.items()):
        latest = min(max(latest, seconds), whole.seconds)
        known.append((position, latest))
    known.append((len(groups), whole.seconds))
    spread = whole.p95_seconds / whole.seconds if whole.seconds else 1.0
    found: list[GroupCost] = []
    for (start, before), (end, after) in pairwise(known):
        flops = np.asarray([g.flops for g in groups[start:end]], float)
        # Every group costs at least its dispatch, here a twentieth of its interval's even share.
        shares = flops + max(flops.mean() if len(flops) else 0.0, 1.0) / 20
        for group, share in zip(groups[start:end], shares / shares.sum(), strict=True):
            seconds = float((after - before) * share)
            found.append(GroupCost(group.name, seconds, seconds * spread))
    return tuple(found)


def _codec_seconds_per_byte(text: str, pieces: Sequence[_Piece]) -> float:
    """Median seconds of encode + decode per uncoded byte, on the activation of median size at the measured cuts."""
    codec = make_codec(text)
    tails = [p for p in pieces[1:] if p.first > 0] or list(pieces[:1])
    arrays = [a for p in tails for a in p.feeds.values() if a.dtype == np.float32]
    if not arrays:
        return 0.0
    array: NDArray[Any] = sorted(arrays, key=lambda a: a.nbytes)[len(arrays) // 2]
    rng, seconds = np.random.default_rng(0), []
    for _ in range(_CODEC_RUNS):
        started = time.perf_counter()
        payload, _state = codec.encode(array, codec.init(array.shape), rng)
        codec.decode(payload)
        seconds.append(time.perf_counter() - started)
    return float(np.median(seconds)) / max(1, array.nbytes)


def measure_overhead(gap_s: float = 0.0) -> float:
    """Fixed cost of one stage call on this node: worker's thread and back, a frame written and read.

    Args:
        gap_s: Idle time before each call; threads wake up later from a longer sleep.

    Returns:
        Median seconds.
    """

    async def calls() -> list[float]:
        worker, seconds = Worker("overhead"), list[float]()
        for _ in range(_OVERHEAD_RUNS):
            await asyncio.sleep(gap_s)
            started = time.perf_counter()
            await worker.run(_write_and_read_a_frame)
            seconds.append(time.perf_counter() - started)
        await asyncio.get_running_loop().run_in_executor(None, worker.close)
        return seconds

    with asyncio.Runner() as runner:
        return float(np.median(runner.run(calls())))


_CHILD = """
import sys, psutil, numpy, onnxruntime
from edgewise.inference.stages import make_session
from edgewise.ledger.resources import peak_memory_bytes
before = psutil.Process().memory_info().rss
session = make_session(sys.argv[1])
given = numpy.load(sys.argv[2])
feeds = {i.name: given[name].astype(object) if i.type == "tensor(string)" else given[name]
         for i, name in zip(session.get_inputs(), given.files)}
session.run(None, feeds)
print(max(0, peak_memory_bytes() - before))
"""


def measure_memory(graph: Graph) -> int:
    """Peak memory that loading and running the whole graph adds to a process, measured in a child process.

    Args:
        graph: The graph.

    Returns:
        Bytes: the child's peak resident set less what it held with the runtime imported.
    """
    names, outputs = [t.name for t in graph.inputs], [t.name for t in graph.outputs]
    with tempfile.TemporaryDirectory(prefix="edgewise-") as folder:
        path, given = Path(folder) / "whole.onnx", Path(folder) / "given.npz"
        feeds = zeros(graph, names).values()
        np.savez(given, *(array.astype(str) if array.dtype.kind == "O" else array for array in feeds))
        for has_sizes in (True, False):  # some models load only without
            path.write_bytes(graph.extract(names, outputs, has_sizes=has_sizes))
            command = [sys.executable, "-c", _CHILD, str(path), str(given)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
            if not done.returncode:
                return int(done.stdout)
    last = (done.stderr.strip().splitlines() or ["no word"])[-1]
    raise GraphError(f"graph {graph.name!r} cannot be run to measure its memory: {last}")
