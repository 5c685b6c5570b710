"""What clients of an HTTP port may take: time, connections, memory, values; and what is theirs to mend is never a 5xx."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest

from edgewise.core.errors import Busy, InputError
from edgewise.inference.serving_node import ServingNode, local_server
from edgewise.inference.stages import make_session
from edgewise.service import json_tensors
from edgewise.service.client import InferenceClient, error_text
from edgewise.service.connection import HttpLimits
from edgewise.service.http_server import HttpServer, open_port
from edgewise.service.json_process import LargeBodies
from edgewise.service.json_tensors import TooManyValues, with_binary_tensors
from edgewise.service.open_inference import OpenInferenceApp, serve_http
from edgewise.service.open_inference_format import read_request
from edgewise.service.request_body import INLINE_BYTES, BodyBudget, GatheredBody, Unpacking
from tests.inference.tiny import images, two_exit_graph

GRAPH = two_exit_graph()
INFER = "/v2/models/tiny/infer"
HEAD = b"POST /v2/models/tiny/infer HTTP/1.1\r\nhost: a\r\n"


def served(check: Callable[[HttpServer, ServingNode], Awaitable[Any]], **limits: Any) -> Any:
    async def run() -> Any:
        node = await local_server(GRAPH, name="tiny", version=7)
        endpoint = await serve_http(node, limits=HttpLimits(**limits))
        try:
            async with asyncio.timeout(60):
                return await check(endpoint, node)
        finally:
            await endpoint.close()
            await node.close()

    return asyncio.run(run())


def tensor(**changes: Any) -> dict[str, Any]:
    x = images()
    return {"name": "x", "shape": list(x.shape), "datatype": "FP32", "data": x.ravel().tolist()} | changes


def body_of(*tensors: dict[str, Any], **more: Any) -> bytes:
    return json.dumps({"inputs": list(tensors), **more}).encode()


async def post(
    endpoint: HttpServer, body: bytes, path: str = INFER, extra: str = ""
) -> tuple[int, dict[str, str], bytes]:
    async with InferenceClient(endpoint.host, endpoint.port, timeout_s=30) as client:
        return await client.call("POST", path, body, extra)


async def raw(endpoint: HttpServer, *pieces: bytes) -> bytes:
    """Sends pieces and reads until the server closes."""
    reader, writer = await asyncio.open_connection(endpoint.host, endpoint.port)
    for piece in pieces:
        writer.write(piece)
        await writer.drain()
    try:
        return await reader.read()
    finally:
        writer.close()


@pytest.mark.parametrize(
    ("sent", "status", "sentence"),
    [
        (HEAD, 408, "the request's head was not here within"),
        (HEAD + b"content-length: 9\r\n\r\n{", 408, "the request's body was not here within"),
        (HEAD + b"x: " + b"y" * 70_000, 431, "the request's head has more than 65,536 bytes"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, "this is no HTTP/1.1 request"),
    ],
)
def test_who_is_slow_or_speaks_something_else_is_told_and_cut_off(sent: bytes, status: int, sentence: str) -> None:
    answer = served(lambda endpoint, _: raw(endpoint, sent), head_s=0.2, grace_s=0.2)
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert sentence in answer.decode()
    assert b"connection: close" in answer


async def until(is_so: Callable[[], bool]) -> None:
    """Waits for something that the server does by itself."""
    async with asyncio.timeout(30):
        while not is_so():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


def test_a_connection_that_asks_nothing_is_closed() -> None:
    assert served(lambda endpoint, _: raw(endpoint), head_s=0.2) == b""


def test_a_client_that_does_not_read_its_answer_is_cut_off_and_one_that_does_is_not() -> None:
    size = 2**24

    async def much(scope: Any, receive: Any, send: Any) -> None:
        length = [(b"content-length", str(size).encode()), (b"connection", b"close")]
        await send({"type": "http.response.start", "status": 200, "headers": length})
        await send({"type": "http.response.body", "body": bytes(size)})

    async def run() -> None:
        server = open_port(much, "127.0.0.1", 0, limits=HttpLimits(grace_s=0.3, bytes_per_s=2.0**20))
        with socket.create_connection((server.host, server.port)) as never_read:
            never_read.sendall(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
            await until(lambda: len(server.state.connections) == 1)
            answer = await raw(server, b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
            assert len(answer.partition(b"\r\n\r\n")[2]) == size
            await until(lambda: not server.state.connections)
        await server.close()

    asyncio.run(run())


def test_connections_are_bounded_and_idle_ones_make_room() -> None:
    async def check(endpoint: HttpServer, node: ServingNode) -> None:
        clients = [InferenceClient(endpoint.host, endpoint.port) for _ in range(3)]
        async with clients[0], clients[1], clients[2]:
            for client in clients[:2]:
                assert (await client.call("GET", "/v2/health/live"))[0] == 200
            status, headers, content = await clients[2].call("GET", "/v2/health/live")
            assert (status, headers["retry-after"]) == (503, "1")  # the two may be about to ask again
            assert "2 connections are at work here" in error_text(content)
            for connection in endpoint.state.connections:
                connection.since_s -= 2.0
            async with InferenceClient(endpoint.host, endpoint.port) as late:
                assert (await late.call("GET", "/v2/health/live"))[0] == 200
            assert (endpoint.num_refused, endpoint.num_displaced) == (1, 1)

    served(check, max_connections=2)


DEEP = b"[" * 100_000 + b"]" * 100_000


@pytest.mark.parametrize("path", [INFER, "/v2/models/tiny/feedback"])
@pytest.mark.parametrize(
    "body",
    [
        *(
            body_of(tensor(shape=shape, data=[], datatype=datatype))
            for datatype in ("FP32", "INT8", "BOOL", "BYTES", "BF16")
            for shape in ([9007199254740992, 2147483648, 0], [2**31, 0, 2**31], [2**70], [1] * 40, [-1])
        ),
        body_of(tensor(shape=[2**31, 2**31, 0], data=None, parameters={"binary_data_size": 0})),
        DEEP,
        b'{"inputs":' + DEEP + b"}",
        b'{"labels":' + DEEP + b"}",
        b'{"inputs":[],"parameters":' + DEEP + b"}",
        b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        body_of(tensor(data=[])).replace(b"[]}", DEEP + b"}"),
        body_of(tensor(data=[])).replace(b"[]}", b"[NaN," + DEEP + b"]}"),
        body_of(tensor(data=[])).replace(b"[]}", b"[" * 900 + b"1" + b"]" * 900 + b"}"),
        body_of(tensor(), id="i" * 2000),
        body_of(tensor(datatype="Q" * 200_000)),
        body_of(tensor(name="Q" * 200_000)),
        b"\xff\xfe{}",
        b"",
    ],
    ids=lambda value: f"{bytes(value)[:40]!r}" if isinstance(value, bytes) else str(value),
)
def test_what_a_client_gets_wrong_is_a_400_with_a_short_sentence(body: bytes, path: str, port: HttpServer) -> None:
    status, _, content = port.ask(body, path)  # type: ignore[attr-defined]
    assert status == 400, content[:300]
    assert 10 < len(error_text(content)) <= 1001


@pytest.fixture(scope="module")
def port() -> Any:
    """One endpoint for many questions, on a loop of this module's own."""
    loop = asyncio.new_event_loop()
    node = loop.run_until_complete(local_server(GRAPH, name="tiny"))

    async def opened() -> HttpServer:
        return await serve_http(node)

    endpoint = loop.run_until_complete(opened())
    endpoint.ask = lambda body, path: loop.run_until_complete(post(endpoint, body, path))  # type: ignore[attr-defined]
    yield endpoint
    loop.run_until_complete(endpoint.close())
    loop.run_until_complete(node.close())
    loop.close()


