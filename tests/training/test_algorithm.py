"""What is warned of when parts are joined, and what joining them imports; what is refused is in `test_aggregate.py`."""

from __future__ import annotations

import subprocess
import sys

import pytest

from edgewise.codecs import top_k
from edgewise.training.algorithms import fed_avg


def test_a_biased_uplink_without_error_feedback_warns():
    with pytest.warns(UserWarning, match=r"Wrap it: error_feedback\(top_k"):
        fed_avg(uplink=top_k(0.1))


def test_protocols_and_codecs_need_neither_torch_nor_scipy():
    code = (
        "import sys, edgewise.training.protocols, edgewise.training.algorithms, edgewise.training.client_update\n"
        "print([m for m in ('torch', 'scipy', 'onnx', 'PIL', 'matplotlib') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert found.stdout == "[]\n"
