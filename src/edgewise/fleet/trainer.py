"""Training on a device: takes orders, works in one thread of its own, reports until the server has it.

A round asked twice is answered twice with the same update: the last one is kept, so a server that crashed, or a link that
dropped the acknowledgement, costs no second training and no second residual. torch is imported by the first order.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgewise.codecs.wire import payload_from_bytes, payload_to_bytes, payload_to_tensors
from edgewise.core.errors import EdgewiseError, RemoteError, TaskError, TransportError
from edgewise.core.ids import ClientId, RunId
from edgewise.fleet.messages import INLINE_BYTES, Ack, BlobRef, Progress, TrainFailed, TrainOrder, UpdateReport
from edgewise.fleet.node import Node
from edgewise.ledger.entry import Purpose
from edgewise.models.task import Examples, Task, load_task
from edgewise.transport.frame import Frame

log = logging.getLogger("edgewise.fleet")

RETRY_S = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
"""Waits between attempts to report; the last repeats until the server has it or asks for another round."""


@dataclass(slots=True)
class Worker:
    """What the worker thread did, read by the I/O side; only the thread writes `counter`."""

    counter: int = 0
    work: str = ""
    seconds: float = 0.0


@dataclass(slots=True)
class Trainer:
    """A device's training role.

    Attributes:
        node: The node it belongs to.
        task_source: Task file, or `digits`.
        task_settings: Passed to the task.
        client: Whose data it holds.
        engine_name: Local engine; "" to choose by timing.
        collected: Gives labelled hard examples, or None.
    """

    node: Node
    task_source: str
    task_settings: dict[str, Any]
    client: ClientId
    engine_name: str = ""
    collected: Callable[[], Examples | None] = lambda: None
    worker: Worker = field(default_factory=Worker)
    _thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "edgewise-train"))
    _task: Task | None = None
    _engine: Any = None
    _examples: Examples | None = None
    _states: dict[RunId, Any] = field(default_factory=dict)
    _last: tuple[TrainOrder, UpdateReport, bytes] | None = None
    _order: TrainOrder | None = None
    _working: asyncio.Task[Any] | None = None

    async def load(self) -> None:
        """Loads the task and this client's data, in the worker thread.

        Raises:
            TaskError: If task or data cannot be used.
        """
        await self._run(self._load)

    @property
    def task_name(self) -> str:
        """Name of the task; "" before `load`."""
        return self._task.name if self._task is not None else ""

    @property
    def label_counts(self) -> dict[str, int]:
        """Examples per label, for the audit; counts, no examples."""
        if self._examples is None or self._examples.targets.ndim != 1:
            return {}
        labels, counts = np.unique(np.asarray(self._examples.targets), return_counts=True)
        return {str(label): int(count) for label, count in zip(labels, counts, strict=True)}

    @property
    def num_examples(self) -> int:
        """Examples this client holds."""
        return 0 if self._examples is None else len(self._examples)

    def progress(self) -> Progress:
        """The worker thread's counter."""
        return Progress(self.worker.counter, bool(self.worker.work), self.worker.work)

    async def take(self, order: TrainOrder, frame: Frame, _: Any) -> Ack:
        """Takes an order: says at once whether it will be done; the update is reported when it is ready."""
        if self._examples is None:
            return Ack(False, f"{self.node.name} has no task installed yet. Start it with --task.")
        if not len(self._examples):
            return Ack(False, f"{self.node.name} holds no examples of client {self.client!r}; it is left out.")
        if self._order is not None and (order.run, order.round) == (self._order.run, self._order.round) and self._busy:
            return Ack(True, "already at work on this round")
        if self._working is not None:
            self._working.cancel()
        inline = frame.array("model").tobytes() if any(t.name == "model" for t in frame.tensors) else None
        self._order = order
        self._working = self.node.spawn(self._work(order, inline), f"train {order.run} round {order.round}")
        return Ack()

    def close(self) -> None:
        """Ends the worker thread when its step is done."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    @property
    def _busy(self) -> bool:
        return self._working is not None and not self._working.done()

    async def _work(self, order: TrainOrder, inline: bytes | None) -> None:
        if self._last is None or _round(self._last[0]) != _round(order):
            data = inline if inline is not None else await self.node.fetch(order.model)
            received = np.frombuffer(data, np.float32)
            self.worker.work = f"train {order.run} round {order.round}"
            try:
                report, payload = await self._run(self._train, order, received)
            except EdgewiseError as error:
                await self._tell_failure(order, error.message)
                return
            finally:
                self.worker.work = ""
            self._last = (order, report, payload)
        _, report, payload = self._last
        await self._report(order, report, payload)

    async def _tell_failure(self, order: TrainOrder, cause: str) -> None:
        log.error("%s cannot do round %d of %s: %s", self.node.name, order.round, order.run, cause)
        failed = TrainFailed(order.run, order.round, self.client, cause)
        await self.node.ask(order.report_to, "report", failed, Ack, purpose=Purpose.TRAINING, run=order.run)

    async def _report(self, order: TrainOrder, report: UpdateReport, payload: bytes) -> None:
        tensors: dict[str, Any] = payload_to_tensors(payload_from_bytes(payload))
        if len(payload) > INLINE_BYTES:
            digest = self.node.blobs.put(payload)
            report = _with_blob(report, BlobRef(digest, len(payload), self.node.name))
            tensors = {}
        for attempt in range(10**9):
            try:
                ack = await self.node.ask(
                    order.report_to,
                    "report",
                    report,
                    Ack,
                    tensors,
                    purpose=Purpose.TRAINING,
                    run=order.run,
                    timeout_s=60.0,
                )
            except RemoteError as error:
                log.error(
                    "%s: the update of %s round %s was refused: %s", self.node.name, order.run, order.round, error
                )
                return
            except TransportError as error:
                log.info("%s: %s is away, the update waits: %s", self.node.name, order.report_to, error)
                await asyncio.sleep(RETRY_S[min(attempt, len(RETRY_S) - 1)])
            else:
                if not ack.accepted:
                    log.warning("%s: %s did not take the update: %s", self.node.name, order.report_to, ack.reason)
                return

    def _load(self) -> None:
        settings = self.task_settings
        if self.task_source == "digits":
            from edgewise.training.tasks.digits import DigitsTask

            self._task = DigitsTask(**settings)
        else:
            self._task = load_task(self.task_source, **settings)
        self._examples = self._task.data(self.client)
        from edgewise.training.local import make_engine  # imports torch now, not in the first round

        if self.engine_name:
            self._engine = make_engine(self.engine_name, self._task)

    def _train(self, order: TrainOrder, received: Any) -> tuple[UpdateReport, bytes]:
        from edgewise.training.algorithms import make_algorithm
        from edgewise.training.client import client_seeds, client_update
        from edgewise.training.local import choose_engine

        assert self._task is not None
        assert self._examples is not None
        algorithm = make_algorithm(order.algorithm)
        examples = _joined(self._examples, self.collected() if order.collected else None)
        if self._engine is None:
            self._engine = choose_engine(self._task, algorithm.local, examples).engine
            self.worker.counter += 1
        if self._engine.layout.digest != order.layout:
            raise TaskError(
                f"task {self._task.name!r} on {self.node.name} has another model than run {order.run!r} "
                f"({self._engine.layout.size:,} entries here, {len(received):,} received). Install the run's task file on this node."
            )
        start = time.perf_counter()
        seeds = client_seeds(order.seed, order.round, self.client)
        update = client_update(
            algorithm, self._engine, received, examples, seeds, self._states.get(order.run), progress=self._stepped
        )
        self._states = {order.run: update.state}
        seconds = time.perf_counter() - start
        self.worker.seconds += seconds
        report = UpdateReport(
            order.run,
            order.round,
            self.client,
            update.weight,
            dict(update.metrics),
            update.payload.shape,
            seconds=seconds,
        )
        return report, payload_to_bytes(update.payload)

    def _stepped(self, _: int) -> None:
        self.worker.counter += 1

    async def _run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)


def _round(order: TrainOrder) -> tuple[Any, ...]:
    return (order.run, order.round, order.seed, order.layout, None if order.model is None else order.model.digest)


def _with_blob(report: UpdateReport, ref: BlobRef) -> UpdateReport:
    import msgspec

    return msgspec.structs.replace(report, payload=ref)


def _joined(held: Examples, more: Examples | None) -> Examples:
    if more is None or not len(more):
        return held
    return Examples(np.concatenate([held.inputs, more.inputs]), np.concatenate([held.targets, more.targets]))