def test_a_large_json_request_is_read_in_a_process_of_its_own_and_answered_alike() -> None:
    x = images(600)
    end = make_session(GRAPH.whole).run(["end"], {"x": x})[0]
    x[5, 0, 0, 0] = np.nan

    async def check(endpoint: HttpServer, _: ServingNode) -> None:
        app = endpoint._config.app
        assert isinstance(app, OpenInferenceApp)
        large = app.large
        wanted = {"outputs": [{"name": "end"}], "id": "r1"}
        body = body_of(tensor(shape=list(x.shape), data=x.tolist()), **wanted)
        status, _, content = await post(endpoint, body)
        assert status == 200
        found = np.array(json.loads(content)["outputs"][0]["data"], np.float32).reshape(end.shape)
        others = np.arange(len(x)) != 5
        assert found[others].tobytes() == end[others].tobytes()
        first = large.pid
        assert first not in (None, os.getpid())
        status, _, content = await post(endpoint, body_of(tensor(shape=[9], data=x.tolist())))
        assert status == 400
        assert "data of input 'x' is not FP32 of shape [9]" in error_text(content)
        status, _, content = await post(endpoint, body.replace(b'"id"', b'"parameters": {"deadline_ms": 1}, "id"'))
        assert status == 503
        assert "was not read within" in error_text(content)
        assert (await post(endpoint, body))[0] == 200  # by another process, the first was ended
        assert large.pid != first

    served(check)


def test_values_inputs_and_strings_are_counted_before_they_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    many = body_of(*(tensor(name=f"x{index}", shape=[1], data=[1]) for index in range(1025)))
    for read in (lambda body: with_binary_tensors(body, len(body)), lambda body: read_request(body, None)):
        with pytest.raises(InputError, match=r"the request has 1,025 inputs, the bound is 1,024"):
            read(many)
    texts = body_of(tensor(shape=[70_000], datatype="BYTES", data=["a"] * 70_000))
    with pytest.raises(InputError, match=r"it has 70,000 strings, the bound is 65,536"):
        with_binary_tensors(texts, len(texts))
    monkeypatch.setattr(json_tensors, "MAX_VALUES", 3)
    with pytest.raises(TooManyValues, match=r"about 4 values, the bound is 3.*Send tensors as bytes"):
        json_tensors.check_values(b'{"a": [1, 2, 3]}')  # two commas, a list, an object


