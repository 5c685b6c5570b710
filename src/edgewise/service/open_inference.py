"""The Open Inference Protocol (KServe v2) over HTTP: Litestar on uvicorn, inside the caller's event loop.

    endpoint = await serve_http(node)                # a `ServingNode` with all its models, or models by name
    print(endpoint.port)                             # the real one, also for port 0
    await endpoint.close()                           # within a second

`infer` is a raw ASGI handler in front of the router, for it is on every request's path; the rest are ordinary Litestar routes. Any client of
the protocol works unchanged, e.g. `tritonclient.http`. Answers carry `parameters`: exit_index, source, plan_revision,
model_version, cause, latency_ms (at the device, HTTP excluded), compute_ms (all nodes), served_by. Our own extensions:
`/metrics` for Prometheus, and `POST /v2/models/NAME/feedback` with `{"labels": {request id: class}}` says what was right; it stays on the node.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable, Mapping
from importlib.metadata import version as package_version
from inspect import isawaitable
from pathlib import Path
from typing import Any, Protocol

import msgspec
import uvicorn
from litestar import Litestar, Request, Response, get, post
from litestar.config.app import AppConfig
from litestar.exceptions import HTTPException
from litestar.types import ASGIApp, Receive, Scope, Send
from numpy.typing import NDArray

from edgewise.core.errors import Busy, ConfigError, EdgewiseError, InputError, SecurityError, nearest
from edgewise.inference.request_driver import Served
from edgewise.inference.serving_metrics import Count, worker_metrics
from edgewise.inference.serving_node import ServingNode
from edgewise.inference.session import AnswerSource
from edgewise.inference.streams import StreamStep
from edgewise.ledger.metric import CONTENT_TYPE, Metric, metrics_text
from edgewise.models.graph.graph import Graph, PlainTensor
from edgewise.planning.plan import ActivePlan
from edgewise.service.connection import OnePacketProtocol
from edgewise.service.model_config import describe_config
from edgewise.service.open_inference_format import check_absent, describe, read_feedback, read_request, write_answer
from edgewise.service.request_body import LENGTH, BodyTooLarge, decompressed, header_length, read_body

log = logging.getLogger(__name__)

MAX_BODY_BYTES = 64 * 2**20
_LAST_REQUESTS_S = 0.5
Metrics = Callable[[], Iterable[Metric] | Awaitable[Iterable[Metric]]]
"""Asked at each call of `/metrics`."""


class Model(Protocol):
    """What can be served; `inference.model_server.ModelServer` is one."""

    name: str

    @property
    def active(self) -> ActivePlan | None:
        """The plan in force."""
        ...

    @property
    def inputs(self) -> tuple[PlainTensor, ...]:
        """The model's inputs."""
        ...

    @property
    def outputs(self) -> tuple[PlainTensor, ...]:
        """What answers carry."""
        ...

    @property
    def graph(self) -> Graph | None:
        """The whole model; None before the first plan."""
        ...

    @property
    def counts(self) -> Mapping[AnswerSource, Count]:
        """Requests by who answered."""
        ...

    async def infer(
        self,
        inputs: Mapping[str, NDArray[Any]],
        *,
        deadline_s: float | None = None,
        request: str = "",
        stream: StreamStep | None = None,
    ) -> Served:
        """Serves one request."""
        ...

    def metrics(self) -> list[Metric]:
        """What `/metrics` says of it."""
        ...

    def feedback(self, labels: Mapping[str, int]) -> int:
        """Takes true classes by request; how many belong to examples that are kept."""
        ...


class UnknownModel(InputError):
    """A model, or a version of it, that is not served here."""

    code = "input.model"


class WrongMethod(InputError):
    """A route called with another method than it takes."""

    code = "input.method"


class HttpServer:
    """A running endpoint.

    Attributes:
        host: Address it listens on.
        port: The real port.
    """

    def __init__(self, server: uvicorn.Server, host: str, port: int, task: asyncio.Task[None]) -> None:
        self.host, self.port = host, port
        self._server, self._task = server, task

    @property
    def url(self) -> str:
        """Base of every route."""
        return f"http://{self.host}:{self.port}"

    async def close(self) -> None:
        """Stops listening; requests at hand get half a second."""
        self._server.should_exit = True
        await self._task


