"""`POST /v2/models/NAME/infer`: a raw ASGI handler in front of the router, for it is on every request's path.

A small request is read, served and written where it arrives. A large one is read by a thread or a process of its own
(`json_process.py`), and written a piece at a time, so that the small ones do not wait; its seconds count towards its
deadline all the same.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
from litestar.types import Receive, Scope, Send
from numpy.typing import NDArray

from edgewise.core.errors import Busy, DeadlineExceeded, EdgewiseError, InputError, nearest
from edgewise.core.process import give_memory_back
from edgewise.service.connection import HttpLimits
from edgewise.service.http_errors import UnknownModel, WrongMethod, error_body, error_headers, status_of
from edgewise.service.json_process import LargeBodies
from edgewise.service.json_tensors import likely_deadline_s
from edgewise.service.open_inference_format import InferRequest, check_absent, read_request, write_answer
from edgewise.service.request_body import (
    INLINE_BYTES,
    LENGTH,
    BodyBudget,
    BodyRoom,
    Unpacking,
    header_length,
    read_body,
)
from edgewise.service.served_model import Model, find_model
from edgewise.service.tensor_data import Body, datatype_of, to_json

log = logging.getLogger(__name__)

_PIECE = 2**12
"""Values that are written as JSON at once: below a millisecond."""
_MUCH_BYTES = 2**23
"""Requests of more leave memory behind that the allocator would keep."""
_GIVING_BACK_S = 0.5
_AT_ONCE_S = 0.001


class InferRoute:
    """Answers infer calls.

    Attributes:
        budget: Of the bodies at hand.
        large: Works on large ones.
    """

    def __init__(self, models: Mapping[str, Model], limits: HttpLimits) -> None:
        self._models, self._limits = models, limits
        self.budget = BodyBudget(limits.bodies_bytes)
        self.large = LargeBodies()
        self._giving_back: asyncio.TimerHandle | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        more: list[tuple[bytes, bytes]] = []
        try:
            status, body, length = 200, *await self._answer(scope, receive)
        except EdgewiseError as error:
            status, body, length, more = status_of(error), error_body(error.message), None, error_headers(error)
        except Exception as error:
            log.exception("an inference request failed")
            status, body, length = 500, error_body(f"internal error: {type(error).__name__}: {error}"), None
        headers = [(b"content-type", b"application/json" if length is None else b"application/octet-stream"), *more]
        headers.append((b"content-length", str(len(body)).encode()))
        if length is not None:
            headers.append((LENGTH, str(length).encode()))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": False})

    def close(self) -> None:
        """Ends what works on large bodies."""
        self.large.close()
        if self._giving_back is not None:
            self._giving_back.cancel()

    async def _answer(self, scope: Scope, receive: Receive) -> tuple[bytes, int | None]:
        if scope.get("method") != "POST":
            raise WrongMethod(f"infer is called with POST, found {scope.get('method')}.")
        headers = dict(scope["headers"])
        name, version = _model_of(scope["path"])
        model, _ = find_model(self._models, name, version)
        with self.budget.room() as room:
            try:
                body = await read_body(receive, headers, self._limits.max_body_bytes, room)
                arrived_s = scope.get("state", {}).get("arrived_s") or asyncio.get_running_loop().time()
                return await self._infer(name, model, headers, body, room, arrived_s)
            finally:
                if room.used_bytes > _MUCH_BYTES:
                    self._give_back_soon()

    async def _infer(
        self,
        name: str,
        model: Model,
        headers: Mapping[bytes, bytes],
        body: Body,
        room: BodyRoom,
        arrived_s: float,
    ) -> tuple[bytes, int | None]:
        request = await self._read(headers, body, model.default_deadline_s, room)
        made = {tensor.name: tensor for tensor in model.outputs}
        check_absent(request, model.graph.optional if model.graph is not None else ())
        for wanted in request.outputs:
            if wanted not in made:
                raise InputError(f"the model has no output {wanted[:200]!r}.{nearest(wanted, made)}")
        given_s = request.deadline_s or model.default_deadline_s
        deadline_s, waited_s = request.deadline_s, asyncio.get_running_loop().time() - arrived_s
        if waited_s > _AT_ONCE_S:
            deadline_s = given_s - waited_s
            if deadline_s <= 0.0:
                raise DeadlineExceeded(
                    f"reading the request of {len(body):,} bytes took {waited_s:.3f} s, longer than its deadline. "
                    "Send less at once, or tensors as bytes."
                )
        served = await model.infer(request.inputs, deadline_s=deadline_s, request=request.id, stream=request.stream)
        seen = served.observation
        if not served.outputs:
            if served.refused is not None:
                raise served.refused
            late = f"nothing was ready by the deadline of {given_s:.3f} s"
            raise Busy(f"{late if seen.latency_s >= seen.deadline_s else 'it could not be computed'}: {seen.cause}.")
        parameters = {
            "exit_index": seen.exit_index,
            "source": str(seen.source),
            "plan_revision": seen.revision,
            "model_version": seen.version,
            "cause": seen.cause,
            "latency_ms": round(seen.latency_s * 1e3, 3),
            "served_by": ",".join(seen.served_by),
            "compute_ms": round(seen.compute_s * 1e3, 3),
        }
        outputs = {name: served.outputs[name] for name in made if name in served.outputs}
        declared = {tensor.name: tensor.declared for tensor in made.values() if tensor.declared}
        labels = model.graph.labels if model.graph is not None else {}
        version = str(seen.version)
        written = await _written(request, outputs, declared)
        return write_answer(
            name, version, request, outputs, parameters, declared=declared, labels=labels, written=written
        )

    async def _read(self, headers: Mapping[bytes, bytes], body: Body, within_s: float, room: BodyRoom) -> InferRequest:
        encoding = headers.get(b"content-encoding", b"identity").decode("latin-1")
        if encoding != "identity":
            unpacking = Unpacking(body, encoding, self._limits.max_body_bytes)
            unpacking.go_on(INLINE_BYTES)
            if not unpacking.is_done:
                await self.large.run(unpacking.finish, within_s)
            body = unpacking.plain.whole
            room.take(len(body))
        length = header_length(headers)
        json_length = len(body) if length is None else length
        if INLINE_BYTES < json_length <= len(body):
            within_s = likely_deadline_s(body, json_length) or within_s
            body, length = await self.large.with_binary_tensors(body, json_length, within_s)
        return read_request(body, length)

    def _give_back_soon(self) -> None:
        if self._giving_back is not None:
            self._giving_back.cancel()
        loop = asyncio.get_running_loop()
        self._giving_back = loop.call_later(_GIVING_BACK_S, lambda: loop.run_in_executor(None, give_memory_back))


async def _written(
    request: InferRequest, outputs: Mapping[str, NDArray[Any]], declared: Mapping[str, str]
) -> dict[str, msgspec.Raw]:
    """JSON of the large outputs that are wanted so, written while others are answered, too."""
    found = {}
    for name, array in outputs.items():
        is_wanted = not request.outputs or name in request.outputs
        is_json = not request.is_binary.get(name, request.is_binary[""]) and name not in request.num_classes
        if is_wanted and is_json and array.size > _PIECE:
            found[name] = await _in_pieces(np.asarray(array).ravel(), datatype_of(array, declared.get(name, "")))
    return found


async def _in_pieces(values: NDArray[Any], datatype: str) -> msgspec.Raw:
    pieces = []
    for start in range(0, len(values), _PIECE):
        pieces.append(msgspec.json.encode(to_json(values[start : start + _PIECE], datatype))[1:-1])
        await asyncio.sleep(0)
    return msgspec.Raw(b"[" + b",".join(pieces) + b"]")


def _model_of(path: str) -> tuple[str, str]:
    """Name and version in the path of an infer call; "" without a version."""
    match path.removesuffix("/").split("/")[3:-1]:
        case [name]:
            return name, ""
        case [name, "versions", version]:
            return name, version
    raise UnknownModel(
        f"{path[:200]!r} is no model's. Call /v2/models/NAME/infer or /v2/models/NAME/versions/VERSION/infer."
    )
