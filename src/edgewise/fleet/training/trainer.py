"""Training on a device: takes orders, works in one thread of its own, reports until the server has it.

A round asked twice is answered twice with the same update: the last one is kept, so a server that crashed, or a link that
dropped the acknowledgement, costs no second training and no second residual. torch is imported by the first order.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np

from edgewise.codecs.wire import payload_from_bytes, payload_to_bytes, payload_to_tensors
from edgewise.core.errors import EdgewiseError, TaskError
from edgewise.core.ids import ClientId, RunId
from edgewise.core.process import keep_for_good
from edgewise.fleet.messages import (
    INLINE_BYTES,
    Ack,
    BlobRef,
    HardExamples,
    Message,
    Progress,
    TrainFailed,
    TrainOrder,
    UpdateReport,
)
from edgewise.fleet.node.delivery import deliver
from edgewise.fleet.node.node import Node
from edgewise.ledger.entry import Purpose
from edgewise.models.task import Examples, Task, load_task, user_code
from edgewise.transport.frame import Frame

log = logging.getLogger("edgewise.fleet")
REPORT_TIMEOUT_S = 60.0
"""Longest a server may take to fetch and store an update."""
KEPT_RUNS = 4
"""Runs whose last update and residual are kept."""
HARD_COPIES = 2
"""How often a labelled hard example stands beside each of the client's own."""


@dataclass(slots=True)
class WorkCounter:
    """What the worker thread did, read by the I/O side; only the thread writes `counter`."""

    counter: int = 0
    work: str = ""
    seconds: float = 0.0


@dataclass(slots=True)
class _Part:
    """This client's part in one run.

    Attributes:
        order: The newest.
        task: Works on it, then reports.
        last: What was reported last, with the order it answers.
        state: Codec state (residual) of the next round.
        more: Labelled hard examples, the same in all rounds.
        asked_again: Wakes a report that waits for its next attempt.
    """

    order: TrainOrder
    task: asyncio.Task[Any] | None = None
    last: tuple[TrainOrder, UpdateReport, bytes] | None = None
    state: Any = None
    more: Examples | None = None
    asked_again: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def is_busy(self) -> bool:
        return self.task is not None and not self.task.done()


