"""The endpoint, as clients of the protocol see it: tritonclient unchanged, raw HTTP, and everything that can be wrong."""

from __future__ import annotations

import asyncio
import gzip
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import pytest
import tritonclient.http as triton

from edgewise.core.errors import ConfigError, RemoteError, SecurityError
from edgewise.core.ids import Revision
from edgewise.inference.serving_node import device_only_plan, local_server
from edgewise.inference.stages import make_session
from edgewise.service.client import InferenceClient
from edgewise.service.connection import HttpLimits
from edgewise.service.http_server import HttpServer
from edgewise.service.open_inference import serve_http
from tests.inference.tiny import active, close, images, model_server, split_plan, two_exit_graph

GRAPH = two_exit_graph()


def at_endpoint(check: Callable[[HttpServer], Any], **options: Any) -> Any:
    """Serves the tiny model and runs a blocking client in a thread."""

    async def run() -> Any:
        server = await local_server(GRAPH, name="tiny", version=7)
        endpoint = await serve_http(server, **options)
        try:
            return await asyncio.get_running_loop().run_in_executor(None, check, endpoint)
        finally:
            await endpoint.close()
            await server.close()

    return asyncio.run(run())


def call(endpoint: HttpServer, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, dict[str, Any]]:
    connection = http.client.HTTPConnection(endpoint.host, endpoint.port, timeout=10)
    try:
        connection.request(method, path, body, {k.replace("_", "-"): v for k, v in headers.items()})
        response = connection.getresponse()
        return response.status, json.loads(response.read() or b"{}")
    finally:
        connection.close()


def infer_body(**changes: Any) -> dict[str, Any]:
    tensor = {"name": "x", "shape": [1, 1, 8, 8], "datatype": "FP32", "data": images().ravel().tolist()} | changes
    return {"id": "r1", "inputs": [tensor]}


def ask(
    endpoint: HttpServer, request: dict[str, Any], path: str = "/v2/models/tiny/infer"
) -> tuple[int, dict[str, Any]]:
    return call(endpoint, "POST", path, json.dumps(request).encode())


@pytest.mark.parametrize("is_binary", [True, False])
@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
def test_tritonclient_works_unchanged(is_binary: bool, compression: str | None) -> None:
    x = images(3)

    def check(endpoint: HttpServer) -> None:
        with triton.InferenceServerClient(f"{endpoint.host}:{endpoint.port}") as client:
            assert client.is_server_live()
            assert client.is_server_ready()
            assert client.is_model_ready("tiny")
            assert client.is_model_ready("tiny", "7")
            assert client.get_model_metadata("tiny")["inputs"] == [
                {"name": "x", "datatype": "FP32", "shape": [-1, 1, 8, 8]}
            ]
            given = triton.InferInput("x", list(x.shape), "FP32")
            given.set_data_from_numpy(x, binary_data=is_binary)
            wanted = [triton.InferRequestedOutput("end", binary_data=is_binary)]
            result = client.infer(
                "tiny",
                [given],
                outputs=wanted,
                request_id="r9",
                timeout=2_000_000,
                request_compression_algorithm=compression,
            )
            early_end = make_session(GRAPH.whole).run(None, {"x": x})
            assert result.as_numpy("end").tobytes() == early_end[1].tobytes()
            answer = result.get_response()
            assert (answer["id"], answer["model_version"]) == ("r9", "7")
            assert answer["parameters"]["exit_index"] == 1
            assert answer["parameters"]["source"] == "plan"
            assert answer["parameters"]["plan_revision"] == 1

    at_endpoint(check)


def test_tritonclients_extensions_work_unchanged() -> None:
    x = images(3)
    end = make_session(GRAPH.whole).run(["end"], {"x": x})[0]

    def check(endpoint: HttpServer) -> None:
        with triton.InferenceServerClient(f"{endpoint.host}:{endpoint.port}") as client:
            config = client.get_model_config("tiny", "7")
            assert [(i["name"], i["data_type"], i["dims"]) for i in config["input"]] == [
                ("x", "TYPE_FP32", [-1, 1, 8, 8])
            ]
            assert config["parameters"]["exits"]["string_value"] == "early,end"
            assert client.get_model_repository_index() == [{"name": "tiny", "version": "7", "state": "READY"}]
            given = triton.InferInput("x", list(x.shape), "FP32")
            given.set_data_from_numpy(x)
            for is_binary in (True, False):
                wanted = [triton.InferRequestedOutput("end", binary_data=is_binary, class_count=2)]
                found = client.infer("tiny", [given], outputs=wanted).as_numpy("end")
                assert found.shape == (3, 2)
                for row, scores in zip(found, end, strict=True):
                    best = (
                        [int(t.decode().split(":")[1]) for t in row]
                        if is_binary
                        else [int(t.split(":")[1]) for t in row]
                    )
                    assert best == scores.argsort()[::-1][:2].tolist()
            assert client.get_inference_statistics("tiny")["model_stats"][0]["inference_count"] == 2

    at_endpoint(check)


