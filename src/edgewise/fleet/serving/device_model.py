"""One model of a fleet on one device: what is installed of it, its replanner, and the examples it collects.

Models of a device share one computing thread and the budget of open requests, each with its share; a plan, a version,
health, drift reports and the buffer are each model's own.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from math import ceil
from typing import Any

from edgewise.core.ids import Revision
from edgewise.fleet.messages import ExampleCounts, Health, HealthRequest, InForce, InstallOrder
from edgewise.fleet.node.probe import Crossing
from edgewise.fleet.serving.drift_watch import Confidences, Judged
from edgewise.fleet.serving.example_collector import ExampleCollector
from edgewise.fleet.serving.replanner import Replanner
from edgewise.inference.model_server import ModelServer
from edgewise.inference.observation import Observation
from edgewise.inference.peers import Target
from edgewise.inference.request_driver import Served
from edgewise.inference.serving_node import ServingNode
from edgewise.inference.stages import Tensors
from edgewise.models.graph.graph import Graph
from edgewise.planning.plan import ActivePlan, Site

LAST_OBSERVATIONS = 2000
"""Of each model, for its health and the ledger."""
LAST_LATENCIES = 50
"""Requests that a deployment's 95th percentile is of."""


class DeviceModel:
    """A model in force on a device.

    Attributes:
        name: The model's.
        served: Answers its requests.
        collector: Its hard examples.
        order: What is installed; None before the first.
        replanner: Switches among the order's plans; None if it may not.
        observations: Its last requests, newest last.
    """

    def __init__(
        self,
        node: ServingNode,
        name: str,
        *,
        buffer_bytes: int,
        on_observation: Callable[[Observation], None],
        on_report: Callable[[Confidences | Judged], None],
    ) -> None:
        """Makes a model that serves nothing yet.

        Args:
            node: The device's, to which the model is added.
            name: The model's.
            buffer_bytes: Bound of its hard examples.
            on_observation: Takes each request's cost.
            on_report: Takes what the coordinator's drift watch is told.
        """
        self.name = name
        self.collector = ExampleCollector(node.node, name, buffer_bytes, on_judged=on_report)
        self.order: InstallOrder | None = None
        self.replanner: Replanner | None = None
        self.observations: deque[Observation] = deque(maxlen=LAST_OBSERVATIONS)
        self._device, self._node = node, node.node
        self._num_requests = self._num_errors = 0
        self._on_observation, self._on_report = on_observation, on_report
        self._probing: asyncio.Task[Any] | None = None
        self.served = node.deploy(
            name, on_observation=self._observed, on_served=self._collect, on_feedback=self.collector.label
        )

    async def install(self, order: InstallOrder, graph: Graph, targets: Mapping[Site, Sequence[Target]]) -> None:
        """Prepares the plans of an order and switches to the first; open requests finish on the plan they began with.

        Args:
            order: What.
            graph: Its graph.
            targets: Nodes by the site they may stand at, best first.
        """
        for index, plan in enumerate(order.plans):
            await self.served.prepare(ActivePlan(Revision(order.revision + index), plan, order.version), graph)
        self._device.deploy(self.name, share=order.share)
        self.served.default_deadline_s = order.deadline_s
        for site, nodes in targets.items():
            self.served.set_targets(nodes, site)
        revisions = [Revision(order.revision + index) for index in range(len(order.plans))]
        self.served.activate(revisions[0], keep=revisions)
        if self.order is None or self.order.revision != order.revision:
            self._num_requests = self._num_errors = 0
        self.order = order

    def follow_link(
        self,
        graph: Graph,
        probe: Callable[[int], Awaitable[Crossing]],
        on_switch: Callable[[str, Revision, str], None],
        spawn: Callable[[Any, str], asyncio.Task[Any]],
    ) -> None:
        """Begins to switch among the order's plans by what requests and probes show; only if the order says from what.

        Args:
            graph: The order's graph.
            probe: Sends so many bytes to the next tier.
            on_switch: Takes (model, revision, why).
            spawn: Runs something beside, under a name.
        """
        self.stop_following()
        if self.order is None or self.order.inputs is None:
            return

        def switched(revision: Revision, why: str) -> None:
            on_switch(self.name, revision, why)

        self.replanner = Replanner(self.served, self.order, self.order.inputs, graph, probe, switched)
        self._probing = spawn(self.replanner.keep_probing(), f"link probes for {self.name}")

    def stop_following(self) -> None:
        """Stays with the plan in force."""
        if self._probing is not None:
            self._probing.cancel()
        self.replanner = self._probing = None

    @property
    def in_force(self) -> InForce | None:
        """What serves; None before the first install."""
        if self.order is None:
            return None
        active = self.served.active
        revision = self.order.revision if active is None else active.revision
        return InForce(self.order.version, Revision(revision), self.order.digest)

    def health(self, request: HealthRequest) -> Health:
        """How requests under a deployment went."""
        of = self.order is not None and self.order.revision == request.revision
        rows = [o.latency_s for o in self.observations if o.revision >= request.revision][-LAST_LATENCIES:]
        latencies = sorted(rows)  # numpy's first quantile would hold requests up for 20 ms
        return Health(
            node=self._node,
            model=self.name,
            revision=request.revision,
            num_requests=self._num_requests if of else 0,
            num_errors=self._num_errors if of else 0,
            p95_latency_s=latencies[ceil(0.95 * len(rows)) - 1] if rows else 0.0,
            time=time.monotonic(),
        )

    def counts(self) -> ExampleCounts:
        """What has been collected."""
        return ExampleCounts(self.collector.num_hard, self.collector.num_labelled)

    def _observed(self, observation: Observation) -> None:
        self.observations.append(observation)
        if self.order is not None and observation.revision >= self.order.revision:
            self._num_requests += 1
            self._num_errors += observation.source == "none"
        self._on_observation(observation)
        if self.replanner is not None:
            self.replanner.observed(observation)

    def _collect(self, inputs: Tensors, served: Served) -> None:
        report = self.collector.served(inputs, served)
        if report is not None:
            self._on_report(report)


class EndpointModels(Mapping[str, ModelServer]):
    """Models by name, as the endpoint looks them up; it follows what is installed and uninstalled.

    A device's own word for its only model (`--model-name`) is understood as long as there is one.
    """

    def __init__(self, models: Mapping[str, ModelServer], alias: str = "") -> None:
        self._models, self._alias = models, alias

    def __getitem__(self, name: str) -> ModelServer:
        if name not in self._models and name == self._alias and len(self._models) == 1:
            return next(iter(self._models.values()))
        return self._models[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._models)

    def __len__(self) -> int:
        return len(self._models)
