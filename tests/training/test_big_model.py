"""What a coordinator needs for a big model: the sum, one update or two models at a time, and slices."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.big_model import prepare, run_alone

ENTRIES, UPDATES = 2_000_000, 3
MODEL_BYTES = 4 * ENTRIES
SLICES_BYTES = 8 * 2**20
"""What does not grow with the model; little beside one of 100 million entries."""

pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads a process's memory from /proc")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("round")
    prepare(folder, ENTRIES, UPDATES)
    return {on_disk: run_alone(folder, ENTRIES, UPDATES, on_disk=on_disk) for on_disk in (False, True)}


def test_with_the_sum_in_memory_a_round_peaks_at_four_models(runs):
    assert runs[False]["peak_bytes"] <= 4 * MODEL_BYTES + SLICES_BYTES


def test_with_the_sum_on_disk_a_round_peaks_at_two_models(runs):
    assert runs[True]["peak_bytes"] <= 2 * MODEL_BYTES + SLICES_BYTES


def test_where_the_sum_lies_changes_no_bit(runs):
    assert runs[False]["digest"] == runs[True]["digest"]
