"""Resources of a process are the operating system's numbers."""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from edgewise.core.ids import NodeId, Tier
from edgewise.ledger.resources import peak_memory_bytes, read_resources


def test_processor_seconds_are_those_of_the_process() -> None:
    first = read_resources(NodeId("a"), Tier.DEVICE)
    started = time.process_time()
    while time.process_time() - started < 0.05:
        pass
    used = read_resources(NodeId("a"), Tier.DEVICE).since(first).cpu_seconds
    assert 0.04 <= used <= time.process_time() - started + 0.05


def test_the_peak_rises_with_what_is_held() -> None:
    held = np.ones(8_000_000)
    assert peak_memory_bytes() >= held.nbytes


def test_the_peak_is_read_from_the_status_file(tmp_path: Path) -> None:
    (tmp_path / "status").write_text("Name:\tx\nVmHWM:\t    2048 kB\n")
    assert peak_memory_bytes(tmp_path / "status") == 2048 * 1024


def test_without_a_status_file_the_peak_is_that_of_getrusage(tmp_path: Path) -> None:
    unit = 1 if sys.platform == "darwin" else 1024
    assert peak_memory_bytes(tmp_path / "none") == resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def test_a_small_child_does_not_report_its_large_parents_peak() -> None:
    held = np.ones(40_000_000)
    code = "from edgewise.ledger.resources import peak_memory_bytes; print(peak_memory_bytes())"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert int(child.stdout) < held.nbytes
