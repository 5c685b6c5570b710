"""The Open Inference Protocol (KServe v2) over HTTP: Litestar's routes on a bounded port, inside the caller's event loop.

    endpoint = await serve_http(node)                # a `ServingNode` with all its models, or models by name
    print(endpoint.port)                             # the real one, also for port 0
    await endpoint.close()                           # within a second

`infer` is `infer_route.py`'s, in front of the router; the port is `http_server.py`'s. Any client of the protocol works
unchanged, e.g. `tritonclient.http`. Answers carry `parameters`: exit_index, source, plan_revision,
model_version, cause, latency_ms (at the device, HTTP excluded), compute_ms (all nodes), served_by. Our own extensions:
`/metrics` for Prometheus, and `POST /v2/models/NAME/feedback` with `{"labels": {request id: class}}` says what was right; it stays on the node.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from importlib.metadata import version as package_version
from inspect import isawaitable
from typing import Any

from litestar import Litestar, Request, Response, get, post
from litestar.config.app import AppConfig
from litestar.exceptions import HTTPException
from litestar.types import Receive, Scope, Send

from edgewise.core.errors import Busy, EdgewiseError
from edgewise.inference.serving_metrics import Count, worker_metrics
from edgewise.inference.serving_node import ServingNode
from edgewise.inference.session import AnswerSource
from edgewise.ledger.metric import CONTENT_TYPE, Metric, metric, metrics_text
from edgewise.security.http_port import PortSecurity
from edgewise.security.tokens import Tokens
from edgewise.service.connection import HttpLimits
from edgewise.service.http_access import HttpAccess
from edgewise.service.http_errors import error_headers, status_of
from edgewise.service.http_server import HttpServer, open_port, tls_context
from edgewise.service.infer_route import InferRoute
from edgewise.service.model_config import describe_config
from edgewise.service.open_inference_format import describe, read_feedback
from edgewise.service.request_body import BodyBudget
from edgewise.service.served_model import Model, find_model

_OTHER_BODIES_BYTES = 2**20
"""Bound of what routes other than infer read."""
Metrics = Callable[[], Iterable[Metric] | Awaitable[Iterable[Metric]]]
"""Asked at each call of `/metrics`."""


async def serve_http(
    models: ServingNode | Model | Mapping[str, Model],
    host: str = "127.0.0.1",
    port: int = 0,
    *,
    limits: HttpLimits | None = None,
    security: PortSecurity | None = None,
    metrics: Metrics = tuple,
    ready: Callable[[], bool] | None = None,
) -> HttpServer:
    """Opens the endpoint on the running event loop.

    Args:
        models: What is served; several by name, or all of a node.
        host: Address to listen on.
        port: Port; 0 takes a free one.
        limits: What clients may take of time and memory.
        security: TLS and tokens; None for none, which loopback needs.
        metrics: What `/metrics` says beside the models' own.
        ready: Whether this process is; without it, once there are models and each has a plan in force.

    Returns:
        The endpoint, listening.

    Raises:
        ConfigError: If the port is in use, the address is not this machine's, or the certificate cannot be used.
        SecurityError: If the address is not loopback, and TLS or tokens are missing without `insecure`.
    """
    if isinstance(models, ServingNode):
        node, others = models, metrics

        async def with_worker() -> list[Metric]:
            return [*await _given(others), *worker_metrics(node.worker)]

        models, metrics = node.models, with_worker
    served = models if isinstance(models, Mapping) else {models.name: models}
    security = security or PortSecurity()
    security.check(host, port)
    context = None if security.tls is None else tls_context(*security.tls)
    made: list[HttpServer | HttpAccess] = []

    async def with_port() -> list[Metric]:
        return [*await _given(metrics), *(row for part in made for row in part.metrics())]

    limits = limits or HttpLimits()
    app = OpenInferenceApp(served, limits=limits, metrics=with_port, ready=ready)
    guarded = app if security.tokens is None else HttpAccess(app, Tokens(security.tokens))
    server = open_port(guarded, host, port, tls=context, limits=limits, on_close=app.close)
    made += [server, *([guarded] if isinstance(guarded, HttpAccess) else [])]
    return server


async def _given(metrics: Metrics) -> Iterable[Metric]:
    found = metrics()
    return await found if isawaitable(found) else found


class OpenInferenceApp:
    """The routes as an ASGI application, e.g. to be mounted elsewhere; close it.

    Attributes:
        budget: Of the bodies at hand.
        large: Works on large ones.
    """

    def __init__(
        self,
        models: Mapping[str, Model],
        *,
        limits: HttpLimits | None = None,
        metrics: Metrics = tuple,
        ready: Callable[[], bool] | None = None,
    ) -> None:
        """Makes the routes.

        Args:
            models: What is served, by name; looked up at each request, so it may change.
            limits: As in `serve_http`.
            metrics: What `/metrics` says beside the models' own.
            ready: As in `serve_http`.
        """
        self._infer = InferRoute(models, limits or HttpLimits())
        self.budget, self.large = self._infer.budget, self._infer.large

        async def with_bodies() -> list[Metric]:
            return [*await _given(metrics), *body_metrics(self.budget)]

        self._routes = make_routes(models, with_bodies, ready)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        # infer stands in front of the router rather than in it: Litestar cannot route path parameters to a raw handler.
        path = scope.get("path", "")
        is_infer = path.startswith("/v2/models/") and path.removesuffix("/").endswith("/infer")
        if scope.get("method") == "HEAD":  # as GET; the server leaves the body out
            scope = {**scope, "method": "GET"}  # type: ignore[assignment]
        await (self._infer if is_infer else self._routes)(scope, receive, send)

    def close(self) -> None:
        """Ends what works on large bodies."""
        self._infer.close()


def body_metrics(budget: BodyBudget) -> list[Metric]:
    """What `/metrics` says of bodies.

    Args:
        budget: Of an endpoint.
    """
    return [
        metric("http_body_bytes", "gauge", "Bytes of large bodies at hand.", {(): budget.used_bytes}),
        metric("http_bodies_refused_total", "counter", "Large bodies that found no room.", {(): budget.num_refused}),
    ]


def make_routes(models: Mapping[str, Model], metrics: Metrics, ready: Callable[[], bool] | None) -> Litestar:
    """All routes but infer.

    Args:
        models: What is served, by name; looked up at each request.
        metrics: What `/metrics` says beside the models' own.
        ready: As in `serve_http`.

    Returns:
        An ASGI application.
    """

    @get(["/v2/health/live"], sync_to_thread=False)
    def live() -> Response[dict[str, bool]]:
        return Response({"live": True})

    @get(["/v2/health/ready"], sync_to_thread=False)
    def server_ready() -> Response[dict[str, bool]]:
        is_ready = ready() if ready else bool(models) and all(m.active is not None for m in models.values())
        return Response({"ready": is_ready}, status_code=200 if is_ready else 503)

    @get("/v2", sync_to_thread=False)
    def server_metadata() -> dict[str, Any]:
        return {
            "name": "edgewise",
            "version": package_version("edgewise"),
            "extensions": [
                "binary_tensor_data",
                "classification",
                "model_configuration",
                "model_repository",
                "sequence",
                "statistics",
                "feedback",
            ],
        }

    @post("/v2/repository/index", status_code=200, sync_to_thread=False)
    def index() -> list[dict[str, str]]:
        served = [(name, model.active) for name, model in sorted(models.items())]
        return [
            {
                "name": name,
                "version": "" if active is None else str(active.version),
                "state": "UNAVAILABLE" if active is None else "READY",
            }
            for name, active in served
        ]

    @get(["/v2/models/{name:str}", "/v2/models/{name:str}/versions/{version:str}"], sync_to_thread=False)
    def model_metadata(request: Request[Any, Any, Any]) -> dict[str, Any]:
        name = request.path_params["name"]
        model, active = find_model(models, name, request.path_params.get("version", ""))
        return {
            "name": name,
            "versions": [str(active.version)],
            "platform": "onnxruntime_onnx",
            "inputs": describe(model.inputs),
            "outputs": describe(model.outputs),
        }

    @get(["/v2/models/{name:str}/config", "/v2/models/{name:str}/versions/{version:str}/config"], sync_to_thread=False)
    def model_config(request: Request[Any, Any, Any]) -> dict[str, Any]:
        name = request.path_params["name"]
        model, active = find_model(models, name, request.path_params.get("version", ""))
        if model.graph is None:
            raise Busy(f"model {name!r} is not ready: it has no graph yet. Try again soon.")
        return describe_config(
            name,
            model.inputs,
            model.outputs,
            optional=model.graph.optional,
            labels=model.graph.labels,
            state=active.plan.state,
            exits=model.graph.exits,
        )

    @get(["/v2/models/{name:str}/ready", "/v2/models/{name:str}/versions/{version:str}/ready"], sync_to_thread=False)
    def model_ready(request: Request[Any, Any, Any]) -> dict[str, Any]:
        name = request.path_params["name"]
        find_model(models, name, request.path_params.get("version", ""))
        return {"name": name, "ready": True}

    @get(
        ["/v2/models/stats", "/v2/models/{name:str}/stats", "/v2/models/{name:str}/versions/{version:str}/stats"],
        sync_to_thread=False,
    )
    def statistics(request: Request[Any, Any, Any]) -> dict[str, Any]:
        name = request.path_params.get("name", "")
        chosen = {name: find_model(models, name, request.path_params.get("version", ""))[0]} if name else models
        return {"model_stats": [describe_counts(name, model) for name, model in sorted(chosen.items())]}

    @get("/metrics")
    async def prometheus() -> Response[bytes]:
        found = [*await _given(metrics), *(row for _, model in sorted(models.items()) for row in model.metrics())]
        return Response(metrics_text(found).encode(), media_type=CONTENT_TYPE)

    @post(["/v2/models/{name:str}/feedback"], status_code=200)
    async def feedback(request: Request[Any, Any, Any]) -> dict[str, int]:
        model, _ = find_model(models, request.path_params["name"])
        return {"taken": model.feedback(read_feedback(await request.body()))}

    handlers: Any = {EdgewiseError: _edgewise_error, HTTPException: _http_error}
    return Litestar(
        [
            live,
            server_ready,
            server_metadata,
            index,
            model_metadata,
            model_config,
            model_ready,
            statistics,
            prometheus,
            feedback,
        ],
        exception_handlers=handlers,
        logging_config=None,
        request_max_body_size=_OTHER_BODIES_BYTES,
        on_app_init=[_plain_app],
    )


def describe_counts(name: str, model: Model) -> dict[str, Any]:
    """What a model has answered, as the protocol's statistics extension says it.

    Args:
        name: Its name at the endpoint.
        model: The model.

    Returns:
        Counts and nanoseconds; `share_of_requests` is ours: by who answered, a filter in front of the plan among them.
    """
    counts = dict(model.counts)
    failed = counts.get(AnswerSource.NONE, Count())
    answered = [count for source, count in counts.items() if source is not AnswerSource.NONE]
    whole = sum(count.num for count in counts.values())

    def summed(rows: list[Count]) -> dict[str, int]:
        return {"count": sum(row.num for row in rows), "ns": round(1e9 * sum(row.seconds for row in rows))}

    active = model.active
    return {
        "name": name,
        "version": "" if active is None else str(active.version),
        "inference_count": whole - failed.num,
        "execution_count": whole - failed.num - counts.get(AnswerSource.FILTER, Count()).num,
        "inference_stats": {"success": summed(answered), "fail": summed([failed])},
        "share_of_requests": {str(source): count.num / whole for source, count in counts.items()},
    }


def _plain_app(config: AppConfig) -> AppConfig:
    config.openapi_config = None
    return config


def _edgewise_error(request: Request[Any, Any, Any], error: EdgewiseError) -> Response[dict[str, str]]:
    headers = {name.decode(): value.decode() for name, value in error_headers(error)}
    return Response({"error": error.message}, status_code=status_of(error), headers=headers)


def _http_error(request: Request[Any, Any, Any], error: HTTPException) -> Response[dict[str, str]]:
    where = f"{request.method} {request.scope['path'][:200]}"
    return Response({"error": f"{where}: {error.detail}."}, status_code=error.status_code)
