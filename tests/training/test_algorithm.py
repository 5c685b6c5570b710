"""What is refused or warned of when parts are joined, and what joining them imports."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest

from edgewise.codecs import none, top_k
from edgewise.core.errors import MisfitError
from edgewise.core.spec import Spec
from edgewise.training.aggregate import weighted_mean
from edgewise.training.algorithms import fed_avg


def test_a_biased_uplink_without_error_feedback_warns():
    with pytest.warns(UserWarning, match=r"Wrap it: error_feedback\(top_k"):
        fed_avg(uplink=top_k(0.1))


def test_an_aggregator_that_reads_single_updates_cannot_stand_behind_a_mask():
    reading = dataclasses.replace(weighted_mean(), sees_single_updates=True)
    masked = dataclasses.replace(none(), spec=Spec("mask"))
    with pytest.raises(MisfitError, match=r"weighted_mean\(\) reads single updates, mask\(\) hides them"):
        fed_avg(aggregate=reading, uplink=masked)


def test_protocols_and_codecs_need_neither_torch_nor_scipy():
    code = (
        "import sys, edgewise.training.protocols.hierarchy_driver, edgewise.training.algorithms\n"
        "print([m for m in ('torch', 'scipy', 'onnx', 'PIL', 'matplotlib') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert found.stdout == "[]\n"
