"""Serving at the device: many models, one computing thread, one budget of open requests.

    node = ServingNode(NodeId("device-1"), dilation=30.0)
    digits = node.deploy("digits", share=2.0, on_observation=rows.append)     # a `ModelServer`: prepare, activate, infer
    served = await node.infer({"input": image}, model="digits", deadline_s=0.25)
    node.peer_lost("edge-1"); node.peer_returned("edge-1")                    # from liveliness tokens

A model has its share of the thread's time and of the open requests; a flood on one does not starve another. A plan
without any fleet: `local_server(graph)`. The outer tiers run a `StageHost` (`stage_server.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from edgewise.core.errors import GraphError, InputError, nearest
from edgewise.core.ids import NodeId, Revision
from edgewise.inference.device_streams import Stream
from edgewise.inference.model_server import LONG_NICENESS, ModelServer
from edgewise.inference.request_admission import Lanes
from edgewise.inference.request_driver import Served
from edgewise.inference.streams import StreamStep
from edgewise.inference.worker import Worker
from edgewise.models.graph.graph import Graph
from edgewise.models.model_choice import check_model_name
from edgewise.planning.plan import ENTRY, EXIT, ActivePlan, Gate, Plan, Stage


class ServingNode:
    """Answers inference requests on one device, for all its models.

    Attributes:
        node: The device.
        dilation: Factor by which this device stretches inference compute.
        max_in_flight: Open requests of all models; each may have its share of them.
        worker: The computing thread; its `completed` counter is this node's progress.
        models: What is served, by name; the endpoint looks it up at each request.
    """

    def __init__(
        self, node: NodeId, *, dilation: float = 1.0, max_in_flight: int = 64, worker: Worker | None = None
    ) -> None:
        self.node, self.dilation, self.max_in_flight = node, dilation, max_in_flight
        self.worker = worker or Worker(f"{node}-compute", max_waiting=2 * max_in_flight)
        self._lanes = Lanes(self.worker, lambda: Worker(f"{node}-long", niceness=LONG_NICENESS))
        self.models: dict[str, ModelServer] = {}
        self._shares: dict[str, float] = {}

    def deploy(self, name: str, *, share: float = 1.0, **settings: Any) -> ModelServer:
        """Adds a model, or gives the one of that name.

        Args:
            name: Its name at the endpoint.
            share: Its weight among the models, for the thread's time and for open requests.
            **settings: As `ModelServer`: `default_deadline_s`, `on_observation`, `on_served`,
                `on_feedback`.

        Returns:
            The model; it answers once a plan is prepared and active.

        Raises:
            InputError: If the share is not positive, or that can be no model's name.
        """
        check_model_name(name)
        if not share > 0.0:
            raise InputError(f"the share of model {name!r} is {share}, it must be > 0.")
        if name not in self.models:
            self.models[name] = ModelServer(
                self.node, self.worker, name=name, dilation=self.dilation, lanes=self._lanes, **settings
            )
        self._shares[name] = share
        self._divide()
        return self.models[name]

    def withdraw(self, name: str) -> None:
        """Takes a model away; nothing happens if it is not there."""
        model = self.models.pop(name, None)
        if model is not None:
            model.retire()
            del self._shares[name]
            self._divide()

    def _divide(self) -> None:
        self.worker.set_shares(self._shares)
        whole = sum(self._shares.values())
        for name, model in self.models.items():
            part = int(self.max_in_flight * self._shares[name] / whole)
            model.max_in_flight = min(self.max_in_flight, max(1, part))

    def model(self, name: str = "") -> ModelServer:
        """A model by name.

        Args:
            name: Its name; "" for the only one.

        Returns:
            The model.

        Raises:
            InputError: If there is none of that name, or several and none was named.
        """
        if not name and len(self.models) == 1:
            return next(iter(self.models.values()))
        if name not in self.models:
            raise InputError(
                f"{self.node!r} serves no model {name!r}, it serves {sorted(self.models)}.{nearest(name, self.models)}"
            )
        return self.models[name]

    async def infer(
        self,
        inputs: Mapping[str, NDArray[Any]],
        *,
        model: str = "",
        deadline_s: float | None = None,
        request: str = "",
        stream: StreamStep | None = None,
    ) -> Served:
        """Serves one request of a model; see `ModelServer.infer`."""
        return await self.model(model).infer(inputs, deadline_s=deadline_s, request=request, stream=stream)

    def stream(self, *, model: str = "") -> Stream:
        """Begins a stream of a model's requests; see `ModelServer.stream`."""
        return self.model(model).stream()

    def peer_lost(self, node: str) -> None:
        """A node's liveliness token is gone: no model asks it until it returns."""
        for model in self.models.values():
            model.peer_lost(node)

    def peer_returned(self, node: str) -> None:
        """A node's liveliness token is back: every model asks it as usual."""
        for model in self.models.values():
            model.peer_returned(node)

    async def close(self) -> None:
        """Stops the worker; open requests end with what they have."""
        for model in self.models.values():
            model.retire()
        for worker in (self.worker, self._lanes.long):
            if worker is not None:
                await asyncio.get_running_loop().run_in_executor(None, worker.close)