class _Uvicorn(uvicorn.Server):
    """Says when it listens, and leaves the process's signals to the process."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.is_up = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.is_up.set()

    def capture_signals(self) -> contextlib.AbstractContextManager[None]:  # type: ignore[override]
        return contextlib.nullcontext()


async def serve_http(
    models: ServingNode | Model | Mapping[str, Model],
    host: str = "127.0.0.1",
    port: int = 0,
    *,
    max_body_bytes: int = MAX_BODY_BYTES,
    tls: tuple[Path, Path] | None = None,
    insecure: bool = False,
    metrics: Metrics = tuple,
    ready: Callable[[], bool] | None = None,
) -> HttpServer:
    """Opens the endpoint on the running event loop.

    Args:
        models: What is served; several by name, or all of a node.
        host: Address to listen on.
        port: Port; 0 takes a free one.
        max_body_bytes: Longer bodies are refused with 413.
        tls: Certificate and key files, PEM.
        insecure: Lets a non-loopback address be served without TLS.
        metrics: What `/metrics` says beside the models' own.
        ready: Whether this process is; without it, once there are models and each has a plan in force.

    Returns:
        The endpoint, listening.

    Raises:
        ConfigError: If the port is in use or the address is not this machine's.
        SecurityError: If the address is not loopback, there is no TLS, and `insecure` is not said.
    """
    if isinstance(models, ServingNode):
        node, others = models, metrics

        async def with_worker() -> list[Metric]:
            return [*await _given(others), *worker_metrics(node.worker)]

        models, metrics = node.models, with_worker
    served = models if isinstance(models, Mapping) else {models.name: models}
    if tls is None and not insecure and not _is_loopback(host):
        raise SecurityError(
            f"{host}:{port} is not a loopback address and there is no TLS; anybody on the network could use it. "
            "Keep it on loopback behind what knows its users, give a certificate and a key, or say --insecure."
        )
    if tls is not None:
        _check_tls(*tls)
    app = make_app(served, max_body_bytes=max_body_bytes, metrics=metrics, ready=ready)
    listener = _listen(host, port)
    config = uvicorn.Config(
        app,
        http=OnePacketProtocol,
        lifespan="off",
        log_config=None,
        log_level="warning",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=False,
        ws="none",
        timeout_keep_alive=75,
        ssl_certfile=None if tls is None else str(tls[0]),
        ssl_keyfile=None if tls is None else str(tls[1]),
    )
    config.timeout_graceful_shutdown = _LAST_REQUESTS_S  # type: ignore[assignment]
    server = _Uvicorn(config)
    task = asyncio.create_task(server.serve(sockets=[listener]), name="open-inference-http")
    up = asyncio.create_task(server.is_up.wait())
    await asyncio.wait({task, up}, return_when=asyncio.FIRST_COMPLETED)
    up.cancel()
    if task.done():
        await task
    return HttpServer(server, host, int(listener.getsockname()[1]), task)


def _check_tls(certificate: Path, key: Path) -> None:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password=lambda: "")
    except OSError as error:  # what ssl says of a file's content is one, too
        raise ConfigError(
            f"TLS cannot be served with the certificate {str(certificate)!r} and the key {str(key)!r}: "
            f"{error.strerror or error}. Give two PEM files that belong together, the key without a passphrase."
        ) from error


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Without IPPROTO_TCP here, asyncio leaves Nagle's algorithm on for every accepted connection: 44 ms a request.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        listener.bind((host, port))
        listener.listen(256)
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"cannot listen on {host}:{port}: {error.strerror or error}. Choose another port, or 0 for a free one."
        ) from error
    listener.setblocking(False)
    return listener


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return False


async def _given(metrics: Metrics) -> Iterable[Metric]:
    found = metrics()
    return await found if isawaitable(found) else found


def make_app(
    models: Mapping[str, Model],
    *,
    max_body_bytes: int = MAX_BODY_BYTES,
    metrics: Metrics = tuple,
    ready: Callable[[], bool] | None = None,
) -> ASGIApp:
    """The routes as an application, e.g. to be mounted elsewhere.

    Args:
        models: What is served, by name; looked up at each request, so it may change.
        max_body_bytes: Longer bodies are refused.
        metrics: What `/metrics` says beside the models' own.
        ready: As in `serve_http`.

    Returns:
        An ASGI application.
    """

    def find(name: str, version: str = "") -> tuple[Model, ActivePlan]:
        if name not in models:
            raise UnknownModel(f"no model {name!r} is served here.{nearest(name, models)}")
        active = models[name].active
        if active is None:
            raise Busy(f"model {name!r} is not ready: it has no active plan yet. Try again soon.")
        if version and version != str(active.version):
            raise UnknownModel(f"model {name!r} has version {active.version} in force, not {version!r}.")
        return models[name], active

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
        model, active = find(name, request.path_params.get("version", ""))
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
        model, active = find(name, request.path_params.get("version", ""))
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
        find(name, request.path_params.get("version", ""))
        return {"name": name, "ready": True}

    @get(
        ["/v2/models/stats", "/v2/models/{name:str}/stats", "/v2/models/{name:str}/versions/{version:str}/stats"],
        sync_to_thread=False,
    )
    def statistics(request: Request[Any, Any, Any]) -> dict[str, Any]:
        name = request.path_params.get("name", "")
        chosen = {name: find(name, request.path_params.get("version", ""))[0]} if name else models
        return {"model_stats": [describe_counts(name, model) for name, model in sorted(chosen.items())]}

    @get("/metrics")
    async def prometheus() -> Response[bytes]:
        found = [*await _given(metrics), *(row for _, model in sorted(models.items()) for row in model.metrics())]
        return Response(metrics_text(found).encode(), media_type=CONTENT_TYPE)

    @post(["/v2/models/{name:str}/feedback"], status_code=200)
    async def feedback(request: Request[Any, Any, Any]) -> dict[str, int]:
        model, _ = find(request.path_params["name"])
        return {"taken": model.feedback(read_feedback(await request.body()))}

    async def infer(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            status, body, length = 200, *await _infer(scope, receive)
        except EdgewiseError as error:
            status, body, length = _status(error), _error_body(error.message), None
        except Exception as error:
            log.exception("an inference request failed")
            status, body, length = 500, _error_body(f"internal error: {type(error).__name__}: {error}"), None
        headers = [(b"content-type", b"application/json" if length is None else b"application/octet-stream")]
        headers.append((b"content-length", str(len(body)).encode()))
        if length is not None:
            headers.append((LENGTH, str(length).encode()))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": False})

    async def _infer(scope: Scope, receive: Receive) -> tuple[bytes, int | None]:
        if scope.get("method") != "POST":
            raise WrongMethod(f"infer is called with POST, found {scope.get('method')}.")
        headers = dict(scope["headers"])
        name, version = _model_of(scope["path"])
        model, _ = find(name, version)
        body = decompressed(await read_body(receive, max_body_bytes), headers, max_body_bytes)
        request, made = read_request(body, header_length(headers)), {tensor.name: tensor for tensor in model.outputs}
        check_absent(request, model.graph.optional if model.graph is not None else ())
        for wanted in request.outputs:
            if wanted not in made:
                raise InputError(f"the model has no output {wanted!r}.{nearest(wanted, made)}")
        served = await model.infer(
            request.inputs, deadline_s=request.deadline_s, request=request.id, stream=request.stream
        )
        seen = served.observation
        if not served.outputs:
            if served.refused is not None:
                raise served.refused
            late = f"nothing was ready by the deadline of {seen.deadline_s:.3f} s"
            raise Busy(f"{late if seen.latency_s >= seen.deadline_s else 'it could not be computed'}: {seen.cause}.")
        parameters = {
            "exit_index": seen.exit_index,
            "source": str(seen.source),
            "plan_revision": seen.revision,
            "model_version": seen.version,
            "cause": seen.cause,
            "latency_ms": round(seen.latency_s * 1e3, 3),
            "served_by": ",".join(seen.served_by),
            "compute_ms": round(seen.compute_s * 1e3, 3),
        }
        outputs = {name: served.outputs[name] for name in made if name in served.outputs}
        declared = {tensor.name: tensor.declared for tensor in made.values() if tensor.declared}
        labels = model.graph.labels if model.graph is not None else {}
        version = str(seen.version)
        return write_answer(name, version, request, outputs, parameters, declared=declared, labels=labels)

    handlers: Any = {EdgewiseError: _edgewise_error, HTTPException: _http_error}
    routes = Litestar(
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
        on_app_init=[_plain_app],
    )

    # In front of the router rather than mounted in it: Litestar cannot route path parameters to a raw handler.
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        is_infer = path.startswith("/v2/models/") and path.removesuffix("/").endswith("/infer")
        if scope.get("method") == "HEAD":  # as GET; the server leaves the body out
            scope = {**scope, "method": "GET"}  # type: ignore[assignment]
        await (infer if is_infer else routes)(scope, receive, send)

    return app


def _model_of(path: str) -> tuple[str, str]:
    """Name and version in the path of an infer call; "" without a version."""
    match path.removesuffix("/").split("/")[3:-1]:
        case [name]:
            return name, ""
        case [name, "versions", version]:
            return name, version
    raise UnknownModel(f"{path!r} is no model's. Call /v2/models/NAME/infer or /v2/models/NAME/versions/VERSION/infer.")


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
    return Response({"error": error.message}, status_code=_status(error))


def _http_error(request: Request[Any, Any, Any], error: HTTPException) -> Response[dict[str, str]]:
    return Response({"error": f"{request.method} {request.url.path}: {error.detail}."}, status_code=error.status_code)


def _status(error: EdgewiseError) -> int:
    if isinstance(error, UnknownModel):
        return 404
    if isinstance(error, WrongMethod):
        return 405
    if isinstance(error, BodyTooLarge):
        return 413
    return 400 if isinstance(error, InputError) else 503


def _error_body(message: str) -> bytes:
    return msgspec.json.encode({"error": message})
