"""`edgewise infer`: sends a user's own examples to an inference endpoint and says what came back."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

import msgspec
import typer

from edgewise.cli.output import AsJson, Output
from edgewise.cli.running import run_async
from edgewise.core.errors import InputError, RemoteError, Unreachable
from edgewise.core.units import parse_duration

if TYPE_CHECKING:
    from edgewise.cli.source import Source
    from edgewise.models.graph.graph import PlainTensor
    from edgewise.service.client import InferenceClient, Reply


class Answered(msgspec.Struct, frozen=True):
    """What came back for one example.

    Attributes:
        name: The example.
        predicted: Class with the highest score.
        target: Its label; None without labels.
        latency_ms: From sending to the last byte.
        parameters: What the server says of the answer: exit, source, version.
    """

    name: str
    predicted: int
    target: int | None
    latency_ms: float
    parameters: dict[str, Any]


def command(
    source: Annotated[Path, typer.Option("--source", help="An npz, an npy, or a folder of images or npy files.")],
    url: Annotated[str, typer.Option("--url", help="Where the model is served.")] = "http://127.0.0.1:8000",
    model: Annotated[
        str, typer.Option("--model", help="The model's name there; needed where several are served.")
    ] = "",
    limit: Annotated[int, typer.Option("--limit", min=1, help="Send at most so many examples.")] = 1000,
    scale: Annotated[float, typer.Option("--scale", min=0.0, help="Multiply image pixels by this.")] = 1 / 255,
    wait: Annotated[str, typer.Option("--wait", help="Keep trying for so long until the model is served.")] = "0 s",
    show: Annotated[int, typer.Option("--show", min=0, help="Print so many answers one by one.")] = 10,
    feedback: Annotated[
        bool, typer.Option("--feedback", help="Send the node the labels afterwards, for it to learn from.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Send inputs to a served model and print the answers.

    With labels in the npz (`y`) the accuracy is printed too.

    Example:
      edgewise infer --source digits.npz --url http://127.0.0.1:8000 --model digits
    """
    out = Output(as_json)
    model, answers, taken = run_async(ask_all(out, url, model, source, limit, scale, parse_duration(wait), feedback))
    summary = {**summarise(answers), "labels_taken": taken}
    rows = [
        (a.name, a.predicted, "" if a.target is None else a.target, a.latency_ms, _where(a)) for a in answers[:show]
    ]
    if rows:
        out.table(f"answers of {model!r}", ["example", "class", "label", "ms", "answered by"], rows)
    out.line(", ".join(f"{key} {value:.4g}" for key, value in summary.items() if value is not None))
    out.result({**summary, "answers": answers})


async def ask_all(
    out: Output,
    url: str,
    model: str,
    path: Path,
    limit: int,
    scale: float,
    wait_s: float = 0.0,
    feedback: bool = False,
) -> tuple[str, list[Answered], int | None]:
    """Sends every example, one after the other.

    Args:
        out: Shows progress.
        url: The endpoint.
        model: The model's name; "" for the only one there is.
        path: The examples.
        limit: At most so many.
        scale: For images.
        wait_s: Seconds to keep trying until the model is served.
        feedback: Whether to send the labels afterwards.

    Returns:
        The model's name, an answer per example, and how many labels the node could use; None if it was sent none.

    Raises:
        InputError: If labels are to be sent and there are none, or several models are served and none is named.
    """
    from edgewise.cli.source import read_source
    from edgewise.service.client import InferenceClient

    host, port = endpoint_of(url)
    answers = []
    async with InferenceClient(host, port) as client:
        model, inputs = await _when_served(client, model, wait_s)
        source = read_source(path, inputs, scale).first(limit)
        if feedback and source.targets is None:
            raise InputError(f"{str(path)!r} has no labels to send. Give an npz with `y`, or leave --feedback out.")
        names = [f"infer-{time.time_ns()}-{index}" for index in range(len(source))]
        with out.progress("inference", len(source)) as advance:
            for index in range(len(source)):
                reply = await client.infer(model, source.example(index), request_id=names[index])
                answers.append(_answered(source, index, reply))
                advance("")
        if not feedback or source.targets is None:
            return model, answers, None
        labels = {name: int(target) for name, target in zip(names, source.targets, strict=True)}
        return model, answers, await client.feedback(model, labels)


