"""What serving counts, as metrics: requests, latency by stage, bytes at the cuts, the queue, the plan in force."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from edgewise.inference.observation import Observation
from edgewise.inference.session import AnswerSource
from edgewise.inference.stage_server import StageHost
from edgewise.inference.worker import Worker
from edgewise.ledger.metric import Labels, Metric, metric, summary
from edgewise.planning.plan import ActivePlan


@dataclass(slots=True)
class Count:
    """Requests, and the seconds they took in all."""

    num: int = 0
    seconds: float = 0.0


@dataclass(slots=True)
class ServingCounts:
    """What a model's requests came to.

    Attributes:
        by_source: Requests by who answered.
        by_stage: Runs of each stage, transfers and codecs among them.
        payload_bytes: Bytes handed over, by boundary.
    """

    by_source: dict[AnswerSource, Count] = field(default_factory=dict)
    by_stage: dict[str, Count] = field(default_factory=dict)
    payload_bytes: dict[str, int] = field(default_factory=dict)

    def add(self, seen: Observation) -> None:
        """Takes one request."""
        _add(self.by_source.setdefault(seen.source, Count()), seen.latency_s)
        for stage, seconds in seen.stages:
            _add(self.by_stage.setdefault(stage, Count()), seconds)
        for boundary, size in seen.payload_bytes:
            self.payload_bytes[boundary] = self.payload_bytes.get(boundary, 0) + size


def _add(count: Count, seconds: float) -> None:
    count.num, count.seconds = count.num + 1, count.seconds + seconds


def model_metrics(name: str, counts: ServingCounts, active: ActivePlan | None, refused: int = 0) -> list[Metric]:
    """Metrics of one model at the device.

    Args:
        name: The model's name.
        counts: What its requests came to.
        active: Its plan in force; None before the first.
        refused: Requests refused when they arrived.
    """
    of = ("model", name)
    sources: dict[Labels, tuple[int, float]] = {
        (of, ("source", str(source))): (c.num, c.seconds) for source, c in counts.by_source.items()
    }
    stages: dict[Labels, tuple[int, float]] = {
        (of, ("stage", stage)): (c.num, c.seconds) for stage, c in counts.by_stage.items()
    }
    sent: dict[Labels, float] = {
        (of, ("boundary", boundary)): float(size) for boundary, size in counts.payload_bytes.items()
    }
    plan = dict[Labels, float]()
    if active is not None:
        revision, version = str(active.revision), str(active.version)
        plan[of, ("plan", active.plan.name), ("revision", revision), ("version", version)] = 1
    return [
        summary("request_seconds", "Requests by who answered, and their latency at the device.", sources),
        summary("stage_seconds", "Latency of each stage of requests.", stages),
        metric("payload_bytes_total", "counter", "Bytes of what stages handed over.", sent),
        metric("refused_requests_total", "counter", "Requests refused when they arrived.", {(of,): refused}),
        metric("plan_info", "gauge", "The plan in force; always 1.", plan),
    ]


def worker_metrics(worker: Worker) -> list[Metric]:
    """Metrics of a node's computing thread.

    Args:
        worker: The thread.
    """
    ends = {"completed": worker.completed, "refused": worker.refused, "expired": worker.expired}
    return [
        metric("queue_jobs", "gauge", "Jobs that wait for the computing thread.", {(): worker.num_waiting}),
        metric("jobs_total", "counter", "Jobs by how they ended.", {(("end", e),): n for e, n in ends.items()}),
    ]


def host_metrics(host: StageHost, models: Mapping[str, int] | None = None) -> list[Metric]:
    """Metrics of a node that runs stages for others.

    Args:
        host: What it runs.
        models: Version in force by model.
    """
    versions: Iterable[tuple[str, int]] = (models or {}).items()
    ends = {"answered": host.answered, "refused": host.refused}
    return [
        *worker_metrics(host.worker),
        metric("stage_requests_total", "counter", "Stage requests.", {(("end", e),): n for e, n in ends.items()}),
        metric("version", "gauge", "Version of each model in force.", {(("model", m),): v for m, v in versions}),
    ]
