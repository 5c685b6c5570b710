"""What a request costs beyond computing and sending: python -m benchmarks.request_overhead

tritonclient asks a device's HTTP endpoint, once for a model served whole on the device, once for the same model split over
Zenoh between two processes. In the same rounds the same work is done with nothing of ours: bare ONNX Runtime computes
the whole model, or the head, whose output a bare Zenoh query carries (with as many bytes, over as many hops: a client
asks a router) to the same edge process, where bare ONNX Runtime computes the tail. What a request takes above that is
overhead; what the client and HTTP take by themselves, asked of a server that has the answer ready, is part of it and
printed beside it. Nothing is shaped.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from itertools import pairwise
from typing import Any

import numpy as np
import zenoh

from benchmarks.report import Bar, close, print_row
from edgewise.core.ids import Generation, NodeId, Revision, Tier
from edgewise.core.process import keep_for_good
from edgewise.inference.peers import Target
from edgewise.inference.serving_node import ServingNode, device_only_plan
from edgewise.inference.stage_messages import STAGE
from edgewise.inference.stage_server import StageHost
from edgewise.inference.stages import make_session
from edgewise.models.graph.graph import Graph, graph_from
from edgewise.planning.plan import EXIT, ActivePlan, Gate, Handover, Plan, Site, Stage
from edgewise.transport.keys import Keys
from edgewise.transport.zenoh.session_config import resolved
from edgewise.transport.zenoh.zenoh_transport import ZenohSettings, open_zenoh

LIMIT_S = 0.002
KEYS = Keys("bench")
BARE_KEY = "bare/echo"
FRAME_BYTES = 400
ANSWER_BYTES = 500
CUT = "h2"


def bench_graph() -> Graph:
    """Four convolutions on float32[n, 3, 32, 32] with one classifier: 7.5 MFLOPs, a cut of 8 KiB after the second."""
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    nodes, weights, channels = [], [], (3, 16, 8, 32, 32)
    for index, (inner, outer) in enumerate(pairwise(channels), 1):
        kernel = rng.normal(0, 0.2, (outer, inner, 3, 3)).astype(np.float32)
        weights.append(numpy_helper.from_array(kernel, f"w{index}"))
        source = "x" if index == 1 else f"h{index - 1}"
        stride = 2 if index == 1 else 1
        nodes.append(helper.make_node("Conv", [source, f"w{index}"], [f"c{index}"], pads=[1] * 4, strides=[stride] * 2))
        nodes.append(helper.make_node("Relu", [f"c{index}"], [f"h{index}"]))
    weights.append(numpy_helper.from_array(rng.normal(0, 0.2, (32, 10)).astype(np.float32), "w"))
    nodes.append(helper.make_node("GlobalAveragePool", ["h4"], ["p"]))
    nodes.append(helper.make_node("Flatten", ["p"], ["f"]))
    nodes.append(helper.make_node("MatMul", ["f", "w"], ["end"]))
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 32, 32])
    made = helper.make_tensor_value_info("end", TensorProto.FLOAT, ["n", 10])
    graph = helper.make_graph(nodes, "bench", [given], [made], weights)
    return graph_from(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def split_plan(graph: Graph) -> Plan:
    """Device to the cut, edge to the end, uncoded."""
    size = graph.tensor(CUT).size_bytes
    return Plan(
        "split",
        graph.digest,
        (
            Stage("device", graph.digest, ("x",), (CUT,), Site(Tier.DEVICE)),
            Stage("edge", graph.digest, (CUT,), ("end",), Site(Tier.EDGE)),
        ),
        (Handover("device", "edge", (CUT,), "none", payload_bytes=size),),
        (Gate(EXIT, "edge", 0.0, 1.0, 1.0, ("end",), 0),),
    )


async def edge() -> None:
    """The edge's process: a stage host behind a Zenoh router, and a bare Zenoh queryable beside it."""
    graph = bench_graph()
    host = StageHost(NodeId("edge-1"), Tier.EDGE)
    await host.prepare(ActivePlan(Revision(1), split_plan(graph), 1), graph)
    settings = ZenohSettings(
        node=NodeId("edge-1"), generation=Generation(1), mode="router", listen=("tcp/127.0.0.1:0",)
    )
    async with await open_zenoh(settings) as transport:
        await transport.serve_sync(KEYS.service("edge-1", STAGE), host.handle)
        bare = ZenohSettings(node=NodeId("bare"), generation=Generation(1), mode="router", listen=("tcp/127.0.0.1:0",))
        (beside,) = resolved(bare).listen
        tail, shape = make_session(graph.extract([CUT], ["end"])), graph.tensor(CUT).shape
        size = graph.tensor(CUT).size_bytes

        def answer(query: Any) -> None:
            (logits,) = tail.run(None, {CUT: np.frombuffer(bytes(query.payload)[:size], np.float32).reshape(shape)})
            query.reply(BARE_KEY, logits.tobytes().ljust(ANSWER_BYTES, b"\0"))

        with bare_session("router", "listen", beside) as session:
            queryable = session.declare_queryable(BARE_KEY, answer)
            await told({"endpoint": transport.endpoints[0], "bare": beside})
            queryable.undeclare()
    await host.close()


