"""Being slow on purpose: what a piece of work takes on this machine undisturbed, and waiting for a multiple of it."""

from __future__ import annotations

import time
from collections.abc import Callable

# Below this the wait is spun, for `time.sleep` returns late by about as much.
_SPIN_S = 150e-6
_BURSTS = 3
_BURST_RUNS = 7
_BURST_GAP_S = 0.002
_ENOUGH_S = 0.1
MEASUREMENTS = 8
MEASURING_S, MEASURING_RUNS = 2 * _BURSTS * _BURST_GAP_S, 2 * _BURSTS * _BURST_RUNS
"""Measuring again takes no longer than this and so many runs, also on a busy machine."""


def wait_precisely(seconds: float) -> None:
    """Waits in this thread to within tens of microseconds: sleeps, then spins the last 0.15 ms.

    Args:
        seconds: How long; nothing happens if it is not positive.
    """
    end = time.perf_counter() + seconds
    if seconds > _SPIN_S:
        time.sleep(seconds - _SPIN_S)
    while time.perf_counter() < end:
        pass


def undisturbed_s(run: Callable[[], object]) -> float:
    """The processor's seconds of something on this machine, when nothing disturbs it.

    Bursts of runs with pauses between; the least of their medians. Other processes do not count, nor what the host of a
    virtual machine took, nor a cold cache: on an emulated slow device all that would not be so many times slower.

    Args:
        run: What is measured; it has run before. Repeated up to 21 times, or for a tenth of a second of the processor: on a
            machine with more processes than cores the clock would be up after a single run.

    Returns:
        Seconds.
    """
    medians, spent = list[float](), 0.0
    for _ in range(_BURSTS):
        taken: list[float] = []
        while len(taken) < _BURST_RUNS and (not taken or spent < _ENOUGH_S):
            busy = time.thread_time()
            run()
            taken.append(time.thread_time() - busy)
            spent += taken[-1]
        medians.append(sorted(taken)[len(taken) // 2])
        if spent >= _ENOUGH_S:
            break
        time.sleep(_BURST_GAP_S)
    return min(medians)
