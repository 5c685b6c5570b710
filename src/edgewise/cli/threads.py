"""How many threads a process takes where many share a machine."""

from __future__ import annotations

import os

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def one_thread() -> None:
    """One thread per process, as many processes share a machine; must come before numpy is imported."""
    for variable in THREAD_VARIABLES:
        os.environ.setdefault(variable, "1")
