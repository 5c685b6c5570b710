"""Sending the stream: open-loop arrivals over all devices, answers compared with labels and the plan's prediction."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewise.core.provenance import RAW, traced
from edgewise.demo.host_watch import HostWatch
from edgewise.demo.scenario import TASK, Demo
from edgewise.inference.session import AnswerSource
from edgewise.models.forward import INPUT
from edgewise.planning.plan import Plan
from edgewise.service.client import InferenceClient, Reply, open_loop
from edgewise.service.report import PhaseRow, RequestRow
from edgewise.service.report.convert import WORDS, shares_of

WARM_UP = 16
"""First requests of the stream, two per device; left out of the comparison with the prediction, and counted."""
MOST_CAUSES = 2
ON_THE_WAY_S = 0.002
"""Kept of the deadline for the way from the device's answer to this client's clock."""


@dataclass(slots=True)
class Sent:
    """One phase of the stream.

    Attributes:
        phase: Its name.
        devices: Who was asked, request by request.
        replies: What came back.
        targets: True labels.
        rows: For the report.
        start_s: On the report's clock.
        end_s: On the report's clock.
        notes: Of every request that was late or not answered, what was seen of it and of the machine.
    """

    phase: str
    devices: list[str]
    replies: list[Reply]
    targets: NDArray[Any]
    rows: list[RequestRow] = field(default_factory=list)
    start_s: float = 0.0
    end_s: float = 0.0
    notes: list[str] = field(default_factory=list)

    @property
    def accuracy(self) -> float:
        """Share answered rightly; an unanswered request is not right."""
        return float(np.mean([bool(row.right) for row in self.rows]))

    @property
    def latencies_s(self) -> list[float]:
        """Of the answered requests, from their scheduled arrival."""
        return [r.latency_s for r in self.replies if not r.error]

    def in_time(self, deadline_s: float) -> int:
        """Requests answered by their deadline."""
        return sum(latency <= deadline_s for latency in self.latencies_s)

    def phase_row(self, deadline_s: float) -> PhaseRow:
        """The phase as the report has it."""
        taken = 1e3 * np.asarray(self.latencies_s or [np.nan])
        return PhaseRow(
            name=self.phase,
            start_s=self.start_s,
            end_s=self.end_s,
            requests=len(self.replies),
            answered_by_deadline=self.in_time(deadline_s),
            accuracy=self.accuracy,
            p50_ms=float(np.quantile(taken, 0.5)),
            p95_ms=float(np.quantile(taken, 0.95)),
            shares=shares_of(self.rows),
        )


async def stream(
    demo: Demo,
    phase: str,
    inputs: NDArray[Any],
    targets: NDArray[Any],
    *,
    plan: Plan,
    gap_s: float | None = None,
    on_reply: Callable[[int, str, Reply], None] = lambda *_: None,
) -> Sent:
    """Sends one request per input to the devices in turn, whatever the answers do.

    Args:
        demo: Gives devices and clock.
        phase: Its name, part of each request's id.
        inputs: float32[n, …].
        targets: int64[n].
        plan: In force; its predictions are set beside what is measured.
        gap_s: Time between arrivals; the demo's if None.
        on_reply: Called as answers come, with (index, device, reply).

    Returns:
        What happened.
    """
    names = demo.fleet.devices
    clients = {d: InferenceClient("127.0.0.1", demo.fleet.children[d].ready["http_port"]) for d in names}
    devices = [names[i % len(names)] for i in range(len(inputs))]
    gap = demo.settings.gap_s if gap_s is None else gap_s

    async def send(index: int, due_s: float) -> Reply:
        # The client's own lateness is not the server's time: what is left of the deadline travels with the request.
        left_s = due_s + demo.deadline_s - time.monotonic() - ON_THE_WAY_S
        image, name = np.asarray(inputs[index : index + 1], np.float32), f"{phase}-{index}"
        parameters = {"deadline_ms": max(1.0, 1e3 * left_s)}
        return await clients[devices[index]].infer(TASK, {INPUT: image}, request_id=name, parameters=parameters)

    sent = Sent(phase, devices, [], np.asarray(targets), start_s=time.monotonic() - demo.start_s)
    async with HostWatch() as host:
        sent.replies = await open_loop(
            send, [i * gap for i in range(len(inputs))], on_reply=lambda i, r: on_reply(i, devices[i], r)
        )
    sent.end_s = time.monotonic() - demo.start_s
    for client in clients.values():
        await client.close()
    warm_up = WARM_UP if phase == "fault-free" else 0
    sent.rows = [_row(demo, sent, i, plan, i < warm_up) for i in range(len(inputs))]
    demo.requests.extend(sent.rows)
    for cause, number in otherwise(sent.replies).most_common(MOST_CAUSES):
        demo.happened(phase, f"{number} requests were not answered along the plan: {cause}", "plan")
    for index, (reply, device) in enumerate(zip(sent.replies, devices, strict=True)):
        if reply.error or reply.latency_s > demo.deadline_s:
            sent.notes.append(late_note(demo, f"{phase}-{index}", device, reply, host))
            demo.happened(phase, sent.notes[-1], "fault")
    return sent


def otherwise(replies: Sequence[Reply]) -> Counter[str]:
    """Why answers did not come along the plan, as the devices say it, and how often."""
    return Counter(
        str(reply.parameters.get("cause") or "no cause was given")
        for reply in replies
        if not reply.error and reply.parameters.get("source") != str(AnswerSource.PLAN)
    )


def late_note(demo: Demo, request: str, device: str, reply: Reply, host: HostWatch) -> str:
    """What is known of a request that was late or not answered: the device's own times, and the machine's."""
    ended = f"gave no answer ({reply.error})" if reply.error else f"answered after {1e3 * reply.latency_s:.0f} ms"
    own = reply.parameters.get("compute_ms")
    inside = f", {float(own):.0f} ms of them computing" if own is not None else ""
    seen = host.between(reply.scheduled_s, reply.scheduled_s + reply.latency_s)
    return f"request {request}: {device} {ended}{inside}, the deadline is {1e3 * demo.deadline_s:.0f} ms; {seen}"


def _row(demo: Demo, sent: Sent, index: int, plan: Plan, warm_up: bool) -> RequestRow:
    reply = sent.replies[index]
    if reply.error:
        return RequestRow(
            reply.scheduled_s - demo.start_s, None, None, None, sent.phase, WORDS[AnswerSource.NONE], False, warm_up
        )
    source, exit_index = AnswerSource(reply.parameters["source"]), reply.parameters["exit_index"]
    paths = {p.exit_index: 1e3 * p.p50_s for p in plan.predicted.paths} if source is AnswerSource.PLAN else {}
    (logits,) = reply.outputs.values()
    return RequestRow(
        arrival_s=reply.scheduled_s - demo.start_s,
        latency_ms=1e3 * reply.latency_s,
        predicted_ms=paths.get(exit_index),
        exit=exit_index,
        phase=sent.phase,
        by=WORDS[source],
        right=bool(logits[0].argmax() == sent.targets[index]),
        warm_up=warm_up,
    )


def take(
    inputs: NDArray[Any], targets: NDArray[Any], number: int, *, first: int = 0
) -> tuple[NDArray[Any], NDArray[Any]]:
    """So many examples from a place on, going round where there are fewer."""
    indices = (first + np.arange(number)) % len(inputs)
    return traced(np.asarray(inputs)[indices], RAW), np.asarray(targets)[indices]


def revisions_changed(sent: Sequence[Sent]) -> int:
    """How often a device's plan changed between two of its answers."""
    changes, last = 0, dict[str, int]()
    for part in sent:
        for device, reply in zip(part.devices, part.replies, strict=True):
            revision = reply.parameters.get("plan_revision")
            if revision is None:
                continue
            changes += device in last and last[device] != revision
            last[device] = revision
    return changes