async def device(endpoint: str) -> None:
    """The device's process: the same model served whole and split, behind one endpoint."""
    from edgewise.service.open_inference import serve_http

    graph = bench_graph()
    settings = ZenohSettings(node=NodeId("device-1"), generation=Generation(1), mode="client", connect=(endpoint,))
    async with await open_zenoh(settings) as transport:
        node = ServingNode(NodeId("device-1"))
        servers = {name: node.deploy(name) for name in ("local", "split")}
        for server, plan in zip(servers.values(), (device_only_plan(graph), split_plan(graph)), strict=True):
            await server.prepare(ActivePlan(Revision(1), plan, 1), graph)
            server.activate(Revision(1))
        servers["split"].set_targets([Target(NodeId("edge-1"), transport, KEYS.service("edge-1", STAGE))])
        http = await serve_http(node)
        ready = await asyncio.start_server(answer_at_once, "127.0.0.1", 0)
        await told({"port": http.port, "ready": ready.sockets[0].getsockname()[1]})
        ready.close()
        await http.close()
        await node.close()


async def answer_at_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """An HTTP server that has the answer ready: what the client and HTTP cost by themselves."""
    outputs = [{"name": "end", "datatype": "FP32", "shape": [1, 10], "parameters": {"binary_data_size": 40}}]
    told = json.dumps({"model_name": "m", "outputs": outputs, "parameters": {"source": "plan"}}).encode()
    length = f"inference-header-content-length: {len(told)}\r\ncontent-length: {len(told) + 40}\r\n\r\n"
    answer = b"HTTP/1.1 200 OK\r\n" + length.encode() + told + b"\0" * 40
    with suppress(asyncio.IncompleteReadError):
        while head := await reader.readuntil(b"\r\n\r\n"):
            size = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
            await reader.readexactly(int(size.partition(b":")[2]))
            writer.write(answer)
    writer.close()


async def told(line: dict[str, Any]) -> None:
    """Tells the parent where we are, then waits until it closes our input."""
    print(json.dumps(line), flush=True)
    keep_for_good()  # as every process of a fleet does
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


def bare_session(mode: str, way: str, endpoint: str) -> Any:
    """A Zenoh session without anything of ours: a `router` that `listen`s or a `client` that `connect`s."""
    config = zenoh.Config()
    for key, value in (
        ("mode", json.dumps(mode)),
        (f"{way}/endpoints", json.dumps([endpoint])),
        ("scouting/multicast/enabled", "false"),
        ("transport/shared_memory/enabled", "false"),
    ):
        config.insert_json5(key, value)
    return zenoh.open(config)


