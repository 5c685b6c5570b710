"""Stages made ready: one ONNX Runtime session each, with time dilation for emulated slow nodes.

`LoadedStage.run` is called in the worker's thread (`worker.py`); `build_stages` makes every session a node needs for a plan
before the plan is activated, so that switching is warm. Which output is a new thing and which is still raw data is
decided here, and nowhere else on the serving side.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from edgewise.core.errors import GraphError, InputError, PlanInfeasible
from edgewise.core.provenance import derived, origins_of, traced
from edgewise.inference.dilated_time import MEASUREMENTS, MEASURING_RUNS, MEASURING_S, undisturbed_s, wait_precisely
from edgewise.models.graph.graph import Graph
from edgewise.models.graph.runtime import first_line
from edgewise.planning.plan import ENTRY, Gate, Handover, Plan, Site, Stage

Tensors = dict[str, NDArray[Any]]

_SESSIONS: WeakValueDictionary[tuple[Any, ...], Any] = WeakValueDictionary()
"""Of this process, by graph and boundary; a session runs on several threads at once."""


def make_session(model: bytes, *, threads: int = 1) -> Any:
    """An ONNX Runtime session as every node of a fleet uses it.

    Args:
        model: ONNX bytes.
        threads: Intra-op threads; they never spin, for several processes share a machine.

    Returns:
        An `onnxruntime.InferenceSession` on the CPU.

    Raises:
        GraphError: If the runtime does not load it, e.g. because it has no kernel for an operator and type.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # The runtime's own store of memory has one lock for all threads of a session, held while a large run gives its memory
    # back: small runs beside it stood still for as long. The C allocator is as fast, and keeps less.
    options.enable_cpu_mem_arena = False
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    try:
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        if not type(error).__module__.startswith("onnxruntime"):
            raise
        raise GraphError(
            f"ONNX Runtime {onnxruntime.__version__} cannot run the model: {first_line(error)}. Export it with operators and "
            "types that it has on a processor, e.g. float32 for bfloat16."
        ) from error
    session._model_bytes = None  # kept for sessions that change their providers: as much again as the weights
    return session


class CannotCompute(InputError):
    """What a model is given has the right names, dtypes and axes, and still it cannot be computed."""

    code = "input.compute"


