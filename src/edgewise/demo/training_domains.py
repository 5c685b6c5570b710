"""The models that the levels beside the demo's own would serve, trained while the fleet trains its own.

Most of a round is waiting for links, and they come after everybody else on the processors.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import numpy as np

from edgewise.demo.scenario import LOCAL, TASK, UPLINK, Demo
from edgewise.inference.evidence import plan_evidence
from edgewise.models.export import export_template
from edgewise.models.graph.weights import with_weights
from edgewise.models.version import ExitEvidence
from edgewise.simulation.emulated.domain_pool import simulate_domains
from edgewise.simulation.emulated.domains import DomainResult
from edgewise.training.job import JobFile, TaskTable, TrainingTable

OTHER_DOMAINS = ("cloud", "edge", "device")
"""Beside the hierarchical one, which the demo's version is trained in."""


class OtherDomains:
    """Training in the other domains, under way; made by `other_domains`."""

    def __init__(self, demo: Demo) -> None:
        self._demo = demo
        self._cancelled = threading.Event()
        self._done: asyncio.Queue[DomainResult | None] = asyncio.Queue()
        loop, job = asyncio.get_running_loop(), _job(demo)

        def on_result(result: DomainResult) -> None:
            loop.call_soon_threadsafe(self._done.put_nowait, result)

        def train() -> None:
            simulate_domains(
                job, OTHER_DOMAINS, on_result=on_result, is_cancelled=self._cancelled.is_set, is_background=True
            )

        self._task = asyncio.create_task(asyncio.to_thread(train))
        self._task.add_done_callback(lambda _: self._done.put_nowait(None))

    async def evidence(self) -> dict[str, tuple[ExitEvidence, ...]]:
        """Waits for the models.

        Returns:
            Evidence by domain: of the pooled public share (levels 0-3), one edge (5) and one device (6).
        """
        demo, rows = self._demo, {}
        template, layout = export_template(demo.task)
        calibration = demo.task.parts.calibration
        with demo.show.progress("  training domains", len(OTHER_DOMAINS)) as advance:
            while (result := await self._done.get()) is not None:
                graph = with_weights(template, layout, result.vector)
                rows[result.domain] = plan_evidence(graph, calibration.inputs, np.asarray(calibration.targets))
                advance(f"{result.domain}: accuracy {result.accuracy:.3f}")
        await self._task
        return {domain: rows[domain] for domain in OTHER_DOMAINS}

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


def _job(demo: Demo) -> JobFile:
    settings, clients = demo.settings, demo.task.clients()
    half = len(clients) // 2
    return JobFile(
        TaskTable(TASK, dict(demo.task.settings)),
        TrainingTable(
            {"name": "fed_avg", "local": LOCAL, "uplink": UPLINK},
            settings.domain_rounds,
            seed=settings.seed,
            edges={edge: tuple(clients[i * half : (i + 1) * half]) for i, edge in enumerate(demo.fleet.edges)},
            engine="sequential",
        ),
    )
