"""Local work on a device: one thread of its own for the user's task, results kept as blobs before anybody hears of them.

What a client's step asks (`Work`) is done here and reported to it as `WorkDone` or `WorkGivenUp`; the step decides what
is sent and what is kept. torch is imported by the first order.
"""

from __future__ import annotations

import asyncio
import importlib
import itertools
import logging
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from edgewise.codecs.bundle import Bundle, bundle_from_bytes, bundle_to_bytes, decode_bundle, encode_bundle
from edgewise.core.errors import EdgewiseError, KeptLost, StoreDamaged, StoreUnavailable, TaskError
from edgewise.core.ids import ClientId, Digest, NodeId, digest_of
from edgewise.core.process import keep_for_good
from edgewise.fleet.messages import HardExamples, Progress, hard_examples_of
from edgewise.fleet.node.delivery import deliver
from edgewise.fleet.node.node import Node
from edgewise.fleet.store.patience import RETRY, until_taken
from edgewise.fleet.training.role_driver import RoleDriver
from edgewise.fleet.training.run_blobs import MappedBlobs
from edgewise.models.examples import concatenated
from edgewise.models.task import Examples, Task, described, load_task
from edgewise.models.task_code import TASK_CODE, code_digest, difference
from edgewise.training.protocols.client_role import is_long
from edgewise.training.protocols.letters import BlobName
from edgewise.training.protocols.messages import FORMER_RUNS, Work, WorkDone, WorkGivenUp
from edgewise.transport.bulk.blobs import FolderBlobs

if TYPE_CHECKING:
    from edgewise.training.client_update import ClientUpdate

log = logging.getLogger("edgewise.fleet")
CAUSE_CHARS = 2000
"""Of what a task raised: so much of it is told."""
PREPARING_ANSWERS = 180
"""Times, asked once a second, that a counter may stand still while torch is imported: it takes a minute on a small board."""
HARD_COPIES = 2
"""How often a labelled hard example stands beside each of the client's own."""


Result = tuple[BlobName, Digest | None, int, dict[str, float]]
"""Update, what is kept, examples, metrics: all of it stored."""


class _Replaced(Exception):
    """Another order has taken the place of the one that is being worked on."""


class _NotKept(Exception):
    """The store does not take what was worked out; `keep` tries it again."""

    def __init__(self, keep: Callable[[], Result], error: StoreUnavailable) -> None:
        super().__init__(str(error))
        self.keep, self.error = keep, error


@dataclass(slots=True)
class WorkCounter:
    """What the worker thread did, read by the I/O side; only the thread writes `counter`.

    Attributes:
        counter: Steps done.
        work: What it does; "" for nothing.
        seconds: Spent on it so far.
        is_preparing: Whether it imports torch, which stands between its first order and the first step.
    """

    counter: int = 0
    work: str = ""
    seconds: float = 0.0
    is_preparing: bool = False


@dataclass(slots=True)
class _ClientWork:
    """The newest work of a run.

    Attributes:
        is_replaced: Set when a newer one begins; the thread looks at it after every step.
        digests: Results that are stored and not reported yet.
        task: Waits for it.
    """

    is_replaced: bool = False
    digests: tuple[Digest, ...] = ()
    task: asyncio.Task[Any] | None = None


