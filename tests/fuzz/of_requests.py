"""The inference endpoint: raw bytes on a socket, and bodies in JSON and with binary tensors."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import re
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from random import Random

import numpy as np

from edgewise.inference.serving_node import local_server
from edgewise.service.open_inference import serve_http
from edgewise.service.open_inference_format import read_feedback, read_request
from tests.fuzz.mutate import deep, mutated_bytes, mutated_json
from tests.fuzz.target import Check, ServerFault, Target, plainly

ANSWER_S = 10.0
"""For an answer, or for the connection to be closed."""
_STATUS = re.compile(rb"HTTP/1\.1 (\d{3})[^\r\n]*\r\n")
_PATHS = (
    "/v2",
    "/v2/models/tiny",
    "/v2/models/tiny/infer",
    "/v2/models/tiny/versions/7/infer",
    "/v2/health/live",
    "/metrics",
)
_PATHS += (
    "/v2/models/tiny/feedback",
    "/v2/repository/index",
    "/v2/models/../tiny",
    "/v2/models/%00/infer",
    "/",
    "//",
    "*",
)
_FIELDS = (
    "Content-Length: 0",
    "Content-Length: -1",
    "Content-Length: 99999999999999999999",
    "Transfer-Encoding: chunked",
)
_FIELDS += (
    "Content-Encoding: gzip",
    "Content-Encoding: deflate",
    "Inference-Header-Content-Length: 10",
    "Expect: 100-continue",
)
_FIELDS += (
    "Inference-Header-Content-Length: 99999999999",
    "Inference-Header-Content-Length: x",
    "Connection: close",
    "A: " + "b" * 70_000,
)
_FIELDS += (
    "Host: ",
    "Upgrade: h2c",
    "Content-Type: text/plain",
    "Accept: */*",
    "Inference-Header-Content-Length: \u00b2",
)
_METHODS = ("GET", "POST", "PUT", "HEAD", "OPTIONS", "DELETE", "FOO", "PRI", "CONNECT", "")


def bodies() -> list[bytes]:
    """Requests in JSON: of the served model, of several types, with parameters."""
    x = np.zeros((1, 1, 8, 8)).ravel().tolist()
    tensor = {"name": "x", "shape": [1, 1, 8, 8], "datatype": "FP32", "data": x}
    stream = {"sequence_id": "s", "sequence_start": True, "timeout": 1_000_000, "deadline_ms": 50}
    return [json.dumps(body).encode() for body in (
        {"id": "r1", "inputs": [tensor]},
        {"inputs": [{**tensor, "data": np.zeros((1, 1, 8, 8)).tolist()}], "outputs": [{"name": "end"}], "parameters": stream},
        {"inputs": [tensor], "outputs": [{"name": "end", "parameters": {"classification": 3}}, {"name": "early"}]},
        {"inputs": [{"name": "a", "shape": [2], "datatype": "BYTES", "data": ["a", "b"]},
                    {"name": "b", "shape": [2, 2], "datatype": "INT64", "data": [[1, 2], [3, 4]]},
                    {"name": "c", "shape": [1], "datatype": "BOOL", "data": [True]},
                    {"name": "d", "shape": [1], "datatype": "BF16", "data": [0.5]},
                    {"name": "e", "shape": [2], "datatype": "UINT8", "parameters": {"binary_data_size": 2}}]},
        {"labels": {"r1": 3, "r2": 0}},
    )]  # fmt: skip


def _body(data: bytes) -> str:
    """As the route reads a body: after a `B` two bytes say how long the JSON is."""
    length = int.from_bytes(data[1:3], "little") if data[:1] == b"B" else None
    read_request(data if length is None else data[3:], length)
    return "read"


def body_seeds() -> list[bytes]:
    text = bodies()[3]
    return [*bodies()[:4], b"B" + len(text).to_bytes(2, "little") + text + b"\x01\x02"]


def mutated_body(rng: Random, seeds: Sequence[bytes]) -> bytes:
    """A body with its JSON or the tensors behind it changed."""
    seed = rng.choice(seeds)
    if seed[:1] != b"B":
        return mutated_json(rng, [seed, rng.choice(seeds[:-1])])
    size = int.from_bytes(seed[1:3], "little")
    text = mutated_json(rng, [seed[3 : 3 + size]])
    tail = mutated_bytes(rng, [seed[3 + size :] + b"\0"]) if rng.random() < 0.4 else seed[3 + size :]
    length = len(text) if rng.random() < 0.9 else rng.randrange(65536)
    return b"B" + (length % 65536).to_bytes(2, "little") + text + tail


def _feedback(data: bytes) -> str:
    read_feedback(data)
    return "read"


def requests() -> list[bytes]:
    """Whole requests as bytes."""
    found = [_request("GET", path) for path in _PATHS[:6]]
    texts = bodies()
    found += [_request("POST", "/v2/models/tiny/infer", text) for text in texts[:4]]
    found.append(_request("POST", "/v2/models/tiny/infer", gzip.compress(texts[0]), "Content-Encoding: gzip"))
    found.append(_request("POST", "/v2/models/tiny/feedback", texts[4]))
    header = json.dumps({"inputs": [{"name": "x", "shape": [1, 1, 8, 8], "datatype": "FP32",
                                     "parameters": {"binary_data_size": 256}}]}).encode()  # fmt: skip
    field = f"Inference-Header-Content-Length: {len(header)}"
    found.append(_request("POST", "/v2/models/tiny/infer", header + bytes(256), field))
    return found


def _request(method: str, path: str, body: bytes = b"", *fields: str, length: int | None = None) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: a", *fields]
    if body or method == "POST":
        lines.append(f"Content-Length: {len(body) if length is None else length}")
    return "\r\n".join((*lines, "", "")).encode("latin-1", errors="replace") + body


def mutated_request(rng: Random, seeds: Sequence[bytes]) -> bytes:
    """A request with its line, its fields, its body or its bytes changed."""
    if rng.random() < 0.3:
        return mutated_bytes(rng, seeds)
    seed = rng.choice(seeds)
    head, _, body = seed.partition(b"\r\n\r\n")
    line, *fields = head.decode("latin-1").split("\r\n")
    method, path = line.split()[:2]
    if rng.random() < 0.2:
        method, path = rng.choice(_METHODS), rng.choice((*_PATHS, "/" + "a" * 70_000, "/v2/models/\xff/infer"))
    if body[:1] == b"{" and rng.random() < 0.7:
        text = body.partition(b"\0")[0]  # what follows are the bytes of tensors, all 0 in the seeds
        body = mutated_json(rng, [text]) + body[len(text) :]
    elif body and rng.random() < 0.5:
        body = mutated_bytes(rng, [body])
    if rng.random() < 0.02:
        body = deep(rng, b"[", b"")
    fields = [field for field in fields if not field.startswith(("Content-Length", "Host")) and rng.random() < 0.9]
    fields += rng.sample(_FIELDS, rng.choice((0, 0, 0, 1, 2)))
    return _request(
        method, path, body, *fields, length=None if rng.random() < 0.95 else rng.randrange(2 * len(body) + 2)
    )


@contextmanager
def _endpoint() -> Iterator[Check]:
    """Our server with a small model, on a thread of its own; one connection for each input."""
    from tests.inference.tiny import two_exit_graph

    started, ports, stopping = threading.Event(), [], []

    async def serve() -> None:
        server = await local_server(two_exit_graph(width=4), name="tiny", version=7)
        endpoint = await serve_http(server)
        ports.append(endpoint.port)
        stop = asyncio.Event()
        stopping.append((asyncio.get_running_loop(), stop))
        started.set()
        await stop.wait()
        await endpoint.close()
        await server.close()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    if not started.wait(60.0):
        raise TimeoutError("the endpoint does not start")
    try:
        yield lambda data: _asked(ports[0], data)
    finally:
        loop, stop = stopping[0]
        loop.call_soon_threadsafe(stop.set)
        thread.join(20.0)


def _asked(port: int, data: bytes) -> str:
    """Sends the bytes, ends the sending side, and reads what comes until the server closes."""
    with socket.create_connection(("127.0.0.1", port), ANSWER_S) as connection:
        answer = b""
        try:
            connection.sendall(data)
            with contextlib.suppress(OSError):  # the server has answered, and closed
                connection.shutdown(socket.SHUT_WR)
            while piece := connection.recv(65536):
                answer += piece
        except (ConnectionResetError, BrokenPipeError):
            pass
        except TimeoutError:
            raise ServerFault(f"no end of the connection within {ANSWER_S:g} s") from None
    found = [int(status) for status in _STATUS.findall(answer)]
    if any(status >= 500 for status in found):
        raise ServerFault(f"{max(found)}: {answer[-200:]!r}")
    return str(found[0]) if found else "closed"


TARGETS = (
    Target("json bodies", 8, body_seeds, plainly(_body), mutated_body),
    Target("feedback", 2, lambda: [bodies()[4]], plainly(_feedback), mutated_json),
    Target("http", 1, requests, _endpoint, mutated_request, seconds=5.0),
)