class LoadedStage:
    """A stage that can run.

    Attributes:
        inputs: Tensors it needs.
        outputs: Tensors it makes.
        dilation: This node's factor s: a run ends s · t after it began, t what inputs of its size take here undisturbed
            (`undisturbed_s`, the least of a few measurements), or when it is done, if that is later. So an emulated
            device is as fast on a busy machine as on an idle one.
        learned: Outputs that trained weights take part in: new things. The others keep their inputs' origin.
    """

    def __init__(
        self,
        session: Any,
        inputs: Sequence[str],
        outputs: Sequence[str],
        *,
        learned: Iterable[str] = (),
        dilation: float = 1.0,
    ) -> None:
        if dilation < 1.0:
            raise InputError(f"dilation is {dilation}, it must be >= 1. A node can be slowed down, not sped up.")
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)
        self.dilation, self.learned = dilation, frozenset(learned)
        self._session = session
        self._taken_s: dict[int, float] = {}
        self._num_measured: dict[int, int] = {}

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> tuple[Tensors, float]:
        """Computes the stage in the calling thread.

        Args:
            feeds: At least this stage's inputs.

        Returns:
            Outputs by name, and seconds taken, dilation included.
        """
        started = time.perf_counter()
        values = self.compute(feeds)
        if self.dilation > 1.0:
            self._wait(started, feeds)
        return self._owned(values, feeds), time.perf_counter() - started

    def measure(self, feeds: Mapping[str, NDArray[Any]]) -> float:
        """What inputs of a size take on this machine undisturbed and undilated; measured when first asked.

        Args:
            feeds: At least this stage's inputs; the stage has run before.

        Returns:
            Seconds.
        """
        size = self._size(feeds)
        return self._taken_s[size] if size in self._taken_s else self.measure_again(feeds)

    def measure_again(self, feeds: Mapping[str, NDArray[Any]]) -> float:
        """As `measure`, at another moment: what was measured while a neighbour of the processor was busy is corrected.

        Args:
            feeds: As `measure`.

        Returns:
            Seconds, the least so far.
        """
        size, found = self._size(feeds), undisturbed_s(lambda: self.compute(feeds))
        self._taken_s[size] = min(found, self._taken_s.get(size, found))
        self._num_measured[size] = self._num_measured.get(size, 0) + 1
        return self._taken_s[size]

    def _size(self, feeds: Mapping[str, NDArray[Any]]) -> int:
        return sum(feeds[name].size for name in self.inputs)

    def _wait(self, started_s: float, feeds: Mapping[str, NDArray[Any]]) -> None:
        """Waits until a run that began then may end; long waits are used to measure again, a few times in all."""
        taken_s = self.measure(feeds)
        left_s = self.dilation * taken_s - (time.perf_counter() - started_s)
        if self._num_measured[self._size(feeds)] < MEASUREMENTS and left_s > MEASURING_S + MEASURING_RUNS * taken_s:
            taken_s = self.measure_again(feeds)
        wait_precisely(self.dilation * taken_s - (time.perf_counter() - started_s))

    def compute(self, feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """The bare computation, undilated: what the profiler and the warm-up run.

        Raises:
            CannotCompute: If an operator refuses what it is given, e.g. an index beyond a table.
        """
        given = {n: np.asarray(feeds[n]) for n in self.inputs}
        if not self.outputs:
            return []
        try:
            values: list[NDArray[Any]] = self._session.run(self.outputs, given)
        except Exception as error:
            if not type(error).__module__.startswith("onnxruntime") and not isinstance(error, UnicodeError):
                raise
            sizes = ", ".join(f"{name} {list(array.shape)}" for name, array in given.items())
            raise CannotCompute(
                f"the model cannot compute what it was given ({sizes}): {first_line(error)}. Send values and sizes that "
                "belong together, as it was trained with."
            ) from error
        return values

    def _owned(self, values: Sequence[NDArray[Any]], feeds: Mapping[str, NDArray[Any]]) -> Tensors:
        origins = origins_of(*(feeds[name] for name in self.inputs))
        keeps = origins and not self.learned.issuperset(self.outputs)
        if not keeps:
            return dict(zip(self.outputs, map(derived, values) if origins else values, strict=True))
        return {
            name: derived(value) if name in self.learned else traced(value, *origins)
            for name, value in zip(self.outputs, values, strict=True)
        }


@dataclass(frozen=True)
class StageSet:
    """Everything one node runs for one plan at one site.

    Attributes:
        plan: The plan.
        site: This node's place in it.
        stages: Its stages with their sessions, in order; () if the site runs nothing.
        gates: Gates that stand behind one of them, in order.
        handover: What leaves for the next site; None if the plan ends here.
        target: That site; None likewise.
        tail: A device's own way on, from what it has to `tail_exit`; None if it is not needed.
        tail_exit: Where the tail ends.
    """

    plan: Plan
    site: Site
    stages: tuple[tuple[Stage, LoadedStage], ...]
    gates: tuple[Gate, ...]
    handover: Handover | None
    target: Site | None
    tail: LoadedStage | None = None
    tail_exit: Gate | None = None

    @property
    def keeps(self) -> tuple[tuple[str, str], ...]:
        """Pairs (input, output) of the state kept here."""
        return tuple(pair for stage, _ in self.stages for pair in stage.keeps)

    @cached_property
    def name(self) -> str:
        """The site in words."""
        return str(self.site)

    @cached_property
    def boundary(self) -> str:
        """The way to the next site in words, e.g. `device→edge`."""
        return f"{self.site}→{self.target}"


def stages_at(plan: Plan, site: Site) -> tuple[Stage, ...]:
    """The stages a site runs, in order; () if it runs nothing."""
    return tuple(stage for stage in plan.stages if stage.site == site)


def handover_after(plan: Plan, site: Site) -> Handover | None:
    """What goes from a site to the next one.

    Args:
        plan: The plan.
        site: Where it starts.

    Returns:
        The hand-over; None if the plan ends there.

    Raises:
        PlanInfeasible: If the plan branches there: nodes run chains of sites.
    """
    found = list(plan.leaving(site))
    if len(found) > 1 or any(handover.combine != "all" for handover in found):
        ways = ", ".join(f"{h.source}→{h.target} ({h.combine})" for h in found)
        raise PlanInfeasible(
            f"plan {plan.name!r} hands over {ways} from {site}; nodes run chains, where a site hands over to one. "
            "Make it with a planner of chains."
        )
    return found[0] if found else None


async def build_stages(graph: Graph, plan: Plan, site: Site, *, dilation: float = 1.0) -> StageSet:
    """Builds the sessions of one node off the event loop; activating them later costs nothing.

    Args:
        graph: The graph that the plan cuts.
        plan: The plan.
        site: This node's place in it.
        dilation: This node's factor.

    Returns:
        The stages.

    Raises:
        PlanInfeasible: If the plan was made for another graph, or cannot run.
    """
    return await asyncio.get_running_loop().run_in_executor(None, _build, graph, plan, site, dilation)


def _build(graph: Graph, plan: Plan, site: Site, dilation: float) -> StageSet:
    check_plan(graph, plan)
    stages, handover = stages_at(plan, site), handover_after(plan, site)
    names = {stage.name for stage in stages}
    gates = tuple(gate for gate in plan.gates if gate.at in names)
    loaded = tuple((stage, make_stage(graph, stage.inputs, stage.outputs, dilation=dilation)) for stage in stages)
    target = None if handover is None else plan.site_of(handover.target)
    tail, tail_exit = None, None
    if site == ENTRY and handover is not None and not plan.state and not any(gate in plan.exits for gate in gates):
        known = handover.tensors if stages else tuple(t.name for t in graph.inputs)
        made = {name for stage in stages for name in stage.outputs}
        tail_exit = plan.exits[0]
        missing = tuple(name for name in tail_exit.tensors if name not in made)
        tail = make_stage(graph, known, missing, dilation=dilation)
    return StageSet(plan, site, loaded, gates, handover, target, tail, tail_exit)


def check_plan(graph: Graph, plan: Plan) -> None:
    """Refuses a plan that cannot run.

    Args:
        graph: The graph it should cut.
        plan: The plan.

    Raises:
        PlanInfeasible: If it was made for another graph, never answers, runs nothing, or lets requests end in front of
            a stage that must see every one of its stream.
    """
    if plan.graph != graph.digest:
        raise PlanInfeasible(
            f"plan {plan.name!r} cuts graph {plan.graph[:12]}, this is graph {graph.digest[:12]}. "
            "Make a plan from this graph's profile."
        )
    if not plan.exits:
        raise PlanInfeasible(f"plan {plan.name!r} has no exit, so it never answers. The model's end is an exit.")
    if not plan.stages:
        raise PlanInfeasible(f"plan {plan.name!r} has no stage, so it computes nothing. Make it with the planner.")
    for stage in plan.stages:
        if stage.tile is not None or stage.graph != plan.graph:
            what = "a tile of its input" if stage.tile is not None else f"a piece of graph {stage.graph[:12]}"
            raise PlanInfeasible(
                f"stage {stage.name!r} of plan {plan.name!r} computes {what}; nodes run whole stages of the plan's own "
                "graph. Make it with a planner of chains."
            )
    last = max((n for n, stage in enumerate(plan.stages) if stage.keeps), default=-1)
    before = {stage.name for stage in plan.stages[:last]}
    for gate in plan.gates[:-1]:
        if plan.state and (gate in plan.filters or gate.at in before):
            raise PlanInfeasible(
                f"plan {plan.name!r} may end a request at its gate {gate.spec!r} in front of stage "
                f"{plan.stages[last].name!r}, whose state must see every request. Leave the gate out."
            )


def make_stage(graph: Graph, inputs: Sequence[str], outputs: Sequence[str], *, dilation: float = 1.0) -> LoadedStage:
    """A stage from a piece of a graph.

    Args:
        graph: The graph.
        inputs: Tensors given.
        outputs: Tensors wanted.
        dilation: This node's factor.

    Returns:
        The stage; building it takes 10-200 ms.
    """
    made = tuple(name for name in outputs if name not in inputs)
    learned = set(made) - graph.condensed.raw_tensors
    session = _session_of(graph, tuple(inputs), made) if made else None  # what is given may be all that is wanted
    return LoadedStage(session, inputs, made, learned=learned, dilation=dilation)


def _session_of(graph: Graph, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> Any:
    """The session of a piece, shared by all stages that run it: plans of one version have most weights in common."""
    # A model with free axes may be loaded with other sizes, which then stand in its pieces.
    sizes = tuple(graph.tensor(name).open_shape for name in (*inputs, *outputs))
    key = (graph.digest, inputs, outputs, sizes)
    session = _SESSIONS.get(key)
    if session is None:
        try:
            session = make_session(graph.extract(inputs, outputs))
        except GraphError:
            session = make_session(graph.extract(inputs, outputs, has_sizes=False))
        _SESSIONS[key] = session
    return session
