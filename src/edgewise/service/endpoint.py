"""A node's inference endpoint over HTTP, and what it costs a request by itself. `edgewise agent` gives it to its node."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

from numpy.typing import NDArray

from edgewise.core.ids import NodeId, RequestId, Revision
from edgewise.inference.observation import Observation
from edgewise.inference.request_driver import Served
from edgewise.inference.serving_metrics import Count
from edgewise.inference.serving_node import device_only_plan
from edgewise.inference.session import AnswerSource
from edgewise.inference.streams import StreamStep
from edgewise.inference.warm_up import zeros
from edgewise.ledger.metric import Metric
from edgewise.models.graph.graph import Graph, PlainTensor
from edgewise.models.graph.infer_shapes import empty_array
from edgewise.planning.plan import ActivePlan
from edgewise.security.http_port import PortSecurity
from edgewise.service.client import InferenceClient
from edgewise.service.http_server import HttpServer
from edgewise.service.open_inference import Metrics, serve_http
from edgewise.service.served_model import Model

_REQUESTS = 7


class NodeEndpoint:
    """The open endpoint of a node.

    Attributes:
        port: Where it listens.
    """

    def __init__(self, http: HttpServer) -> None:
        self._http = http
        self.port = http.port

    async def close(self) -> None:
        """Stops taking requests."""
        await self._http.close()

    async def overhead_s(self, graph: Graph, gap_s: float = 0.0) -> float:
        """Seconds a request for a model spends in HTTP, at the client and here: of one whose answer is ready.

        Args:
            graph: The model; its inputs and end have the sizes that travel.
            gap_s: Idle time before each request, as in serving.

        Returns:
            The median of a few requests over a connection of their own.
        """
        ready = _AtOnce(graph)
        endpoint = await serve_http(ready)
        inputs = zeros(graph, [t.name for t in graph.inputs])
        seconds = []
        try:
            async with InferenceClient(endpoint.host, endpoint.port) as client:
                for _ in range(_REQUESTS):
                    await asyncio.sleep(gap_s)
                    started = time.perf_counter()
                    await client.infer(ready.name, inputs)
                    seconds.append(time.perf_counter() - started)
        finally:
            await endpoint.close()
        return median(seconds)


async def open_endpoint(
    models: Model | Mapping[str, Model],
    host: str,
    port: int,
    metrics: Metrics = tuple,
    ready: Callable[[], bool] | None = None,
    security: PortSecurity | None = None,
) -> NodeEndpoint:
    """Opens a node's endpoint.

    Args:
        models: What is served; by name, it may change while the endpoint is open.
        host: Address to listen on.
        port: Port; 0 takes a free one.
        metrics: What `/metrics` says beside the models' own.
        ready: As in `serve_http`.
        security: As in `serve_http`.

    Returns:
        The endpoint.

    Raises:
        ConfigError: As `serve_http`.
        SecurityError: As `serve_http`.
    """
    return NodeEndpoint(await serve_http(models, host, port, metrics=metrics, ready=ready, security=security))


class _AtOnce:
    """A model that has its answer ready."""

    name = "ready"
    default_deadline_s = 10.0

    def __init__(self, graph: Graph) -> None:
        self.active = ActivePlan(Revision(1), device_only_plan(graph), 1)
        self.graph: Graph | None = graph
        self.inputs: tuple[PlainTensor, ...] = graph.inputs
        self.outputs: tuple[PlainTensor, ...] = graph.answers
        self.counts: dict[AnswerSource, Count] = {}
        seen = Observation(
            RequestId(self.name),
            Revision(1),
            1,
            self.active.plan.digest,
            AnswerSource.PLAN,
            0,
            "",
            0.0,
            0.0,
            1.0,
            (NodeId("here"),),
        )
        self._answer = Served({t.name: empty_array(t.shape, t.dtype) for t in self.outputs}, seen)

    async def infer(
        self,
        inputs: Mapping[str, NDArray[Any]],
        *,
        deadline_s: float | None = None,
        request: str = "",
        stream: StreamStep | None = None,
    ) -> Served:
        return self._answer

    def metrics(self) -> list[Metric]:
        return []

    def feedback(self, labels: Mapping[str, int]) -> int:
        return 0
