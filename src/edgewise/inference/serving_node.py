"""Serving at the device: prepared plans by epoch, one worker thread, requests driven by `request.py`.

    server = Server(NodeId("device-1"), name="digits", dilation=30.0, on_observation=rows.append)
    await server.prepare(ActivePlan(Epoch(1), plan, version=3), graph)     # builds and warms, nothing changes yet
    server.activate(Epoch(1))                                              # warm switch
    server.set_targets([Target(NodeId("edge-1"), transport, keys.service("edge-1", "stage"))])
    served = await server.infer({"input": image}, deadline_s=0.25)         # Served: outputs and observation
    server.peer_lost("edge-1"); server.peer_returned("edge-1")             # from liveliness tokens

A plan without any fleet: `local_server(graph)`. The outer tiers run a `StageHost` (`hosting.py`).
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewise.core.dtypes import dtype_name
from edgewise.core.errors import Busy, InputError, PlanInfeasible, Unreachable, nearest
from edgewise.core.ids import Epoch, NodeId, RequestId, Tier
from edgewise.core.provenance import RAW, Traced, traced
from edgewise.inference.cuts import encode_cut
from edgewise.inference.observation import Observation
from edgewise.inference.peers import Peers, Target
from edgewise.inference.prepared import PreparedPlan, prepare_plan, stage_answer, stage_question
from edgewise.inference.request_driver import LiveRequest, RequestResources, Served
from edgewise.inference.stages import Tensors
from edgewise.inference.worker import Worker
from edgewise.ledger.entry import Purpose
from edgewise.models.graph.graph import Graph, PlainTensor
from edgewise.planning.plan import ActivePlan, Cut, Exit, Plan, Segment

_TEACHING_S = 30.0
"""For an answer to learn from; hosts serve the earliest deadline first, so requests go first."""


class Server:
    """Answers inference requests on one device along its active plan.

    Attributes:
        node: The device.
        name: The model's name at the door.
        dilation: Factor by which this device stretches inference compute.
        default_deadline_s: For requests that bring none.
        max_in_flight: Open requests; one more is refused with `Busy`.
        worker: The computing thread; its `completed` counter is this node's progress.
        refused: Requests refused because too many were open.

    `on_observation` and `on_served` are told of each request once its answer is on its way.
    """

    def __init__(
        self,
        node: NodeId,
        *,
        name: str = "model",
        dilation: float = 1.0,
        default_deadline_s: float = 10.0,
        max_in_flight: int = 64,
        worker: Worker | None = None,
        on_observation: Callable[[Observation], None] = lambda observation: None,
        on_served: Callable[[Tensors, Served], None] = lambda inputs, served: None,
        on_feedback: Callable[[Mapping[str, int]], int] | None = None,
    ) -> None:
        self.node, self.name, self.dilation = node, name, dilation
        self.default_deadline_s, self.max_in_flight = default_deadline_s, max_in_flight
        self.worker = worker or Worker(f"{node}-compute", max_waiting=2 * max_in_flight)
        self.refused = 0
        self._on_observation, self._on_served, self._on_feedback = on_observation, on_served, on_feedback
        self._peers = Peers(lambda: asyncio.get_running_loop().time())
        self._plans: dict[Epoch, PreparedPlan] = {}
        self._active: PreparedPlan | None = None
        self._numbers = itertools.count(1)

    @property
    def active(self) -> ActivePlan | None:
        """The plan in force; None before the first `activate`."""
        return None if self._active is None else self._active.active

    @property
    def epochs(self) -> tuple[Epoch, ...]:
        """Epochs that are prepared, ascending."""
        return tuple(sorted(self._plans))

    @property
    def is_ready(self) -> bool:
        """Whether requests are answered."""
        return self._active is not None

    @property
    def inputs(self) -> tuple[PlainTensor, ...]:
        """The model's inputs; () before the first plan."""
        return () if self._active is None else self._active.graph.inputs

    @property
    def outputs(self) -> tuple[PlainTensor, ...]:
        """What answers carry: the model's end, or all outputs of a model served in one piece."""
        if self._active is None:
            return ()
        graph, plan = self._active.graph, self._active.plan
        made = {name for segment in plan.segments for name in segment.outputs}
        return graph.outputs[-1:] if len(plan.exits) > 1 else tuple(t for t in graph.outputs if t.name in made)

    @property
    def graph(self) -> Graph | None:
        """The whole model in force; None before the first plan."""
        return None if self._active is None else self._active.graph

    @property
    def cut(self) -> Cut | None:
        """Where the plan in force leaves this device; None if it does not."""
        return None if self._active is None else self._active.stages.cut

    def features(self, inputs: NDArray[Any]) -> NDArray[Any]:
        """What this device's segment makes of examples, whatever its exits say. Blocks: call it off the event loop.

        Args:
            inputs: [n, ...], examples of the model's first input.

        Returns:
            [n, ...], the cut's first tensor.

        Raises:
            Busy: If the plan in force has no segment and cut here.
        """
        prepared = self._with_cut()
        if prepared.stages.stage is None:
            raise Busy(f"{self.node!r} runs no segment of the plan in force, so it makes no features.")
        name, cut = prepared.graph.inputs[0].name, prepared.stages.cut
        assert cut is not None
        rows = [prepared.stages.stage.run({name: row[None]})[0][cut.tensors[0]] for row in inputs]
        return np.concatenate(rows)

    async def beyond(self, features: NDArray[Any]) -> NDArray[Any]:
        """What the next tier answers to the tensor of this device's cut, one question each; behind every request.

        Args:
            features: [n, ...], as from `features`; of a plan that sends the input, examples.

        Returns:
            Logits float[n, classes].

        Raises:
            Busy: If the plan in force has no cut here.
            Unreachable: If no node of the next tier is there.
            TransportError: As `Transport.query`; also of what may not leave.
        """
        prepared, rows = self._with_cut(), list[NDArray[Any]]()
        cut, codec = prepared.stages.cut, prepared.codec
        assert cut is not None
        assert codec is not None
        for index, row in enumerate(features):
            nodes = self._peers.usable()
            if not nodes:
                raise Unreachable(
                    f"{self.node!r} reaches no node of tier {cut.target} now. Ask again when one is back."
                )
            target = self._peers.target(nodes[0])
            payload = encode_cut(codec, cut.tensors, {cut.tensors[0]: row[None]}, prepared.rng)
            name = RequestId(f"{self.node}-beyond-{index}")
            question = stage_question(
                prepared, payload, request=name, timeout_s=_TEACHING_S, purpose=Purpose.TRAINING
            )  # fmt: skip
            reply = await target.transport.query(target.key, question, timeout_s=_TEACHING_S)
            rows.append(next(iter(stage_answer(reply)[1].values())))
        return np.concatenate(rows)

    def _with_cut(self) -> PreparedPlan:
        if self._active is None or self._active.stages.cut is None:
            raise Busy(f"no plan is in force on {self.node!r} that hands over to another node.")
        return self._active

    async def prepare(self, active: ActivePlan, graph: Graph) -> None:
        """Builds and warms the sessions of a plan; requests go on meanwhile on the plan in force.

        Args:
            active: The plan with epoch and version.
            graph: Its graph.

        Raises:
            PlanInfeasible: If plan and graph do not belong together.
        """
        self._plans[active.epoch] = await prepare_plan(active, graph, Tier.DEVICE, dilation=self.dilation)

    def activate(self, epoch: Epoch, *, keep: Iterable[Epoch] = ()) -> None:
        """Switches to a prepared plan at once; open requests finish on the epoch they began with.

        Args:
            epoch: The plan in force from now on.
            keep: Other epochs that stay warm, e.g. the alternatives of a plan map; other older ones are
                dropped when their last request is done.

        Raises:
            PlanInfeasible: If it was not prepared.
        """
        if epoch not in self._plans:
            raise PlanInfeasible(
                f"epoch {epoch} is not prepared on {self.node!r}, prepared are {list(self.epochs)}. Prepare it first."
            )
        self._active = self._plans[epoch]
        wanted = {epoch, *keep}
        for other, prepared in self._plans.items():
            prepared.is_retired = other < epoch and other not in wanted
        self._drop_idle()

    def set_targets(self, targets: Sequence[Target]) -> None:
        """Sets the nodes that may run the next segment, best first."""
        self._peers.replace(targets)

    def peer_lost(self, node: str) -> None:
        """A node's liveliness token is gone: it is not asked until it returns."""
        self._peers.lost(node)

    def peer_returned(self, node: str) -> None:
        """A node's liveliness token is back: it is asked as usual."""
        self._peers.returned(node)

    async def infer(
        self, inputs: Mapping[str, NDArray[Any]], *, deadline_s: float | None = None, request: str = ""
    ) -> Served:
        """Serves one request along the active plan.

        Args:
            inputs: Arrays by input name; from here on they are raw data of this device.
            deadline_s: Seconds it may take; `default_deadline_s` if None.
            request: Its name; made up if "".

        Returns:
            Outputs and observation, by the deadline. Source `none` says that nothing was ready, and why.

        Raises:
            InputError: If a name, dtype or shape is wrong.
            Busy: If no plan is active or too many requests are open.
        """
        prepared = self._active
        if prepared is None:
            raise Busy(f"{self.node!r} has no active plan yet. Wait until the model is ready.")
        if sum(p.in_flight for p in self._plans.values()) >= self.max_in_flight:
            self.refused += 1
            raise Busy(f"{self.max_in_flight} requests are open on {self.node!r}, this one is dropped. Send less.")
        checked = check_inputs(prepared.graph, inputs)
        name = RequestId(request or f"{self.node}-{next(self._numbers)}")
        budget_s = self.default_deadline_s if deadline_s is None else deadline_s
        resources = RequestResources(self.node, self.worker, self._peers)
        prepared.in_flight += 1
        try:
            served = await LiveRequest(resources, prepared, checked, budget_s=budget_s, request=name).run()
        finally:
            prepared.in_flight -= 1
            self._drop_idle()
        # Whoever asked does not wait until everybody has learned from it.
        asyncio.get_running_loop().call_soon(self._tell, checked, served)
        return served

    def _tell(self, inputs: Tensors, served: Served) -> None:
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

    async def close(self) -> None:
        """Stops the worker; open requests end with what they have."""
        self._active = None
        await asyncio.get_running_loop().run_in_executor(None, self.worker.close)

    def _drop_idle(self) -> None:
        for epoch in [e for e, p in self._plans.items() if p.is_retired and not p.in_flight]:
            del self._plans[epoch]


