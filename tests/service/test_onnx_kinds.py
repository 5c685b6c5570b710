"""Any ONNX model is answered as ONNX Runtime alone would: each kind over our client, tritonclient and plain JSON.

`python -m tests.service.test_onnx_kinds` prints the page `docs/onnx.md`, whose rows are these kinds.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http as triton

from edgewise.core.errors import GraphError, RemoteError
from edgewise.inference.serving_node import local_server
from edgewise.inference.stages import make_session
from edgewise.models.graph.graph import Graph, graph_from
from edgewise.service.client import InferenceClient
from edgewise.service.http_server import HttpServer
from edgewise.service.open_inference import serve_http
from edgewise.service.tensor_data import DATATYPES
from tests.service.onnx_kinds import NODE, Feeds, Kind, T, X, kinds, made, refused, value

KINDS, REFUSED = kinds(), refused()
PAGE = Path(__file__).parents[2] / "docs" / "onnx.md"


def served(graph: Graph, check: Callable[[HttpServer], Any]) -> Any:
    """Serves a model in this process and runs a blocking client in a thread."""

    async def run() -> Any:
        node = await local_server(graph)
        endpoint = await serve_http(node)
        try:
            return await asyncio.to_thread(check, endpoint)
        finally:
            await endpoint.close()
            await node.close()

    return asyncio.run(run())


def alone(kind: Kind, feeds: Feeds) -> Feeds:
    """What ONNX Runtime answers by itself, in the file's order."""
    model = kind.alone or kind.model
    names = [output.name for output in model.graph.output]
    session = make_session(with_tensors(kind).SerializeToString() if kind.renamed else model.SerializeToString())
    given = {name: array.astype(np.float32) if kind.alone else array for name, array in feeds.items()}
    values = session.run([kind.renamed.get(name, name) for name in names], given)
    return dict(zip(names, values, strict=True))


def with_tensors(kind: Kind) -> Any:
    """The file with the tensors in front of its maps as outputs too."""
    import onnx

    model = onnx.ModelProto()
    model.CopyFrom(kind.model)
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in kind.renamed.values())
    return model


def by_our_client(endpoint: HttpServer, feeds: Feeds) -> Feeds:
    async def ask() -> Feeds:
        async with InferenceClient(endpoint.host, endpoint.port) as client:
            return (await client.infer("model", feeds)).outputs

    return asyncio.run(ask())


def by_tritonclient(endpoint: HttpServer, feeds: Feeds) -> Feeds:
    given = []
    for name, array in feeds.items():
        given.append(triton.InferInput(name, list(array.shape), DATATYPES[str(array.dtype)]))
        given[-1].set_data_from_numpy(array)
    with triton.InferenceServerClient(f"{endpoint.host}:{endpoint.port}") as client:
        result = client.infer("model", given)
        names = [output["name"] for output in result.get_response()["outputs"]]
        found = {name: result.as_numpy(name) for name in names}
    texts = {name: array for name, array in found.items() if array.dtype == object}
    return {
        **found,
        **{name: np.array([t.decode() for t in a.ravel()], object).reshape(a.shape) for name, a in texts.items()},
    }


def by_json(endpoint: HttpServer, feeds: Feeds) -> Feeds:
    def values(array: np.ndarray) -> list[Any]:
        return (array.astype(np.float32) if array.dtype.kind == "V" else array).ravel().tolist()

    tensors = [
        {"name": name, "shape": list(array.shape), "datatype": DATATYPES[str(array.dtype)], "data": values(array)}
        for name, array in feeds.items()
    ]
    body = json.dumps({"inputs": tensors})  # NaN and infinities as Python writes them
    reply = httpx.post(f"{endpoint.url}/v2/models/model/infer", content=body)
    assert reply.status_code == 200, reply.text
    numpys = {datatype: name for name, datatype in DATATYPES.items()} | {"BF16": "float32"}
    return {
        output["name"]: np.array(output["data"], numpys[output["datatype"]]).reshape(output["shape"])
        for output in json.loads(reply.text)["outputs"]
    }


@pytest.mark.parametrize("name", KINDS)
def test_each_kind_is_answered_as_onnx_runtime_alone_would(name: str) -> None:
    kind = KINDS[name]

    def check(endpoint: HttpServer) -> None:
        said = httpx.get(f"{endpoint.url}/v2/models/model").json()
        for feeds in kind.feeds:
            want = alone(kind, feeds)
            assert [output["name"] for output in said["outputs"]] == list(want)
            for ask in (by_our_client, by_tritonclient, by_json):
                got = ask(endpoint, feeds)
                assert list(got) == list(want), ask
                for output, described in zip(want, said["outputs"], strict=True):
                    agree(got[output], want[output], kind, f"{output} by {ask.__name__}")
                    fits = [-1] if described["shape"] == [-1] else list(want[output].shape)
                    assert [-1 if s == -1 else n for n, s in zip(fits, described["shape"], strict=True)] == described[
                        "shape"
                    ]

    served(graph_from(kind.model), check)


