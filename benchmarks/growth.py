"""What a process grows by while it works: samples of it over time, and a slope with an interval that bursts and steps are part of.

The slope is Theil and Sen's (the median of all pairs' slopes) of medians over equal pieces of work, after a warm-up. Its interval is
Student's, for as many pieces as are independent: what memory does in one moment it does in the next, so the pieces' residuals are
taken for an autoregression of the first order, whose lag is corrected for the length of the series.

Reference:
    Sen, "Estimates of the Regression Coefficient Based on Kendall's Tau", JASA 63, 1968.
    Matalas & Sankarasubramanian, "Effect of persistence on trend detection via regression", Water Resources Research 39(12), 2003.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t

WARM_UP_FRACTION = 0.25
"""Of the work, before which samples do not count: imports, pools and caches fill."""
NUM_PIECES, MOST_LAG = 48, 0.95
FLAT = 1.5
"""Descriptors or threads that may be there more at the end than after the warm-up, where they grew again and again."""


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


def slope_of(samples: Sequence[Sample]) -> Slope | None:
    """The slope of memory over work after the warm-up; None with too few samples.

    Args:
        samples: In order of work.
    """
    found = _pieces(samples)
    if found is None:
        return None
    work, memory = found
    slope = _theil_sen(work, memory)
    residuals = memory - slope * work
    residuals -= residuals.mean()
    lag = float(np.corrcoef(residuals[:-1], residuals[1:])[0, 1]) if residuals.std() > 0 else 0.0
    num = len(work)
    lag = min(max(lag + (1 + 4 * max(lag, 0.0)) / num, 0.0), MOST_LAG)  # a short series shows less of it than there is
    independent = max(3.0, num * (1 - lag) / (1 + lag))
    variance = float(residuals @ residuals) / (num - 2) / float(((work - work.mean()) ** 2).sum()) * num / independent
    half = float(t.ppf(0.975, independent - 2)) * variance**0.5
    return Slope(slope, slope - half, slope + half)


def flatness(samples: Sequence[Sample]) -> tuple[float, float]:
    """By how much descriptors and threads grew again and again after the warm-up.

    A pool that takes one more thread at a burst keeps it, and a leak never stops: what rises in one quarter of the work only is no
    growth. Of what rises from quarter to quarter, medians are compared, the last with the first.
    """
    counted = _after_warm_up(samples)
    quarters = [part for part in np.array_split(np.arange(len(counted)), 4) if len(part)]

    def grown(numbers: Sequence[int]) -> float:
        medians = [float(np.median([numbers[n] for n in part])) for part in quarters]
        rises = sum(after > before for before, after in pairwise(medians))
        return medians[-1] - medians[0] if rises > 1 else 0.0

    return grown([s.num_fds for s in counted]), grown([s.num_threads for s in counted])


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
