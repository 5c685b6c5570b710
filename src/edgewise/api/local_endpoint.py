"""`serve`: a user's own model over the Open Inference Protocol, from inside a program: an event loop on a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from edgewise.core.errors import InputError

if TYPE_CHECKING:
    from edgewise.inference.serving_node import ServingNode
    from edgewise.models.graph.graph import Graph
    from edgewise.service.client import InferenceClient, Reply
    from edgewise.service.http_server import HttpServer

T = TypeVar("T")


class LocalEndpoint:
    """A model that is being served by this process, until `close` or the end of a `with` block.

    Attributes:
        name: The model's name there.
        url: Where: `http://host:port`; any client of the Open Inference Protocol can ask it.
        graph: What is served.
    """

    def __init__(self, graph: Graph, name: str, host: str, port: int, **settings: Any) -> None:
        self.name, self.graph = name, graph
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"serve-{name}", daemon=True)
        self._thread.start()
        self._open: tuple[ServingNode, HttpServer, InferenceClient] | None = None
        try:
            self._open = self._do(_start(graph, name, host, port, **settings))
        except BaseException:
            self.close()
            raise
        self.url = f"http://{self._open[1].host}:{self._open[1].port}"

    def infer(self, inputs: Any) -> Reply:
        """Asks the endpoint, over HTTP as any client would.

        Args:
            inputs: An array [n, ...], or arrays by the names of the model's inputs; numpy or torch.

        Returns:
            `outputs` by name, `parameters` (which exit answered, which version), `latency_s`.

        Raises:
            DataError: If they do not fit the model.
            RemoteError: If the model refuses them.
            InputError: If the endpoint is closed.
        """
        from edgewise.api.source import source_of

        if self._open is None:
            raise InputError(f"the endpoint of {self.name!r} is closed. Open one with serve(…).")
        source = source_of(inputs, None, self.graph.inputs)
        return self._do(self._open[2].infer(self.name, dict(source.inputs)))

    def close(self) -> None:
        """Stops taking requests and ends the thread; twice is the same as once."""
        if self._open is not None:
            opened, self._open = self._open, None
            self._do(_stop(*opened))
        if not self._loop.is_closed():
            self._do(self._loop.shutdown_default_executor())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def __enter__(self) -> LocalEndpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"{self.name!r} is served at {self.url}" if self._open else f"the endpoint of {self.name!r} is closed"

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()


def serve(
    model: Any,
    *,
    name: str = "",
    host: str = "127.0.0.1",
    port: int = 0,
    example: Any | None = None,
    exits: Sequence[str] = (),
    keep: Mapping[str, str] | None = None,
) -> LocalEndpoint:
    """Serves a model over the Open Inference Protocol from this process.

    Args:
        model: A path or bytes of ONNX, a `Graph`, what `simulate` returned, or a torch module of one input.
        name: Its name at the endpoint; by default the file's or the task's.
        host: Address to listen on; loopback only, `edgewise serve` has TLS.
        port: Port; 0 takes a free one.
        example: Inputs [n, ...], needed for a torch module alone.
        exits: Outputs at which a request may end, first exit first; by default as the model's names say.
        keep: State between the requests of a sequence: input -> output.

    Returns:
        The endpoint, ready; use it in a `with` block, or close it.

    Raises:
        GraphError: If the model cannot be served.
        ConfigError: If the port is in use.
        SecurityError: If the address is not loopback.
        InputError: If `model` is no model.

    Example:
        >>> import numpy as np
        >>> from edgewise import serve
        >>> from edgewise.models.zoo.dense_stack import mlp
        >>> x = np.zeros((2, 8), "float32")
        >>> with serve(mlp((8, 16, 4)), example=x) as endpoint:
        ...     endpoint.infer(x).outputs["exit_0"].shape
        (2, 4)
    """
    from edgewise.api.given_model import graph_of

    if not 0 <= port < 65536:
        raise InputError(f"there is no port {port}. Give one of 1 to 65535, or 0 for a free one.")
    graph = graph_of(model, example, exits=exits)
    return LocalEndpoint(graph, name or _name_of(model), host, port, keeps=tuple((keep or {}).items()))


def _name_of(model: Any) -> str:
    if isinstance(model, str | Path):
        return Path(model).stem
    found = getattr(getattr(model, "task", None), "name", "")
    return found if isinstance(found, str) and found else "model"


async def _start(
    graph: Graph, name: str, host: str, port: int, keeps: tuple[tuple[str, str], ...]
) -> tuple[ServingNode, HttpServer, InferenceClient]:
    from edgewise.inference.serving_node import local_server
    from edgewise.service.client import InferenceClient
    from edgewise.service.open_inference import serve_http

    node = await local_server(graph, name=name, keeps=keeps)
    try:
        http = await serve_http(node, host, port)
    except BaseException:
        await node.close()
        raise
    return node, http, InferenceClient(http.host, http.port)


async def _stop(node: ServingNode, http: HttpServer, client: InferenceClient) -> None:
    await client.close()
    await http.close()
    await node.close()