def check_inputs(graph: Graph, inputs: Mapping[str, NDArray[Any]]) -> Tensors:
    """Checks what a client sent against the model, and marks it as raw data.

    Args:
        graph: The model.
        inputs: Arrays by name.

    Returns:
        The same arrays, traced.

    Raises:
        InputError: If a name, dtype or shape is wrong.
    """
    wanted = {t.name: t for t in graph.inputs}
    for name in inputs:
        if name not in wanted:
            raise InputError(f"the model has no input {name!r}.{nearest(name, wanted)}")
    batches = set()
    for name, tensor in wanted.items():
        if name not in inputs:
            raise InputError(
                f"input {name!r} is missing, given are {sorted(inputs)}. Send {tensor.dtype}{_shown(tensor)}."
            )
        array = inputs[name]
        if dtype_name(array.dtype) != tensor.dtype:
            raise InputError(f"input {name!r} has dtype {array.dtype}, the model takes {tensor.dtype}. Convert it.")
        has_shape = array.shape[1:] == tensor.shape[1:] and array.ndim == len(tensor.shape)
        is_batch_right = has_shape and ((tensor.symbolic_batch and array.shape[0] > 0) or array.shape == tensor.shape)
        if not is_batch_right:
            raise InputError(
                f"input {name!r} has shape {list(array.shape)}, the model takes {_shown(tensor)}. Reshape it."
            )
        if tensor.symbolic_batch:
            batches.add(array.shape[0])
    if len(batches) > 1:
        raise InputError(f"inputs have different batch sizes {sorted(batches)}. Send one batch.")
    return {name: _raw(array) for name, array in inputs.items()}


