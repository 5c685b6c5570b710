"""A small client of the Open Inference Protocol over HTTP with binary tensors, and an open-loop load generator.

Independent clients (`tritonclient`) work as well; this one needs no extra dependency and measures from the scheduled
arrival, so that a server which falls behind cannot hide it (no coordinated omission).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from edgewise.core.errors import DeadlineExceeded, RemoteError, Unreachable
from edgewise.service.tensor_data import datatype_of, from_bytes, from_json, to_bytes


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer.

    Attributes:
        outputs: Arrays by name.
        parameters: What the server says of it: exit_index, source, plan_revision, model_version, …
        scheduled_s: When the request was due, on the caller's clock.
        latency_s: From the scheduled arrival to the last byte of the answer.
        error: The protocol's error text; "" if answered.
    """

    outputs: dict[str, NDArray[Any]] = field(default_factory=dict)
    parameters: dict[str, Any] = field(default_factory=dict)
    scheduled_s: float = 0.0
    latency_s: float = 0.0
    error: str = ""


class InferenceClient:
    """Keeps connections to one endpoint; requests beyond the open ones open another.

    Args:
        host: Where it is.
        port: Its port.
        timeout_s: For one exchange.
        token: Sent with each request; "" for none.
        tls: For https, e.g. `ssl.create_default_context(cafile="ca.pem")`; None for plain HTTP.

    Example:
        async with InferenceClient("127.0.0.1", 8000) as client:
            reply = await client.infer("digits", {"input": image})
    """

    def __init__(
        self, host: str, port: int, *, timeout_s: float = 10.0, token: str = "", tls: ssl.SSLContext | None = None
    ) -> None:
        self.host, self.port, self.timeout_s = host, port, timeout_s
        self._tls, self._always = tls, f"Authorization: Bearer {token}\r\n" if token else ""
        self._free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def __aenter__(self) -> InferenceClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the free connections."""
        while self._free:
            _, writer = self._free.pop()
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def infer(
        self,
        model: str,
        inputs: Mapping[str, NDArray[Any] | None],
        *,
        request_id: str = "",
        parameters: dict[str, Any] | None = None,
    ) -> Reply:
        """Asks for one inference.

        Args:
            model: Model name at the endpoint.
            inputs: Arrays by input name; None for an optional one that is absent.
            request_id: Identifies the request, e.g. for feedback.
            parameters: Request parameters.

        Returns:
            The answer; latency from this call.

        Raises:
            Unreachable: If the endpoint does not take connections.
            RemoteError: If it answers with the protocol's error object.
        """
        start = time.monotonic()
        path = f"/v2/models/{quote(model, safe='')}/infer"
        head, body = _request_body({n: a for n, a in inputs.items() if a is not None}, request_id, parameters or {})
        extra = f"Inference-Header-Content-Length: {len(head)}\r\nContent-Type: application/octet-stream\r\n"
        status, headers, content = await self.call("POST", path, head + body, extra)
        if status != 200:
            raise RemoteError(error_text(content), status=status)
        cut = int(headers.get("inference-header-content-length", len(content)))
        answer = json.loads(content[:cut])
        outputs = _read_outputs(answer.get("outputs", ()), content[cut:])
        return Reply(outputs, answer.get("parameters", {}), start, time.monotonic() - start)

    async def feedback(self, model: str, labels: dict[str, int]) -> int:
        """Says what was right.

        Args:
            model: Model name at the endpoint.
            labels: True classes by request id.

        Returns:
            How many belong to examples that the node keeps.

        Raises:
            Unreachable: As `infer`.
            RemoteError: As `infer`.
        """
        body = json.dumps({"labels": labels}).encode()
        kind = "Content-Type: application/json\r\n"
        status, _, content = await self.call("POST", f"/v2/models/{quote(model, safe='')}/feedback", body, kind)
        if status != 200:
            raise RemoteError(error_text(content), status=status)
        return int(json.loads(content)["taken"])

    async def call(
        self, method: str, path: str, body: bytes = b"", extra: str = ""
    ) -> tuple[int, dict[str, str], bytes]:
        """One HTTP exchange.

        Returns:
            Status, headers in lower case, body.
        """
        reader, writer = await self._connection()
        try:
            head = f"{method} {path} HTTP/1.1\r\nHost: {self.host}\r\nContent-Length: {len(body)}\r\n{self._always}"
            head += f"{extra}\r\n"
            writer.write(head.encode() + body)
            async with asyncio.timeout(self.timeout_s):
                raw = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in raw[1:] if line)}
                content = await reader.readexactly(int(headers.get("content-length", "0")))
        except TimeoutError as error:
            writer.close()
            raise DeadlineExceeded(f"{self.host}:{self.port} gave no answer within {self.timeout_s:g} s.") from error
        except (ConnectionError, asyncio.IncompleteReadError) as error:
            writer.close()
            raise Unreachable(f"{self.host}:{self.port} closed the connection: {error}.") from error
        except BaseException:
            writer.close()
            raise
        self._free.append((reader, writer))
        return int(raw[0].split()[1]), headers, content

    async def _connection(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        while self._free:
            reader, writer = self._free.pop()
            if not (reader.at_eof() or writer.is_closing()):
                return reader, writer
        try:
            return await asyncio.open_connection(self.host, self.port, ssl=self._tls)
        except ssl.SSLError as error:
            raise Unreachable(
                f"{self.host}:{self.port} speaks no TLS that is trusted here: {error.reason or error}. Name its authority "
                "(--ca), or write http:// where it has none."
            ) from error
        except OSError as error:
            raise Unreachable(
                f"no inference endpoint at {self.host}:{self.port}: {error}. Check the port with `edgewise nodes`."
            ) from error


async def open_loop(
    send: Callable[[int, float], Awaitable[Reply]],
    arrivals_s: Sequence[float],
    *,
    on_reply: Callable[[int, Reply], None] = lambda *_: None,
) -> list[Reply]:
    """Sends requests at their times, whatever the answers do.

    Args:
        send: (i, due time on `time.monotonic`) -> reply of request i.
        arrivals_s: Due times in seconds from now, ascending.
        on_reply: Called as answers come.

    Returns:
        One reply per arrival, in order; failures as replies with `error`. Latency counts from the due time.
    """
    start = time.monotonic() + 0.01
    replies: list[Reply] = [Reply()] * len(arrivals_s)

    async def one(index: int, due: float) -> None:
        try:
            got = await send(index, due)
            reply = Reply(got.outputs, got.parameters, due, time.monotonic() - due)
        except (DeadlineExceeded, Unreachable, RemoteError) as error:
            reply = Reply({}, {}, due, time.monotonic() - due, str(error))
        replies[index] = reply
        on_reply(index, reply)

    async with asyncio.TaskGroup() as group:
        for index, offset in enumerate(arrivals_s):
            due = start + offset
            if (wait := due - time.monotonic()) > 0:
                await asyncio.sleep(wait)
            group.create_task(one(index, due))
    return replies


def _request_body(inputs: dict[str, NDArray[Any]], request_id: str, parameters: dict[str, Any]) -> tuple[bytes, bytes]:
    described, parts = [], []
    for name, given in inputs.items():
        array = np.asarray(given)
        datatype = datatype_of(array)
        data = to_bytes(array, datatype)
        parts.append(data)
        described.append(
            {
                "name": name,
                "shape": list(array.shape),
                "datatype": datatype,
                "parameters": {"binary_data_size": len(data)},
            }
        )
    request: dict[str, Any] = {"inputs": described, "parameters": {"binary_data_output": True, **parameters}}
    if request_id:
        request["id"] = request_id
    return json.dumps(request).encode(), b"".join(parts)


def _read_outputs(described: Sequence[dict[str, Any]], content: bytes) -> dict[str, NDArray[Any]]:
    outputs, offset = {}, 0
    for output in described:
        shape, datatype = output["shape"], output["datatype"]
        size = output.get("parameters", {}).get("binary_data_size")
        if size is None:
            outputs[output["name"]] = from_json(output["data"], shape, datatype)
        else:
            outputs[output["name"]] = from_bytes(memoryview(content)[offset : offset + size], shape, datatype)
            offset += size
    return outputs


def error_text(content: bytes) -> str:
    """What an answer that is an error says.

    Args:
        content: Its body.
    """
    try:
        return str(json.loads(content)["error"])
    except (ValueError, KeyError, TypeError):
        return content[:200].decode("utf-8", "replace")