async def _when_served(client: InferenceClient, model: str, wait_s: float) -> tuple[str, tuple[PlainTensor, ...]]:
    until = time.monotonic() + wait_s
    while True:
        try:
            name = model or await only_model(client)
            return name, await model_inputs(client, name)
        except (RemoteError, Unreachable):
            if time.monotonic() >= until:
                raise
        await asyncio.sleep(0.1)


def endpoint_of(url: str) -> tuple[str, int]:
    """Reads host and port.

    Args:
        url: e.g. `http://127.0.0.1:8000`.

    Returns:
        (host, port).

    Raises:
        InputError: If it is something else.
    """
    parts = urlsplit(url if "://" in url else f"http://{url}")
    try:
        port = parts.port
    except ValueError:
        port = None
    if parts.scheme != "http" or not parts.hostname or port is None:
        raise InputError(f"{url!r} is not the address of an endpoint. Write it like 'http://127.0.0.1:8000'.")
    return parts.hostname, port


async def only_model(client: InferenceClient) -> str:
    """Asks which model is served.

    Args:
        client: Of the endpoint.

    Returns:
        Its name.

    Raises:
        RemoteError: If none is served.
        InputError: If several are.
    """
    from edgewise.models.model_choice import choose_model

    status, _, body = await client.call("POST", "/v2/repository/index")
    names = [model["name"] for model in json.loads(body)] if status == 200 else []
    if not names:
        raise RemoteError(
            "the endpoint serves no model yet. Say which with --model NAME, or --wait until there is one."
        )
    return choose_model(names, are="served there")


async def model_inputs(client: InferenceClient, model: str) -> tuple[PlainTensor, ...]:
    """Asks what a model takes.

    Args:
        client: Of the endpoint.
        model: The model's name.

    Returns:
        Its inputs, with batch 1.

    Raises:
        RemoteError: If there is no such model.
    """
    from edgewise.models.graph.graph import PlainTensor
    from edgewise.service.open_inference_format import DATATYPES

    status, _, body = await client.call("GET", f"/v2/models/{model}")
    if status != 200:
        raise RemoteError(
            f"the endpoint has no model {model!r} (status {status}): {body[:200].decode(errors='replace')}"
        )
    types = {datatype: dtype for dtype, datatype in DATATYPES.items()}
    return tuple(
        PlainTensor(given["name"], tuple(map(abs, given["shape"])), types[given["datatype"]], given["shape"][0] < 0)
        for given in json.loads(body)["inputs"]
    )


def summarise(answers: list[Answered]) -> dict[str, Any]:
    """Counts, accuracy and latency of a list of answers.

    Args:
        answers: At least one.

    Returns:
        `requests`, `accuracy` (None without labels), `p50_ms`, `p95_ms`.
    """
    import numpy as np

    right = [answer.predicted == answer.target for answer in answers if answer.target is not None]
    p50, p95 = np.quantile([answer.latency_ms for answer in answers], [0.5, 0.95])
    accuracy = float(np.mean(right)) if right else None
    return {"requests": len(answers), "accuracy": accuracy, "p50_ms": float(p50), "p95_ms": float(p95)}


def _answered(source: Source, index: int, reply: Reply) -> Answered:
    # The last output is the model's end; an early exit sends its own logits alone.
    scores = list(reply.outputs.values())[-1]
    target = None if source.targets is None else int(source.targets[index])
    return Answered(source.names[index], int(scores.argmax()), target, reply.latency_s * 1000, reply.parameters)


def _where(answer: Answered) -> str:
    words = ("source", "served_by", "exit_index", "model_version")
    return " ".join(f"{word}={answer.parameters[word]}" for word in words if word in answer.parameters)