def _raw(array: NDArray[Any]) -> NDArray[Any]:
    is_so = isinstance(array, Traced) and RAW in array.origins and array.flags.c_contiguous
    return array if is_so else traced(np.ascontiguousarray(array), RAW)


def _shown(tensor: PlainTensor) -> str:
    sizes = [str(n) for n in tensor.shape]
    if tensor.symbolic_batch:
        sizes[0] = "n"
    return f"[{', '.join(sizes)}]"


def device_only_plan(graph: Graph) -> Plan:
    """The plan that runs a whole model on the device, up to its end.

    Args:
        graph: Any model, e.g. a user's own.

    Returns:
        The plan.
    """
    segment = Segment(
        Tier.DEVICE,
        tuple(group.name for group in graph.condensed.groups),
        tuple(t.name for t in graph.inputs),
        tuple(t.name for t in graph.outputs),
    )
    end = Exit(len(graph.outputs) - 1, graph.outputs[-1].name, Tier.DEVICE, 0.0, 1.0, 1.0)
    return Plan("device only", graph.digest, (segment,), (), (end,))


async def local_server(graph: Graph, *, name: str = "model", dilation: float = 1.0, version: int = 1) -> Server:
    """Serves a model on this machine alone, without any fleet.

    Args:
        graph: The model.
        name: Its name at the door.
        dilation: Factor for emulating a slow device.
        version: Version number in answers.

    Returns:
        A ready server; close it.
    """
    server = Server(NodeId("local"), name=name, dilation=dilation)
    await server.prepare(ActivePlan(Epoch(1), device_only_plan(graph), version), graph)
    server.activate(Epoch(1))
    return server