def test_null_is_absent_everywhere() -> None:
    nothing = dict.fromkeys(("binary_data_output", "sequence_id", "sequence_start", "timeout", "deadline_ms"))
    wanted = {"name": "end", "parameters": {"classification": None, "binary_data": None}}
    request = infer_body(parameters={"binary_data_size": None}) | {
        "id": None,
        "parameters": nothing,
        "outputs": [wanted],
    }
    status, answer = at_endpoint(lambda endpoint: ask(endpoint, request))
    assert (status, [output["shape"] for output in answer["outputs"]]) == (200, [[1, 10]])


@pytest.mark.parametrize(
    ("data", "status"),
    [
        ("[" + ", ".join(["NaN", "Infinity", "-Infinity"] + ["1"] * 61) + "]", 200),
        ("[" + ", ".join(["null"] * 64) + "]", 200),
        ('["NaN"' + ", 1" * 63 + "]", 400),
        ("[1e39" + ", 1" * 63 + "]", 400),
    ],
)
def test_json_has_nan_and_infinities(data: str, status: int) -> None:
    body = json.dumps(infer_body(data=[])).replace("[]", data).encode()
    found = at_endpoint(lambda endpoint: call(endpoint, "POST", "/v2/models/tiny/infer", body))
    assert found[0] == status


def test_an_answer_is_one_packet() -> None:
    body = json.dumps(infer_body()).encode()
    head = f"POST /v2/models/tiny/infer HTTP/1.1\r\nhost: a\r\ncontent-length: {len(body)}\r\n\r\n".encode()

    def check(endpoint: HttpServer) -> None:
        with socket.create_connection((endpoint.host, endpoint.port), timeout=10) as connection:
            for _ in range(5):
                connection.sendall(head + body)
                answer = connection.recv(2**20)
                told, _, content = answer.partition(b"\r\n\r\n")
                assert b"content-length: %d" % len(content) in told, answer
                assert json.loads(content)["model_name"] == "tiny"
            connection.sendall(b"HEAD /v2/health/live HTTP/1.1\r\nhost: a\r\n\r\n")  # a head without a body
            assert connection.recv(2**20).endswith(b"\r\n\r\n")

    at_endpoint(check)


def test_our_own_client_works_too() -> None:
    async def run() -> None:
        server = await local_server(GRAPH, name="tiny")
        endpoint = await serve_http(server)
        async with InferenceClient(endpoint.host, endpoint.port) as client:
            reply = await client.infer("tiny", {"x": images()}, parameters={"deadline_ms": 500})
            assert reply.outputs["end"].shape == (1, 10)
        await endpoint.close()
        await server.close()

    asyncio.run(run())


@pytest.mark.parametrize(
    ("path", "status", "error"),
    [
        ("/v2/models/tyni", 404, "no model 'tyni' is served here. Did you mean 'tiny'?"),
        ("/v2/models/tiny/versions/3", 404, "model 'tiny' has version 7 in force, not '3'"),
        ("/v2/nothing", 404, "GET /v2/nothing: Not Found."),
        ("/v2/models/tiny/infer", 405, "infer is called with POST, found GET"),
    ],
)
def test_wrong_paths_get_the_protocols_error_object(path: str, status: int, error: str) -> None:
    found = at_endpoint(lambda endpoint: call(endpoint, "GET", path))
    assert (found[0], list(found[1])) == (status, ["error"])
    assert error in found[1]["error"]


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"name": "z"}, "the model has no input 'z'"),
        (
            {"datatype": "FP64", "data": [1e300] * 64},
            "input 'x' has dtype float64, the model takes float32; its values",
        ),
        ({"datatype": "FLOAT"}, "input 'x' has datatype 'FLOAT'"),
        ({"shape": [1, 64]}, "input 'x' has shape [1, 64], the model takes [n, 1, 8, 8]"),
        ({"shape": [1, 1, 8, 9]}, "data of input 'x' is not FP32 of shape [1, 1, 8, 9]"),
        ({"shape": [-1, 64]}, "input 'x' has shape [-1, 64], sizes cannot be negative"),
        ({"data": ["a"]}, "data of input 'x' is not FP32"),
        ({"data": [300], "datatype": "UINT8", "shape": [1]}, "data of input 'x' is not UINT8"),
        ({"data": None}, "input 'x' has neither data nor binary_data_size"),
        ({"parameters": {"binary_data_size": 3}}, "needs 256 bytes, binary_data_size is 3"),
        ({"shape": "big"}, "the request's JSON is not an inference request"),
    ],
)
def test_wrong_inputs_get_400_and_say_what_is_wrong(changes: dict[str, Any], error: str) -> None:
    status, answer = at_endpoint(lambda endpoint: ask(endpoint, infer_body(**changes)))
    assert status == 400
    assert error in answer["error"]