def start(stack: ExitStack, *role: str) -> dict[str, Any]:
    """Starts a process of this benchmark; it ends with the stack."""
    command = [sys.executable, "-m", "benchmarks.request_overhead", "--role", *role]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    stack.callback(process.stdout.close)
    stack.callback(process.wait, 10)
    stack.callback(process.stdin.close)
    line: dict[str, Any] = json.loads(process.stdout.readline())
    return line


def timed(work: Callable[[], Any]) -> float:
    """Seconds of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def measure(rounds: int) -> dict[str, list[float]]:
    """Interleaved seconds of each thing."""
    import tritonclient.http as triton

    graph = bench_graph()
    x = np.random.default_rng(1).normal(size=(1, 3, 32, 32)).astype(np.float32)
    whole, head = (make_session(m) for m in (graph.whole, graph.extract(["x"], [CUT])))
    with ExitStack() as stack:
        edge_is = start(stack, "edge")
        device_is = start(stack, "device", "--endpoint", edge_is["endpoint"])
        session = stack.enter_context(bare_session("client", "connect", edge_is["bare"]))
        client, at_once = (
            stack.enter_context(triton.InferenceServerClient(f"127.0.0.1:{device_is[port]}"))
            for port in ("port", "ready")
        )

        def ask(model: str, client: Any = client) -> None:
            given = triton.InferInput("x", list(x.shape), "FP32")
            given.set_data_from_numpy(x)
            result = client.infer(model, [given])
            source = result.get_response()["parameters"]["source"]
            assert source == "plan", f"{model} was answered by {source}"

        def bare_split() -> None:
            (middle,) = head.run(None, {"x": x})
            replies = list(session.get(BARE_KEY, payload=middle.tobytes() + b"\0" * FRAME_BYTES, timeout=5.0))
            assert len(replies) == 1

        things: dict[str, Callable[[], Any]] = {
            "bare ONNX Runtime, whole": lambda: whole.run(None, {"x": x}),
            "tritonclient, answered at once": lambda: ask("any", at_once),
            "tritonclient, device only": lambda: ask("local"),
            "bare ONNX Runtime, split over bare Zenoh": bare_split,
            "tritonclient, split over Zenoh": lambda: ask("split"),
        }
        seconds: dict[str, list[float]] = {name: [] for name in things}
        for index in range(rounds + rounds // 10):
            for name, work in things.items():
                took = timed(work)
                if index >= rounds // 10:  # the first tenth warms up
                    seconds[name].append(took)
    return seconds


def main() -> None:
    """Runs the benchmark, or one of its processes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="100 rounds instead of 1,000")
    parser.add_argument("--json", action="store_true", help="only the closing JSON line")
    parser.add_argument("--role", choices=("edge", "device"), help=argparse.SUPPRESS)
    parser.add_argument("--endpoint", default="", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.role:
        asyncio.run(edge() if args.role == "edge" else device(args.endpoint))
        return
    seconds = measure(100 if args.short else 1000)
    rows = {name: np.array(values) for name, values in seconds.items()}
    alone = rows["tritonclient, device only"] - rows["bare ONNX Runtime, whole"]
    split = rows["tritonclient, split over Zenoh"] - rows["bare ONNX Runtime, split over bare Zenoh"]
    overheads = {"device only": alone, "split": split}
    if not args.json:
        for name, values in (*seconds.items(), *((f"overhead, {n}", v) for n, v in overheads.items())):
            print_row(name, [1e3 * float(v) for v in values], "ms")
    bars = [
        Bar(
            f"median overhead of a request, {name}",
            f"<= {LIMIT_S * 1e3:g} ms",
            round(1e3 * statistics.median(values), 3),
            statistics.median(values) <= LIMIT_S,
        )
        for name, values in overheads.items()
    ]
    figures = {f"{name}, median ms": round(1e3 * statistics.median(v), 4) for name, v in seconds.items()}
    close("request_overhead", figures, bars)


if __name__ == "__main__":
    main()
