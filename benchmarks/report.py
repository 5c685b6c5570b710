"""What every benchmark prints: medians with spread, its bars, and one closing JSON line."""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Bar:
    """One thing a benchmark promises.

    Attributes:
        what: The promise in words.
        bar: What was promised, e.g. "<= 2.0 x idle".
        measured: What was seen.
        holds: Whether it holds.
    """

    what: str
    bar: Any
    measured: Any
    holds: bool


@dataclass(frozen=True, slots=True)
class Spread:
    """Median and the quartiles around it of some repetitions."""

    median: float
    low: float
    high: float
    num: int

    def __str__(self) -> str:
        return f"{self.median:.4g} [{self.low:.4g} … {self.high:.4g}] (n={self.num})"


def spread(values: Sequence[float]) -> Spread:
    """Summarises repetitions.

    Args:
        values: At least one number.

    Returns:
        Median, first and third quartile, count.
    """
    ordered = sorted(values)
    return Spread(statistics.median(ordered), quantile(ordered, 0.25), quantile(ordered, 0.75), len(ordered))


def quantile(values: Sequence[float], fraction: float) -> float:
    """The smallest value with at least `fraction` of the values at or below it (nearest rank).

    Args:
        values: At least one number, any order.
        fraction: In (0, 1].

    Returns:
        One of the values.
    """
    ordered = sorted(values)
    return ordered[max(0, min(len(ordered) - 1, -int(-fraction * len(ordered) // 1) - 1))]


def print_row(what: str, values: Sequence[float], unit: str) -> None:
    """Prints one line of a table: name, median with quartiles, unit."""
    print(f"  {what:<46} {spread(values)} {unit}", flush=True)


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cores": cores,
        "cpu": _cpu(),
        "system": platform.system(),
        "python": platform.python_version(),
        "load_1min": round(os.getloadavg()[0], 2),
    }


def close(name: str, figures: Mapping[str, Any], bars: Iterable[Bar]) -> None:
    """Prints the bars and the closing JSON line; ends the program with 1 if a bar fails.

    Args:
        name: The benchmark's module name.
        figures: Everything measured, JSON values.
        bars: The promises.

    Raises:
        SystemExit: With code 1 if a bar does not hold.
    """
    bars = list(bars)
    for bar in bars:
        print(f"  {'holds ' if bar.holds else 'FAILS '} {bar.what}: {bar.measured} (bar: {bar.bar})")
    line = {
        "benchmark": name,
        "machine": machine(),
        "figures": dict(figures),
        "bars": [asdict(bar) for bar in bars],
    }
    print(json.dumps(line, default=_number), flush=True)
    if not all(bar.holds for bar in bars):
        sys.exit(1)


def _number(value: Any) -> Any:
    if isinstance(value, Spread):
        return asdict(value)
    if hasattr(value, "item"):
        return value.item()
    raise TypeError(f"{value!r} cannot be written as JSON.")


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()
