"""What every test may ask for; nothing here touches the network or another process."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

# One thread per process, before any BLAS is loaded: a fleet's processes share the cores, and so do tests.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")


@pytest.fixture(scope="session")
def repository() -> Path:
    """The folder that holds pyproject.toml."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of larger real data, or a skip that says what to set."""
    folder = os.environ.get("EDGEWISE_DATA")
    if not folder:
        pytest.skip("EDGEWISE_DATA is not set; this test needs the larger data sets")
    return Path(folder)


@pytest.fixture
def free_port() -> int:
    """A port nobody listens on at this moment."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.fixture(autouse=True)
def log_levels() -> Iterator[None]:
    """Gives loggers back their levels: a verb that runs in a test's process sets them for good."""
    before = {name: logging.getLogger(name).level for name in ("", "edgewise")}
    yield
    for name, level in before.items():
        logging.getLogger(name).setLevel(level)