def test_a_rewritten_request_keeps_everything_but_its_numbers() -> None:
    binary = tensor(name="b", shape=[2], parameters={"binary_data_size": 8}) | {"data": None}
    body = body_of(tensor(), binary, tensor(name="n", data=None), outputs=[{"name": "end"}], parameters={"timeout": 5})
    whole = body + np.float32([3, 4]).tobytes()
    head, parts = with_binary_tensors(whole, len(body))
    before, after = read_request(whole, len(body)), read_request(head + b"".join(parts), len(head))
    assert {name: (a.dtype, a.tobytes()) for name, a in before.inputs.items()} == {
        name: (a.dtype, a.tobytes()) for name, a in after.inputs.items()
    }
    others = ("id", "outputs", "is_binary", "deadline_s", "stream", "num_classes", "absent")
    assert all(getattr(before, name) == getattr(after, name) for name in others)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ('{"parameters": {"timeout": 2000000}, "inputs": [DATA]}', 2.0),
        ('{"inputs": [DATA], "parameters": {"deadline_ms":1.5e3}}', 1.5),
        ('{"inputs": [DATA], "parameters": {"timeout": 0, "x": 1}}', None),
        ('{"inputs": [DATA], "parameters": {"timeout": -1}}', None),
        ('{"inputs": [DATA], "id": "\\"timeout\\": 5"}', None),  # in a text
        ('{"inputs": [DATA, {"timeout": 5}, DATA]}', None),  # far from both ends
    ],
)
def test_a_deadline_is_seen_where_clients_write_it(text: str, seconds: float | None) -> None:
    body = text.replace("DATA", "0," * 5000 + "0").encode()
    assert json_tensors.likely_deadline_s(body + b'"timeout": 5', len(body)) == seconds


def test_bodies_have_a_budget_in_which_small_ones_are_free() -> None:
    budget = BodyBudget(100_000)
    with budget.room() as first, budget.room() as second:
        first.take(160_000)
        second.take(65_536)
        assert budget.used_bytes == 160_000 - 65_536
        with pytest.raises(Busy, match=r"large requests of 94,464 bytes are at hand, the bound is 100,000") as refused:
            second.take(80_000)
        assert refused.value.fields["retry_after_s"] > 0
    assert (budget.used_bytes, budget.num_refused) == (0, 1)

    async def check(endpoint: HttpServer, _: ServingNode) -> None:
        status, headers, content = await post(endpoint, bytes(200_000))
        assert (status, headers["retry-after"]) == (503, "1")
        assert "this one is dropped" in error_text(content)
        status, _, content = await post(endpoint, gzip.compress(bytes(1_000_000)), extra="Content-Encoding: gzip\r\n")
        assert status == 503

    served(check, bodies_bytes=100_000)


def test_a_large_body_is_never_moved_while_it_grows() -> None:
    pieces = [os.urandom(size) for size in (10, INLINE_BYTES - 10, 1, 2**18, 2**20)]
    body, places = GatheredBody(2**26), set()
    for piece in pieces:
        body.add(piece)
        if body.size > INLINE_BYTES:
            places.add(np.frombuffer(body.whole, np.uint8).ctypes.data)
    assert bytes(body.whole) == b"".join(pieces)
    assert len(places) == 1


@pytest.mark.parametrize("plain", [os.urandom(3 * 2**20), bytes(3 * 2**20), b"", b"{}"], ids=["random", "0", "", "{}"])
def test_what_is_unpacked_is_read_in_bounded_pieces(plain: bytes) -> None:
    packed = gzip.compress(plain)
    unpacking, given = Unpacking(packed, "gzip", 2**22), [0]
    while not unpacking.is_done:
        unpacking.go_on(2**16)
        given.append(len(unpacking._reader.unconsumed_tail))  # copied each time, under the interpreter's lock
    assert bytes(unpacking.plain.whole) == plain
    assert max(given) <= 2**18
    for cut in {len(packed) - 1, len(packed) // 2}:
        with pytest.raises(InputError, match=r"is not gzip: it ends too early"):
            Unpacking(packed[:cut], "gzip", 2**22).finish()


def test_answers_of_one_connection_come_in_the_order_of_its_questions() -> None:
    large, small = (
        body_of(tensor(shape=[600, 1, 8, 8], data=images(600).tolist()), id="first"),
        body_of(tensor(), id="2"),
    )

    async def check(endpoint: HttpServer, _: ServingNode) -> bytes:
        close = b"connection: close\r\n"
        pieces = ((large, b""), (small, close))
        sent = (HEAD + more + b"content-length: %d\r\n\r\n" % len(body) + body for body, more in pieces)
        return await raw(endpoint, b"".join(sent))

    answer = served(check)
    assert 0 < answer.index(b'"id":"first"') < answer.index(b'"id":"2"')
    assert answer.count(b"HTTP/1.1 200 OK") == 2


def test_the_process_for_large_bodies_ends_when_none_comes() -> None:
    async def run() -> None:
        large = LargeBodies(idle_s=0.05)
        body = bytearray(body_of(tensor()))
        await large.with_binary_tensors(body, len(body), 30.0)
        assert large.pid is not None
        await until(lambda: large.pid is None)
        large.close()

    asyncio.run(run())