def agree(got: np.ndarray, want: np.ndarray, kind: Kind, where: str) -> None:
    assert got.shape == want.shape, where
    if not kind.tolerance:
        assert got.dtype == want.dtype, where
        assert np.array_equal(got, want, equal_nan=want.dtype.kind == "f"), f"{where}: {got}, right is {want}"
        return
    assert np.allclose(got.astype("f8"), want.astype("f8"), rtol=kind.tolerance, equal_nan=True), where


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if kind.bad])
def test_what_a_model_refuses_is_400_at_once_and_costs_the_next_request_nothing(name: str) -> None:
    kind = KINDS[name]

    def check(endpoint: HttpServer) -> None:
        for feeds in kind.bad:
            with pytest.raises(RemoteError) as caught:
                by_our_client(endpoint, feeds)
            assert caught.value.fields["status"] == 400
            by_our_client(endpoint, kind.feeds[0])

    served(graph_from(kind.model), check)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_served_is_refused_at_the_start_with_the_reason(name: str) -> None:
    _, make, reason = REFUSED[name]
    with pytest.raises(GraphError, match=reason):
        asyncio.run(local_server(graph_from(make())))


def test_an_optional_input_is_absent_where_its_data_are_null_and_only_there() -> None:
    kind = KINDS["optional_type"]

    def check(endpoint: HttpServer) -> None:
        config = httpx.get(f"{endpoint.url}/v2/models/model/config").json()
        assert [(each["name"], each["dims"], each["optional"]) for each in config["input"]] == [
            ("x", [-1, 2], False),
            ("mask", [-1, 2], True),
        ]
        assert np.array_equal(by_our_client(endpoint, {"x": X, "mask": None})["y"], -X)  # type: ignore[dict-item]
        for given, status in ((["x"], 200), (["mask"], 400), ([], 400)):
            inputs = [
                {"name": n, "shape": [2, 2], "datatype": "FP32", "data": X.ravel().tolist() if n in given else None}
                for n in ("x", "mask")
            ]
            reply = httpx.post(f"{endpoint.url}/v2/models/model/infer", json={"inputs": inputs})
            assert reply.status_code == status
            assert reply.json().get("error", "input 'x' has neither").startswith("input 'x' has neither")

    graph = graph_from(kind.model)
    assert graph_from(graph.model).optional == graph.optional  # as another node gets it
    served(graph, check)


def test_what_draws_random_numbers_draws_them_at_each_request() -> None:
    nodes = [NODE("RandomNormal", [], ["noise"], shape=[1, 2]), NODE("Add", ["x", "noise"], ["y"])]
    model = made(
        nodes, [value("x", T.FLOAT, ["n", 2])], [value("y", T.FLOAT, ["n", 2]), value("noise", T.FLOAT, [1, 2])]
    )

    def check(endpoint: HttpServer) -> None:
        first, second = (by_our_client(endpoint, {"x": X}) for _ in range(2))
        assert np.array_equal(first["y"], X + first["noise"])
        assert not np.array_equal(first["noise"], second["noise"])

    served(graph_from(model), check)


def page() -> str:
    """`docs/onnx.md`: its rows are the kinds above."""
    rows = "\n".join(f"| {kind.what} | {kind.how} |" for kind in KINDS.values())
    reasons = "\n".join(f"| {what} | {reason.replace('.*', '… ')} |" for what, _, reason in REFUSED.values())
    return f"""# ONNX features

What `edgewise serve` makes of a model. Each row is a model of `tests/service/onnx_kinds.py`, asked over our client, `tritonclient`
and plain JSON and compared with ONNX Runtime alone; the page is printed by `python -m tests.service.test_onnx_kinds`.

## Served

| a model with | is served |
|---|---|
{rows}

## Sent by clients

{PROSE}

## Refused at the start

| a model with | is refused with |
|---|---|
{reasons}
"""


PROSE = """A value is converted where it stays the same number: INT32 for INT64, whole numbers for FP32, 0 and 1 for BOOL, FP32 for FP16
and FP64 for FP32 within their range (rounded to the nearest). Anything else is 400 with the sentence.

NaN and infinities stand in JSON as `NaN`, `Infinity` and `-Infinity`, in requests and answers, as Python and Triton write them; a
`null` among floats is NaN. Every optional field may be `null`.

Triton's classification extension (`"parameters": {"classification": 3}` of an output) answers strings `score:index:label`; labels come
from a ZipMap."""


def test_the_page_has_a_row_for_each_kind() -> None:
    assert PAGE.read_text() == page(), "print it anew: python -m tests.service.test_onnx_kinds > docs/onnx.md"


if __name__ == "__main__":
    print(page(), end="")