@dataclass(slots=True)
class LocalWorker:
    """A device's hands.

    Attributes:
        node: The node it belongs to.
        task_source: Task file, or `digits`.
        task_settings: Passed to the task.
        client: Whose data it holds.
        engine_name: Local engine; "" to choose by timing.
        labelled: Gives the labelled hard examples of a run, or None.
        notes: What was found in its data, or done to it.
        timer: Seconds; how long work took is told, and decides what is worth keeping over a crash.
        private: What the client keeps between rounds; unlike the node's blobs it is given to nobody.
    """

    node: Node
    task_source: str
    task_settings: dict[str, Any]
    client: ClientId
    engine_name: str = ""
    labelled: Callable[[HardExamples], Awaitable[Examples | None]] | None = None
    private: FolderBlobs = field(init=False)
    notes: tuple[str, ...] = ()
    counted: WorkCounter = field(default_factory=WorkCounter)
    timer: Callable[[], float] = time.perf_counter
    _thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "edgewise-train"))
    _task: Task | None = None
    _engine_of: dict[str, Any] = field(default_factory=dict)
    _engines: dict[tuple[Digest, ...], Any] = field(default_factory=dict)
    _examples: Examples | None = None
    _code: str = ""
    _jobs: dict[str, _ClientWork] = field(default_factory=dict)
    _more: dict[str, Examples | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.private = FolderBlobs(self.node.blobs.folder.with_name("kept"))
        self.node.stores.append(self.private)

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
    def task_code(self) -> str:
        """Digest of the task's code; "" before `load`."""
        return self._code

    @property
    def label_counts(self) -> dict[str, int]:
        """Examples per label, for the audit; counts, no examples."""
        if self._examples is None or getattr(self._examples.targets, "ndim", 0) != 1:
            return {}
        labels, counts = np.unique(np.asarray(self._examples.targets), return_counts=True)
        return {str(label): int(count) for label, count in zip(labels, counts, strict=True)}

    @property
    def num_examples(self) -> int:
        """Examples this client holds."""
        return 0 if self._examples is None else len(self._examples)

    @property
    def refusal(self) -> str:
        """Why this device takes no part in runs; "" if it does."""
        if self._examples is None:
            return f"{self.node.name} has no task installed yet. Start it with --task."
        if not len(self._examples):
            return f"{self.node.name} holds no examples of client {self.client!r}; it is left out."
        return ""

    def progress(self) -> Progress:
        """The worker thread's counter."""
        counted = self.counted
        patience = PREPARING_ANSWERS if counted.is_preparing else 0
        return Progress(counted.counter, bool(counted.work), counted.work, patience)

    def begin(self, driver: RoleDriver, work: Work) -> None:
        """Begins an order's work; what is being done for that run ends.

        Args:
            driver: The client's role, which is told what came of it.
            work: As its step says.
        """
        self.stop(driver)
        job = self._jobs[driver.log] = _ClientWork()
        job.task = self.node.spawn(self._work(driver, work, job), f"train {driver.run} round {work.order.round}")

    def stop(self, driver: RoleDriver) -> None:
        """Ends a run's work, if there is any."""
        job = self._jobs.pop(driver.log, None)
        if job is not None:
            job.is_replaced = True
            if job.task is not None and job.task is not asyncio.current_task():
                job.task.cancel()

    def forget(self, driver: RoleDriver) -> None:
        """Ends a run's work and forgets what joined its data."""
        self.stop(driver)
        self._more.pop(driver.log, None)
        self._engine_of.pop(driver.log, None)

    def close(self) -> None:
        """Ends the worker thread when its step is done."""
        for job in self._jobs.values():
            job.is_replaced = True
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _work(self, driver: RoleDriver, work: Work, job: _ClientWork) -> None:
        try:
            await self._done(driver, work, job)
        finally:
            driver.incoming.release(*job.digests)

    async def _done(self, driver: RoleDriver, work: Work, job: _ClientWork) -> None:
        order = work.order
        try:
            update, kept, num_examples, metrics = await self._result(driver, work, job)
        except _Replaced:
            return
        except Exception as error:  # the task is the user's code; whatever it raises has a server waiting for it
            cause, has_lost = self._cause(driver, work, error), isinstance(error, KeptLost)
            diverged = isinstance(error, EdgewiseError) and bool(error.fields.get("has_diverged"))
            await driver.dispatch(WorkGivenUp(order.round, order.exchange, cause, has_lost, diverged))
            return
        await driver.dispatch(
            WorkDone(
                round=order.round,
                exchange=order.exchange,
                update=update,
                kept=kept,
                num_examples=num_examples,
                metrics=metrics,
            )
        )

    async def _result(self, driver: RoleDriver, work: Work, job: _ClientWork) -> Result:
        """What comes of an order, however long this node's store takes nothing or what came with it is sought again."""
        met, came, has_lost = partial(driver.met, driver), {str(b.digest) for b in work.order.blobs}, False
        for attempt in itertools.count():
            try:
                if driver.log not in self._more:
                    self._more[driver.log] = await self._join(driver)
                result: Result = await self._run(self._train, driver, work, job)
                return result
            except _NotKept as waiting:
                met(waiting.error)
                return await until_taken(waiting.keep, met)
            except StoreUnavailable as error:
                met(error)
                await asyncio.sleep(RETRY.delay_s(attempt))
            except StoreDamaged as error:
                log.error("%s: %s", self.node.name, error.message)
                if error.fields.get("digest") in came:
                    met(error)  # who gave it is asked for it
                    await asyncio.sleep(RETRY.delay_s(attempt))
                elif has_lost:
                    raise
                else:
                    has_lost = True  # what it kept: it begins that anew
        raise AssertionError

    def _cause(self, driver: RoleDriver, work: Work, error: Exception) -> str:
        known = isinstance(error, EdgewiseError)
        cause = error.message if isinstance(error, EdgewiseError) else f"its task raised {described(error)}"
        what = f"round {work.order.round} of {driver.run}"
        log.error("%s cannot do %s: %s", self.node.name, what, cause, exc_info=None if known else error)
        return cause if len(cause) <= CAUSE_CHARS else f"{cause[:CAUSE_CHARS]}…"

    async def _join(self, driver: RoleDriver) -> Examples | None:
        """Labelled hard examples, the same in all rounds of a run."""
        hard = hard_examples_of(driver.spec)
        if hard is None or self.labelled is None:
            return None
        if hard.teacher is not None:  # who gave the order has it, or is fetching it
            here = msgspec.structs.replace(hard.teacher, holder=NodeId(driver.server))
            hard = msgspec.structs.replace(hard, teacher=here)
            await deliver(lambda: self.node.pull(here), what=f"the teacher of {driver.run}")
        return await self.labelled(hard)

    def _load(self) -> None:
        settings = self.task_settings
        if self.task_source == "digits":
            from edgewise.training.tasks.digits_task import DigitsTask

            self._task = DigitsTask(**settings)
        else:
            self._task = load_task(self.task_source, **settings)
        self._code = code_digest(self._task)
        from edgewise.models.data_check import DataCheck

        checked = DataCheck(self._task).data(self.client)
        self._examples, self.notes = checked.examples, checked.notes
        for note in checked.notes:
            log.warning("data of client %s: %s", self.client, note)
        from edgewise.training.local import make_engine  # imports torch now, not in the first round

        self._engines.clear()
        self._engine_of.clear()
        if self.engine_name:  # a wrong name is told at once
            make_engine(self.engine_name, self._task)

    def _train(self, driver: RoleDriver, work: Work, job: _ClientWork) -> Result:
        """On the worker thread: trains, and stores what came of it."""
        if job.is_replaced:
            raise _Replaced
        self.counted.is_preparing = not self.counted.seconds
        self.counted.work = f"train {driver.run} round {work.order.round}"
        try:
            importlib.import_module("torch.func")
            self.counted.is_preparing = False
            self.counted.counter += 1
            start = self.timer()
            update = self._update(driver, work, job)
            if not self.counted.seconds:  # the first update has imported the rest
                keep_for_good()
            seconds = self.timer() - start
            self.counted.seconds += seconds
        finally:
            self.counted.work, self.counted.is_preparing = "", False
        keep = partial(self._keep, driver, job, update, seconds)
        try:
            return keep()
        except StoreUnavailable as error:
            raise _NotKept(keep, error) from error

    def _keep(self, driver: RoleDriver, job: _ClientWork, update: ClientUpdate, seconds: float) -> Result:
        sent, keeps = bundle_to_bytes(update.coded), _bytes_of(update.kept) if update.kept else b""
        if not job.digests:
            job.digests = (digest_of(sent), digest_of(keeps)) if keeps else (digest_of(sent),)
            driver.incoming.add(*job.digests)
        kept = self.private.put(keeps) if keeps else None
        sent_name = BlobName(driver.put(sent, must_last=bool(keeps) or is_long(seconds)), len(sent))
        return sent_name, kept, update.num_examples, {**update.metrics, "seconds": seconds}

    def _update(self, driver: RoleDriver, work: Work, job: _ClientWork) -> ClientUpdate:
        from edgewise.training.client_update import client_seeds, client_update, keeps_on_clients, received_bundle

        assert self._task is not None
        assert self._examples is not None
        examples, order = joined(self._examples, self._more.get(driver.log)), work.order
        exchange = driver.algorithm.exchanges[order.exchange]
        code = order.spec.extra.get(TASK_CODE, self._code)
        if cause := difference(self._task.name, code, {self.node.name: self._code}):
            raise TaskError(cause)  # before its first round: it joined a run that had begun
        if driver.log not in self._engine_of:
            self._choose_engine(driver, examples)
        engine = self._engine_of[driver.log]
        if engine.layout.digest != order.spec.layout:
            raise TaskError(
                f"task {self._task.name!r} on {self.node.name} has another model than run {driver.run!r} "
                f"({engine.layout.size:,} entries here, {order.spec.num_entries:,} received). "
                "Install the run's task file on this node."
            )

        def stepped(_: int) -> None:
            self.counted.counter += 1
            if job.is_replaced:
                raise _Replaced

        blobs, num_entries = MappedBlobs(self.node.blobs), order.spec.num_entries
        received = received_bundle(order, exchange, blobs, num_entries)
        seeds = client_seeds(order.spec.seed, order.round, self.client, order.exchange)
        kept = self._kept(work, is_needed=keeps_on_clients(exchange))
        return client_update(exchange, engine, received, kept, examples, seeds, progress=stepped)

    def _kept(self, work: Work, *, is_needed: bool) -> Bundle:
        former = work.order.spec.extra.get(FORMER_RUNS)
        is_gone = work.kept is None or not self.private.has(work.kept)
        if former and is_gone and is_needed and work.order.counted:
            raise KeptLost(f"what {self.client} kept in {former[0]} is gone from its disk, it begins anew")
        if work.kept is None:
            return {}
        if not self.private.has(work.kept):
            log.error("%s lost what %s kept there; it begins anew", self.node.name, work.order.spec.run)
            return {}
        return decode_bundle({}, None, bundle_from_bytes(MappedBlobs(self.private)[work.kept]))

    def _choose_engine(self, driver: RoleDriver, examples: Examples) -> None:
        """Takes the engine of the last run where it serves this one, too."""
        from edgewise.training.local import choose_engine

        assert self._task is not None
        works = [exchange.local for exchange in driver.algorithm.exchanges]
        key = tuple(work.spec.digest for work in works)
        if key not in self._engines:
            self._engines[key] = choose_engine(self._task, works, examples, pinned=self.engine_name).engine
            self.counted.counter += 1
        self._engine_of[driver.log] = self._engines[key]

    async def _run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)


def _bytes_of(kept: Bundle) -> bytes:
    coded, _ = encode_bundle({}, kept, None, np.random.default_rng(0))
    return bundle_to_bytes(coded)


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
    parts = [held, *[more] * HARD_COPIES]
    return Examples(concatenated([p.inputs for p in parts]), concatenated([p.targets for p in parts]))