@pytest.mark.parametrize(
    ("request_change", "error"),
    [
        ({"outputs": [{"name": "fin"}]}, "the model has no output 'fin'"),
        (
            {"outputs": [{"name": "end", "parameters": {"classification": -1}}]},
            "parameters.classification of output 'end'",
        ),
        ({"parameters": {"timeout": -5}}, "parameters.timeout is -5, it must be a positive time"),
        ({"parameters": {"deadline_ms": "soon"}}, "parameters.deadline_ms is 'soon'"),
        ({"parameters": {"binary_data_output": 1}}, "parameters.binary_data_output must be true or false"),
        ({"inputs": [infer_body()["inputs"][0]] * 2}, "input 'x' is given twice"),
    ],
)
def test_wrong_requests_get_400_and_say_what_is_wrong(request_change: dict[str, Any], error: str) -> None:
    status, answer = at_endpoint(lambda endpoint: ask(endpoint, infer_body() | request_change))
    assert status == 400
    assert error in answer["error"]


@pytest.mark.parametrize(
    ("body", "headers", "status", "error"),
    [
        (b"{", {}, 400, "the request's JSON is not an inference request"),
        (b"{}", {"Inference_Header_Content_Length": "9"}, 400, "Inference-Header-Content-Length is 9, the body has 2"),
        (b"{}", {"Inference_Header_Content_Length": "x"}, 400, "Inference-Header-Content-Length is 'x'"),
        (b'{"inputs":[]}z', {"Inference_Header_Content_Length": "13"}, 400, "1 bytes follow the last input"),
        (b"z", {"Content_Encoding": "gzip"}, 400, "the body is not gzip"),
        (b"z", {"Content_Encoding": "br"}, 400, "content-encoding 'br' is not offered"),
        (b"z" * 5000, {}, 413, "the request body has more than 4,096 bytes"),
        (gzip.compress(b"z" * 5000, mtime=0), {"Content_Encoding": "gzip"}, 413, "unpacks to more than 4,096 bytes"),
    ],
)
def test_bodies_are_bounded_and_checked(body: bytes, headers: dict[str, str], status: int, error: str) -> None:
    found = at_endpoint(
        lambda endpoint: call(endpoint, "POST", "/v2/models/tiny/infer", body, **headers),
        limits=HttpLimits(max_body_bytes=4096),
    )
    assert found[0] == status
    assert error in found[1]["error"]


def test_a_model_without_a_plan_is_not_ready() -> None:
    async def run() -> None:
        endpoint = await serve_http(model_server(name="tiny"))
        loop = asyncio.get_running_loop()
        ready = await loop.run_in_executor(None, call, endpoint, "GET", "/v2/health/ready")
        asked = await loop.run_in_executor(None, ask, endpoint, infer_body())
        assert ready == (503, {"ready": False})
        assert asked[0] == 503
        assert "model 'tiny' is not ready" in asked[1]["error"]
        await endpoint.close()

    asyncio.run(run())


def test_a_request_that_nothing_answered_in_time_gets_503_with_the_cause() -> None:
    async def run() -> None:
        server = model_server(name="tiny")
        await server.prepare(active(split_plan(GRAPH)), GRAPH)
        server.activate(Revision(1))
        done = threading.Event()
        blocked = server.worker.run(lambda: done.wait(60))
        endpoint = await serve_http(server)
        request = infer_body() | {"parameters": {"deadline_ms": 100}}
        status, answer = await asyncio.get_running_loop().run_in_executor(None, ask, endpoint, request)
        assert status == 503
        assert "nothing was ready by the deadline of 0.100 s: the device's own stages were not done" in answer["error"]
        done.set()
        await blocked
        await endpoint.close()
        await close(server)

    asyncio.run(run())


def test_accepted_connections_do_not_wait_for_nagle() -> None:
    async def run() -> None:
        server = await local_server(GRAPH, name="tiny")
        endpoint = await serve_http(server)
        async with InferenceClient(endpoint.host, endpoint.port) as client:
            await client.infer("tiny", {"x": images()})
            accepted = [c.transport.get_extra_info("socket") for c in endpoint.state.connections]
            assert [s.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) for s in accepted] == [1]
        await endpoint.close()
        await server.close()

    asyncio.run(run())


