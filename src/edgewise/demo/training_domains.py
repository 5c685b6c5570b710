"""The models that the levels beside the demo's own would serve, and a narrower one, trained while the fleet trains its own.

Most of a round is waiting for links, and they come after everybody else on the processors.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import numpy as np

from edgewise.demo.scenario import LOCAL, MODEL, NARROW, OWN_DOMAIN, TASK, UPLINK, Demo
from edgewise.inference.evidence import plan_evidence
from edgewise.models.export import export_template
from edgewise.models.graph.weights import with_weights
from edgewise.models.version import ExitEvidence
from edgewise.simulation.emulated.domain_pool import simulate_domains
from edgewise.simulation.emulated.domains import DomainResult
from edgewise.training.job import JobFile, TaskTable, TrainingTable
from edgewise.training.tasks.digits_task import DigitsTask

OTHER_DOMAINS = ("cloud", "edge", "device")
"""Beside the one that the demo's version is trained in."""


class OtherDomains:
    """Training in the other domains, under way; made by `other_domains`."""

    def __init__(self, demo: Demo) -> None:
        self._demo = demo
        self._cancelled = threading.Event()
        self._done: asyncio.Queue[tuple[str, DomainResult] | None] = asyncio.Queue()
        self._found: dict[str, DomainResult] = {}
        loop = asyncio.get_running_loop()
        jobs: list[tuple[JobFile, tuple[str, ...], str]] = [
            (_job(demo, NARROW, demo.settings.rounds), (OWN_DOMAIN,), "narrow "),
            (_job(demo, MODEL, demo.settings.domain_rounds), OTHER_DOMAINS, ""),
        ]

        def train() -> None:
            for job, domains, mark in jobs:

                def on_result(result: DomainResult, mark: str = mark) -> None:
                    loop.call_soon_threadsafe(self._done.put_nowait, (mark + result.domain, result))

                simulate_domains(
                    job, domains, on_result=on_result, is_cancelled=self._cancelled.is_set, is_background=True
                )

        self._task = asyncio.create_task(asyncio.to_thread(train))
        self._task.add_done_callback(lambda _: self._done.put_nowait(None))

    async def wait(self) -> None:
        """Waits for the models."""
        with self._demo.show.progress("  other models", len(OTHER_DOMAINS) + 1) as advance:
            while (done := await self._done.get()) is not None:
                name, result = done
                self._found[name] = result
                advance(f"{name}: accuracy {result.accuracy:.3f}")
        await self._task

    async def evidence(self) -> dict[str, tuple[ExitEvidence, ...]]:
        """What is known of the models of the other levels, once they are there.

        Returns:
            Evidence by domain: of the pooled public share (levels 0-3), one edge (5) and one device (6).
        """
        template, layout = export_template(self._demo.task)
        calibration = self._demo.task.parts.calibration
        graphs = {domain: with_weights(template, layout, self._found[domain].vector) for domain in OTHER_DOMAINS}
        return {
            domain: await asyncio.to_thread(plan_evidence, graph, calibration.inputs, np.asarray(calibration.targets))
            for domain, graph in graphs.items()
        }

    def narrow(self) -> bytes:
        """The narrower model, once it is there: ONNX bytes."""
        template, layout = export_template(_task(self._demo, NARROW))
        return with_weights(template, layout, self._found[f"narrow {OWN_DOMAIN}"].vector)

    async def close(self) -> None:
        """Ends what is still under way; idempotent."""
        self._cancelled.set()  # a thread does not hear of it otherwise, and its processes would go on
        await asyncio.wait({self._task})
        with suppress(Exception, asyncio.CancelledError):  # raised by `evidence` for whoever waits for it
            self._task.result()


@asynccontextmanager
async def other_domains(demo: Demo) -> AsyncIterator[OtherDomains]:
    """Trains in the other domains from now on; what is not done at the end of the block is given up.

    Args:
        demo: Its task, edges and settings count.

    Yields:
        The training.
    """
    training = OtherDomains(demo)
    try:
        yield training
    finally:
        await training.close()


def _task(demo: Demo, model: dict[str, Any]) -> DigitsTask:
    return DigitsTask(**{**demo.task.settings, "model": model})


def _job(demo: Demo, model: dict[str, Any], rounds: int) -> JobFile:
    settings, clients = demo.settings, demo.task.clients()
    half = len(clients) // 2
    return JobFile(
        TaskTable(TASK, {**demo.task.settings, "model": model}),
        TrainingTable(
            {"name": "fed_avg", "local": LOCAL, "uplink": UPLINK},
            rounds,
            seed=settings.seed,
            edges={edge: tuple(clients[i * half : (i + 1) * half]) for i, edge in enumerate(demo.fleet.edges)},
            engine="sequential",
        ),
    )
