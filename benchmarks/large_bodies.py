"""What a large HTTP request does to the small ones beside it: python -m benchmarks.large_bodies

A device's endpoint in a process of its own answers small requests at a steady rate; in some windows it is sent
large ones too, one after the other: JSON of 40 MiB, a million inputs in one body, a batch of 60 MiB in bytes, one that
unpacks to 60 MiB. Windows are interleaved, so all kinds see the same machine; in every third the large ones go to a twin of
the server, which takes as much of the machine and shares no process with the small ones. Who sends large ones lets all others
go first: on a real device that is another machine. Printed are the small ones' latency in each, the longest that a large
one took beyond its deadline, and the resident memory that is left behind.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle
from typing import Any

import numpy as np
import psutil

from benchmarks.report import Bar, close, print_row, quantile
from benchmarks.request_overhead import bench_graph, told
from edgewise.service.client import InferenceClient

RATE_PER_S = 100.0
DEADLINE_S = 2.0
LIMIT_RATIO = 2.0
LIMIT_MIB = 64.0
LIMIT_LATE_S = 1.0
SETTLING_S = 3.0
SENDER_NICE = 19


async def serve() -> None:
    """The server's process."""
    from edgewise.inference.serving_node import local_server
    from edgewise.service.open_inference import serve_http

    node = await local_server(bench_graph(), name="bench")
    http = await serve_http(node)
    await told({"port": http.port})
    await http.close()
    await node.close()