def device_only_plan(graph: Graph, *, keeps: tuple[tuple[str, str], ...] = ()) -> Plan:
    """The plan that runs a whole model on the device, up to its end.

    Args:
        graph: Any model, e.g. a user's own.
        keeps: Pairs (input, output) of the state that stays on the device.

    Returns:
        The plan; it answers every output but the state, and that too where there is nothing else.

    Raises:
        GraphError: As `check_state`.
    """
    check_state(graph, keeps)
    made = {name for _, name in keeps}
    end = graph.exits[-1]
    others = (t.name for t in graph.outputs if t.name not in made and t.name != end)
    answered = (*others, *((end,) if end not in made else ())) or tuple(t.name for t in graph.outputs)
    inputs = tuple(t.name for t in graph.inputs)
    stage = Stage("device", graph.digest, inputs, tuple(t.name for t in graph.outputs), ENTRY, keeps=keeps)
    gate = Gate(EXIT, stage.name, 0.0, 1.0, 1.0, answered, len(graph.exits) - 1)
    return Plan("device only", graph.digest, (stage,), (), (gate,))


def check_state(graph: Graph, keeps: tuple[tuple[str, str], ...]) -> None:
    """Refuses what cannot be kept between requests.

    Args:
        graph: The model.
        keeps: Pairs (input, output).

    Raises:
        GraphError: If the model has no such input or output, they are of two kinds, one is named twice, or nobody can
            say how large the state is before the first request.
    """
    inputs, outputs = ({t.name for t in tensors} for tensors in (graph.inputs, graph.outputs))
    for place, (given, output) in enumerate(keeps):
        before, after = graph.tensor(given), graph.tensor(output)
        alike = before.open_shape == after.open_shape and before.dtype == after.dtype
        if not alike or given not in inputs or output not in outputs:
            raise GraphError(
                f"{given!r} and {output!r} of graph {graph.name!r} are no state: an input and an output of one shape and "
                f"dtype are needed. Inputs: {sorted(inputs)}, outputs: {sorted(outputs)}."
            )
        if any(given == g or output == o for g, o in keeps[:place]):
            raise GraphError(f"{given!r} or {output!r} of graph {graph.name!r} is in two states. Keep each in one.")
        if before.free:
            sizes = ",".join("1" if axis in before.free else str(n) for axis, n in enumerate(before.shape))
            raise GraphError(
                f"state {given!r} of graph {graph.name!r} has no fixed size in dimension {before.free[0]}, so it is not "
                f"known what a stream begins with. Give it: --input-shape {given}={sizes}"
            )


async def local_server(
    graph: Graph,
    *,
    name: str = "model",
    dilation: float = 1.0,
    version: int = 1,
    keeps: tuple[tuple[str, str], ...] = (),
) -> ServingNode:
    """Serves a model on this machine alone, without any fleet.

    Args:
        graph: The model.
        name: Its name at the endpoint.
        dilation: Factor for emulating a slow device.
        version: Version number in answers.
        keeps: Pairs (input, output) of the state that is kept between the requests of a stream.

    Returns:
        A ready node; close it.
    """
    return await local_servers({name: graph}, dilation=dilation, version=version, keeps=keeps)


async def local_servers(
    graphs: Mapping[str, Graph],
    *,
    dilation: float = 1.0,
    version: int = 1,
    keeps: tuple[tuple[str, str], ...] = (),
) -> ServingNode:
    """Serves models on this machine alone, which share its computing thread.

    Args:
        graphs: Models by their name at the endpoint.
        dilation: As `local_server`.
        version: As `local_server`, of each.
        keeps: As `local_server`, of each.

    Returns:
        A ready node; close it.
    """
    node = ServingNode(NodeId("local"), dilation=dilation)
    for name, graph in graphs.items():
        model = node.deploy(name)
        await model.prepare(ActivePlan(Revision(1), device_only_plan(graph, keeps=keeps), version), graph)
        model.activate(Revision(1))
    return node
