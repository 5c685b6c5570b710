"""Measures what a node can do, at start, within a few milliseconds."""

from __future__ import annotations

import os
import platform
import time

import numpy as np

from edgewise.fleet.messages import Capability

_SIDE = 256
_REPEATS = 7


def measure_capability(*, dilation: float, active_power_w: float) -> Capability:
    """Measures this machine on one thread.

    Args:
        dilation: Factor by which this node stretches inference compute; the figure is divided by it.
        active_power_w: Modelled power while computing.

    Returns:
        Cores, memory, FLOP/s.
    """
    import psutil

    a = np.random.default_rng(0).standard_normal((_SIDE, _SIDE), dtype=np.float32)
    seconds = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        a @ a
        seconds.append(time.perf_counter() - start)
    return Capability(
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory_bytes=psutil.virtual_memory().total,
        flops=2 * _SIDE**3 / sorted(seconds)[_REPEATS // 2] / dilation,
        dilation=dilation,
        active_power_w=active_power_w,
        python=platform.python_version(),
    )
