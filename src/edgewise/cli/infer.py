"""`edgewise infer`: sends a user's own examples to an inference endpoint and says what came back."""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote, urlsplit

import msgspec
import typer

from edgewise.cli.output import AsJson, Output
from edgewise.cli.readings import (
    ModelFacts,
    as_plain,
    class_output,
    facts_of,
    found_rows,
    in_short,
    label_of,
    said_class,
)
from edgewise.cli.running import run_async
from edgewise.core.errors import InputError, RemoteError, Unreachable
from edgewise.core.units import parse_duration

if TYPE_CHECKING:
    from edgewise.api.source import Source
    from edgewise.models.graph.graph import PlainTensor
    from edgewise.service.client import InferenceClient, Reply


_MOST_ROWS = 20
_NO_ACCESS = (401, 403, 429)


class Answered(msgspec.Struct, frozen=True):
    """What came back for one example.

    Attributes:
        name: The example.
        predicted: The class it says, as a number or a label; None where the model says none.
        label: The class in words; "" likewise.
        target: Its label; None without labels.
        latency_ms: From sending to the last byte.
        parameters: What the server says of the answer: exit, source, version.
        outputs: Everything the model answered, by name; of large arrays the shape.
        cells: The same for people.
        found: Rows of a detector's answer; None of other models.
    """

    name: str
    predicted: int | str | None
    label: str
    target: int | str | None
    latency_ms: float
    parameters: dict[str, Any]
    outputs: dict[str, Any] = {}
    cells: dict[str, str] = {}
    found: list[dict[str, Any]] | None = None

    @property
    def is_right(self) -> bool:
        """Whether what it says is the target."""
        return self.target in (self.predicted, self.label)


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
    output: Annotated[
        str, typer.Option("--output", help="The output that says the class, where a model has several.")
    ] = "",
    token_file: Annotated[
        Path | None, typer.Option("--token-file", help="A token; default: what EDGEWISE_TOKEN_FILE names.")
    ] = None,
    ca: Annotated[
        Path | None, typer.Option("--ca", help="PEM: whose certificates are trusted; default: the system's.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Send inputs to a served model and print the answers.

    With labels in the npz (`y`) the accuracy is printed too. A model's own labels are printed as such, several outputs by
    name, what a detector finds as a table.

    Example:
      edgewise infer --source digits.npz --url http://127.0.0.1:8000 --model digits
    """
    out = Output(as_json)
    wait_s = parse_duration(wait)
    client = client_of(url, token_file, ca)
    model, answers, taken = run_async(ask_all(out, client, model, source, limit, scale, wait_s, feedback, output))
    summary = {**summarise(answers), "labels_taken": taken}
    show_answers(out, model, answers[:show])
    out.line(", ".join(f"{key} {value:.4g}" for key, value in summary.items() if value is not None))
    if summary["accuracy"] is None and any(answer.target is not None for answer in answers):
        out.line(
            f"no accuracy: nobody says which of the outputs {', '.join(answers[0].outputs)} is the class. Add --output NAME"
        )
    shown = [
        {name: getattr(answer, name) for name in answer.__struct_fields__ if name != "cells"} for answer in answers
    ]
    out.result({**summary, "answers": shown})


def show_answers(out: Output, model: str, answers: list[Answered]) -> None:
    """Prints answers as tables: one of all, or of a detector one of each.

    Args:
        out: Where to.
        model: Whose answers.
        answers: Those to show.
    """
    for answer in answers:
        if answer.found is not None:
            out.line(f"{answer.name}: {len(answer.found)} found in {answer.latency_ms:.4g} ms by {_where(answer)}")
            if answer.found:
                out.table("", list(answer.found[0]), [list(row.values()) for row in answer.found[:_MOST_ROWS]])
    plain = [answer for answer in answers if answer.found is None]
    if not plain:
        return
    has_class = any(answer.label for answer in plain)
    names = list(dict.fromkeys(name for answer in plain for name in answer.cells))
    columns = ["example", *(["class"] if has_class else []), "label", "ms", "answered by", *names]
    rows = [
        [
            answer.name,
            *([answer.label] if has_class else []),
            "" if answer.target is None else answer.target,
            answer.latency_ms,
            _where(answer),
            *(answer.cells.get(name, "") for name in names),
        ]
        for answer in plain
    ]
    out.table(f"answers of {model!r}", columns, rows)


async def ask_all(
    out: Output,
    client: InferenceClient,
    model: str,
    path: Path,
    limit: int,
    scale: float,
    wait_s: float = 0.0,
    feedback: bool = False,
    output: str = "",
) -> tuple[str, list[Answered], int | None]:
    """Sends every example, one after the other.

    Args:
        out: Shows progress.
        client: Of the endpoint; closed at the end.
        model: The model's name; "" for the only one there is.
        path: The examples.
        limit: At most so many.
        scale: For images.
        wait_s: Seconds to keep trying until the model is served.
        feedback: Whether to send the labels afterwards.
        output: The output that says the class; "" finds it.

    Returns:
        The model's name, an answer per example, and how many labels the node could use; None if it was sent none.

    Raises:
        InputError: If labels are to be sent and there are none, or several models are served and none is named.
    """
    from edgewise.api.source import read_source

    answers = []
    async with client:
        model, inputs = await _when_served(client, model, wait_s)
        source = read_source(path, inputs, scale, takes_texts=True).first(limit)
        if feedback and (source.targets is None or source.targets.dtype.kind == "U"):
            raise InputError(f"{str(path)!r} has no labels to send. Give an npz with `y`, or leave --feedback out.")
        facts = await model_facts(client, model)
        names = [f"infer-{time.time_ns()}-{index}" for index in range(len(source))]
        with out.progress("inference", len(source)) as advance:
            for index in range(len(source)):
                reply = await client.infer(model, source.example(index), request_id=names[index])
                answers.append(_answered(source, index, reply, facts, output))
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
        except (RemoteError, Unreachable) as error:
            if time.monotonic() >= until or error.fields.get("status") in _NO_ACCESS:
                raise
        await asyncio.sleep(0.1)


def client_of(url: str, token_file: Path | None = None, ca: Path | None = None) -> InferenceClient:
    """A client for an endpoint.

    Args:
        url: e.g. `http://127.0.0.1:8000`, `https://cam-7:8443`.
        token_file: Holds a token; None takes the operator's setting.
        ca: PEM, whose certificates are trusted; None for the system's.

    Returns:
        It; no connection is open yet.

    Raises:
        InputError: If the address is something else, or a file cannot be used.
    """
    from edgewise.core.environment import setting
    from edgewise.security.http_port import is_loopback
    from edgewise.service.client import InferenceClient

    is_tls, host, port = endpoint_of(url)
    found = token_file or setting("token_file")
    token = _token_in(Path(found)) if found else ""
    try:
        tls = ssl.create_default_context(cafile=ca) if is_tls else None
        if tls is not None and ca is not None:  # Python 3.13 wants key identifiers, which a fleet's certificates lack
            tls.verify_flags &= ~ssl.VERIFY_X509_STRICT
    except OSError as error:
        raise InputError(
            f"--ca {str(ca)!r} holds no certificate: {error.strerror or error}. Give a PEM file."
        ) from error
    if token and tls is None and not is_loopback(host):
        raise InputError(f"a token is not sent to {host!r} in the clear. Write https://, or leave the token out.")
    return InferenceClient(host, port, token=token, tls=tls)


def _token_in(path: Path) -> str:
    try:
        words = path.read_text().split()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"no token can be read from {str(path)!r}: {error}. Give the file that holds it.") from error
    if len(words) != 1 or not words[0].isascii():
        raise InputError(
            f"{str(path)!r} holds {len(words)} words, a token is one. 'edgewise token create --out' writes it."
        )
    return words[0]


def endpoint_of(url: str) -> tuple[bool, str, int]:
    """Reads scheme, host and port.

    Args:
        url: e.g. `http://127.0.0.1:8000`.

    Returns:
        (whether it is https, host, port).

    Raises:
        InputError: If it is something else.
    """
    parts = urlsplit(url if "://" in url else f"http://{url}")
    try:
        port = parts.port
    except ValueError:
        port = None
    if parts.scheme not in ("http", "https") or not parts.hostname or port is None:
        raise InputError(f"{url!r} is not the address of an endpoint. Write it like 'http://127.0.0.1:8000'.")
    return parts.scheme == "https", parts.hostname, port


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
    from edgewise.service.client import error_text

    status, _, body = await client.call("POST", "/v2/repository/index")
    if status in _NO_ACCESS:
        raise RemoteError(error_text(body), status=status)
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
    from edgewise.service.client import error_text
    from edgewise.service.tensor_data import DATATYPES

    status, _, body = await client.call("GET", f"/v2/models/{quote(model, safe='')}")
    if status != 200:
        raise RemoteError(f"the endpoint has no model {model!r} (status {status}): {error_text(body)}", status=status)
    types = {datatype: dtype for dtype, datatype in DATATYPES.items()} | {"BF16": "float32"}
    return tuple(
        PlainTensor(
            given["name"],
            tuple(max(1, size) for size in given["shape"]),
            types[given["datatype"]],
            given["shape"][:1] == [-1],
            tuple(axis for axis, size in enumerate(given["shape"]) if axis and size < 0),
        )
        for given in json.loads(body)["inputs"]
    )


async def model_facts(client: InferenceClient, model: str) -> ModelFacts:
    """Asks what is known of a model's outputs.

    Args:
        client: Of the endpoint.
        model: The model's name.

    Returns:
        Labels and exits; nothing where the endpoint has no such route.
    """
    status, _, body = await client.call("GET", f"/v2/models/{quote(model, safe='')}/config")
    return facts_of(json.loads(body) if status == 200 else {})


def summarise(answers: list[Answered]) -> dict[str, Any]:
    """Counts, accuracy and latency of a list of answers.

    Args:
        answers: At least one.

    Returns:
        `requests`, `accuracy` (None without labels), `p50_ms`, `p95_ms`.
    """
    import numpy as np

    right = [answer.is_right for answer in answers if answer.target is not None and answer.predicted is not None]
    p50, p95 = np.quantile([answer.latency_ms for answer in answers], [0.5, 0.95])
    accuracy = float(np.mean(right)) if right else None
    return {"requests": len(answers), "accuracy": accuracy, "p50_ms": float(p50), "p95_ms": float(p95)}


def _answered(source: Source, index: int, reply: Reply, facts: ModelFacts, output: str) -> Answered:
    outputs = reply.outputs
    name = class_output(outputs, facts, output)
    found = None if name else found_rows(outputs, facts)
    said = said_class(outputs[name]) if name else None
    target = None if source.targets is None else source.targets[index].item()
    others = {n: in_short(array, facts.labels.get(n, ())) for n, array in outputs.items() if n != name}
    label = label_of(said, facts.labels.get(name, ()))
    return Answered(
        source.names[index],
        said,
        label,
        target,
        reply.latency_s * 1000,
        reply.parameters,
        as_plain(outputs),
        others,
        found,
    )


def _where(answer: Answered) -> str:
    words = ("source", "served_by", "exit_index", "model_version")
    return " ".join(f"{word}={answer.parameters[word]}" for word in words if word in answer.parameters)
