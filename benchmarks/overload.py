"""What an endpoint answers when it is asked for ten times what it can do: python -m benchmarks.overload

A device whose compute is dilated, so that the machine itself is idle, answers one model over HTTP. First its capacity is
measured: requests one behind the other, always a few waiting. Then clients send ten times that, open loop, each with a
deadline of a second, and every answer counts from when its request was due. Rounds of both are interleaved. Goodput is
what was answered by its deadline; whoever is refused should hear it at once, with a `Retry-After`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from benchmarks.report import Bar, close, print_row, quantile
from benchmarks.request_overhead import bench_graph, told
from edgewise.core.errors import Unreachable
from edgewise.service.client import InferenceClient

DEADLINE_S = 1.0
TARGET_S = 0.14
"""Of one request, as in issue 8: 7 a second."""
LOAD = 10.0
LIMIT_GOODPUT = 0.9
LIMIT_REFUSED_S = 0.1
_X = np.zeros((1, 3, 32, 32), np.float32)


@dataclass(frozen=True, slots=True)
class Round:
    """What one round came to: seconds of answers by kind, and whether the refused were told when to come back."""

    capacity_per_s: float
    answered_s: list[float]
    refused_s: list[float]
    num_sent: int
    num_late: int
    num_told: int
    seconds: float

    @property
    def goodput(self) -> float:
        """Answers in time a second, over the capacity."""
        in_time = sum(s <= DEADLINE_S for s in self.answered_s)
        return in_time / self.seconds / self.capacity_per_s


async def serve(target_s: float) -> None:
    """The server's process: so dilated that a request takes that long."""
    from edgewise.inference.serving_node import device_only_plan, local_server
    from edgewise.inference.stages import make_stage
    from edgewise.inference.warm_up import warm_up
    from edgewise.service.open_inference import serve_http

    graph = bench_graph()
    plan = device_only_plan(graph)
    stage = make_stage(graph, plan.stages[0].inputs, plan.stages[0].outputs)
    alone_s = min(warm_up(graph, stage) for _ in range(20))
    node = await local_server(graph, name="bench", dilation=max(1.0, target_s / alone_s))
    http = await serve_http(node)
    await told({"port": http.port})
    await http.close()
    await node.close()


@contextmanager
def server(target_s: float) -> Iterator[int]:
    """Starts it; gives its port."""
    command = [sys.executable, "-m", "benchmarks.overload", "--role", str(target_s)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield json.loads(process.stdout.readline())["port"]
    finally:
        process.stdin.close()
        process.wait(10)
        process.stdout.close()


async def ask(client: InferenceClient, deadline_s: float) -> tuple[int, dict[str, str]]:
    """One request; status and headers."""
    head = json.dumps(
        {
            "inputs": [
                {
                    "name": "x",
                    "shape": list(_X.shape),
                    "datatype": "FP32",
                    "parameters": {"binary_data_size": _X.nbytes},
                }
            ],
            "parameters": {"deadline_ms": 1e3 * deadline_s},
        }
    ).encode()
    extra = f"Inference-Header-Content-Length: {len(head)}\r\n"
    status, headers, _ = await client.call("POST", "/v2/models/bench/infer", head + _X.tobytes(), extra)
    return status, headers


async def capacity(client: InferenceClient, seconds: float) -> float:
    """Answers a second with two requests always open: the thread never waits, and nobody is refused."""
    num, until = 0, time.monotonic() + seconds
    started = time.monotonic()

    async def one_behind_the_other() -> None:
        nonlocal num
        while time.monotonic() < until:
            status, _ = await ask(client, 10.0)
            num += status == 200

    await asyncio.gather(one_behind_the_other(), one_behind_the_other())
    return num / (time.monotonic() - started)


async def overload(client: InferenceClient, capacity_per_s: float, seconds: float) -> Round:
    """Open loop at ten times the capacity."""
    answered: list[float] = []
    refused: list[float] = []
    others = num_told = 0

    async def one(due: float) -> None:
        nonlocal others, num_told
        try:
            status, headers = await ask(client, DEADLINE_S)
        except Unreachable:
            status, headers = 0, {}
        took = time.monotonic() - due
        if status == 200:
            answered.append(took)
        elif status in (429, 503) and "retry-after" in headers:
            refused.append(took)
            num_told += 1
        else:
            others += 1

    rate, start = LOAD * capacity_per_s, time.monotonic()
    num_sent = int(rate * seconds)
    async with asyncio.TaskGroup() as group:
        for index in range(num_sent):
            due = start + index / rate
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            group.create_task(one(due))
    lasted = time.monotonic() - start
    late = sum(s > DEADLINE_S for s in answered)
    return Round(capacity_per_s, answered, refused, num_sent, late + others, num_told, lasted)


async def measure(rounds: int, seconds: float, target_s: float) -> list[Round]:
    """Interleaved: capacity, then ten times that."""
    found = []
    with server(target_s) as port:
        async with InferenceClient("127.0.0.1", port, timeout_s=30.0) as client:
            await capacity(client, 1.0)
            for _ in range(rounds):
                found.append(await overload(client, await capacity(client, seconds), seconds))
    return found


def main() -> None:
    """Runs the benchmark, or its server."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="two rounds of 4 s instead of five of 10 s")
    parser.add_argument("--json", action="store_true", help="only the closing JSON line")
    parser.add_argument("--request", type=float, default=TARGET_S, help="seconds that a request takes, about")
    parser.add_argument("--role", type=float, default=0.0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.role:
        asyncio.run(serve(args.role))
        return
    found = asyncio.run(measure(*((2, 4.0) if args.short else (5, 10.0)), args.request))
    answered = [s for r in found for s in r.answered_s]
    refused = [s for r in found for s in r.refused_s]
    goodput = statistics.median(r.goodput for r in found)
    if not args.json:
        print_row("capacity", [r.capacity_per_s for r in found], "/s")
        print_row("asked for", [r.num_sent / r.seconds for r in found], "/s")
        print_row("goodput over capacity", [r.goodput for r in found], "")
        print_row("latency of the answered", [1e3 * s for s in answered], "ms")
        print_row("latency of the refused", [1e3 * s for s in refused], "ms")
    late, untold = sum(r.num_late for r in found), sum(len(r.refused_s) - r.num_told for r in found)
    p99_s = quantile(refused, 0.99)
    bars = [
        Bar(
            "goodput at ten times the load",
            f">= {LIMIT_GOODPUT:g} x capacity",
            round(goodput, 3),
            goodput >= LIMIT_GOODPUT,
        ),
        Bar("accepted and not answered by the deadline", "0", late, late == 0),
        Bar("refused without Retry-After", "0", untold, untold == 0),
        Bar("p99 of refusals", f"<= {LIMIT_REFUSED_S:g} s", round(p99_s, 4), p99_s <= LIMIT_REFUSED_S),
    ]
    figures = {
        "capacity per s": round(statistics.median(r.capacity_per_s for r in found), 2),
        "goodput": round(goodput, 3),
        "median of the answered, ms": round(1e3 * statistics.median(answered), 1),
        "median of the refused, ms": round(1e3 * statistics.median(refused), 2),
    }
    close("overload", figures, bars)


if __name__ == "__main__":
    main()
