"""Which engine: pinned by name, else by rule and a short timing in which every candidate must also agree."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgewise.codecs.bundle import Bundle
from edgewise.core.errors import InputError, nearest
from edgewise.core.layout import Vector
from edgewise.core.seeds import Seeds
from edgewise.models.flat import initial_vector
from edgewise.models.task import Examples, Task
from edgewise.training.local.engines.engine import LocalEngine
from edgewise.training.local.rule import LocalWork


def _sequential(task: Task) -> LocalEngine:
    from edgewise.training.local.engines.sequential import SequentialEngine

    return SequentialEngine(task)


def _stacked(task: Task) -> LocalEngine:
    from edgewise.training.local.engines.stacked import StackedEngine

    return StackedEngine(task)


def _dense(task: Task) -> LocalEngine:
    from edgewise.training.local.engines.dense import DenseEngine

    return DenseEngine(task)


ENGINES: Mapping[str, Callable[[Task], LocalEngine]] = {"sequential": _sequential, "stacked": _stacked, "dense": _dense}
"""Builders by name; torch is imported when one is called."""
LARGEST_STACKED = 200_000
"""Parameters above which stacking was never measured to pay on a CPU."""
TOLERANCE = 1e-5
MAX_SAMPLE = 32


@dataclass(frozen=True, slots=True)
class EngineChoice:
    """The engine and why.

    Attributes:
        engine: What to use.
        seconds: Time of one timed cohort by name; empty if nothing was timed.
        refused: Why an engine was no candidate, by name.
    """

    engine: LocalEngine
    seconds: Mapping[str, float]
    refused: Mapping[str, str]


def make_engine(name: str, task: Task) -> LocalEngine:
    """Builds the engine of that name.

    Args:
        name: `sequential`, `stacked` or `dense`.
        task: What it trains.

    Returns:
        The engine.

    Raises:
        InputError: If there is no such engine.
        MisfitError: If the engine does not serve this task.
    """
    if name not in ENGINES:
        raise InputError(f"there is no local engine {name!r}.{nearest(name, ENGINES)}")
    return ENGINES[name](task)


def choose_engine(
    task: Task,
    work: LocalWork | Sequence[LocalWork],
    sample: Examples | Sequence[Examples],
    *,
    received: Bundle | None = None,
    pinned: str = "",
    timer: Callable[[], float] = time.perf_counter,
) -> EngineChoice:
    """Chooses by rule, then by timing one cohort with each candidate.

    Args:
        task: What is trained.
        work: The job's local work, of each of its exchanges.
        sample: Examples of as many clients as work at once: one client's on a device, a cohort's in a simulation.
        received: Sections to try with; by default a fresh model, and zeros for what else is received.
        pinned: A name that ends the matter; "" or "auto" to choose.
        timer: Seconds; an argument so that tests need no clock.

    Returns:
        The choice. `sequential` is always a candidate and the reference the others must agree with.

    Raises:
        InputError: If the pinned name is unknown or there is no sample.
        MisfitError: If the pinned engine does not serve the task, or does not answer what the work asks.
    """
    works = [work] if isinstance(work, LocalWork) else list(work)
    if pinned not in ("", "auto"):
        engine = make_engine(pinned, task)
        for each in works:
            engine.check(each, {})
        return EngineChoice(engine, {}, {})
    clients = [sample] if isinstance(sample, Examples) else list(sample[:MAX_SAMPLE])
    if not clients:
        raise InputError("an engine cannot be chosen without examples. Give those of at least one client.")
    reference = make_engine("sequential", task)
    if reference.layout.size > LARGEST_STACKED:
        why = f"{reference.layout.size:,} parameters, more than {LARGEST_STACKED:,}"
        return EngineChoice(reference, {}, {"stacked": why, "dense": why})
    trial = _Trial(_received(initial_vector(task, Seeds(0)), works, received), works, clients, timer)
    try:
        expected, seconds = trial.run(reference)
    except Exception as error:  # the work itself will say so, with the client's name
        return EngineChoice(reference, {}, dict.fromkeys(("stacked", "dense"), f"the trial failed: {error}"))
    times, refused = {"sequential": seconds}, {}
    engines: dict[str, LocalEngine] = {"sequential": reference}
    for name in ("stacked", "dense"):
        try:
            engine = make_engine(name, task)
            found, seconds = trial.run(engine)
        except Exception as error:  # a user's code on what torch's transforms make of it
            refused[name] = next(iter(str(error).splitlines()), type(error).__name__)
            continue
        gap = float(np.abs(found - expected).max())
        if gap <= TOLERANCE:
            engines[name], times[name] = engine, seconds
        else:
            refused[name] = f"its updates differ from those of sequential by {gap:.1e}"
    best = min(times, key=lambda name: times[name])
    return EngineChoice(engines[best], times, refused)


def _received(model: Vector, works: Sequence[LocalWork], given: Bundle | None) -> Bundle:
    asked = {name: np.zeros_like(model) for work in works for name in work.receives}
    return {**asked, "model": model, **(given or {})}


@dataclass(frozen=True, slots=True)
class _Trial:
    received: Bundle
    works: list[LocalWork]
    sample: list[Examples]
    timer: Callable[[], float]

    def run(self, engine: LocalEngine) -> tuple[NDArray[np.floating], float]:
        """What is sent, as one vector, and the shorter of two timings; the first also warms up."""
        seeds = [Seeds(0).at("trial", index) for index in range(len(self.sample))]
        spans = []
        for _ in range(2):
            start = self.timer()
            done = [engine.work_cohort(w, self.received, [{}] * len(seeds), self.sample, seeds) for w in self.works]
            spans.append(self.timer() - start)
        sent = [np.ravel(array) for results in done for result in results for array in result.sent.values()]
        return np.concatenate(sent), min(spans)
