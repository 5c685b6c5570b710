"""Sends requests to a device of a disturbed fleet at their times, and on a drifted stream the true labels after them."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewise.chaos.live.live_scene import DEADLINE_S, LiveScene
from edgewise.core.errors import EdgewiseError
from edgewise.datasets.shifts import drifted
from edgewise.models.forward import INPUT
from edgewise.service.client import InferenceClient, Reply

GAP_S, LABELLED_GAP_S = 0.2, 0.1
"""Between requests to a device; where labels are to prove a drift, they must not be long in coming."""
LABELS_AT_ONCE = 8
SLACK_S = 0.5
"""For the way from a device's answer to this process, on a busy machine."""
REFUSED = (429, 503)


@dataclass(frozen=True, slots=True)
class Request:
    """One request as its client saw it.

    Attributes:
        device: Who was asked.
        began_s: On the monotonic clock.
        latency_s: Until the answer, or the failure.
        status: Of HTTP; 0 where nobody answered.
        error: What was said; "" if answered.
        is_down: Whether the device was killed or frozen meanwhile: it cannot answer then.
        parameters: What the answer says of itself.
    """

    device: str
    began_s: float
    latency_s: float
    status: int
    error: str
    is_down: bool
    parameters: dict[str, Any]

    @property
    def outcome(self) -> str:
        """In a word."""
        if self.status == 200:
            is_late = self.latency_s > DEADLINE_S + SLACK_S
            return ("answered" if not is_late else "late") if not self.is_down else "answered by a device that was down"
        if self.status in REFUSED:
            return "refused"
        return "device down" if self.is_down else "lost"


@dataclass(slots=True)
class RequestStream:
    """What devices are asked in a campaign.

    Attributes:
        name: Part of each request's id.
        inputs: float32[n, 1, 8, 8].
        labels: int64[n]; None where nobody says what was right.
        stop: Set when it is over.
        requests: What was sent and is over.
    """

    name: str
    inputs: NDArray[Any]
    labels: NDArray[Any] | None = None
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    requests: list[Request] = field(default_factory=list)

    async def ask(self, scene: LiveScene, device: str) -> None:
        """Sends requests to a device at their times until it is told to stop; the last ones are waited for."""
        client: InferenceClient | None = None
        gap_s = GAP_S if self.labels is None else LABELLED_GAP_S
        under_way, unsaid, number = set[asyncio.Task[None]](), dict[str, int](), 0
        while not self.stop.is_set():
            if client is None or client.port != scene.port(device):
                client = InferenceClient("127.0.0.1", scene.port(device), timeout_s=30.0)
            index, name = number % len(self.inputs), f"{self.name}-{device}-{number}"
            under_way.add(task := asyncio.create_task(self._one(scene, client, device, index, name, unsaid)))
            task.add_done_callback(under_way.discard)
            number += 1
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.stop.wait(), gap_s)
        await asyncio.gather(*under_way)
        if client is not None:
            await client.close()

    async def _one(
        self, scene: LiveScene, client: InferenceClient, device: str, index: int, name: str, unsaid: dict[str, int]
    ) -> None:
        was_down, times_down = device in scene.down, scene.times_down[device]
        began, reply = time.monotonic(), Reply()
        model, image = scene.task.name, self.inputs[index][None]
        try:
            limit = {"deadline_ms": 1e3 * DEADLINE_S}
            reply = await client.infer(model, {INPUT: image}, request_id=name, parameters=limit)
            error, status = "", 200
        except EdgewiseError as failure:
            error, status = str(failure), int(failure.fields.get("status", 0))
        is_down = was_down or scene.times_down[device] > times_down or client.port != scene.port(device)
        self.requests.append(Request(device, began, time.monotonic() - began, status, error, is_down, reply.parameters))
        if self.labels is None or status != 200:
            return
        unsaid[name] = int(self.labels[index])
        if len(unsaid) >= LABELS_AT_ONCE:
            told = dict(unsaid)
            unsaid.clear()
            with contextlib.suppress(EdgewiseError):  # a device that is down has forgotten the requests, too
                await client.feedback(model, told)


def make_stream(scene: LiveScene, name: str, *, degrees: float = 0.0, seed: int = 0) -> RequestStream:
    """The task's stream, as it is or drifted.

    Args:
        scene: Gives the task.
        name: Part of each request's id.
        degrees: By which inputs are rotated, and made noisy; then true labels are sent back. 0 leaves them.
        seed: Of the noise.

    Returns:
        It.
    """
    part = scene.task.parts.stream
    inputs = np.asarray(part.inputs, np.float32)
    if not degrees:
        return RequestStream(name, inputs)
    rng = np.random.default_rng(seed)
    return RequestStream(
        name, np.asarray(drifted(inputs, degrees=degrees, rng=rng), np.float32), np.asarray(part.targets)
    )