@dataclass(slots=True)
class Trainer:
    """A device's training role.

    Attributes:
        node: The node it belongs to.
        task_source: Task file, or `digits`.
        task_settings: Passed to the task.
        client: Whose data it holds.
        engine_name: Local engine; "" to choose by timing.
        labelled: Gives the labelled hard examples of an order, or None.
    """

    node: Node
    task_source: str
    task_settings: dict[str, Any]
    client: ClientId
    engine_name: str = ""
    labelled: Callable[[HardExamples], Awaitable[Examples | None]] | None = None
    worker: WorkCounter = field(default_factory=WorkCounter)
    _thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "edgewise-train"))
    _task: Task | None = None
    _engine: Any = None
    _examples: Examples | None = None
    _parts: dict[RunId, _Part] = field(default_factory=dict)

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
        part = self._parts.pop(order.run, None) or _Part(order)
        self._parts[order.run] = part  # the newest run last
        if part.is_busy and part.order.round == order.round:
            part.asked_again.set()  # who asks again is there: what waits to be reported need not wait longer
            return Ack(True, "already at work on this round")
        if part.task is not None:
            part.task.cancel()
        inline = frame.array("model").tobytes() if any(t.name == "model" for t in frame.tensors) else None
        part.order = order
        part.task = self.node.spawn(self._work(part, order, inline), f"train {order.run} round {order.round}")
        self._forget()
        return Ack()

    def close(self) -> None:
        """Ends the worker thread when its step is done."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _forget(self) -> None:
        """Keeps the newest runs: whoever asks for an older one again gets a new update without its residual."""
        for run in [run for run, part in self._parts.items() if not part.is_busy][
            : max(0, len(self._parts) - KEPT_RUNS)
        ]:
            del self._parts[run]

    async def _work(self, part: _Part, order: TrainOrder, inline: bytes | None) -> None:
        if part.last is None or _round(part.last[0]) != _round(order):
            try:
                data = inline if inline is not None else await self._model(part, order)
                if order.hard_examples is not None and self.labelled is not None and part.more is None:
                    part.more = await self.labelled(order.hard_examples)
                report, payload = await self._run(self._train, part, order, np.frombuffer(data, np.float32))
            except Exception as error:  # the task is the user's code; whatever it raises has a server waiting for it
                await self._tell_failure(part, order, error)
                return
            part.last = (order, report, payload)
        _, report, payload = part.last
        tensors: dict[str, Any] = payload_to_tensors(payload_from_bytes(payload))
        if len(payload) > INLINE_BYTES:
            digest = await asyncio.to_thread(self.node.blobs.put, payload)
            report = msgspec.structs.replace(report, payload=BlobRef(digest, len(payload), self.node.name))
            tensors = {}
        await self._report(part, order, report, tensors)

    async def _model(self, part: _Part, order: TrainOrder) -> bytes:
        """Pulls a round's model; while its holder is away it waits, and goes on where it was."""
        what = f"{self.node.name}'s model of {order.run} round {order.round}"
        data = await deliver(lambda: self.node.fetch(order.model), what=what, poke=part.asked_again)
        assert data is not None  # it stays wanted; another order ends this task
        return data

    async def _tell_failure(self, part: _Part, order: TrainOrder, error: Exception) -> None:
        known = isinstance(error, EdgewiseError)
        cause = (
            error.message if isinstance(error, EdgewiseError) else f"its task raised {type(error).__name__}: {error}"
        )
        log.error(
            "%s cannot do round %d of %s: %s", self.node.name, order.round, order.run, cause,
            exc_info=None if known else error,
        )  # fmt: skip
        await self._report(part, order, TrainFailed(order.run, order.round, self.client, cause))

    async def _report(
        self, part: _Part, order: TrainOrder, report: Message, tensors: dict[str, Any] | None = None
    ) -> None:
        """Reports until the server has it; another order ends the attempts."""
        what = f"{self.node.name}'s report on {order.run} round {order.round}"

        async def ask() -> Ack:
            return await self.node.ask(
                order.report_to, "report", report, Ack, tensors or {}, purpose=Purpose.TRAINING, run=order.run,
                timeout_s=REPORT_TIMEOUT_S,
            )  # fmt: skip

        try:
            ack = await deliver(ask, what=what, poke=part.asked_again)
        except EdgewiseError as error:
            log.error("%s was refused: %s", what, error)
            if isinstance(report, UpdateReport):  # the round must not wait for what its server cannot take
                await self._tell_failure(part, order, error)
        else:
            if ack is not None and not ack.accepted:
                log.warning("%s: %s did not take it: %s", what, order.report_to, ack.reason)

    def _load(self) -> None:
        settings = self.task_settings
        if self.task_source == "digits":
            from edgewise.training.tasks.digits_task import DigitsTask

            self._task = DigitsTask(**settings)
        else:
            self._task = load_task(self.task_source, **settings)
        with user_code(f"task {self._task.name!r} gives no data of client {self.client!r}"):
            self._examples = self._task.data(self.client)
        from edgewise.training.local import make_engine  # imports torch now, not in the first round

        if self.engine_name:
            self._engine = make_engine(self.engine_name, self._task)

    def _train(self, part: _Part, order: TrainOrder, received: Any) -> tuple[UpdateReport, bytes]:
        self.worker.work = f"train {order.run} round {order.round}"
        try:
            return self._update(part, order, received)
        finally:
            self.worker.work = ""

    def _update(self, part: _Part, order: TrainOrder, received: Any) -> tuple[UpdateReport, bytes]:
        from edgewise.training.algorithms import make_algorithm
        from edgewise.training.client_update import client_seeds, client_update
        from edgewise.training.local import choose_engine

        assert self._task is not None
        assert self._examples is not None
        algorithm = make_algorithm(order.algorithm)
        examples = joined(self._examples, part.more)
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
        update = client_update(algorithm, self._engine, received, examples, seeds, part.state, progress=self._stepped)
        part.state = update.state
        seconds = time.perf_counter() - start
        if not self.worker.seconds:  # the first update has imported the rest
            keep_for_good()
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


def joined(held: Examples, more: Examples | None) -> Examples:
    """A client's own examples and its labelled hard examples, each of these twice: they are few, and what is new.

    Args:
        held: Its own.
        more: Labelled hard examples, or None.

    Returns:
        What it trains on; still traced as raw.
    """
    if more is None or not len(more):
        return held
    inputs = np.concatenate([held.inputs, *[more.inputs] * HARD_COPIES])
    return Examples(inputs, np.concatenate([held.targets, *[more.targets] * HARD_COPIES]))