@contextmanager
def server() -> Iterator[tuple[int, int]]:
    """Starts it; gives its port and its process."""
    command = [sys.executable, "-m", "benchmarks.large_bodies", "--role", "server"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield json.loads(process.stdout.readline())["port"], process.pid
    finally:
        process.stdin.close()
        process.wait(10)
        process.stdout.close()


def large_bodies() -> dict[str, tuple[bytes, str]]:
    """Body and header lines by name."""
    parameters = {"deadline_ms": 1e3 * DEADLINE_S}

    def tensor(num: int, **more: Any) -> dict[str, Any]:
        return {"name": "x", "shape": [num, 3, 32, 32], "datatype": "FP32", **more}

    num_json, num_binary = 1300, 5000
    size = num_binary * 3 * 32 * 32 * 4
    values = json.dumps([0.12345678] * (num_json * 3 * 32 * 32))
    text = json.dumps({"inputs": [tensor(num_json, data=[])], "parameters": parameters}).replace("[]", values).encode()
    head = json.dumps({"inputs": [tensor(num_binary, parameters={"binary_data_size": size})], "parameters": parameters})
    one = '{"name":"x%d","shape":[1],"datatype":"FP32","data":[1]}'
    many = '{"inputs":[' + ",".join(one % index for index in range(10**6)) + "]}"
    return {
        "JSON of 40 MiB": (text, ""),
        "a million inputs": (many.encode()[: 60 * 2**20], ""),
        "a batch of 60 MiB": (head.encode() + bytes(size), f"Inference-Header-Content-Length: {len(head)}\r\n"),
        "60 MiB compressed": (gzip.compress(b" " * (60 * 2**20) + b"{}"), "Content-Encoding: gzip\r\n"),
    }


async def window(client: InferenceClient, seconds: float) -> list[float]:
    """Latencies of small requests, each from when it was due."""
    x = np.zeros((1, 3, 32, 32), np.float32)
    found: list[float] = []

    async def one(due: float) -> None:
        await client.infer("bench", {"x": x})
        found.append(time.monotonic() - due)

    start = time.monotonic()
    async with asyncio.TaskGroup() as group:
        for index in range(int(seconds * RATE_PER_S)):
            due = start + index / RATE_PER_S
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            group.create_task(one(due))
    return found


def send_all(port: int, seconds: float) -> None:
    """The process that sends large bodies: one after the other until the time is over."""
    os.nice(SENDER_NICE)
    asyncio.run(_send_all(port, seconds))


async def _send_all(port: int, seconds: float) -> None:
    bodies = large_bodies()
    rows: list[tuple[str, int, float]] = []
    async with InferenceClient("127.0.0.1", port, timeout_s=60.0) as client:
        print("ready", flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
        until = time.monotonic() + seconds
        for name, (body, extra) in cycle(bodies.items()):
            if time.monotonic() > until:
                break
            started = time.monotonic()
            status, _, _ = await client.call("POST", "/v2/models/bench/infer", body, extra)
            rows.append((name, status, time.monotonic() - started))
    print(json.dumps(rows), flush=True)


async def send_large(port: int, seconds: float, client: InferenceClient) -> tuple[float, list[tuple[str, int, float]]]:
    """The p99 of the small requests while large ones are sent to a port, and what became of these."""
    command = [sys.executable, "-m", "benchmarks.large_bodies", "--role", f"sender {port} {seconds}"]
    sender = await asyncio.create_subprocess_exec(*command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, limit=2**24)
    assert sender.stdin is not None
    assert sender.stdout is not None
    await sender.stdout.readline()
    sender.stdin.write(b"go\n")
    p99_s = quantile(await window(client, seconds), 0.99)
    rows = json.loads(await sender.stdout.readline())
    await sender.wait()
    await asyncio.sleep(SETTLING_S)
    return p99_s, rows


async def measure(rounds: int, seconds: float) -> dict[str, Any]:
    """Interleaved windows: without large bodies, with some for the twin, with some for the same server."""
    found: dict[str, list[Any]] = {"alone": [], "twin": [], "same": [], "large": []}
    with server() as (port, pid), server() as (twin, _):
        process = psutil.Process(pid)
        async with InferenceClient("127.0.0.1", port) as client:
            await window(client, seconds)
            before = process.memory_info().rss
            for _ in range(rounds):
                found["alone"].append(quantile(await window(client, seconds), 0.99))
                found["twin"].append((await send_large(twin, seconds, client))[0])
                p99_s, rows = await send_large(port, seconds, client)
                found["same"].append(p99_s)
                found["large"] += rows
            left = process.memory_info().rss - before
    return {**found, "left": left}


def main() -> None:
    """Runs the benchmark, or one of its processes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="two rounds of 5 s instead of seven of 10 s")
    parser.add_argument("--json", action="store_true", help="only the closing JSON line")
    parser.add_argument("--role", default="", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.role == "server":
        asyncio.run(serve())
        return
    if args.role:
        _, port, seconds = args.role.split()
        send_all(int(port), float(seconds))
        return
    found = asyncio.run(measure(*((2, 5.0) if args.short else (7, 10.0))))
    to_alone, to_twin = (
        statistics.median(same / other for same, other in zip(found["same"], found[kind], strict=True))
        for kind in ("alone", "twin")
    )
    names = dict.fromkeys(name for name, _, _ in found["large"])
    took = {name: [s for n, _, s in found["large"] if n == name] for name in names}
    statuses = {name: sorted({status for n, status, _ in found["large"] if n == name}) for name in names}
    left_mib = found["left"] / 2**20
    if not args.json:
        for kind, what in (("alone", "alone"), ("twin", "while a twin has large ones"), ("same", "beside large ones")):
            print_row(f"p99 of small requests {what}", [1e3 * s for s in found[kind]], "ms")
        for name, seconds in took.items():
            print_row(f"{name}, status {statuses[name]}", seconds, "s")
        print(f"  resident memory left behind: {left_mib:.1f} MiB")
    longest = max(max(s) for s in took.values())
    bars = [
        Bar("p99 beside large ones", f"<= {LIMIT_RATIO:g} x alone", round(to_alone, 2), to_alone <= LIMIT_RATIO),
        Bar(
            "p99 beside large ones",
            f"<= {LIMIT_RATIO:g} x while a twin has them",
            round(to_twin, 2),
            to_twin <= LIMIT_RATIO,
        ),
        Bar("memory left behind", f"<= {LIMIT_MIB:g} MiB", round(left_mib, 1), left_mib <= LIMIT_MIB),
        Bar(
            "the longest large request",
            f"<= its deadline of {DEADLINE_S:g} s + {LIMIT_LATE_S:g} s of sending",
            round(longest, 2),
            longest <= DEADLINE_S + LIMIT_LATE_S,
        ),
    ]
    figures = {f"{name}, median s": round(statistics.median(s), 3) for name, s in took.items()}
    close(
        "large_bodies",
        figures
        | {"p99 to alone": round(to_alone, 2), "p99 to twin": round(to_twin, 2), "left MiB": round(left_mib, 1)},
        bars,
    )


if __name__ == "__main__":
    main()
