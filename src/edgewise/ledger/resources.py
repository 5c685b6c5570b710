"""Reads processor seconds and peak memory of a process from the operating system's counters."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import msgspec

from edgewise.core.ids import NodeId, Tier


class Resources(msgspec.Struct, frozen=True):
    """Holds the resources one node has used so far.

    Attributes:
        node: Whose process.
        tier: Where it stands.
        cpu_seconds: User and system time of the process, all threads.
        peak_memory_bytes: Largest resident set since the process began.
    """

    node: NodeId
    tier: Tier
    cpu_seconds: float
    peak_memory_bytes: int

    def since(self, earlier: Resources) -> Resources:
        """Returns the use since an earlier reading; the peak memory is the later one's."""
        return msgspec.structs.replace(self, cpu_seconds=self.cpu_seconds - earlier.cpu_seconds)


def read_resources(node: NodeId, tier: Tier) -> Resources:
    """Reads this process's counters.

    Args:
        node: Its node.
        tier: Where it stands.

    Returns:
        The use so far.
    """
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return Resources(node, tier, usage.ru_utime + usage.ru_stime, peak_memory_bytes())


def peak_memory_bytes(status: Path = Path("/proc/self/status")) -> int:
    """Returns the peak resident memory of this process.

    Linux keeps a parent's peak in `ru_maxrss` across fork and exec, so a small process started by a large one would
    report the large one's; `VmHWM` belongs to the process's own memory.

    Args:
        status: Where Linux tells it.

    Returns:
        Bytes; from `ru_maxrss` where there is no such file.
    """
    try:
        line = next(text for text in status.read_text().splitlines() if text.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    except (OSError, StopIteration):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