def test_the_endpoint_closes_within_a_second_with_a_request_at_hand() -> None:
    async def run() -> float:
        server = model_server(name="tiny")
        await server.prepare(active(split_plan(GRAPH)), GRAPH)
        server.activate(Revision(1))
        endpoint = await serve_http(server)
        _, writer = await asyncio.open_connection(endpoint.host, endpoint.port)
        writer.write(b"POST /v2/models/tiny/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        await writer.drain()
        started = time.monotonic()
        await endpoint.close()
        took = time.monotonic() - started
        writer.close()
        await close(server)
        return took

    assert asyncio.run(run()) < 1.0


def test_a_port_in_use_and_an_open_address_are_refused() -> None:
    async def run() -> None:
        server = model_server(name="tiny")
        endpoint = await serve_http(server)
        with pytest.raises(ConfigError, match=rf"cannot listen on 127.0.0.1:{endpoint.port}: Address already in use"):
            await serve_http(server, port=endpoint.port)
        with pytest.raises(SecurityError, match="not a loopback address and there is no TLS"):
            await serve_http(server, "0.0.0.0")
        await endpoint.close()
        await close(server)

    asyncio.run(run())


def test_what_was_right_is_told_by_request_and_counted() -> None:
    told: list[dict[str, int]] = []

    async def run() -> int:
        server = model_server(name="tiny", on_feedback=lambda labels: told.append(dict(labels)) or 1)
        await server.prepare(active(device_only_plan(GRAPH)), GRAPH)
        server.activate(Revision(1))
        endpoint = await serve_http(server)
        async with InferenceClient(endpoint.host, endpoint.port) as client:
            taken = await client.feedback("tiny", {"r1": 3, "r2": 4})
            with pytest.raises(RemoteError, match="no model 'tony' is served here"):
                await client.feedback("tony", {})
        await endpoint.close()
        await close(server)
        return taken

    assert asyncio.run(run()) == 1
    assert told == [{"r1": 3, "r2": 4}]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"labels": {"r1": 3}}', "keeps no examples to learn from"),
        (b'{"labels": {"r1": "three"}}', "Expected `int`, got `str`"),
        (b"{", "feedback is"),
    ],
)
def test_feedback_that_cannot_be_used_is_refused_with_its_cause(body: bytes, words: str) -> None:
    status, answer = at_endpoint(lambda endpoint: call(endpoint, "POST", "/v2/models/tiny/feedback", body))
    assert status == 400
    assert words in answer["error"]


def test_null_stands_for_what_is_optional() -> None:
    def check(endpoint: HttpServer) -> None:
        request = infer_body(parameters=None) | {"id": None, "parameters": None, "outputs": None}
        status, reply = ask(endpoint, request)
        assert (status, "id" in reply) == (200, False)
        assert ask(endpoint, infer_body() | {"outputs": [{"name": "end", "parameters": None}]})[0] == 200

    at_endpoint(check)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("HEAD", "/v2/health/live", 200),
        ("HEAD", "/v2/health/ready", 200),
        ("GET", "/v2/models/tiny/infer", 405),
        ("POST", "/v2/models/tiny/infer/", 200),
        ("POST", "/v2/models/tiny/versions/7/infer", 200),
        ("POST", "/v2/models/tiny/versions/8/infer", 404),
        ("POST", "/v2/models/tiny/version/7/infer", 404),
        ("POST", "/v2/models/tiny/versions/infer", 404),
        ("POST", "/v2/models/infer", 404),
        ("POST", "/v2/models//infer", 404),
    ],
)
def test_methods_and_paths(method: str, path: str, status: int) -> None:
    body = json.dumps(infer_body()).encode()
    found, reply = at_endpoint(lambda endpoint: call(endpoint, method, path, body if method == "POST" else b""))
    assert found == status
    assert status == 200 or reply["error"].endswith((".", "?"))


@pytest.mark.parametrize("name", ["50%", "a%41", "ü x", "a,b=c"])
def test_a_name_with_odd_characters_is_the_same_everywhere(name: str) -> None:
    async def run() -> None:
        server = await local_server(GRAPH, name=name)
        endpoint = await serve_http(server)
        path = f"/v2/models/{quote(name, safe='')}"

        def check() -> None:
            assert call(endpoint, "GET", path)[1]["name"] == name
            assert ask(endpoint, infer_body(), f"{path}/infer")[1]["model_name"] == name
            assert call(endpoint, "GET", f"{path}/stats")[1]["model_stats"][0]["name"] == name

        await asyncio.to_thread(check)
        await endpoint.close()
        await server.close()

    asyncio.run(run())


def test_our_own_client_sends_any_byte_order() -> None:
    async def run() -> None:
        server = await local_server(GRAPH, name="tiny")
        endpoint = await serve_http(server)
        async with InferenceClient(endpoint.host, endpoint.port) as client:
            answers = [(await client.infer("tiny", {"x": images().astype(t)})).outputs["end"] for t in ("<f4", ">f4")]
        assert answers[0].tobytes() == answers[1].tobytes()
        await endpoint.close()
        await server.close()

    asyncio.run(run())
