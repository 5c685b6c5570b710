"""What a process grows by while it works: samples of it over time, and a slope with an interval that bursts and steps are part of.

The slope is Theil and Sen's (the median of all pairs' slopes) of medians over equal pieces of work, after a warm-up. Its interval is a
moving-block bootstrap of the residuals, since what memory does in one moment it does in the next: samples are not independent.

Reference:
    Sen, "Estimates of the Regression Coefficient Based on Kendall's Tau", JASA 63, 1968.
    Künsch, "The Jackknife and the Bootstrap for General Stationary Observations", Annals of Statistics 17(3), 1989.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

WARM_UP_FRACTION = 0.25
"""Of the work, before which samples do not count: imports, pools and caches fill."""
NUM_PIECES, NUM_RESAMPLES = 48, 2000
FLAT = 1.5
"""Descriptors or threads that the last quarter may have above the first after the warm-up, as medians."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One look at a process.

    Attributes:
        work: Rounds or requests done by then, of the whole fleet.
        rss_bytes: Resident memory.
        num_fds, num_threads: Of the process.
    """

    work: float
    rss_bytes: int
    num_fds: int
    num_threads: int


@dataclass(frozen=True, slots=True)
class Slope:
    """What a process grows by.

    Attributes:
        per_unit: Bytes for each unit of work.
        low, high: Of its 95 % interval.
    """

    per_unit: float
    low: float
    high: float


def look_at(pid: int, work: float) -> Sample | None:
    """Looks at a process; None if it is gone.

    Args:
        pid: Which.
        work: What is done by now.
    """
    folder = Path(f"/proc/{pid}")
    try:
        fields = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines() if ":" in line)
        num_fds = len(list((folder / "fd").iterdir()))
        return Sample(work, int(fields["VmRSS"].split()[0]) * 1024, num_fds, int(fields["Threads"]))
    except (OSError, KeyError):
        return None


def slope_of(samples: Sequence[Sample], seed: int = 0) -> Slope | None:
    """The slope of memory over work after the warm-up; None with too few samples.

    Args:
        samples: In order of work.
        seed: Of the resampling.
    """
    found = _pieces(samples)
    if found is None:
        return None
    work, memory = found
    slope = _theil_sen(work, memory)
    level = float(np.median(memory - slope * work))
    residuals = memory - level - slope * work
    rng, length = np.random.default_rng(seed), max(2, round(len(work) ** 0.5))
    starts = rng.integers(0, len(work), (NUM_RESAMPLES, -(-len(work) // length)))
    places = (starts[:, :, None] + np.arange(length)).reshape(NUM_RESAMPLES, -1)[:, : len(work)] % len(work)
    slopes = [_theil_sen(work, level + slope * work + residuals[place]) for place in places]
    low, high = np.quantile(slopes, (0.025, 0.975))
    return Slope(slope, float(low), float(high))


def flatness(samples: Sequence[Sample]) -> tuple[float, float]:
    """By how much descriptors and threads of the last quarter are above those of the first after the warm-up, as medians."""
    counted = _after_warm_up(samples)
    quarter = max(1, len(counted) // 4)
    first, last = counted[:quarter], counted[-quarter:]
    fds = np.median([s.num_fds for s in last]) - np.median([s.num_fds for s in first])
    threads = np.median([s.num_threads for s in last]) - np.median([s.num_threads for s in first])
    return float(fds), float(threads)


def _after_warm_up(samples: Sequence[Sample]) -> list[Sample]:
    begin = samples[0].work + WARM_UP_FRACTION * (samples[-1].work - samples[0].work)
    return [sample for sample in samples if sample.work >= begin]


def _pieces(samples: Sequence[Sample]) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Medians of work and memory over equal pieces of work."""
    if len(samples) < 16 or samples[-1].work <= samples[0].work:
        return None
    counted = _after_warm_up(samples)
    work = np.array([sample.work for sample in counted], float)
    memory = np.array([sample.rss_bytes for sample in counted], float)
    edges = np.linspace(work[0], work[-1], NUM_PIECES + 1)
    place = np.clip(np.searchsorted(edges, work, side="right") - 1, 0, NUM_PIECES - 1)
    there = [n for n in range(NUM_PIECES) if (place == n).any()]
    if len(there) < 8:
        return None
    return np.array([np.median(work[place == n]) for n in there]), np.array(
        [np.median(memory[place == n]) for n in there]
    )


def _theil_sen(work: NDArray[np.float64], memory: NDArray[np.float64]) -> float:
    first, second = np.triu_indices(len(work), 1)
    return float(np.median((memory[second] - memory[first]) / (work[second] - work[first])))
